"""All pipelines at a glance: the model in use, what runs, what happens next and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypedDict

from tuneproof.app.pipelines import Pipelines
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


class ActiveRun(TypedDict):
    """The run that a pipeline is at."""

    id: str
    status: str
    stage: str | None


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
        watchdog: Watchdog,
    ) -> None:
        self._store = store
        self._clock = clock
        self._pipelines = pipelines
        self._routing = routing
        self._schedule = schedule
        self._shutdowns = shutdowns
        self._watchdog = watchdog

    async def status(self) -> ServiceStatus:
        """Each pipeline: the model in use, what runs, what happens next and when."""
        routing = (await self._routing.board.refresh_if_possible()).routing
        watches = await self._watchdog.states()
        return {
            "pipelines": [
                await self._pipeline_status(config, {r.task: r for r in routing}, watches)
                for config in self._pipelines.running
            ],
            "routing": [r.document() for r in routing],
        }

    async def _pipeline_status(
        self,
        config: PipelineConfig,
        routing: Mapping[str, Routing],
        watches: Sequence[WatchState],
    ) -> PipelineStatus:
        now = self._clock.now()
        active = await self._store.runs.active(config.name)
        run = active[-1] if active else None
        deployments = await self._store.deployments.active(config.name)
        deployment = deployments[-1] if deployments else None
        starts = self._schedule.next_start(config, now)
        served = [routing[t] for t in config.tasks if t in routing]
        stalled = [w.sentence() for w in watches if w.stalled and w.pipeline == config.name]
        return {
            "name": config.name,
            "enabled": config.enabled,
            "model_in_use": {
                t: routing[t].baseline.model_id if t in routing else None for t in config.tasks
            },
            "run": {"id": run.id, "status": str(run.status), "stage": run.current_stage}
            if run
            else None,
            "experiment_id": run.result.get("ab_test_id") if run else None,
            "deployment_id": deployment.id if deployment else None,
            "traffic": max(
                (r.candidates_share for r in served if r.candidates_share is not None), default=None
            ),
            "next_start_at": starts.isoformat() if starts else None,
            "shutdown": await self._countdown(config, now),
            "next_action": _next_action(run, deployment, starts),
            "stalled_watches": stalled,
            "waits_for_person": [
                *stalled,
                *([f"{run.id}: {needed}"] if run and (needed := _needed(run)) else []),
                *(f"{d.id} is paused: {d.cause}" for d in deployments if str(d.state) == "paused"),
            ],
        }

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
        }


def _needed(run: Run) -> str:
    """What a run that waits needs a person for; empty where it goes on by itself."""
    stage = run.stages.get(run.current_stage or "", {})
    if stage.get("status") != "in_progress":
        return ""
    return str(stage.get("detail", {}).get("needs") or "")


def _next_action(run: Run | None, deployment: Deployment | None, starts: datetime | None) -> str:
    if deployment is not None and deployment.next_at is not None:
        return f"rollout {deployment.id}: next step at {deployment.next_at:%Y-%m-%d %H:%M} UTC"
    if run is not None:
        return f"run {run.id}: {run.current_stage or 'about to begin'}"
    if starts is not None:
        return f"next run at {starts:%Y-%m-%d %H:%M} UTC"
    return "nothing: start a run (tuneproof run start)"
