"""How the service does: its components by real calls, its tasks, its watches, its figures."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from tuneproof.app.look_cache import LookCache
from tuneproof.app.providers import Providers
from tuneproof.app.routing import RoutingService
from tuneproof.app.watches import Watchdog, WatchState
from tuneproof.cache import Cache
from tuneproof.errors import StoreUnavailableError
from tuneproof.resilience import ConnectionPoolManager, Supervisor
from tuneproof.settings import Settings
from tuneproof.store import Store
from tuneproof.telemetry import (
    BreakerCheck,
    CallCheck,
    HealthCheck,
    HealthReport,
    HealthStatus,
    Metrics,
    ProcessFigures,
    run_checks,
)
from tuneproof.tracking import MLflowExperimentTracker
from tuneproof.workflow import Clock

__all__ = ["HealthService", "Ready"]

DATABASE_S = 5.0
"""How long a report waits for the database."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Whether the service can take requests, and why not."""

    ok: bool
    reasons: tuple[str, ...] = ()


class HealthService:
    """What can be asked of the service's health."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        clock: Clock,
        cache: Cache,
        pools: ConnectionPoolManager,
        metrics: Metrics,
        supervisor: Supervisor,
        providers: Providers,
        routing: RoutingService,
        watchdog: Watchdog,
        tracker: MLflowExperimentTracker | None,
        figures: LookCache,
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._cache = cache
        self._pools = pools
        self._metrics = metrics
        self._supervisor = supervisor
        self._providers = providers
        self._routing = routing
        self._watchdog = watchdog
        self._tracker = tracker
        self._figures = figures
        self._process = ProcessFigures()

    async def components(self) -> HealthReport:
        """Each component by a real call."""
        return await run_checks(self._checks(), now=self._clock.now)

    async def watches(self) -> Sequence[WatchState]:
        """How each watch stands; nothing while the database does not answer."""
        try:
            async with asyncio.timeout(DATABASE_S):
                return await self._watchdog.states()
        except (StoreUnavailableError, TimeoutError):
            return ()

    async def report(self) -> Mapping[str, object]:
        """Each component by a real call, with pools and performance figures."""
        report, watches = await asyncio.gather(self.components(), self.watches())
        figures, now = self._process.read(), self._supervisor.now()
        return {
            **report.to_dict(),
            "status": self._with_tasks(report.status, watches),
            "tasks": [
                {**asdict(task), "overdue": task.overdue(now)} for task in self._supervisor.tasks
            ],
            "watches": [{**asdict(watch), "kind": watch.kind.value} for watch in watches],
            "routing_age_s": self._routing.board.age_s,
            "connection_pools": {**self._pools.counts(), **self._pools.limits()},
            "performance_metrics": {
                "avg_response_time_ms": self._metrics.response_times.avg_ms,
                "cache_hit_rate": self._cache.hit_rate,
                "memory_usage_mb": figures["memory_usage_mb"],
                "cpu_usage_percent": figures["cpu_usage_percent"],
            },
        }

    def _with_tasks(self, status: HealthStatus, watches: Sequence[WatchState]) -> HealthStatus:
        """The whole's status: a task that stands still or a blind watch degrades it."""
        now = self._supervisor.now()
        stands = any(task.stands_still(now) for task in self._supervisor.tasks)
        stands = stands or any(watch.blind for watch in watches)
        return HealthStatus.DEGRADED if stands and status is HealthStatus.HEALTHY else status

    def ready(self) -> Ready:
        """Whether the routing is in memory, from which requests are answered. Asks nobody.

        All else can be away for a while: taking a worker out for it would take out every one.
        """
        try:
            _ = self._routing.board.snapshot
        except StoreUnavailableError as e:
            return Ready(ok=False, reasons=(f"routing: {e.message} {e.mend}",))
        return Ready(ok=True)

    async def model_performance(self) -> Mapping[str, object]:
        """What the newest look of each running or last test says of its arms."""
        page = await self._store.experiments.page(limit=10)
        found = {}
        looks = await self._figures.newest(page.items)
        for test, look in zip(page.items, looks, strict=True):
            if look is not None:
                found[test.id] = {
                    "status": str(test.status),
                    "at": look.at.isoformat(),
                    "baseline": {"model_id": test.baseline.model_id, **asdict(look.baseline)},
                    "candidate": {"model_id": test.candidate.model_id, **asdict(look.candidate)},
                    "lift": look.lift,
                    "interval": [look.lower, look.upper],
                }
        return {"experiments": found}

    async def response_time(self) -> Mapping[str, object]:
        """How long this service takes to answer: mean and quantiles, in ms."""
        return dict(self._metrics.response_times.read())

    async def _ping_provider(self) -> None:
        """Ask the first pipeline's provider; one that cannot be called is told as its failure."""
        first = next(iter(self._settings.pipelines.values()))
        await self._providers.get(first.provider).ping()

    def _checks(self) -> list[HealthCheck]:
        first = next(iter(self._settings.pipelines.values()))
        redis = None if self._settings.cache.url.scheme == "mem" else self._cache.ping
        tracker = self._tracker.check if self._tracker is not None else None
        provider = self._ping_provider if self._providers.serves_now(first.provider) else None
        return [
            CallCheck(
                name="database",
                call=self._store.database.ping,
                needed=True,
                hint="Start the database, or mend DATABASE_URL.",
            ),
            CallCheck(
                name="redis", call=redis, hint="Set REDIS_URL for a cache that workers share."
            ),
            CallCheck(
                name="mlflow",
                call=tracker,
                hint="Set MLFLOW_TRACKING_URI; until then the outbox keeps everything.",
            ),
            CallCheck(
                name="provider",
                call=provider,
                hint="Check the provider's address and key (tuneproof doctor)."
                if provider
                else "The embedded trainer starts with the service: tuneproof serve",
            ),
            *(
                BreakerCheck(name=f"{name}_circuit_breaker", breaker=breaker)
                for name, breaker in self._providers.breakers.items()
            ),
        ]
