"""Use cases of runs: start, follow, abort, retry; and the schedule."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from tuneproof import workflow
from tuneproof.app.core import Core
from tuneproof.app.providing import apart
from tuneproof.errors import ConfigError, NotFoundError, StateError, TuneProofError
from tuneproof.pipeline import RunArguments, Stage, StepName, turn
from tuneproof.settings import PipelineConfig
from tuneproof.store import Page, Run, RunStatus
from tuneproof.training import ModelVersion

FIRST_STEP = {
    Stage.COLLECT: StepName.COLLECT_BEGIN,
    Stage.CURATE: StepName.COLLECT_BEGIN,
    Stage.TRAIN: StepName.TRAIN_BEGIN,
    Stage.GATE: StepName.GATE_BEGIN,
    Stage.EXPERIMENT: StepName.EXPERIMENT_BEGIN,
    Stage.ROLLOUT: StepName.ROLLOUT_BEGIN,
}
"""Where a run is taken up again to repeat a stage."""

POLL_S = 0.2

SCHEDULE_EVERY_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Aborted:
    """What an abort did. `cleanup_status` is pending until the run has ended."""

    run: Run
    cleanup_status: str
    resources_cleaned: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One line of a run's log."""

    at: datetime
    level: str
    stage: str
    message: str


class Runs(Core):
    """What can be asked of runs."""

    _settled = False
    """Whether this process has taken back what came along with providers that moved."""

    async def start_run(
        self,
        pipeline: str | PipelineConfig = "default",
        *,
        config_overrides: Mapping[str, Any] | None = None,
        force: bool = False,
        posts: str | None = None,
        as_of: datetime | None = None,
        last_stage: str | None = None,
        actor: str = "system",
    ) -> Run:
        """Start one turn of the loop.

        `force` goes on with fewer examples than the threshold. Raises `StateError` with
        `reason` "predecessor_running" while a run of the pipeline is before `holding`. Where the
        pipeline's tasks train apart, a run of each is started and the first is returned.
        """
        config = pipeline if isinstance(pipeline, PipelineConfig) else self.pipeline(pipeline)
        if config_overrides:
            config = config.override(**config_overrides)
        self._check_tasks(config)
        first, *others = [await self.effective(c) for c in apart(self.settings, config)]
        arguments = RunArguments(
            until=_aware(as_of), force=force, posts=posts, only=_stage(last_stage)
        )
        run = await self._started(first, arguments, actor)
        for other in others:
            await self._started(other, arguments, actor)
        return run

    async def _started(self, config: PipelineConfig, arguments: RunArguments, actor: str) -> Run:
        async with self.store.database.begin() as tx:
            now = self.clock.now()
            # The counter's row is locked first, so two starts at once see each other.
            run_id = await self.store.ids.next("ft-pipeline", now, tx=tx)
            await self._refuse_overlap(config.name, tx)
            run = await self.store.runs.create(
                Run(
                    id=run_id,
                    pipeline=config.name,
                    config=config.to_dict(),
                    arguments=_described(arguments),
                    created_at=now,
                ),
                tx=tx,
            )
            await self.store.activity.add(now, actor, "run start", run.id, tx=tx)
        await self.engine.start(turn, run.id, config, arguments)
        self.live.publish("run", run.id, run.version)
        return run

    def _check_tasks(self, config: PipelineConfig) -> None:
        for task in config.tasks:
            if task not in self.settings.tasks:
                known = ", ".join(self.settings.tasks)
                raise ConfigError(
                    f"tasks names {task!r}, which is not set.",
                    mend=f"Use one of {known}, or add [tasks.{task}].",
                    field="tasks",
                )

    async def _refuse_overlap(self, pipeline: str, tx: Any) -> None:
        busy = [
            r
            for r in await self.store.runs.active(pipeline, tx=tx)
            if r.status is not RunStatus.HOLDING
        ]
        if busy:
            raise StateError(
                f"Run {busy[0].id} of {pipeline} is {busy[0].status} at {busy[0].current_stage}: "
                "one at a time.",
                mend=f"Wait for it, or: tuneproof run abort {busy[0].id}",
                reason="predecessor_running",
                run_id=busy[0].id,
            )

    async def run(self, run_id: str) -> Run:
        """The run of this id. Raises `NotFoundError`."""
        return await self.store.runs.get(run_id)

    async def runs(
        self, *, pipeline: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> Page[Run]:
        """Runs, newest first."""
        return await self.store.runs.page(pipeline, cursor, limit)

    async def wait_run(self, run_id: str, *, seconds: float, holding_is_end: bool = False) -> Run:
        """The run once it has ended, or as it stands after `seconds` of real time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            run = await self.run(run_id)
            done = run.status.final or (holding_is_end and run.status is RunStatus.HOLDING)
            if done or loop.time() >= deadline:
                return run
            await asyncio.sleep(min(POLL_S, max(0.0, deadline - loop.time())))

    async def abort_run(
        self, run_id: str, *, reason: str, actor: str = "system", wait_s: float = 10.0
    ) -> Aborted:
        """End a run: its job is cancelled, its candidate loses its traffic. Safe to repeat."""
        run = await self.run(run_id)
        if not run.status.final:
            signal = workflow.Signal(kind="abort", reason=reason, actor=actor)
            await self.store.activity.add(self.clock.now(), actor, "run abort", run_id, reason)
            await self.engine.send(run_id, signal)
            run = await self.wait_run(run_id, seconds=wait_s)
            await self._routing_changed()  # who aborted reads the routing as it is now
        cleaned = tuple(run.result.get("resources_cleaned", ()))
        status = "completed" if run.status.final else "pending"
        return Aborted(run=run, cleanup_status=status, resources_cleaned=cleaned)

    async def retry_run(
        self, run_id: str, *, stage: str | None = None, actor: str = "system"
    ) -> Run:
        """Take an ended run up again from a stage (default: the one that failed)."""
        run = await self.run(run_id)
        if not run.status.final or run.status is RunStatus.SUCCESS:
            raise StateError(
                f"Run {run_id} is {run.status}: only one that ended without success is retried.",
                mend="tuneproof run start",
            )
        if not await self.engine.returned(run_id):  # its end is written before it returns
            raise StateError(f"Run {run_id} is still ending.", mend="Try again in some seconds.")
        wanted = stage or (run.error or {}).get("stage") or run.current_stage or Stage.COLLECT
        first = FIRST_STEP[_stage(str(wanted)) or Stage.COLLECT]
        async with self.store.database.begin() as tx:
            await self._refuse_overlap(run.pipeline, tx)
            attempt = int(run.arguments.get("attempt", 1)) + 1
            run = await self.store.runs.update(
                run_id,
                tx=tx,
                status=RunStatus.PENDING,
                reason=None,
                error=None,
                ended_at=None,
                arguments={**run.arguments, "attempt": attempt, "retry_from": str(first)},
            )
            await self.store.activity.add(
                self.clock.now(), actor, "run retry", run_id, f"from {wanted}", tx=tx
            )
        await self.engine.rewind(run_id, first)
        self.live.publish("run", run.id, run.version)
        return run

    async def run_log(self, run_id: str) -> Sequence[LogLine]:
        """What happened in a run, oldest first: its stages and its job's events."""
        run = await self.run(run_id)
        lines = []
        for stage, entry in run.stages.items():
            for key, word in (("started_at", "began"), ("ended_at", str(entry["status"]))):
                if entry.get(key):
                    at = datetime.fromisoformat(entry[key])
                    said = _said(entry["detail"]) if key == "ended_at" else ""
                    level = "error" if word == "failed" else "info"
                    lines.append(
                        LogLine(at=at, level=level, stage=stage, message=f"{word} {said}".strip())
                    )
        return sorted(lines + await self._job_log(run), key=lambda x: x.at)

    async def _job_log(self, run: Run) -> list[LogLine]:
        job_id = run.result.get("model_version", {}).get("training_job_id")
        if not job_id:
            return []
        provider = self.provider(PipelineConfig.from_dict(run.config).provider)
        try:
            events = await provider.events(job_id)
        except TuneProofError as e:
            at = run.updated_at or run.created_at
            return [LogLine(at=at, level="warning", stage="train", message=f"no job log: {e}")]
        return [LogLine(at=e.at, level=e.level, stage="train", message=e.message) for e in events]

    async def models(self, *, pipeline: str | None = None) -> Sequence[ModelVersion]:
        """All versions, newest first."""
        return await self.store.versions.list(pipeline)

    async def dataset_manifest(self, run_id: str) -> Mapping[str, Any]:
        """The manifest of a run's dataset. Raises `NotFoundError` where it has none here."""
        import json

        run = await self.run(run_id)
        found = run.result.get("training_data", {}).get("hash")
        path = self.settings.dir / "datasets" / str(found) / "manifest.json"
        if not found or not path.exists():
            raise NotFoundError(
                f"Run {run_id} has no dataset in {self.settings.dir}.",
                mend=f"tuneproof run show {run_id}",
            )
        manifest: dict[str, Any] = json.loads(await asyncio.to_thread(path.read_text))
        return manifest

    # --- what was under way, and what is due ------------------------------------------

    async def _began(self) -> None:
        await super()._began()
        if self._with_engine:
            await self._start_forgotten()
        if self._background:
            self.supervisor.every(
                "schedule", SCHEDULE_EVERY_S, self._look_at_schedule, leader="schedule"
            )

    async def _start_forgotten(self) -> None:
        """Start, or take up again, runs whose process died before it could tell the engine."""
        await self.fail_given_up()
        for run in await self.store.runs.active():
            if run.status is not RunStatus.PENDING:
                continue
            if not await self.engine.exists(run.id):
                arguments = _arguments(run.arguments)
                config = PipelineConfig.from_dict(run.config)
                await self.engine.start(turn, run.id, config, arguments)
            elif "retry_from" in run.arguments and await self.engine.ended(run.id):
                await self.engine.rewind(run.id, run.arguments["retry_from"])

    async def fail_given_up(self) -> list[str]:
        """Mark runs as failed that the engine gave up, such as after an upgrade that changed
        what they do next; each can be retried from its stage. Returns their ids.

        Nobody looks after what they tested or rolled out, so users get the baseline back.
        """
        failed = []
        for run in await self.store.runs.active():
            reason = await self.engine.given_up(run.id)
            if reason is not None and run.status is not RunStatus.PENDING:
                await self._fail_given_up(run, reason)
                failed.append(run.id)
        return failed

    async def _fail_given_up(self, run: Run, reason: str) -> None:
        stage, at = run.current_stage or Stage.COLLECT, self.clock.now()
        message = f"The engine gave run {run.id} up at {stage}: {reason}"
        mend = f"tuneproof run retry {run.id}"
        error = {"type": "engine", "message": message, "mend": mend, "stage": stage}
        async with self.store.database.begin() as tx:
            watched = await self.store.watches.under_way(tx=tx)
            subjects = [one.subject for one in watched if one.run_id == run.id]
            tasks = await self.store.withdrawal.withdraw(subjects, at, message, tx)
            await self.store.runs.mark(
                run.id, RunStatus.FAILED, at=at, reason=message, error=error, tx=tx
            )
        self.clock.ended(run.id)
        self.live.publish("run", run.id, run.version + 1)
        self.alert("run_failed", run.id, message, once=at.isoformat(), pipeline=run.pipeline)
        if tasks:
            await self._routing_changed()
            await self.manager_of(PipelineConfig.from_dict(run.config)).apply_tasks(tasks)

    async def _look_at_schedule(self) -> None:
        now = workflow.SystemClock().now()
        if not self._settled:
            await self.settle_providers()
            self._settled = True
        await self.fail_given_up()
        await self.tick(now)
        await self.watch_shutdowns(now)

    async def watch_shutdowns(self, now: datetime) -> list[str]:
        """What is done about models that will be shut down."""
        return []

    async def tick(self, now: datetime) -> list[str]:
        """Start what the schedules say is due; missed ticks coalesce into one.

        Returns the ids of the runs that were started. A pipeline seen for the first time
        begins with its next tick.
        """
        started = []
        for config in self.pipelines():
            if config.enabled and config.schedule_driver == "internal":
                run_id = await self._tick(config, now)
                if run_id is not None:
                    started.append(run_id)
        return started

    async def _tick(self, config: PipelineConfig, now: datetime) -> str | None:
        async with self.store.database.begin() as tx:
            last = await self.store.schedule.last_tick(config.name, tx=tx)
            if last is None:
                await self.store.schedule.set_tick(config.name, now, tx=tx)
                return None
            due = newest_tick(config, last, now)
            if due is None:
                return None
            queued = config.overlap == "queue" and await self._busy(config.name, tx)
            if not queued:
                await self.store.schedule.set_tick(config.name, due, tx=tx)
        if queued:
            return None  # the tick stays due; later ones coalesce into it
        try:
            run = await self.start_run(config.name, actor="schedule")
        except StateError as e:
            self.metrics.run_skipped("predecessor_running", pipeline=config.name)
            await self.store.activity.add(now, "schedule", "run skipped", config.name, e.message)
            return None
        return run.id

    async def _busy(self, pipeline: str, tx: Any) -> bool:
        active = await self.store.runs.active(pipeline, tx=tx)
        return any(r.status is not RunStatus.HOLDING for r in active)

    def next_start(self, config: PipelineConfig, now: datetime) -> datetime | None:
        """When the schedule ticks next; None where it does not."""
        if not config.enabled or config.schedule_driver != "internal":
            return None
        return next_tick(config, now)


def next_tick(config: PipelineConfig, after: datetime) -> datetime:
    """The schedule's next instant after `after`, in the pipeline's time zone, as UTC."""
    from croniter import croniter

    local = after.astimezone(ZoneInfo(config.time_zone))
    found: datetime = croniter(config.weekly_schedule, local).get_next(datetime)
    return found.astimezone(UTC)


def newest_tick(config: PipelineConfig, after: datetime, now: datetime) -> datetime | None:
    """The newest instant of the schedule in (after, now]; None where there is none."""
    from croniter import croniter

    local = (now + timedelta(seconds=1)).astimezone(ZoneInfo(config.time_zone))
    found: datetime = croniter(config.weekly_schedule, local).get_prev(datetime)
    found = found.astimezone(UTC)
    return found if after < found <= now else None


def _stage(name: str | None) -> Stage | None:
    if name is None:
        return None
    try:
        return Stage(name)
    except ValueError as e:
        raise ConfigError(
            f"There is no stage {name!r}.",
            mend=f"Use one of: {', '.join(Stage)}.",
            field="stage",
        ) from e


def _aware(at: datetime | None) -> datetime | None:
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


def _described(arguments: RunArguments) -> dict[str, Any]:
    return {
        "until": arguments.until.isoformat() if arguments.until else None,
        "force": arguments.force,
        "posts": arguments.posts,
        "only": str(arguments.only) if arguments.only else None,
    }


def _arguments(described: Mapping[str, Any]) -> RunArguments:
    until = described.get("until")
    return RunArguments(
        until=datetime.fromisoformat(until) if until else None,
        force=bool(described.get("force")),
        posts=described.get("posts"),
        only=_stage(described.get("only")),
    )


def _said(detail: Mapping[str, Any]) -> str:
    reason = detail.get("reason")
    if reason:
        return str(reason)
    shown = {k: v for k, v in detail.items() if isinstance(v, (int, float, str)) and v != ""}
    return ", ".join(f"{k} {v}" for k, v in shown.items())


__all__ = ["Aborted", "LogLine", "Runs", "newest_tick", "next_tick"]
