"""What shadow traffic showed: answers to copies of requests beside those that users got."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tuneproof.app.spending import Spending
from tuneproof.errors import NotFoundError
from tuneproof.experiments import Arm, Requests
from tuneproof.experiments.histories import shadow_of
from tuneproof.settings import Settings, Shadow
from tuneproof.stats.effects import quantile
from tuneproof.store import ArmStratum, Store
from tuneproof.workflow import Clock

__all__ = ["Answers", "ShadowReport", "ShadowService", "ShadowWeek"]

SHOWN = timedelta(weeks=8)
"""How far back weeks are shown."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """All answers of one side to the same requests. Latencies in ms, to the end of an answer.

    `tokens` and `cost_usd` are sums over the answers of which they are known.
    """

    requests: int
    errors: int
    mean_latency_ms: float | None
    p50_latency_ms: float | None
    p95_latency_ms: float | None
    tokens: int
    cost_usd: float

    @classmethod
    def of(cls, requests: Requests, stratum: ArmStratum | None) -> Answers:
        """From the sums of an arm."""
        known = requests.latency
        p50, p95 = (
            quantile(known, q).value if known is not None and known.n else None for q in (0.5, 0.95)
        )
        return cls(
            requests=requests.n,
            errors=requests.errors,
            mean_latency_ms=requests.mean_latency_ms,
            p50_latency_ms=p50,
            p95_latency_ms=p95,
            tokens=stratum.tokens if stratum else 0,
            cost_usd=stratum.cost_usd if stratum else 0.0,
        )


@dataclass(frozen=True, kw_only=True)
class ShadowWeek:
    """A model's answers in a week (from Monday, UTC), and the users' to the same requests."""

    subject: str
    model: str
    began: datetime
    baseline: Answers
    shadow: Answers


@dataclass(frozen=True, kw_only=True)
class ShadowReport:
    """A task's shadow as it is set now, None where none is; and what all of late showed."""

    task: str
    shadow: Shadow | None
    spent_usd: float
    weeks: Sequence[ShadowWeek]


class ShadowService:
    """What can be asked of shadow traffic."""

    def __init__(
        self, *, settings: Settings, store: Store, clock: Clock, spending: Spending
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._spending = spending

    async def read(self, task: str) -> ShadowReport:
        """What the task's shadows showed, the newest week first.

        Raises `NotFoundError` for a task that the settings do not know.
        """
        if task not in self._settings.tasks:
            known = ", ".join(self._settings.tasks)
            raise NotFoundError(f"There is no task {task!r}.", mend=f"Known are: {known}.")
        shadow = self._settings.shadows.get(task)
        found = await self._store.histories.shadows(task, self._clock.now() - SHOWN)
        return ShadowReport(
            task=task,
            shadow=shadow,
            spent_usd=0.0 if shadow is None else self._spending.spent_usd(shadow.name),
            weeks=[await self._week(task, subject, began) for subject, began in found],
        )

    async def _week(self, task: str, subject: str, began: datetime) -> ShadowWeek:
        requests = await self._store.events.requests(subject)
        strata = {one.arm: one for one in await self._store.events.strata(subject)}

        def answers(arm: Arm) -> Answers:
            return Answers.of(requests.get(arm, Requests()), strata.get(arm))

        return ShadowWeek(
            subject=subject,
            model=subject.removeprefix(shadow_of(task, "", began)),
            began=began,
            baseline=answers(Arm.BASELINE),
            shadow=answers(Arm.CANDIDATE),
        )
