"""Passes on what runs do: to the metrics, to whoever listens live, to whoever is to be told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from tuneproof.app.alerting import Alerting
from tuneproof.app.gauges import Gauges
from tuneproof.app.live import Live
from tuneproof.app.look_cache import LookCache
from tuneproof.app.routing import RoutingService
from tuneproof.app.traces import RunTraces
from tuneproof.collection import TrainingDataBatch
from tuneproof.experiments import ABTest, Look, Verdict
from tuneproof.pipeline import PipelineResult
from tuneproof.rollout import Deployment, DeploymentState
from tuneproof.telemetry import MemoryWatch, Metrics
from tuneproof.workflow import RunStatus

__all__ = ["RunHooks"]


class RunHooks:
    """Passes on what runs do: to the metrics, and to whoever listens live."""

    def __init__(
        self,
        *,
        metrics: Metrics,
        live: Live,
        alert: Alerting,
        routing: RoutingService,
        figures: LookCache,
        gauges: Gauges,
        traces: RunTraces,
    ) -> None:
        self._metrics = metrics
        self._live = live
        self._alert = alert
        self._routing = routing
        self._figures = figures
        self._gauges = gauges
        self._traces = traces
        self._watching: list[MemoryWatch] = []
        metrics.peak_mb.set_function(self._peak_mb)

    @contextmanager
    def memory(self, run_id: str, limit_mb: float) -> Iterator[MemoryWatch]:
        """Watch memory while a stage works; its peak can be read meanwhile."""
        loop = asyncio.get_running_loop()

        def warn(used_mb: float, _: float) -> None:  # called by the watch's own thread
            self._metrics.memory_warnings.inc()
            loop.call_soon_threadsafe(self._tell_of_memory, run_id, used_mb, limit_mb)

        with MemoryWatch(limit_mb, on_warning=warn) as watch:
            self._watching.append(watch)
            try:
                yield watch
            finally:
                self._watching.remove(watch)

    def _tell_of_memory(self, run_id: str, used_mb: float, limit_mb: float) -> None:
        said = f"The process takes {used_mb:.0f} MB, over the limit of {limit_mb:.0f} MB."
        self._alert("memory_high", run_id, said)

    def _peak_mb(self) -> float:
        return max((watch.usage.peak_mb for watch in tuple(self._watching)), default=0.0)

    def stage_finished(self, run_id: str, stage: str, seconds: float) -> None:
        """A stage ended after working this long."""
        self._metrics.stage_finished(str(stage), seconds)
        self._routing.endpoints_changed()
        self.run_changed(run_id)

    def run_changed(self, run_id: str) -> None:
        """Something about the run can be read anew."""
        self._live.publish("run", run_id)

    def collected(self, batch: TrainingDataBatch) -> None:
        """A dataset was made."""
        self._metrics.examples.inc(sum(batch.examples.values()))
        for reason, posts in batch.dropped.items():
            self._metrics.posts_dropped(reason, posts)

    def run_ended(self, result: PipelineResult, pipeline: str, seconds: float) -> None:
        """A run ended, `seconds` after its start, waits included."""
        self._metrics.run_finished(str(result.status), seconds, pipeline=pipeline)
        if result.status is RunStatus.FAILED:
            once, said = f"{seconds:.3f}", result.reason
            self._alert("run_failed", result.run_id, said, once=once, pipeline=pipeline)

    def experiment_looked(self, test: ABTest, look: Look) -> None:
        """A look was taken."""
        if look.verdict is Verdict.CONTINUE:
            self._metrics.test_looked_at(test.id, _share_met(test, look))
        else:
            self._metrics.success_rate.remove(test.id)
        self._figures.warm_soon(test, look)
        self._gauges.refresh_soon()
        self._live.publish("look", test.id, look.number)
        self._traces.looked(test, look)
        if "next_share" in look.inputs:
            self._routing.board.stale.set()

    def look_failed(self, subject: str, why: str, at: datetime) -> None:
        """The look that was due at `at` raised; it is tried again at the next interval."""
        due = at.isoformat()
        self._alert("look_failed", subject, why, once=due, due_at=due)

    def rollout_moved(self, deployment: Deployment) -> None:
        """A rollout is at another step or state."""
        state = str(deployment.state)
        self._metrics.rollout_moved(deployment.share, state, pipeline=deployment.pipeline)
        self._live.publish("deployment", deployment.id, deployment.version)
        self._traces.moved(deployment)
        if deployment.state in (DeploymentState.ROLLED_BACK, DeploymentState.PAUSED):
            said = deployment.cause or state
            once, pipeline = str(deployment.version), deployment.pipeline
            self._alert(state, deployment.id, said, once=once, pipeline=pipeline)

    def routing_changed(self, tasks: Sequence[str]) -> None:
        """These tasks may be served by other models or shares now."""
        self._routing.board.stale.set()


def _share_met(test: ABTest, look: Look) -> float:
    """The share of the success criteria that this look's figures meet, 0–1."""
    declared = test.declaration
    if declared.criteria:
        held = [result.holds is True for result in look.criteria if result.criterion is not None]
        return sum(held) / len(held) if held else 0.0
    met = (
        look.is_significant,
        (look.lift or 0.0) > declared.min_engagement_lift,
        (look.cost_gain or 0.0) > declared.min_cost_efficiency_gain,
    )
    return sum(met) / len(met)
