"""Use cases of runs: start, follow, abort, retry."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from tuneproof import workflow
from tuneproof.app.alerting import Alerting
from tuneproof.app.live import Live
from tuneproof.app.managers import Managers
from tuneproof.app.outages import Outages
from tuneproof.app.pipelines import Pipelines
from tuneproof.app.prompts import ensure_recipes_kept
from tuneproof.app.providers import Providers
from tuneproof.app.routing import RoutingService
from tuneproof.curation import ShelvedDatasets
from tuneproof.errors import (
    ConfigError,
    ConflictError,
    DeniedError,
    InputError,
    NotFoundError,
    StateError,
    TuneProofError,
)
from tuneproof.pipeline import RunArguments, Stage, StepName, turn
from tuneproof.providers import JobEnded, read_webhook
from tuneproof.resilience import in_daemon_thread
from tuneproof.settings import PipelineConfig, Settings
from tuneproof.store import Claim, Run, RunStatus, Store
from tuneproof.workflow import Clock, Tx

__all__ = ["AbortedRun", "LogEntry", "RunService"]

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


@dataclass(frozen=True, kw_only=True)
class AbortedRun:
    """What an abort did. `cleanup_status` is pending until the run has ended."""

    run: Run
    cleanup_status: str
    resources_cleaned: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """One line of a run's log."""

    at: datetime
    level: str
    stage: str
    message: str


class RunService:
    """What can be asked of runs. `effective` is the config that a run really gets."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        clock: Clock,
        engine: workflow.Engine,
        live: Live,
        alert: Alerting,
        pipelines: Pipelines,
        providers: Providers,
        managers: Managers,
        routing: RoutingService,
        outages: Outages,
        effective: Callable[[PipelineConfig], Awaitable[PipelineConfig]],
        shelved: ShelvedDatasets | None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._engine = engine
        self._live = live
        self._alert = alert
        self._pipelines = pipelines
        self._providers = providers
        self._managers = managers
        self._routing = routing
        self._outages = outages
        self._effective = effective
        self._shelved = shelved

    async def start(
        self,
        pipeline: str | PipelineConfig = "default",
        *,
        config_overrides: Mapping[str, object] | None = None,
        recipes: Sequence[Mapping[str, str]] = (),
        force: bool = False,
        posts: str | None = None,
        as_of: datetime | None = None,
        last_stage: str | None = None,
        actor: str = "system",
        claim: Claim | None = None,
    ) -> Run:
        """Start one turn of the loop.

        `force` goes on with fewer examples than the threshold; `recipes` replace those of the
        settings, also where a shutdown is near, and name providers that these have. Raises
        `StateError` with `reason` "predecessor_running" while a run of the pipeline is before
        `holding`, `ConflictError` where its tasks have several models in use. Where the
        pipeline's tasks train apart, a run of each is started, or of none, and the first is
        returned; `claim` is told it.
        """
        config = pipeline if isinstance(pipeline, PipelineConfig) else self._pipelines.get(pipeline)
        if config_overrides:
            config = config.override(**config_overrides)
        if recipes:
            config = replace(config, recipes=tuple(recipes), successors=())
        self._check_tasks(config)
        self._settings.check_recipes(config)
        self._settings.check_measures(config)
        _check_window(as_of, config)
        if recipes:
            await ensure_recipes_kept(self._store, self._settings, config)
        parts = [await self._effective(c) for c in self._pipelines.parts(config)]
        for part in parts:
            await self._routing.ensure_one(part)
        arguments = RunArguments(
            until=_aware(as_of), force=force, posts=posts, only=_stage(last_stage)
        )
        async with self._store.database.begin() as tx:
            runs = [await self._declared(part, arguments, actor, tx) for part in parts]
            if claim is not None:
                await claim.made(runs[0].id, tx=tx)
        for run, part in zip(runs, parts, strict=True):
            await self._engine.start(turn, run.id, part, arguments)
            self._live.publish("run", run.id, run.version)
        return runs[0]

    async def _declared(
        self, config: PipelineConfig, arguments: RunArguments, actor: str, tx: Tx
    ) -> Run:
        now = self._clock.now()
        # The counter's row is locked first, so two starts at once see each other.
        run_id = await self._store.ids.next("ft-pipeline", now, tx=tx)
        await self._refuse_overlap(config.name, tx)
        run = await self._store.runs.create(
            Run(
                id=run_id,
                pipeline=config.name,
                config=config.to_dict(),
                arguments=_described(arguments),
                created_at=now,
            ),
            tx=tx,
        )
        await self._store.activity.add(now, actor, "run start", run.id, tx=tx)
        return run

    def _check_tasks(self, config: PipelineConfig) -> None:
        for task in config.tasks:
            if task not in self._settings.tasks:
                known = ", ".join(self._settings.tasks)
                raise ConfigError(
                    f"tasks names {task!r}, which is not set.",
                    mend=f"Use one of {known}, or add [tasks.{task}].",
                    field="tasks",
                )

    async def _refuse_overlap(self, pipeline: str, tx: Tx) -> None:
        busy = [
            r
            for r in await self._store.runs.active(pipeline, tx=tx)
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

    async def tell_refused(
        self, pipeline: str, error: InputError, *, actor: str, once: str
    ) -> None:
        """Tell that a run which nobody asked for by hand cannot begin until a person mends it.

        `once` tells the occasions from each other: of each there is one alert.
        """
        said = f"{error.message} {error.mend}".rstrip()
        await self._store.activity.add(self._clock.now(), actor, "run refused", pipeline, said)
        self._live.publish("activity", pipeline)
        self._alert("run_failed", pipeline, said, once=f"refused {once}", pipeline=pipeline)

    async def wait(self, run_id: str, *, seconds: float, holding_is_end: bool = False) -> Run:
        """The run once it has ended, or as it stands after `seconds` of real time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            run = await self._store.runs.get(run_id)
            done = run.status.final or (holding_is_end and run.status is RunStatus.HOLDING)
            if done or loop.time() >= deadline:
                return run
            await asyncio.sleep(min(POLL_S, max(0.0, deadline - loop.time())))

    async def abort(
        self, run_id: str, *, reason: str, actor: str = "system", wait_s: float = 10.0
    ) -> AbortedRun:
        """End a run: its job is cancelled, its candidate loses its traffic. Safe to repeat."""
        run = await self._store.runs.get(run_id)
        if not run.status.final:
            signal = workflow.Signal(kind="abort", reason=reason, actor=actor)
            await self._store.activity.add(self._clock.now(), actor, "run abort", run_id, reason)
            await self._engine.send(run_id, signal)
            run = await self.wait(run_id, seconds=wait_s)
            await self._routing.board.refresh_if_possible()  # who aborted reads it as it is now
        cleaned = tuple(run.result.get("resources_cleaned", ()))
        status = "completed" if run.status.final else "pending"
        return AbortedRun(run=run, cleanup_status=status, resources_cleaned=cleaned)

    async def retry(
        self,
        run_id: str,
        *,
        stage: str | None = None,
        actor: str = "system",
        expected_version: int | None = None,
    ) -> Run:
        """Take an ended run up again from a stage (default: the one that failed).

        Of two who do so at once the second gets `ConflictError` or `StateError`; either says what
        was done to the run last.
        """
        run = await self._store.runs.get(run_id)
        wanted = stage or (run.error or {}).get("stage") or run.current_stage or Stage.COLLECT
        first = FIRST_STEP[_stage(str(wanted)) or Stage.COLLECT]
        try:
            await self._ensure_retriable(run)
            run = await self._taken_up(run, expected_version, str(first), f"from {wanted}", actor)
        except (ConflictError, StateError) as error:
            details = {**error.details, "changed": await self.last_deed(run_id)}
            raise type(error)(error.message, mend=error.mend, **details) from error
        await self._engine.rewind(run_id, first)
        self._live.publish("run", run.id, run.version)
        return run

    async def _ensure_retriable(self, run: Run) -> None:
        if not run.status.final or run.status is RunStatus.SUCCESS:
            raise StateError(
                f"Run {run.id} is {run.status}: only one that ended without success is retried.",
                mend="tuneproof run start",
            )
        if not await self._engine.returned(run.id):  # its end is written before it returns
            raise StateError(f"Run {run.id} is still ending.", mend="Try again in some seconds.")

    async def _taken_up(
        self, run: Run, expected_version: int | None, first: str, said: str, actor: str
    ) -> Run:
        """Note that a run is taken up again, as it was read. Raises `ConflictError` otherwise."""
        async with self._store.database.begin() as tx:
            await self._refuse_overlap(run.pipeline, tx)
            attempt = int(run.arguments.get("attempt", 1)) + 1
            taken = await self._store.runs.update(
                run.id,
                expected_version=run.version if expected_version is None else expected_version,
                tx=tx,
                status=RunStatus.PENDING,
                reason=None,
                error=None,
                ended_at=None,
                arguments={**run.arguments, "attempt": attempt, "retry_from": first},
            )
            now = self._clock.now()
            await self._store.activity.add(now, actor, "run retry", run.id, said, tx=tx)
        return taken

    async def last_deed(self, run_id: str) -> Mapping[str, str] | None:
        """Who did what to a run last, when and why; None where nobody did anything."""
        deeds = (await self._store.activity.page(object_id=run_id, limit=1)).items
        if not deeds:
            return None
        deed = deeds[0]
        at = deed.at.isoformat()
        return {"kind": deed.action, "who": deed.actor, "at": at, "reason": deed.reason}

    async def log(self, run_id: str) -> Sequence[LogEntry]:
        """What happened in a run, oldest first: its stages, its job's events, the moves of its
        rollout, what it waits for."""
        run = await self._store.runs.get(run_id)
        lines = []
        for stage, entry in run.stages.items():
            for key, word in (("started_at", "began"), ("ended_at", str(entry["status"]))):
                if entry.get(key):
                    at = datetime.fromisoformat(entry[key])
                    said = _said(entry["detail"]) if key == "ended_at" else ""
                    level = "error" if word == "failed" else "info"
                    lines.append(
                        LogEntry(at=at, level=level, stage=stage, message=f"{word} {said}".strip())
                    )
        lines += [*await self._job_log(run), *await self._rollout_log(run)]
        return sorted(lines, key=lambda x: x.at) + await self._waiting_log(run)

    async def _waiting_log(self, run: Run) -> list[LogEntry]:
        """Why its stage waits, and whether who trains has been away for minutes."""
        if run.status.final:
            return []
        stage, at = run.current_stage or "", run.updated_at or run.created_at
        said = [(at, run.note)] if run.note else []
        trains = self._providers.breaker_name(PipelineConfig.from_dict(run.config).provider)
        away = [o for o in await self._outages.lasting() if o.breaker == trains]
        said += [(outage.since, outage.sentence()) for outage in away]
        return [LogEntry(at=at, level="warning", stage=stage, message=text) for at, text in said]

    async def _rollout_log(self, run: Run) -> list[LogEntry]:
        """How its rollout moved, and by whom; a warning where that waits for a person."""
        id = run.result.get("deployment_id")
        moves = await self._store.deployments.history(id) if id else ()
        return [
            LogEntry(
                at=move.at,
                level="warning" if move.kind == "pause" else "info",
                stage="rollout",
                message=f"{id}: {move.kind} by {move.who}: {move.reason}",
            )
            for move in moves
        ]

    async def _job_log(self, run: Run) -> list[LogEntry]:
        job_id = run.result.get("model_version", {}).get("training_job_id")
        if not job_id:
            return []
        provider = self._providers.get(PipelineConfig.from_dict(run.config).provider)
        try:
            events = await provider.events(job_id)
        except TuneProofError as e:
            at = run.updated_at or run.created_at
            return [LogEntry(at=at, level="warning", stage="train", message=f"no job log: {e}")]
        return [LogEntry(at=e.at, level=e.level, stage="train", message=e.message) for e in events]

    async def dataset_manifest(self, run_id: str) -> Mapping[str, object]:
        """The manifest of a run's dataset. Raises `NotFoundError` where it has none here."""
        import json

        run = await self._store.runs.get(run_id)
        found = run.result.get("training_data", {}).get("hash")
        path = self._settings.dir / "datasets" / str(found) / "manifest.json"
        if found and self._shelved is not None and not path.exists():
            await in_daemon_thread(self._shelved.find, found)
        if not found or not path.exists():
            raise NotFoundError(
                f"Run {run_id} has no dataset in {self._settings.dir}.",
                mend=f"tuneproof run show {run_id}",
            )
        manifest: dict[str, object] = json.loads(await asyncio.to_thread(path.read_text))
        return manifest

    async def start_forgotten(self, older_than: timedelta = timedelta(0)) -> None:
        """Start, or take up again, runs whose process died before it could tell the engine.

        `older_than` leaves those be that a living process is just about to tell it of.
        """
        await self.fail_given_up()
        before = self._clock.now() - older_than
        for run in await self._store.runs.active():
            if run.status is not RunStatus.PENDING or (run.updated_at or run.created_at) > before:
                continue
            if not await self._engine.exists(run.id):
                arguments = _arguments(run.arguments)
                config = PipelineConfig.from_dict(run.config)
                await self._engine.start(turn, run.id, config, arguments)
            elif "retry_from" in run.arguments and await self._engine.ended(run.id):
                await self._engine.rewind(run.id, run.arguments["retry_from"])

    async def fail_given_up(self) -> list[str]:
        """Mark runs as failed that the engine gave up, such as after an upgrade that changed
        what they do next; each can be retried from its stage. Returns their ids.

        Nobody looks after what they tested or rolled out, so users get the baseline back.
        """
        failed = []
        for run in await self._store.runs.active():
            reason = await self._engine.given_up(run.id)
            if reason is not None and run.status is not RunStatus.PENDING:
                await self._fail_given_up(run, reason)
                failed.append(run.id)
        return failed

    async def _fail_given_up(self, run: Run, reason: str) -> None:
        stage, at = run.current_stage or Stage.COLLECT, self._clock.now()
        message = f"The engine gave run {run.id} up at {stage}: {reason}"
        mend = f"tuneproof run retry {run.id}"
        error = {"type": "engine", "message": message, "mend": mend, "stage": stage}
        async with self._store.database.begin() as tx:
            watched = await self._store.watches.under_way(tx=tx)
            subjects = [one.subject for one in watched if one.run_id == run.id]
            tasks = await self._store.withdrawal.withdraw(subjects, at, message, tx)
            await self._store.runs.mark(
                run.id, RunStatus.FAILED, at=at, reason=message, error=error, tx=tx
            )
        self._clock.ended(run.id)
        self._live.publish("run", run.id, run.version + 1)
        self._alert("run_failed", run.id, message, once=at.isoformat(), pipeline=run.pipeline)
        if tasks:
            await self._routing.board.refresh_if_possible()
            await self._managers.of(PipelineConfig.from_dict(run.config)).apply(tasks)

    # --- what providers say ----------------------------------------------------------

    async def wake_waiting(self, name: str) -> list[str]:
        """Wake the runs that wait for a provider; they try again at once."""
        woken = []
        for run in await self._store.runs.active():
            if not run.note or run.config.get("provider") != name:
                continue
            if await self._engine.exists(run.id) and not await self._engine.ended(run.id):
                signal = workflow.Signal(kind="wake", actor="breaker", reason=f"{name} is back")
                await self._engine.send(run.id, signal)
                woken.append(run.id)
        return woken

    async def webhook(self, body: bytes, headers: Mapping[str, str]) -> str | None:
        """Take in what a provider sent; the id of the run that was woken, None where none waits.

        The run then asks the provider itself. Raises `ConfigError` where no provider has a
        webhook secret, and `DeniedError` where the signature is none of theirs.
        """
        event = self._verified(body, headers)
        if event is None:
            return None
        versions = await self._store.versions.list(training_job_id=event.job_id, limit=1)
        run_id = versions[0].run_id if versions else None
        if run_id is None or not await self._engine.exists(run_id):
            return None
        signal = workflow.Signal(
            kind="wake", actor="webhook", reason=f"{event.kind} {event.job_id}"
        )
        await self._engine.send(run_id, signal, key=f"webhook:{event.event_id}")
        return run_id

    def _verified(self, body: bytes, headers: Mapping[str, str]) -> JobEnded | None:
        secrets = {
            p.webhook_secret.reveal()
            for p in self._settings.providers.values()
            if p.webhook_secret is not None
        }
        refusal: TuneProofError = ConfigError(
            "No provider has a webhook secret, so nothing that comes is believed.",
            mend="Set OPENAI_WEBHOOK_SECRET to the secret that was shown when the webhook was "
            "made, or webhook_secret_env of the provider.",
            field="webhook_secret",
        )
        for secret in sorted(secrets):
            try:
                return read_webhook(body, headers, secret=secret)
            except DeniedError as e:
                refusal = e
        raise refusal


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


def _check_window(as_of: datetime | None, config: PipelineConfig) -> None:
    """Raise `InputError` where the posts before this instant would lie outside all time."""
    if as_of is None:
        return
    try:
        _ = as_of.astimezone(UTC) - timedelta(days=config.days_back)
    except OverflowError as e:
        raise InputError(
            f"as_of is {as_of.isoformat()}: {config.days_back:g} days before it, in UTC, no year "
            "from 1 to 9999 is left.",
            mend="Name an instant of your posts, or leave it out.",
        ) from e


def _aware(at: datetime | None) -> datetime | None:
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


def _described(arguments: RunArguments) -> dict[str, object]:
    return {
        "until": arguments.until.isoformat() if arguments.until else None,
        "force": arguments.force,
        "posts": arguments.posts,
        "only": str(arguments.only) if arguments.only else None,
    }


def _arguments(described: Mapping[str, object]) -> RunArguments:
    until, posts, only = (described.get(name) for name in ("until", "posts", "only"))
    return RunArguments(
        until=datetime.fromisoformat(str(until)) if until else None,
        force=bool(described.get("force")),
        posts=None if posts is None else str(posts),
        only=None if only is None else _stage(str(only)),
    )


def _said(detail: Mapping[str, object]) -> str:
    reason = detail.get("reason")
    if reason:
        return str(reason)
    shown = {k: v for k, v in detail.items() if isinstance(v, (int, float, str)) and v != ""}
    return ", ".join(f"{k} {v}" for k, v in shown.items())
