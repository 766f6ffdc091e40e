"""What a person should know of, as gauges: what is late, broken, missing, or nearly used up.

It is read from the store each minute, so it is the same at every worker and after a restart. What
counts on, such as how long a look is overdue, does so between two readings. What is not known has
no series; neither has anything once the store has not been read for three minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from tuneproof import workflow
from tuneproof.app.pipelines import Pipelines
from tuneproof.app.shutdowns import Shutdowns
from tuneproof.app.spending import Spending
from tuneproof.app.watches import Watchdog
from tuneproof.assignment import in_lane
from tuneproof.experiments import ABTest, Arm, Evidence, ExperimentStatus, broken_split
from tuneproof.pipeline import Stage
from tuneproof.pipeline.preflight import month_of
from tuneproof.rollout import Deployment, DeploymentState
from tuneproof.settings import PipelineConfig, Settings
from tuneproof.store import Run, Store
from tuneproof.telemetry import Metrics

__all__ = ["Concerns"]

READ_FOR = timedelta(minutes=3)
"""How long what was read is shown."""

STAGE_MAY_TAKE = timedelta(hours=1)
"""How long a stage that works may take; training as long as its jobs may, beside that."""

BEGINS_WITHIN = timedelta(minutes=10)
"""How long after it was asked for a run's first stage should have begun."""

LATE_STAYS = timedelta(days=1)
"""For so long after a test or rollout has ended, its broken split is shown."""

DUE_WITHIN = timedelta(days=1)
"""The units whose outcomes are counted: those that were due in the last day."""

LEAST_DUE = 20
"""Of fewer units than this nobody can say whether outcomes are missing."""

WAITING = (Stage.EXPERIMENT, Stage.ROLLOUT)
"""Stages that last for days, which the watches of tests and rollouts look after."""

Value = float | Callable[[datetime], float]
"""A number, or what it is at an instant."""

Found = tuple[str, tuple[str, ...], Value]
"""A gauge by name, the values of its labels, its value."""


class Concerns:
    """Reads them. `tracked`: whether there is an MLflow that the outbox is emptied into."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        clock: workflow.Clock,
        metrics: Metrics,
        pipelines: Pipelines,
        watchdog: Watchdog,
        shutdowns: Shutdowns,
        spending: Spending,
        tracked: bool,
        now: Callable[[], datetime] = workflow.SystemClock().now,
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._pipelines = pipelines
        self._watchdog = watchdog
        self._shutdowns = shutdowns
        self._spending = spending
        self._tracked = tracked
        self._now = now
        self._found: Sequence[Found] = ()
        self._read_at: datetime | None = None
        metrics.watch_concerns(self.values)

    def values(self) -> Sequence[tuple[str, tuple[str, ...], float]]:
        """Gauge, labels and value of all that is known now."""
        if self._read_at is None or self._now() - self._read_at > READ_FOR:
            return ()
        now = self._clock.now()
        return [(n, of, v(now) if callable(v) else v) for n, of, v in self._found]

    async def refresh(self) -> None:
        """Read the store."""
        found = [*await self._watches(), *await self._outbox()]
        for config in self._pipelines.running:
            found += await self._of(config)
        found += self._daily_budgets()
        self._found, self._read_at = found, self._now()

    async def _of(self, config: PipelineConfig) -> list[Found]:
        """What there is to know of one pipeline."""
        name = config.name
        tests = (await self._store.experiments.page(name, limit=1)).items
        if tests:
            tests = tuple(await self._store.experiments.family(tests[0].family))
        rollouts = (await self._store.deployments.page(name, limit=1)).items
        return [
            *await self._runs(name),
            *_rollbacks(name, rollouts),
            *await self._splits(name, tests, rollouts),
            *await self._under_way(config, tests, rollouts),
            *await self._shutdown(config),
            *await self._budgets(config),
        ]

    # --- late ---------------------------------------------------------------------------

    async def _watches(self) -> list[Found]:
        """By how much the most overdue look of each pipeline is overdue; below 0: until then."""
        due: dict[str, datetime] = {}
        for state in await self._watchdog.states():
            due[state.pipeline] = min(due.get(state.pipeline, state.due_at), state.due_at)
        return [("watch_overdue_seconds", (name,), _since(at)) for name, at in due.items()]

    async def _runs(self, pipeline: str) -> list[Found]:
        """By how much the run that a pipeline is at is over its time; below 0: what is left."""
        due: dict[str, datetime] = {}
        for run in await self._store.runs.active(pipeline):
            if run.status is not workflow.RunStatus.HOLDING and run.current_stage not in WAITING:
                stage = run.current_stage or ""
                due[stage] = min(due.get(stage, _due(run)), _due(run))
        return [("run_overdue_seconds", (pipeline, s), _since(at)) for s, at in due.items()]

    async def _outbox(self) -> list[Found]:
        if not self._tracked:
            return []
        pending, oldest = await self._store.outbox.backlog()
        found: list[Found] = [("outbox_pending", (), float(pending))]
        if oldest is not None:
            found.append(("outbox_oldest_seconds", (), _since(oldest)))
        return found

    # --- broken, missing ----------------------------------------------------------------

    async def _splits(
        self, pipeline: str, tests: Sequence[ABTest], rollouts: Sequence[Deployment]
    ) -> list[Found]:
        """Whether units come in other shares than were set: of the newest test or rollout, while
        it is under way, and for a day after it."""
        since = self._clock.now() - LATE_STAYS
        judged = [
            *[(t.id, t.lane, t.lanes) for t in tests if not await self._over(t, since)],
            *[(d.id, 0, 1) for d in rollouts if d.ended_at is None or d.ended_at > since],
        ]
        broken = [await self._broken(*one) for one in judged]
        return [("split_broken", (pipeline,), float(any(broken)))] if broken else []

    async def _over(self, test: ABTest, since: datetime) -> bool:
        """Whether a test had its last look before this instant."""
        if test.status is ExperimentStatus.RUNNING:
            return False
        look = await self._store.experiments.last_look(test.id)
        return look is None or look.at <= since

    async def _broken(self, subject: str, lane: int, lanes: int) -> bool:
        phases = await self._store.experiments.phases(subject)
        shares = {p.number: in_lane(p.share, lane, lanes) for p in phases}
        exposed = await self._store.events.exposed(subject)
        known = {key: n for key, n in exposed.items() if key[0] in shares}
        return bool(broken_split(Evidence(exposed=known, shares=shares)))

    async def _under_way(
        self, config: PipelineConfig, tests: Sequence[ABTest], rollouts: Sequence[Deployment]
    ) -> list[Found]:
        """What is known of the units and requests of a test or rollout that is under way."""
        subjects = [
            *(t.id for t in tests if t.status is ExperimentStatus.RUNNING),
            *(d.id for d in rollouts if d.ended_at is None),
        ]
        return [
            *await self._outcomes(config, subjects),
            *await self._requests(config.name, subjects),
        ]

    async def _outcomes(self, config: PipelineConfig, subjects: Sequence[str]) -> list[Found]:
        """The share of the units whose outcomes were due in the last day that have theirs."""
        until = self._clock.now() - timedelta(hours=config.maturation_hours)
        due = told = 0
        for subject in subjects:
            for sign, before in ((1, until), (-1, until - DUE_WITHIN)):
                for arm in await self._store.events.strata(subject, before=before):
                    due += sign * max(arm.exposed, arm.units.n)
                    told += sign * arm.units.n
        return [("outcomes_share", (config.name,), told / due)] if due >= LEAST_DUE else []

    async def _requests(self, pipeline: str, subjects: Sequence[str]) -> list[Found]:
        """The share of the requests of each arm that failed."""
        asked, failed = dict.fromkeys(Arm, 0), dict.fromkeys(Arm, 0)
        for subject in subjects:
            for arm, requests in (await self._store.events.requests(subject)).items():
                asked[arm] += requests.n
                failed[arm] += requests.errors
        return [
            ("arm_error_share", (pipeline, str(arm)), failed[arm] / n)
            for arm, n in asked.items()
            if n
        ]

    # --- nearly used up -----------------------------------------------------------------

    async def _shutdown(self, config: PipelineConfig) -> list[Found]:
        found = await self._shutdowns.known(config)
        if found is None:
            return []
        return [("model_shutdown_seconds", (config.name, found.model), _until(found.at))]

    async def _budgets(self, config: PipelineConfig) -> list[Found]:
        """The shares of a pipeline's budgets that are used: training's of the month, scoring's of
        the day."""
        now, found = self._clock.now(), list[Found]()
        if config.max_cost_usd_month:
            spent = await self._store.runs.spent_usd(config.name, since=month_of(now))
            found.append(_used("training", config.name, spent, config.max_cost_usd_month))
        if config.quality_scorer and config.quality_cost_usd_day:
            scored = await self._store.scores.spent(config.name, f"{now:%Y-%m-%d}")
            found.append(
                _used("scoring", config.name, scored.cost_usd, config.quality_cost_usd_day)
            )
        return found

    def _daily_budgets(self) -> Iterator[Found]:
        """The same of shadow traffic, by task, and of callers of the relay, by name."""
        shadows = {shadow.name: shadow for shadow in self._settings.shadows.values()}
        for shadow in shadows.values():
            if shadow.budget_usd:
                spent = self._spending.spent_usd(shadow.name)
                yield _used("shadow", shadow.task, spent, shadow.budget_usd)
        relay = self._settings.relay
        if relay.enabled and relay.budget_usd:
            for caller, spent in self._spending.today().items():
                if caller not in shadows:
                    yield _used("relay", caller, spent, relay.budget_usd)


def _since(at: datetime) -> Value:
    return lambda now: (now - at).total_seconds()


def _until(at: datetime) -> Value:
    return lambda now: (at - now).total_seconds()


def _used(budget: str, of: str, spent: float, limit: float) -> Found:
    return "budget_used_share", (budget, of), spent / limit


def _rollbacks(pipeline: str, rollouts: Sequence[Deployment]) -> list[Found]:
    """How long ago the newest rollout was taken back, if it was."""
    return [
        ("rollback_age_seconds", (pipeline,), _since(one.ended_at))
        for one in rollouts
        if one.state is DeploymentState.ROLLED_BACK and one.ended_at is not None
    ]


def _due(run: Run) -> datetime:
    """By when the stage that a run is at should be over, or should have begun."""
    stage = run.stages.get(run.current_stage or "", {})
    if not stage.get("started_at"):
        return run.created_at + BEGINS_WITHIN
    due = datetime.fromisoformat(stage["started_at"]) + _may_take(run)
    given_up = (stage.get("detail") or {}).get("gives_up_at")  # by when a job must have moved on
    return max(due, datetime.fromisoformat(given_up) + STAGE_MAY_TAKE) if given_up else due


def _may_take(run: Run) -> timedelta:
    if run.current_stage != Stage.TRAIN:
        return STAGE_MAY_TAKE
    told: Mapping[str, object] = run.config
    jobs = int(str(told.get("search_trials") or 1)) if told.get("search") else 1
    limit = told.get("timeout_seconds")
    return STAGE_MAY_TAKE + jobs * timedelta(seconds=limit if isinstance(limit, int | float) else 0)
