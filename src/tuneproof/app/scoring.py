"""Scores of the answers that users of a running test were given: sampled, queued, asked, kept.

A text comes with its exposure, through the gateway or from the application, and is queued in the
exposure's own transaction. One worker asks the pipeline's scorer for it, within the day's budget.
A call is taken from the budget before it is made and a score is kept once: a kill loses no queued
text, counts none twice, and repeats at most the calls that it cut off.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from tuneproof.app.alerting import Alerting
from tuneproof.app.pipelines import Pipelines
from tuneproof.app.scorers import Scorers
from tuneproof.curation import redact
from tuneproof.errors import (
    ConfigError,
    NotFoundError,
    RetryableError,
    StopError,
    TuneProofError,
)
from tuneproof.evaluation import Scored, Text, ask, failed_usd, most_usd, sampled
from tuneproof.experiments import ABTest, Arm, Exposure
from tuneproof.resilience import Supervisor
from tuneproof.settings import PipelineConfig
from tuneproof.store import ScoringSpend, Store, Tally, Waiting
from tuneproof.telemetry import Metrics
from tuneproof.workflow import Clock

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""How often the queue is looked at while nothing waits."""

BATCH = 64
MAX_ATTEMPTS = 3
"""Calls that gave no score, such as an unreadable reply, before a text is dropped."""

PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(hours=1)
STOPPED_PAUSE = timedelta(minutes=10)
"""How long texts wait where a person must act first: a key, a quota, a model's name."""

GRACE_S = 5.0
"""How much longer than a judge's own time-out a scorer may take before it is broken off."""

MAX_TEXT = 20_000
MAX_MESSAGES = 50
REMEMBERED = 1000


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How the texts of a test stand: its scorer, its arms, what its pipeline spent today."""

    scorer: str | None
    arms: Mapping[Arm, Tally]
    today: ScoringSpend
    calls_day: int
    cost_usd_day: float | None
    waits: str | None = None
    """Why texts wait, as far as this process knows: the one that scores."""


class ScoringService:
    """Keeps scores coming for the running tests of pipelines that name a `quality_scorer`."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        metrics: Metrics,
        alert: Alerting,
        pipelines: Pipelines,
        scorers: Scorers,
    ) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._alert = alert
        self._pipelines = pipelines
        self._scorers = scorers
        self._plans: OrderedDict[str, tuple[ABTest, PipelineConfig] | None] = OrderedDict()
        self._scoring = asyncio.Lock()
        self._waits: dict[str, str] = {}
        self._scored_tasks = frozenset(
            task for c in pipelines.running if c.quality_scorer for task in c.tasks
        )

    async def watch(self, supervisor: Supervisor) -> None:
        """Score what waits from now on, where anything may."""
        if self._scored_tasks or await self._store.scores.pipelines_waiting():
            supervisor.every("scoring", LOOK_EVERY_S, self._score_more, leader="scoring")

    # --- taking texts in --------------------------------------------------------------

    async def texts_of(self, exposures: Sequence[Exposure]) -> Sequence[Text]:
        """Which answers among these are to be scored: of running tests, sampled by unit.

        Personal data is taken out first, or the text left out, as the settings say.
        """
        told = [e for e in exposures if e.text and not e.error] if self._scored_tasks else []
        plans = {subject: await self._plan(subject) for subject in {e.subject for e in told}}
        found = []
        for event in told:
            planned = plans[event.subject]
            text = None if planned is None else _text(event, *planned)
            if text is not None:
                found.append(text)
        return found

    def scores_task(self, task: str) -> bool:
        """Whether answers of this task are scored: else nobody need gather them."""
        return task in self._scored_tasks

    async def _plan(self, subject: str) -> tuple[ABTest, PipelineConfig] | None:
        """The test and its pipeline's settings, where its answers are scored."""
        if subject in self._plans:
            return self._plans[subject]
        planned = None
        try:
            test = await self._store.experiments.get(subject)
        except NotFoundError:
            return None  # a rollout, or nothing that we know
        config = self._pipelines.known.get(test.pipeline)
        if config is not None and config.quality_scorer is not None:
            planned = (test, config)
        self._plans[subject] = planned
        if len(self._plans) > REMEMBERED:
            self._plans.popitem(last=False)
        return planned

    # --- scoring ----------------------------------------------------------------------

    async def _score_more(self) -> bool:
        """Score a batch; whether another may wait."""
        return await self.score_waiting() > 0

    async def score_waiting(self) -> int:
        """Score a batch of the texts that are due, within the day's budget; how many ended.

        Texts that waited longer than `quality_keep_hours`, and those of tests that ended, are
        forgotten without a score.
        """
        async with self._scoring:
            known = self._pipelines.known
            await self._expire(known)
            batch = await self._store.scores.due(self._clock.now(), limit=BATCH)
            counting = {id: await self._counting(id) for id in {w.subject for w in batch}}
            slots: dict[str, asyncio.Semaphore] = {}
            waits: set[str] = set()

            async def one(waiting: Waiting) -> bool:
                config = known.get(waiting.pipeline)
                name = config.quality_scorer if config is not None else None
                if config is None or name is None:
                    due = self._clock.now() + LONGEST_PAUSE
                    await self._store.scores.postpone(waiting.key, due)
                    return False
                if not counting[waiting.subject]:
                    return await self._drop(waiting, "the test ended")
                width = self._scorers.config(name).concurrency
                async with slots.setdefault(name, asyncio.Semaphore(width)):
                    if waiting.pipeline in waits:
                        return False
                    ended = await self._score(waiting, config, name)
                    if ended is None:
                        waits.add(waiting.pipeline)
                    return bool(ended)

            done = await asyncio.gather(*map(one, batch), return_exceptions=True)
            for outcome in done:
                if isinstance(outcome, BaseException):
                    raise outcome
            return sum(outcome is True for outcome in done)

    async def _expire(self, known: Mapping[str, PipelineConfig]) -> None:
        now = self._clock.now()
        for name in await self._store.scores.pipelines_waiting():
            config = known.get(name) or PipelineConfig()
            before = now - timedelta(hours=config.quality_keep_hours)
            gone = await self._store.scores.expire(name, before, now)
            if gone:
                self._metrics.texts_scored(name, "dropped", gone)
                log.warning(
                    "%d answers of %s waited longer than %g h for a score and were forgotten.",
                    gone,
                    name,
                    config.quality_keep_hours,
                )

    async def _counting(self, subject: str) -> bool:
        """Whether a score of this test can still count."""
        test = await self._store.experiments.get(subject)
        return test.counts(self._clock.now())

    async def _score(self, waiting: Waiting, config: PipelineConfig, name: str) -> bool | None:
        """Ask for one score: whether the text ended; None where the pipeline's all must wait."""
        scorer, now = self._scorers.find(name), self._clock.now()
        most = most_usd(scorer, waiting.messages, waiting.text)
        day = f"{now.astimezone(UTC):%Y-%m-%d}"
        fits = await self._store.scores.reserve(
            config.name,
            day,
            most,
            max_calls=config.quality_calls_day,
            max_cost_usd=config.quality_cost_usd_day,
        )
        if not fits:
            await self._wait_for_budget(config, now)
            return None
        try:
            async with asyncio.timeout(self._scorers.config(name).timeout_seconds + GRACE_S):
                found = await ask(scorer, waiting.messages, waiting.text)
        except (RetryableError, StopError, ConfigError, NotFoundError) as error:
            await self._store.scores.settle(config.name, day, most, 0.0, called=False)
            await self._wait_for_scorer(config, name, error)
            return None
        except asyncio.CancelledError:
            raise  # the call stays in the budget: it may have been answered
        except Exception as error:  # the scorer may be anybody's, and raise anything
            await self._store.scores.settle(config.name, day, most, failed_usd(error, most))
            return await self._failed(waiting, name, error)
        return await self._keep(waiting, config, name, day, most, found)

    async def _keep(
        self,
        waiting: Waiting,
        config: PipelineConfig,
        name: str,
        day: str,
        most: float,
        found: Scored,
    ) -> bool:
        self._waits.pop(config.name, None)
        clean, now = replace(found, reason=redact(found.reason)), self._clock.now()
        async with self._store.database.begin() as tx:
            await self._store.scores.settle(config.name, day, most, found.cost_usd, tx=tx)
            kept = await self._store.scores.finish(waiting.key, name, clean, now, tx=tx)
        if kept:
            self._metrics.texts_scored(waiting.pipeline, "scored", 1, found.cost_usd)
        return kept

    async def _drop(self, waiting: Waiting, reason: str) -> bool:
        dropped = await self._store.scores.drop(waiting.key, reason, self._clock.now())
        if dropped:
            self._metrics.texts_scored(waiting.pipeline, "dropped", 1)
        return dropped

    async def _wait_for_scorer(
        self, config: PipelineConfig, name: str, error: TuneProofError
    ) -> None:
        """The scorer cannot be asked now: no text is at fault, so all keep their places."""
        after, pause = error.details.get("retry_after_s"), PAUSE
        what = f"the scorer {name!r} does not answer."
        if not isinstance(error, RetryableError):
            pause, what = STOPPED_PAUSE, f"the scorer {name!r} cannot be asked."
            today = f"{self._clock.now():%Y-%m-%d}"
            self._alert("scoring_stopped", config.name, f"{what} {error}", once=today)
        elif isinstance(after, int | float) and after > 0:
            pause = timedelta(seconds=after)
        self._say(config.name, what, error)
        due = self._clock.now() + min(pause, LONGEST_PAUSE)
        await self._store.scores.postpone_all(config.name, due)

    async def _failed(self, waiting: Waiting, name: str, error: Exception) -> bool:
        """This text got no score: tried again twice, then dropped."""
        said = f"{error}" or type(error).__name__
        if waiting.attempts + 1 >= MAX_ATTEMPTS:
            log.warning("Scorer %r gave no score in %d tries: %s", name, MAX_ATTEMPTS, said)
            return await self._drop(waiting, f"no score in {MAX_ATTEMPTS} tries")
        due = self._clock.now() + PAUSE * 2**waiting.attempts
        await self._store.scores.postpone(waiting.key, due, failed=True)
        return False

    async def _wait_for_budget(self, config: PipelineConfig, now: datetime) -> None:
        """Until the next day (UTC), but look every hour: the budget may be raised."""
        midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        due = min(midnight + timedelta(days=1), now + LONGEST_PAUSE)
        self._say(config.name, "today's budget is used up.")
        await self._store.scores.postpone_all(config.name, due)

    def _say(self, pipeline: str, what: str, error: Exception | None = None) -> None:
        """Log why a pipeline's texts wait, once until it is something else."""
        before, self._waits[pipeline] = (
            self._waits.get(pipeline, ""),
            f"{what} {error or ''}".strip(),
        )
        if not before.startswith(what):
            log.warning("Answers of %s wait for their scores: %s", pipeline, self._waits[pipeline])

    # --- what came of it --------------------------------------------------------------

    async def of(self, ab_test_id: str) -> Scoring:
        """How the texts of a test stand. Raises `NotFoundError`."""
        test = await self._store.experiments.get(ab_test_id)
        config = self._pipelines.known.get(test.pipeline) or PipelineConfig()
        day = f"{self._clock.now().astimezone(UTC):%Y-%m-%d}"
        return Scoring(
            scorer=config.quality_scorer,
            arms=await self._store.scores.tally(ab_test_id),
            today=await self._store.scores.spent(test.pipeline, day),
            calls_day=config.quality_calls_day,
            cost_usd_day=config.quality_cost_usd_day,
            waits=self._waits.get(test.pipeline),
        )


def _text(event: Exposure, test: ABTest, config: PipelineConfig) -> Text | None:
    """What is queued of an exposure; None where its unit is not sampled, or must be left out."""
    split = min(test.declaration.traffic_split * test.lanes, 0.5)
    if not sampled(test.id, event.unit, event.arm, share=config.quality_share, split=split):
        return None
    messages = [
        {"role": _clean(m.get("role", "")), "content": _clean(m.get("content", ""))}
        for m in event.messages[-MAX_MESSAGES:]
    ]
    text = _clean(event.text or "")
    if config.quality_personal_data != "keep":
        redacted = [{**m, "content": redact(m["content"])} for m in messages]
        redacted_text = redact(text)
        touched = redacted != messages or redacted_text != text
        if touched and config.quality_personal_data == "drop":
            return None
        messages, text = redacted, redacted_text
    return Text(
        subject=event.subject,
        pipeline=test.pipeline,
        unit=event.unit,
        task=event.task,
        arm=str(event.arm),
        at=event.at,
        messages=messages,
        text=text,
    )


def _clean(text: str) -> str:
    """A text as every database keeps it: no NUL, no lone surrogates, of bounded length."""
    cut = text[:MAX_TEXT]
    return cut.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")
