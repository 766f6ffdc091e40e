"""App: everything in one process, composed of services; the only place that builds adapters."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypedDict, Unpack, cast

from tuneproof import workflow
from tuneproof.app.alerting import TELL_EVERY_S, Alerting, alerts_of
from tuneproof.app.best_of import BestOf
from tuneproof.app.board import Board
from tuneproof.app.concerns import Concerns
from tuneproof.app.doctor import Doctor
from tuneproof.app.drifting import LOOK_EVERY_S as DRIFT_EVERY_S
from tuneproof.app.drifting import DriftWatch
from tuneproof.app.endpoints import ModelEndpoints
from tuneproof.app.events import EventService
from tuneproof.app.experiments import ExperimentService
from tuneproof.app.gauges import REFRESH_EVERY_S, Gauges
from tuneproof.app.health import HealthService
from tuneproof.app.histories import HistoryService
from tuneproof.app.hooks import RunHooks
from tuneproof.app.live import Live
from tuneproof.app.look_cache import LookCache
from tuneproof.app.managers import Managers
from tuneproof.app.migrating import MigrationService
from tuneproof.app.outages import LOOK_EVERY_S as OUTAGES_EVERY_S
from tuneproof.app.outages import Outages
from tuneproof.app.outcomes import OutcomeService
from tuneproof.app.overview import Overview
from tuneproof.app.pipelines import Pipelines
from tuneproof.app.places import Places
from tuneproof.app.private import keep_private
from tuneproof.app.prompts import PromptService, SeenPrompts
from tuneproof.app.providers import PROBE_EVERY_S, Providers
from tuneproof.app.receipts import receipt_key
from tuneproof.app.restore import refuse_half_restored
from tuneproof.app.rollouts import RolloutService
from tuneproof.app.routing import RoutingService
from tuneproof.app.runs import RunService
from tuneproof.app.schedule import LOOK_EVERY_S as SCHEDULE_EVERY_S
from tuneproof.app.schedule import Schedule
from tuneproof.app.scorers import Scorers
from tuneproof.app.scoring import ScoringService
from tuneproof.app.shadows import ShadowService
from tuneproof.app.shutdowns import Shutdowns, ShutdownWatch
from tuneproof.app.sources import Sources
from tuneproof.app.spending import SETTLE_EVERY_S, Spending
from tuneproof.app.tokens import TokenService
from tuneproof.app.traces import RunTraces
from tuneproof.app.watches import LOOK_EVERY_S as WATCHES_EVERY_S
from tuneproof.app.watches import Watchdog
from tuneproof.cache import Cache
from tuneproof.collection import Source, Task
from tuneproof.curation import ShelvedDatasets
from tuneproof.errors import StateError, StoreUnavailableError, TuneProofError
from tuneproof.evaluation import Scorer
from tuneproof.experiments import Variant
from tuneproof.pipeline import Parts
from tuneproof.resilience import (
    BreakerEvent,
    ConnectionPoolManager,
    RedisPool,
    Supervisor,
)
from tuneproof.rollout import Routing, Target
from tuneproof.settings import PipelineConfig, Settings
from tuneproof.shelf import Shelf
from tuneproof.standalone import cache_pool, database_pool, opened_targets, pool_arguments
from tuneproof.store import Store, unopened_store
from tuneproof.telemetry import Metrics, Tracing
from tuneproof.testing import Participant, VirtualClock
from tuneproof.tracking import MLflowExperimentTracker
from tuneproof.training import Provider

__all__ = ["App", "AppAdapters"]

if TYPE_CHECKING:
    from redis.asyncio import BlockingConnectionPool

log = logging.getLogger(__name__)

VIRTUAL_NOW = "virtual_now"
"""Under which key a virtual clock's instant is kept."""

EMBEDDED = "embedded"
"""The executor id of the one process that owns a SQLite data directory."""

DELIVER_EVERY_S = 2.0
"""How often the outbox is emptied."""

TRIM_EVERY_S = 60.0
"""How often idle connections are closed."""

FORGET_EVERY_S = 3600.0
"""How often answers kept by idempotency key are looked through for old ones."""

CLOSE_S = 3.0
"""How long jobs may still take when the App closes: an alert of the last moment is kept."""

CLOCK_TASK = "virtual-clock"


class _MakesCache(Protocol):
    def __call__(self, url: str, /, *, pool: BlockingConnectionPool | None = None) -> Cache: ...


class AppAdapters(TypedDict, total=False):
    """What replaces what the settings describe, one by one."""

    store: Store
    clock: workflow.Clock
    provider: Provider
    """One for all names."""
    source: Source
    """One for all pipelines."""
    targets: Sequence[Target]
    scorers: Mapping[str, Scorer]
    min_scores: Mapping[str, float]
    on_step: workflow.StepHook | None
    """Told of each step of each run."""
    poll_s: float
    """How often the engine looks for signals."""
    takeover_s: float
    """How often it looks for runs of dead workers."""
    background: bool
    """False: nothing is done on the machine's own clock, such as the schedule."""
    tracing: Tracing
    engine: bool
    """False: an App that reads and writes the store only; no trainer is started, no run goes on."""
    needs_store: bool
    """False, with `engine=False`: also where the database does not answer, for the doctor."""
    makes_store: bool
    """False: a database that is not there, or lacks tables, is refused instead of made."""


class _NoEngine:
    """Stands for the engine in an App that runs nothing; knows no run, refuses to start one."""

    async def exists(self, run_id: str) -> bool:
        """Never: no run is known here."""
        return False

    def __getattr__(self, name: str) -> object:
        raise StateError("No run can go on in this process.", mend="Start it: tuneproof serve")


class App:
    """TuneProof in one process: `async with App.open(settings) as app`.

    `runs`, `schedule`, `experiments`, `rollouts`, `routing`, `events`, `outcomes`, `scoring`,
    `best_of`, `shadows`, `health`, `overview`, `doctor` and `tokens` are what can be asked of it;
    all else is what they are made from.
    """

    def __init__(self, settings: Settings, **adapters: Unpack[AppAdapters]) -> None:
        self.settings = settings
        self._given = adapters
        self._with_engine = adapters.get("engine", True)
        self._refused: StoreUnavailableError | None = None
        self._makes = adapters.get("makes_store", True)
        self._background = adapters.get("background", True) and self._with_engine
        self._embedded = settings.store.url.scheme == "sqlite"
        self._closing = AsyncExitStack()
        self.clock: workflow.Clock = adapters.get("clock") or workflow.SystemClock()
        self.metrics = Metrics()
        self.tracing = adapters.get("tracing") or self._tracing()
        self.live = Live()
        self.pools = ConnectionPoolManager()
        self.supervisor = Supervisor(
            leads=lambda role: self.engine.leads(role), restarted=self.metrics.task_restarted
        )

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, **adapters: Unpack[AppAdapters]) -> AsyncIterator[Self]:
        """An App with everything running; closed at the end, runs stay for the next one."""
        app = cls(settings, **adapters)
        try:
            await app.launch()
            yield app
        finally:
            await app.close()

    def _tracing(self) -> Tracing:
        """None for an App that only reads: it is a command's, and soon over."""
        if not self._with_engine:
            return Tracing()
        return Tracing.from_env(self.settings.env, service="tuneproof")

    async def launch(self) -> None:
        """Open all that it is made from, in order, and take up what was under way."""
        refuse_half_restored(self.settings.dir)
        if self._makes:
            keep_private(self.settings.dir)
        self._lock_directory()
        await self._open_store()
        await self._bind_virtual_clock()
        self._open_cache()
        self._open_alerts()
        await self._open_files()
        await self._open_providers()
        await self._open_routing()
        self._compose_parts()
        await self._open_engine()
        self._compose_runs()
        self._compose_tests_and_rollouts()
        self._open_tracker()
        self._compose_reports()
        await self._begin()

    async def close(self) -> None:
        """End the tasks, then close what was opened, in the reverse order."""
        await self.supervisor.close(jobs_s=CLOSE_S)
        self.live.close()
        await self._closing.aclose()

    # --- what services stand on -------------------------------------------------------

    def _lock_directory(self) -> None:
        if self._embedded and self._with_engine:
            lock = workflow.DirectoryLock(self.settings.dir)
            lock.acquire()
            self._closing.callback(lock.release)

    async def _open_store(self) -> None:
        self.store = self._given.get("store") or await self._opened_store()
        self._closing.push_async_callback(self.store.close)
        self.pools.add("database", database_pool(self.store.engine, self.settings.store))
        self.metrics.watch_pools(self.pools.counts)

    async def _opened_store(self) -> Store:
        config = self.settings.store
        opened = self.settings.adapter("store")(
            config.url.reveal(),
            pool=pool_arguments(config),
            clock=self.clock,
            **({} if self._makes else {"make": False}),
        )
        try:
            store: Store = await opened
        except StoreUnavailableError as e:
            if self._with_engine or self._given.get("needs_store", True):
                raise
            log.info("going on without the database: %s", e.message)
            self._refused = e
            return unopened_store(config.url.reveal(), e, clock=self.clock)
        return store

    async def _bind_virtual_clock(self) -> None:
        """A virtual clock goes on from where it was, and wakes the runs of this engine."""
        if not isinstance(self.clock, VirtualClock):
            return
        saved = await self.store.meta.get(VIRTUAL_NOW)
        if saved is not None:
            self.clock.restore(datetime.fromisoformat(saved))

        async def save(at: datetime) -> None:
            await self.store.meta.set(VIRTUAL_NOW, at.isoformat())

        async def wake(run_id: str) -> None:
            await self.engine.send(run_id, workflow.TICK)

        self.clock.save, self.clock.wake = save, wake

    def let_time_pass(self, *participants: Participant) -> None:
        """Drive the virtual clock from now on, asking these too to fill each stretch."""
        if not isinstance(self.clock, VirtualClock):
            raise StateError("Only a virtual clock is driven.", mend="Open the App with one.")
        self.clock.participants.extend(participants)
        if not self.supervisor.runs(CLOCK_TASK):
            self.supervisor.keep(CLOCK_TASK, self.clock.drive)

    def _open_cache(self) -> None:
        config = self.settings.cache
        make: _MakesCache = self.settings.adapter("cache")
        if config.url.scheme == "mem":
            self.cache = make(config.url.reveal())
        else:
            pool = cache_pool(config)
            self.pools.add("redis", RedisPool(pool))
            self.cache = make(config.url.reveal(), pool=pool)
        self._closing.push_async_callback(self.cache.close)
        self.metrics.watch_cache(lambda: self.cache.hit_rate)
        used = not self._embedded if config.enabled is None else config.enabled
        self.figures = LookCache(
            store=self.store, cache=self.cache if used else None, supervisor=self.supervisor
        )

    async def _open_files(self) -> None:
        """Know the object store, where the settings name one; that it answers is not asked."""
        config = self.settings.files
        self.shelf: Shelf | None = None
        self.shelved: ShelvedDatasets | None = None
        if config.url is not None:
            self.shelf = Shelf(config.url)
            self.shelved = ShelvedDatasets(
                self.shelf, self.settings.dir, cache_bytes=config.cache_mb << 20
            )
            if self._with_engine:
                await asyncio.to_thread(self.shelf.open)

    async def _open_providers(self) -> None:
        given = self._given.get("provider")
        self.places = Places(self.store, self.settings)
        if self._with_engine and given is None:
            await self.places.remember()
        self.pipelines = Pipelines(self.settings)
        self.providers = Providers(
            settings=self.settings,
            store=self.store,
            clock=self.clock,
            metrics=self.metrics,
            on_event=self.breaker_changed,
            places=self.places,
            supervisor=self.supervisor,
            given=given,
            trainer_url=await self._trainer_url(),
            is_back=lambda name: self.runs.wake_waiting(name),
        )
        self._closing.push_async_callback(self.providers.close)
        self.sources = Sources(
            settings=self.settings, store=self.store, given=self._given.get("source")
        )
        self.shutdowns = Shutdowns(
            settings=self.settings,
            store=self.store,
            clock=self.clock,
            pipelines=self.pipelines,
            providers=self.providers,
        )
        self.scorers = Scorers(
            settings=self.settings,
            providers=self.providers,
            given=self._given.get("scorers") or {},
        )
        self.scorers.check()

    async def _trainer_url(self) -> str | None:
        """Where the embedded trainer runs, which is started where a provider is it."""
        wanted = any(p.embedded for p in self.settings.providers.values())
        if not wanted or self._given.get("provider") is not None or not self._with_engine:
            return None
        serve = self.settings.adapter("trainer")
        try:
            trainer = await self._closing.enter_async_context(serve(self.settings.dir / "trainer"))
        except TuneProofError:
            raise
        except Exception as error:  # the trainer is no part of this package, nor are its errors
            raise StateError(
                f"The embedded trainer did not start: {str(error).rstrip('.')}.",
                mend="Mend that, or name another provider in [providers.default].",
            ) from error
        return str(trainer.base_url)

    async def _open_routing(self) -> None:
        """Know the routing, and who serves its models, before anybody asks."""
        endpoints = ModelEndpoints(
            self.store,
            self.settings,
            self.places,
            embedded=self.providers.endpoint,
            breakers=self.providers.breakers,
            on_event=self.breaker_changed,
        )
        board = Board(
            self.store.routing,
            self.live,
            prepare=endpoints.prepare,
            declared=[
                Routing(task=task, baseline=model) for task, model in self._models_in_use().items()
            ],
            trust_s=self._trust_s,
            recall=lambda subjects: self.watchdog.recall(subjects),
            prompts=SeenPrompts(self.store, self._tasks),
        )
        self.routing = RoutingService(board=board, endpoints=endpoints, supervisor=self.supervisor)
        if self._with_engine:
            await board.refresh()
            self.routing.watch()
        else:
            with contextlib.suppress(StoreUnavailableError):
                await board.refresh()

    @cached_property
    def _tasks(self) -> Mapping[str, Task]:
        return {name: Task.of(task) for name, task in self.settings.tasks.items()}

    def _models_in_use(self) -> Mapping[str, Variant]:
        """The model that the settings name for each task, until it has a routing."""
        return {
            name: Variant(model_id=task.model, provider=task.model_provider)
            for name, task in self.settings.tasks.items()
            if task.model
        }

    def _trust_s(self, routing: Routing) -> float:
        """For how long a task's candidates may serve while nobody can look at them."""
        known = self.pipelines.known.values()
        configs = [c for c in known if routing.task in c.tasks] or [PipelineConfig()]
        hours = min(c.look_interval_hours + c.unwatched_limit_hours for c in configs)
        return hours * 3600

    def _open_alerts(self) -> None:
        self.alerts = alerts_of(self.settings)
        self.alert = Alerting(alerts=self.alerts, store=self.store, supervisor=self.supervisor)
        self.outages = Outages(
            breakers=lambda: self.providers.breakers,
            store=self.store,
            now=self.clock.now,
            alert=self.alert,
        )

    def breaker_changed(self, event: BreakerEvent) -> None:
        """Count it, and tell people of one that opens; gateways tell of theirs."""
        self.metrics.on_breaker_event(event)
        self.outages.heard(event)

    def _compose_parts(self) -> None:
        """What the durable functions get."""
        settings, providers = self.settings, self.providers
        self.gauges = Gauges(
            store=self.store,
            metrics=self.metrics,
            pipelines=self.pipelines,
            routing=self.routing,
            figures=self.figures,
            supervisor=self.supervisor,
        )
        self.best_of = BestOf(
            settings=settings, store=self.store, clock=self.clock, board=self.routing.board
        )
        self.targets = list(self._given.get("targets") or ()) or opened_targets(
            settings, lenient=not self._with_engine
        )
        self.managers = Managers(
            store=self.store,
            clock=self.clock,
            pipelines=self.pipelines,
            providers=providers,
            targets=self.targets,
            tasks=settings.tasks,
        )
        self.traces = RunTraces(
            self.tracing, store=self.store, clock=self.clock, supervisor=self.supervisor
        )
        self.parts = Parts(
            store=self.store,
            directory=settings.dir,
            shelved=self.shelved,
            clock=self.clock,
            provider=providers.get,
            source=self.sources.open,
            tasks=self._tasks,
            targets=self.targets,
            scorers=self.scorers.given,
            min_scores=dict(self._given.get("min_scores") or {}),
            scorer=self.scorers.find,
            settings_now=self.shutdowns.settings_now,
            models_in_use=self._models_in_use(),
            asks=self.managers.asks,
            hooks=RunHooks(
                metrics=self.metrics,
                live=self.live,
                alert=self.alert,
                routing=self.routing,
                figures=self.figures,
                gauges=self.gauges,
                traces=self.traces,
            ),
            prices=providers.prices,
            price=providers.price,
            serves=providers.serves,
            place=self.places.label if providers.given is None else str,
            tracks_runs=settings.tracking.autolog,
            older_workers=lambda: self.engine.older_workers(),
            picked=self.best_of.tasks,
            keep_outcomes=self.best_of.keep,
        )

    async def _open_engine(self) -> None:
        if not self._with_engine:
            self.engine = cast(workflow.Engine, _NoEngine())
            return
        url = self.store.database.url
        system = url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
        worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.engine = workflow.Engine(
            store_url=url.render_as_string(hide_password=False),
            store_engine=self.store.engine,
            system_url=f"sqlite:///{self.settings.dir / 'engine.db'}" if self._embedded else system,
            executor_id=EMBEDDED if self._embedded else worker,
            clock=self.clock,
            resources=self.parts,
            poll_s=self._given.get("poll_s", 0.25),
            takeover_s=self._given.get("takeover_s", workflow.TAKEOVER_S),
            on_step=self._given.get("on_step"),
            supervisor=self.supervisor,
            watch=self.traces if self.tracing.on else None,
        )
        await self.engine.launch()
        self._closing.push_async_callback(self.engine.stop)

    # --- services -----------------------------------------------------------------------

    def _compose_runs(self) -> None:
        self.runs = RunService(
            settings=self.settings,
            store=self.store,
            clock=self.clock,
            engine=self.engine,
            live=self.live,
            alert=self.alert,
            pipelines=self.pipelines,
            providers=self.providers,
            managers=self.managers,
            routing=self.routing,
            outages=self.outages,
            effective=self.shutdowns.effective,
            shelved=self.shelved,
        )
        self.shutdown_watch = ShutdownWatch(
            store=self.store,
            clock=self.clock,
            live=self.live,
            alert=self.alert,
            pipelines=self.pipelines,
            shutdowns=self.shutdowns,
            runs=self.runs,
        )
        self.schedule = Schedule(
            store=self.store,
            metrics=self.metrics,
            pipelines=self.pipelines,
            providers=self.providers,
            routing=self.routing,
            runs=self.runs,
            shutdowns=self.shutdown_watch,
        )

    def _compose_tests_and_rollouts(self) -> None:
        self.histories = HistoryService(
            store=self.store,
            clock=self.clock,
            board=self.routing.board,
            shadows=self.settings.shadows,
        )
        self.prompts = PromptService(store=self.store, clock=self.clock, tasks=self._tasks)
        self.experiments = ExperimentService(
            store=self.store,
            clock=self.clock,
            engine=self.engine,
            pipelines=self.pipelines,
            providers=self.providers,
            sources=self.sources,
            routing=self.routing,
            figures=self.figures,
            managers=self.managers,
            histories=self.histories,
            prompts=self.prompts,
        )
        self.rollouts = RolloutService(
            store=self.store,
            clock=self.clock,
            engine=self.engine,
            alert=self.alert,
            pipelines=self.pipelines,
            managers=self.managers,
            routing=self.routing,
            experiments=self.experiments,
        )
        self.scoring = ScoringService(
            store=self.store,
            clock=self.clock,
            metrics=self.metrics,
            alert=self.alert,
            pipelines=self.pipelines,
            scorers=self.scorers,
        )
        self.events = EventService(
            store=self.store,
            clock=self.clock,
            metrics=self.metrics,
            routing=self.routing,
            scoring=self.scoring,
            experiments=self.experiments,
            rollouts=self.rollouts,
            histories=self.histories,
            tracing=self.tracing,
        )
        self.outcomes = OutcomeService(
            settings=self.settings,
            store=self.store,
            clock=self.clock,
            metrics=self.metrics,
            pipelines=self.pipelines,
        )

    def _open_tracker(self) -> None:
        tracking = self.settings.tracking
        self.tracker: MLflowExperimentTracker | None = None
        if tracking.uri is not None:
            self.tracker = self.settings.adapter("tracker")(
                self.store.outbox,
                tracking.uri.reveal(),
                experiment=tracking.experiment_name,
                breaker=self.providers.breakers["mlflow"],
                on_delivered=self.metrics.delivered.inc,
            )

    def _compose_reports(self) -> None:
        self.watchdog = Watchdog(
            store=self.store,
            engine=self.engine,
            clock=self.clock,
            config_of=self.pipelines.known.get,
            alert=self.alert,
            take_back=self.rollouts.rollback,
        )
        self.health = HealthService(
            settings=self.settings,
            store=self.store,
            clock=self.clock,
            cache=self.cache,
            pools=self.pools,
            metrics=self.metrics,
            supervisor=self.supervisor,
            providers=self.providers,
            routing=self.routing,
            watchdog=self.watchdog,
            tracker=self.tracker,
            figures=self.figures,
        )
        self.drifts = DriftWatch(
            store=self.store,
            clock=self.clock,
            live=self.live,
            alert=self.alert,
            pipelines=self.pipelines,
            sources=self.sources,
            runs=self.runs,
            tasks=self.parts.tasks,
        )
        self.overview = Overview(
            store=self.store,
            clock=self.clock,
            pipelines=self.pipelines,
            routing=self.routing,
            schedule=self.schedule,
            shutdowns=self.shutdowns,
            drifts=self.drifts,
            watchdog=self.watchdog,
            outages=self.outages,
            providers=self.providers,
        )
        self.doctor = Doctor(
            settings=self.settings,
            store=self.store,
            clock=self.clock,
            supervisor=self.supervisor,
            alerts=self.alerts,
            alerting=self.alert,
            pipelines=self.pipelines,
            places=self.places,
            providers=self.providers,
            scorers=self.scorers,
            routing=self.routing,
            shutdowns=self.shutdowns,
            sources=self.sources,
            health=self.health,
            best_of=self.best_of,
            shelf=self.shelf,
            refused=self._refused,
        )
        self.migration = MigrationService(
            settings=self.settings,
            store=self.store,
            clock=self.clock,
            pipelines=self.pipelines,
            providers=self.providers,
            routing=self.routing,
            experiments=self.experiments,
            runs=self.runs,
            shutdowns=self.shutdowns,
        )
        self.tokens = TokenService(store=self.store, clock=self.clock)
        self.spending = Spending(store=self.store, clock=self.clock)
        self.shadows = ShadowService(
            settings=self.settings, store=self.store, clock=self.clock, spending=self.spending
        )
        self.concerns = Concerns(
            settings=self.settings,
            store=self.store,
            clock=self.clock,
            metrics=self.metrics,
            pipelines=self.pipelines,
            watchdog=self.watchdog,
            shutdowns=self.shutdowns,
            spending=self.spending,
            tracked=self.tracker is not None,
        )

    async def _begin(self) -> None:
        """Take up what was under way, and start all that is done on the machine's own clock."""
        if self._with_engine:
            self.receipts = await receipt_key(self.store, self.clock)
            await self.prompts.keep_first()
            await self.runs.start_forgotten()
        if not self._background:
            return
        every = self.supervisor.every
        every("schedule", SCHEDULE_EVERY_S, self.schedule.look, leader="schedule")
        every("drift", DRIFT_EVERY_S, self.drifts.look, leader="drift")
        every("watches", WATCHES_EVERY_S, self.watchdog.look, leader="watches")
        every("gauges", REFRESH_EVERY_S, self.gauges.refresh)
        every("concerns", REFRESH_EVERY_S, self.concerns.refresh)
        every("outages", OUTAGES_EVERY_S, self.outages.look)
        every("probes", PROBE_EVERY_S, self.providers.probe)
        every("alerts", TELL_EVERY_S, self.alert.tell, leader="alerts")
        every("pools", TRIM_EVERY_S, self.pools.trim)
        every("answers", FORGET_EVERY_S, self.store.idempotency.forget, leader="answers")
        if self.settings.counts_spending:
            await self._share_budgets()
        if self.tracker is not None:
            every("tracking", DELIVER_EVERY_S, self.tracker.deliver_once, leader="tracking")
        self.outcomes.watch(self.supervisor)
        await self.best_of.watch(self.supervisor)
        await self.scoring.watch(self.supervisor)

    async def _share_budgets(self) -> None:
        """Know what was spent today before anybody spends more, and leave word at the end."""

        async def leave_word() -> None:
            with contextlib.suppress(StoreUnavailableError):
                await self.spending.settle()

        await leave_word()
        self._closing.push_async_callback(leave_word)
        self.supervisor.every("spending", SETTLE_EVERY_S, self.spending.settle)

    async def import_posts(
        self,
        path: Path,
        *,
        table: str = "posts",
        database_url: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Load a Parquet or CSV file of posts into a table; posts that are there stay."""
        from tuneproof.sources import import_posts

        url = database_url or self.store.database.url.render_as_string(hide_password=False)
        return await import_posts(path, url, table=table, progress=progress)
