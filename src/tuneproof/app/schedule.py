"""The schedule: which runs are due, and what else is looked at with it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from tuneproof import workflow
from tuneproof.app.pipelines import Pipelines
from tuneproof.app.providers import Providers
from tuneproof.app.routing import RoutingService
from tuneproof.app.runs import RunService
from tuneproof.app.shutdowns import ShutdownWatch
from tuneproof.errors import InputError, StateError
from tuneproof.settings import PipelineConfig
from tuneproof.store import RunStatus, Store
from tuneproof.telemetry import Metrics
from tuneproof.workflow import Tx

__all__ = ["LOOK_EVERY_S", "Schedule", "newest_tick", "next_tick"]

LOOK_EVERY_S = 20.0

FORGOTTEN_AFTER = timedelta(minutes=1)
"""A run that waits for the engine for longer was declared by a process that died."""


class Schedule:
    """Starts the runs that are due."""

    def __init__(
        self,
        *,
        store: Store,
        metrics: Metrics,
        pipelines: Pipelines,
        providers: Providers,
        routing: RoutingService,
        runs: RunService,
        shutdowns: ShutdownWatch,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._pipelines = pipelines
        self._providers = providers
        self._routing = routing
        self._runs = runs
        self._shutdowns = shutdowns
        self._settled = False

    async def look(self) -> None:
        """Start what is due on the machine's own clock; look for lost runs and for shutdowns."""
        now = workflow.SystemClock().now()
        if not self._settled:
            if await self._providers.settle():
                self._routing.endpoints_changed()
            self._settled = True
        await self._runs.start_forgotten(older_than=FORGOTTEN_AFTER)
        await self.tick(now)
        await self._shutdowns.look(now)

    async def tick(self, now: datetime) -> list[str]:
        """Start what the schedules say is due; missed ticks coalesce into one.

        Returns the ids of the runs that were started. A pipeline seen for the first time
        begins with its next tick.
        """
        started = []
        for config in self._pipelines.running:
            if config.enabled and config.schedule_driver == "internal":
                run_id = await self._tick(config, now)
                if run_id is not None:
                    started.append(run_id)
        return started

    async def _tick(self, config: PipelineConfig, now: datetime) -> str | None:
        async with self._store.database.begin() as tx:
            last = await self._store.schedule.last_tick(config.name, tx=tx)
            if last is None:
                await self._store.schedule.set_tick(config.name, now, tx=tx)
                return None
            due = newest_tick(config, last, now)
            if due is None:
                return None
            queued = config.overlap == "queue" and await self._busy(config.name, tx)
            if not queued:
                await self._store.schedule.set_tick(config.name, due, tx=tx)
        if queued:
            return None  # the tick stays due; later ones coalesce into it
        try:
            run = await self._runs.start(config.name, actor="schedule")
        except StateError as e:
            self._metrics.run_skipped("predecessor_running", pipeline=config.name)
            await self._store.activity.add(now, "schedule", "run skipped", config.name, e.message)
            return None
        except InputError as e:  # it ends no other pipeline's ticks
            self._metrics.run_skipped("refused", pipeline=config.name)
            once = now.isoformat()
            await self._runs.tell_refused(config.name, e, actor="schedule", once=once)
            return None
        return run.id

    async def _busy(self, pipeline: str, tx: Tx) -> bool:
        active = await self._store.runs.active(pipeline, tx=tx)
        return any(r.status is not RunStatus.HOLDING for r in active)

    def next_start(self, config: PipelineConfig, now: datetime) -> datetime | None:
        """When the schedule ticks next; None where it does not."""
        if not config.enabled or config.schedule_driver != "internal":
            return None
        return next_tick(config, now)


def next_tick(config: PipelineConfig, after: datetime) -> datetime:
    """The schedule's next instant after `after`, in the pipeline's time zone, as UTC.

    Each local time fires once: one that comes twice when clocks go back the first time, one that
    does not come when they go forward as much later as they jumped.
    """
    found = _nearest(config, after, forward=True)
    assert found is not None  # settings refuse what never fires
    return found


def newest_tick(config: PipelineConfig, after: datetime, now: datetime) -> datetime | None:
    """The newest instant of the schedule in (after, now]; None where there is none."""
    found = _nearest(config, now, forward=False)
    return found if found is not None and after < found <= now else None


def _nearest(config: PipelineConfig, at: datetime, *, forward: bool) -> datetime | None:
    """The first instant after `at`, or the last one up to it.

    The expression speaks of local times, which an instant is made of each by itself. Their order is
    that of the instants but where clocks change: there all within a day are looked at.
    """
    from croniter import CroniterBadDateError, croniter

    zone = ZoneInfo(config.time_zone)
    sign = 1 if forward else -1
    margin = _DAY if _changes(zone, at) else timedelta(0)
    local = at.astimezone(zone).replace(tzinfo=None) - sign * margin
    if not forward:
        local += timedelta(seconds=1)
    times = croniter(config.weekly_schedule, local)
    found: list[datetime] = []
    first: datetime | None = None
    while True:
        try:
            naive: datetime = times.get_next(datetime) if forward else times.get_prev(datetime)
        except CroniterBadDateError:
            return None
        if first is not None and abs(naive - first) > _DAY:
            break
        instant = naive.replace(tzinfo=zone).astimezone(UTC)
        if (instant > at) if forward else (instant <= at):
            found.append(instant)
            first = first or naive
            if not _changes(zone, instant):
                break
    return min(found) if forward else max(found)


_DAY = timedelta(hours=25)
"""Longer than clocks ever jumped: a day, where an island went over the date line."""


def _changes(zone: ZoneInfo, at: datetime) -> bool:
    """Whether clocks change within two days of an instant."""
    return len({(at + n * _DAY).astimezone(zone).utcoffset() for n in (-2, -1, 0, 1, 2)}) > 1
