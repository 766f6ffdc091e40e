"""All pipelines at a glance: the model in use, what runs, what happens next and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from datetime import datetime
from typing import TypedDict

from tuneproof.app.drifting import DriftStatus, DriftWatch
from tuneproof.app.outages import Outage, Outages
from tuneproof.app.pipelines import Pipelines
from tuneproof.app.providers import Providers
from tuneproof.app.routing import RoutingService
from tuneproof.app.schedule import Schedule
from tuneproof.app.shutdowns import Shutdowns
from tuneproof.app.watches import Watchdog, WatchState
from tuneproof.rollout import Deployment, Routing
from tuneproof.rollout.routing import RoutingDocument
from tuneproof.settings import PipelineConfig
from tuneproof.store import Run, Store
from tuneproof.workflow import Clock

__all__ = ["Overview"]


class Countdown(TypedDict):
    """When the model that a pipeline trains from shuts down."""

    model: str
    provider: str
    at: str
    days: int
    successor: str | None
    mend: str
    """What to do, and until when."""


class ActiveRun(TypedDict):
    """The run that a pipeline is at."""

    id: str
    status: str
    stage: str | None
    note: str
    """Why its stage waits, or what went wrong last; empty where all goes well."""
    progress: str
    """How far its stage is; empty where that is not known."""


class PipelineStatus(TypedDict):
    """A pipeline: the model in use, what runs, what happens next and when."""

    name: str
    enabled: bool
    model_in_use: Mapping[str, str | None]
    run: ActiveRun | None
    experiment_id: str | None
    deployment_id: str | None
    traffic: float | None
    next_start_at: str | None
    shutdown: Countdown | None
    drift: DriftStatus | None
    next_action: str
    stalled_watches: Sequence[str]
    waits_for_person: Sequence[str]


class ServiceStatus(TypedDict):
    """All pipelines, and the routing of all tasks."""

    pipelines: Sequence[PipelineStatus]
    routing: Sequence[RoutingDocument]


class Overview:
    """Reads it together."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        pipelines: Pipelines,
        routing: RoutingService,
        schedule: Schedule,
        shutdowns: Shutdowns,
        drifts: DriftWatch,
        watchdog: Watchdog,
        outages: Outages,
        providers: Providers,
    ) -> None:
        self._store = store
        self._clock = clock
        self._pipelines = pipelines
        self._routing = routing
        self._schedule = schedule
        self._shutdowns = shutdowns
        self._drifts = drifts
        self._watchdog = watchdog
        self._outages = outages
        self._providers = providers

    async def status(self) -> ServiceStatus:
        """Each pipeline: the model in use, what runs, what happens next and when."""
        routing = (await self._routing.board.refresh_if_possible()).routing
        watches, outages = await self._watchdog.states(), await self._outages.lasting()
        return {
            "pipelines": [
                await self._pipeline_status(config, {r.task: r for r in routing}, watches, outages)
                for config in self._pipelines.running
            ],
            "routing": [r.document() for r in routing],
        }

    async def _pipeline_status(
        self,
        config: PipelineConfig,
        routing: Mapping[str, Routing],
        watches: Sequence[WatchState],
        outages: Sequence[Outage],
    ) -> PipelineStatus:
        now = self._clock.now()
        active = await self._store.runs.active(config.name)
        run = active[-1] if active else None
        deployments = await self._store.deployments.active(config.name)
        deployment = deployments[-1] if deployments else None
        starts = self._schedule.next_start(config, now)
        served = [routing[t] for t in config.tasks if t in routing]
        blind = [w for w in watches if w.blind and w.pipeline == config.name]
        names = self._breakers_of(config, served)
        return {
            "name": config.name,
            "enabled": config.enabled,
            "model_in_use": {
                t: routing[t].baseline.model_id if t in routing else None for t in config.tasks
            },
            "run": _active(run) if run else None,
            "experiment_id": run.result.get("ab_test_id") if run else None,
            "deployment_id": deployment.id if deployment else None,
            "traffic": max(
                (r.candidates_share for r in served if r.candidates_share is not None), default=None
            ),
            "next_start_at": starts.isoformat() if starts else None,
            "shutdown": await self._countdown(config, now),
            "drift": await self._drifts.known(config),
            "next_action": _next_action(run, deployment, starts),
            "stalled_watches": [w.sentence() for w in blind if w.stalled],
            "waits_for_person": [
                *(w.sentence() for w in blind),
                *(o.sentence() for o in outages if o.breaker in names),
                *([f"{run.id}: {run.needs}"] if run and run.needs else []),
                *(f"{d.id} is paused: {d.cause}" for d in deployments if str(d.state) == "paused"),
            ],
        }

    def _breakers_of(self, config: PipelineConfig, served: Sequence[Routing]) -> Set[str]:
        """The breakers of who trains for a pipeline, and of who serves its models."""
        models = [m for routing in served for m in (routing.baseline, *routing.candidates)]
        serving = (self._routing.endpoints.breaker_name(model) for model in models)
        trains = self._providers.breaker_name(config.provider)
        return {trains, *(name for name in serving if name is not None)}

    async def _countdown(self, config: PipelineConfig, now: datetime) -> Countdown | None:
        found = await self._shutdowns.known(config)
        if found is None:
            return None
        return {
            "model": found.model,
            "provider": found.provider,
            "at": found.at.isoformat(),
            "days": found.left(now).days,
            "successor": found.follower(config),
            "mend": found.mend(config, now),
        }


def _active(run: Run) -> ActiveRun:
    return {
        "id": run.id,
        "status": str(run.status),
        "stage": run.current_stage,
        "note": run.note,
        "progress": run.progress,
    }


def _next_action(run: Run | None, deployment: Deployment | None, starts: datetime | None) -> str:
    if deployment is not None and deployment.next_at is not None:
        return f"rollout {deployment.id}: next step at {deployment.next_at:%Y-%m-%d %H:%M} UTC"
    if run is not None:
        progress = f", {run.progress}" if run.progress else ""
        return f"run {run.id}: {run.current_stage or 'about to begin'}{progress}"
    if starts is not None:
        return f"next run at {starts:%Y-%m-%d %H:%M} UTC"
    return "nothing: start a run (tuneproof run start)"
