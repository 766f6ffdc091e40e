"""The spans of runs: each step as it is carried out, and each stage and the run once it is over."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import datetime

from tuneproof.errors import NotFoundError
from tuneproof.experiments import ABTest, Look
from tuneproof.pipeline import Stage
from tuneproof.resilience import Supervisor
from tuneproof.rollout import Deployment
from tuneproof.store import Run, Store
from tuneproof.telemetry import Tracing
from tuneproof.workflow import Clock

__all__ = ["RunTraces"]

END = "end"
RUN = "run"
"""The step `run.end` ends a run, each other `STAGE.end` a stage."""

TRACED = tuple(str(stage) for stage in Stage if stage is not Stage.CURATE)
"""Curation is a part of collecting, and has no step of its own."""


class RunTraces:
    """Tells `tracing` of runs, looks and rollouts, each once.

    What had happened before this process began is replayed in it, and was told of then.
    """

    def __init__(
        self, tracing: Tracing, *, store: Store, clock: Clock, supervisor: Supervisor
    ) -> None:
        self._tracing = tracing
        self._store = store
        self._supervisor = supervisor
        self._since = clock.now()

    def step(self, name: str, run_id: str) -> AbstractContextManager[None]:
        """A step as it is carried out."""
        return self._tracing.step(name, run_id)

    def done(self, name: str, run_id: str) -> None:
        """A step that is recorded; the last one of a stage tells of the stage, too."""
        stage, _, verb = name.partition(".")
        if verb == END:
            self._supervisor.soon("trace", lambda: self._ended(run_id, stage), attempts=3)

    def looked(self, test: ABTest, look: Look) -> None:
        """A look at a test."""
        if self._tracing.on and look.at >= self._since:
            self._tracing.looked(test.id, look.number, test.start_at, look.at, str(look.verdict))

    def moved(self, deployment: Deployment) -> None:
        """A rollout is at another step or state."""
        at = deployment.ended_at or deployment.step_started_at or deployment.created_at
        if self._tracing.on and at >= self._since:
            created, state = deployment.created_at, str(deployment.state)
            self._tracing.looked(deployment.id, deployment.version, created, at, state)

    async def _ended(self, run_id: str, stage: str) -> None:
        try:
            run = await self._store.runs.get(run_id)
        except NotFoundError:
            return  # a test or rollout that no run drives: its looks are told of
        if stage == RUN:
            self._run_ended(run)
        else:
            self._stage_ended(run, stage)

    def _run_ended(self, run: Run) -> None:
        if run.ended_at is None:
            return  # it is tried again already
        status = str(run.status)
        self._tracing.run_ended(run.id, run.pipeline, run.created_at, run.ended_at, status)

    def _stage_ended(self, run: Run, stage: str) -> None:
        entry = run.stages.get(stage, {})
        if entry.get("ended_at") is None:
            return  # no stage of its own, as the plan, or it is tried again already
        ended = datetime.fromisoformat(entry["ended_at"])
        began = datetime.fromisoformat(entry.get("started_at") or entry["ended_at"])
        earlier = TRACED[: TRACED.index(stage)] if stage in TRACED else ()
        before = next((name for name in reversed(earlier) if name in run.stages), "")
        status = str(entry["status"])
        self._tracing.stage_ended(run.id, stage, began, ended, status, before)
