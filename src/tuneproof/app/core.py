"""The App's core: opens the adapters that the settings name, in order, and closes them."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any, Self, cast

from tuneproof import workflow
from tuneproof.app.board import Board
from tuneproof.app.endpoints import RENEW_S, Endpoints
from tuneproof.app.live import Live
from tuneproof.app.places import Places
from tuneproof.app.provided import Provided
from tuneproof.app.providing import apart
from tuneproof.app.scorers import Scorers
from tuneproof.cache import Cache
from tuneproof.collection import Source, Task
from tuneproof.errors import (
    ConfigError,
    StateError,
    StoreUnavailableError,
)
from tuneproof.evaluation import Scorer, Text
from tuneproof.experiments import Exposure, ModelRef
from tuneproof.pipeline import Hooks, NoHooks, Parts
from tuneproof.resilience import (
    CircuitBreaker,
    ConnectionPoolManager,
    DatabasePool,
    RedisPool,
    Supervisor,
    redis_pool,
)
from tuneproof.rollout import Deployment, DeploymentManager, Target
from tuneproof.settings import PipelineConfig, Settings, Url, resolved
from tuneproof.store import Store, unopened_store
from tuneproof.telemetry import Alerts, Metrics
from tuneproof.testing import Participant, VirtualClock
from tuneproof.training import Provider

log = logging.getLogger(__name__)

VIRTUAL_NOW = "virtual_now"
"""Under which key a virtual clock's instant is kept."""

EMBEDDED = "embedded"
"""The executor id of the one process that owns a SQLite data directory."""

_CLOCK = "virtual-clock"


class _NoEngine:
    """Stands for the engine in an App that runs nothing; knows no run, refuses to start one."""

    async def exists(self, run_id: str) -> bool:
        """Never: no run is known here."""
        return False

    def __getattr__(self, name: str) -> Any:
        raise StateError("No run can go on in this process.", mend="Start it: tuneproof serve")


class Core(Provided):
    """Everything that the use cases stand on. `App.open(settings)` is how to get one.

    `adapters` replace single ones: `store`, `clock`, `provider` (one for all names), `source`
    (one for all pipelines), `targets`, `scorers` with their
    `min_scores`. `poll_s` is how often the engine looks for
    signals, `takeover_s` how often for runs of dead workers; `on_step` is told of each step.
    `engine=False` opens an App that reads and writes the store only: no trainer is started, no
    run goes on; with `needs_store=False` also where the database does not answer, so that the
    doctor can say what else is wrong.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store | None = None,
        clock: workflow.Clock | None = None,
        provider: Provider | None = None,
        source: Source | None = None,
        targets: Sequence[Target] | None = None,
        scorers: Mapping[str, Scorer] | None = None,
        min_scores: Mapping[str, float] | None = None,
        on_step: workflow.StepHook | None = None,
        poll_s: float = 0.25,
        takeover_s: float = workflow.TAKEOVER_S,
        background: bool = True,
        engine: bool = True,
        needs_store: bool = True,
    ) -> None:
        self._needs_store = needs_store or engine
        self.settings = settings
        self.clock: workflow.Clock = clock or workflow.SystemClock()
        self.metrics = Metrics()
        self.live = Live()
        self.pools = ConnectionPoolManager()
        self.breakers: dict[str, CircuitBreaker] = {}
        self.trainer_url: str | None = None
        self._given_store = store
        self._given_provider = provider
        self._given_source = source
        self._given_targets = targets
        self.scorers = Scorers(self, scorers or {})
        self._min_scores = dict(min_scores or {})
        self._on_step = on_step
        self._poll_s = poll_s
        self._takeover_s = takeover_s
        self._background = background and engine
        self._with_engine = engine
        self._providers: dict[str, Provider] = {}
        self._closing = AsyncExitStack()
        self._alerting: set[str] = set()
        self.supervisor = Supervisor(leads=self._leads, restarted=self.metrics.task_restarted)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, **adapters: Any) -> AsyncIterator[Self]:
        """An App with everything running; closed at the end, runs stay for the next one."""
        app = cls(settings, **adapters)
        try:
            await app.launch()
            yield app
        finally:
            await app.close()

    async def launch(self) -> None:
        """Open adapters, start the engine, take up what was under way."""
        settings = self.settings
        settings.dir.mkdir(parents=True, exist_ok=True)
        embedded = settings.store.url.scheme == "sqlite"
        if embedded and self._with_engine:
            lock = workflow.DirectoryLock(settings.dir)
            lock.acquire()
            self._closing.callback(lock.release)
        self.store = self._given_store or await self._open_store()
        self._closing.push_async_callback(self.store.close)
        self.pools.add("database", DatabasePool(self.store.database.engine))
        await self._bind_virtual_clock()
        self.cache = self._open_cache()
        self._closing.push_async_callback(self.cache.close)
        self.places = Places(self.store, settings)
        if self._with_engine and self._given_provider is None:
            await self.places.remember()
        await self._open_trainer()
        self._watch_breakers()
        await self._open_board()
        self.targets = list(self._given_targets or ()) or self._open_targets()
        self.scorers.check()
        self.parts = Parts(
            store=self.store,
            directory=settings.dir,
            clock=self.clock,
            provider=self.provider,
            source=self.open_source,
            tasks={name: Task.of(task) for name, task in settings.tasks.items()},
            targets=self.targets,
            scorers=self.scorers.given,
            min_scores=self._min_scores,
            scorer=self.scorers.find,
            settings_now=self.settings_now,
            models_in_use={
                n: ModelRef(model_id=t.model, provider=t.model_provider)
                for n, t in settings.tasks.items()
                if t.model
            },
            hooks=self._hooks(),
            prices=self.prices,
            price=self.price,
            serves=self.serves,
            place=self.places.label if self._given_provider is None else str,
            tracks_runs=settings.tracking.autolog,
        )
        if self._with_engine:
            await self._launch_engine(embedded)
        else:
            self.engine = cast(workflow.Engine, _NoEngine())
        await self._began()
        self.metrics.watch_pools(self.pools.counts)
        self.metrics.watch_cache(lambda: self.cache.hit_rate)

    async def _open_board(self) -> None:
        """Know the routing, and who serves its models, before anybody asks."""
        self.endpoints = Endpoints(
            self.store, self.settings, self.places, embedded=self.endpoint, breakers=self.breakers
        )
        self.board = Board(self.store.routing, self.live, prepare=self.endpoints.prepare)
        if not self._with_engine:
            with contextlib.suppress(StoreUnavailableError):
                await self.board.refresh()
            return
        await self.board.refresh()
        self.board.watch(self.supervisor)
        self.supervisor.every("endpoints", RENEW_S, self._renew_endpoints)

    async def _leads(self, role: str) -> bool:
        return await self.engine.leads(role)

    async def _open_store(self) -> Store:
        config = self.settings.store
        pool = {
            "pool_size": config.pool_size,
            "max_overflow": config.max_overflow,
            "pool_timeout_s": config.pool_timeout,
        }
        opened = self.settings.adapter("store")(
            config.url.reveal(),
            pool=None if config.url.scheme == "sqlite" else pool,
            clock=self.clock,
        )
        try:
            store: Store = await opened
        except StoreUnavailableError as e:
            if self._needs_store:
                raise
            log.info("going on without the database: %s", e.message)
            return unopened_store(config.url.reveal(), clock=self.clock)
        return store

    def _open_cache(self) -> Cache:
        config = self.settings.cache
        make: Callable[..., Cache] = self.settings.adapter("cache")
        if config.url.scheme == "mem":
            return make(config.url.reveal())
        pool = redis_pool(
            config.url.reveal(),
            max_connections=config.max_connections,
            socket_keepalive=config.keepalive,
        )
        self.pools.add("redis", RedisPool(pool))
        return make(config.url.reveal(), pool=pool)

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
        if not self.supervisor.runs(_CLOCK):
            self.supervisor.keep(_CLOCK, self.clock.drive)

    async def _open_trainer(self) -> None:
        if self._given_provider is not None:
            return
        if not any(p.embedded for p in self.settings.providers.values()):
            return
        if not self._with_engine:
            return
        serve = self.settings.adapter("trainer")
        trainer = await self._closing.enter_async_context(serve(self.settings.dir / "trainer"))
        self.trainer_url = trainer.base_url

    def _open_targets(self) -> list[Target]:
        made = []
        for config in self.settings.targets.values():
            own = ":" in config.kind
            where = f"targets.{config.name}.kind"
            make = resolved(where, config.kind) if own else self.settings.adapter("target")
            made.append(make(self.settings.target(config.name)))
        return made

    async def _launch_engine(self, embedded: bool) -> None:
        url = self.store.database.url.render_as_string(hide_password=False)
        system = (
            f"sqlite:///{self.settings.dir / 'engine.db'}"
            if embedded
            else self.store.database.url.set(drivername="postgresql+psycopg").render_as_string(
                hide_password=False
            )
        )
        worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.engine = workflow.Engine(
            store_url=url,
            store_engine=self.store.database.engine,
            system_url=system,
            executor_id=EMBEDDED if embedded else worker,
            clock=self.clock,
            resources=self.parts,
            poll_s=self._poll_s,
            takeover_s=self._takeover_s,
            on_step=self._on_step,
            supervisor=self.supervisor,
        )
        await self.engine.launch()
        self._closing.push_async_callback(self.engine.stop)

    def _hooks(self) -> Hooks:
        """Who is told of what runs do."""
        return NoHooks()

    async def _began(self) -> None:
        """What a part of the App does once the engine runs."""

    async def texts_of(self, exposures: Sequence[Exposure]) -> Sequence[Text]:
        """Which answers among these are to be scored; none where nobody scores."""
        return ()

    @cached_property
    def alerts(self) -> Alerts:
        """Whom to tell when a person should look."""
        config = self.settings.alerts
        return Alerts(
            now=workflow.SystemClock().now,
            webhook_url=config.webhook_url,
            webhook_secret=self.settings.secret(config.webhook_secret_env),
            prometheus_url=config.prometheus_url,
        )

    def alert(
        self, kind: str, subject: str, summary: str, *, once: str = "", **details: Any
    ) -> None:
        """Tell whoever is to be told, without keeping the caller waiting.

        The same is told once only, also where a run is taken up again by another process; `once`
        tells occasions of one subject from each other.
        """
        key = f"alerted:{kind}:{subject}:{once}"
        if self.alerts.configured and key not in self._alerting:
            self._alerting.add(key)
            self.supervisor.soon(
                "alert", lambda: self._alerted(key, kind, subject, summary, details)
            )

    async def _alerted(
        self, key: str, kind: str, subject: str, summary: str, details: Mapping[str, Any]
    ) -> None:
        """Tell it; it counts as told once somebody took it, so that a kill loses none."""
        if await self.store.meta.get(key) is None:
            await self.alerts.send(kind, subject, summary, **details)
            await self.store.meta.set(key, self.clock.now().isoformat())
        self._alerting.discard(key)

    async def close(self) -> None:
        """Stop loops, engine, servers and pools, in the reverse order of their opening."""
        await self.supervisor.close()
        self.live.close()
        for provider in self._providers.values():
            with contextlib.suppress(StoreUnavailableError):
                await provider.close()
        await self._closing.aclose()

    # --- adapters by name -----------------------------------------------------------

    def open_source(self, config: PipelineConfig, posts: str | None = None) -> Source:
        """Where this run's posts come from: `posts` (a file or an address), or the settings'."""
        if self._given_source is not None and posts is None:
            return self._given_source
        described = self.settings.sources[config.source]
        if posts is not None:
            described = replace(described, url=Url(posts))
        if described.url is None:
            url = self.store.database.url.render_as_string(hide_password=False)
            described = replace(described, url=Url(url))
        opened: Source = self.settings.adapter("source")(described)
        if inspect.isawaitable(opened):
            raise ConfigError("adapters.source must not be a coroutine.", mend="Return a Source.")
        return opened

    def pipelines(self) -> list[PipelineConfig]:
        """The pipelines that really run: one for each task where tasks train apart."""
        settings = self.settings
        return [
            child for config in settings.pipelines.values() for child in apart(settings, config)
        ]

    async def settings_now(self, name: str) -> PipelineConfig | None:
        """What a run of this pipeline that started now would be given; None for an unknown one."""
        known = {config.name: config for config in self.pipelines()}
        config = known.get(name) or self.settings.pipelines.get(name)
        return None if config is None else await self.effective(config)

    async def effective(self, config: PipelineConfig) -> PipelineConfig:
        """The config that a run really gets."""
        return config

    def pipeline(self, name: str) -> PipelineConfig:
        """A pipeline's settings. Raises `ConfigError` for an unknown one."""
        known = {**self.settings.pipelines, **{c.name: c for c in self.pipelines()}}
        if name not in known:
            raise ConfigError(
                f"There is no pipeline {name!r}.",
                mend=f"Use one of: {', '.join(known)}.",
                field="pipeline",
            )
        return known[name]

    def manager(self, deployment: Deployment | None = None, **changes: Any) -> DeploymentManager:
        """A deployment manager for a rollout's pipeline."""
        name = deployment.pipeline if deployment else "default"
        known = {**self.settings.pipelines, **{c.name: c for c in self.pipelines()}}
        config = known.get(name) or next(iter(known.values()))
        return self.manager_of(replace(config, **changes) if changes else config)

    def manager_of(self, config: PipelineConfig) -> DeploymentManager:
        """A deployment manager with these settings."""
        return DeploymentManager(
            store=self.store,
            provider=self.provider(config.provider),
            targets=self.targets,
            clock=self.clock,
            config=config,
            serves=self.serves,
        )

    async def _wake(self, run_id: str) -> None:
        if await self.engine.exists(run_id) and not await self.engine.ended(run_id):
            await self.engine.send(run_id, workflow.Signal(kind="wake"))

    async def _routing_changed(self) -> None:
        """The routing was written: who asks next, or listens, sees it."""
        await self.board.refresh_if_possible()
