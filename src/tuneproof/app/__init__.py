"""App: the use cases, and the only place that builds adapters.

`async with App.open(settings) as app` starts everything: database, cache, trainer, engine,
schedule, tracking. `core` opens and closes; `runs`, `serving` and `overview` are what can be
asked of it, by the command line, the HTTP service and Python alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneproof.app.board import Board, RoutingSnapshot
from tuneproof.app.core import Core
from tuneproof.app.endpoints import ChatEndpoint
from tuneproof.app.experiments import Sibling
from tuneproof.app.live import Live, LiveEvent
from tuneproof.app.outcomes import Outcomes
from tuneproof.app.overview import Finding, Overview, Ready
from tuneproof.app.runs import Aborted, LogLine, Runs, newest_tick, next_tick
from tuneproof.app.scoring import Qualities, Scoring
from tuneproof.app.serving import Serving
from tuneproof.app.watches import LOOK_EVERY_S
from tuneproof.collection import TrainingDataBatch
from tuneproof.experiments import ABTest, ArmMetrics, Look, Verdict
from tuneproof.pipeline import PipelineResult
from tuneproof.rollout import Deployment, DeploymentState
from tuneproof.telemetry import MemoryWatch
from tuneproof.workflow import RunStatus

__all__ = [
    "Aborted",
    "App",
    "Board",
    "ChatEndpoint",
    "Core",
    "Finding",
    "Live",
    "LiveEvent",
    "LogLine",
    "Ready",
    "RoutingSnapshot",
    "Runs",
    "Scoring",
    "Sibling",
    "newest_tick",
    "next_tick",
]


DELIVER_EVERY_S = 2.0
"""How often the outbox is emptied."""

TRIM_EVERY_S = 60.0
"""How often idle connections are closed."""


class App(Overview, Outcomes, Qualities, Serving):
    """TuneProof in one process: `async with App.open(settings) as app`."""

    async def _began(self) -> None:
        await super()._began()
        if self.settings.tracking.uri is not None:
            self.tracker = self.settings.adapter("tracker")(
                self.store.outbox,
                self.settings.tracking.uri.reveal(),
                experiment=self.settings.tracking.experiment_name,
                breaker=self.breakers["mlflow"],
                on_delivered=self.metrics.tracking_delivered,
            )
            if self._background:
                self.supervisor.every(
                    "tracking", DELIVER_EVERY_S, self.tracker.deliver_once, leader="tracking"
                )
        if self._background:
            self.supervisor.every("pools", TRIM_EVERY_S, self.pools.trim)
            self.supervisor.every("watches", LOOK_EVERY_S, self.watchdog.look, leader="watches")

    def _hooks(self) -> _Told:
        return _Told(self)

    async def import_posts(
        self,
        path: Path,
        *,
        table: str = "posts",
        database_url: str | None = None,
        progress: Any = None,
    ) -> int:
        """Load a Parquet or CSV file of posts into a table; posts that are there stay."""
        from tuneproof.sources import import_posts

        url = database_url or self.store.database.url.render_as_string(hide_password=False)
        return await import_posts(path, url, table=table, progress=progress)


class _Told:
    """Passes on what runs do: to the metrics, and to whoever listens live."""

    def __init__(self, app: App) -> None:
        self._app = app

    def memory(self, limit_mb: float) -> MemoryWatch:
        """Watch memory while a stage works."""
        return MemoryWatch(limit_mb, on_warning=self._app.metrics.on_memory_warning)

    def stage_finished(self, run_id: str, stage: str, seconds: float) -> None:
        """A stage ended after working this long."""
        self._app.metrics.stage_finished(str(stage), seconds)
        self._app.endpoints_changed()
        self.run_changed(run_id)

    def run_changed(self, run_id: str) -> None:
        """Something about the run can be read anew."""
        self._app.live.publish("run", run_id)

    def collected(self, batch: TrainingDataBatch) -> None:
        """A dataset was made."""
        self._app.metrics.examples_collected(sum(batch.examples.values()))
        for reason, posts in batch.dropped.items():
            self._app.metrics.posts_dropped(reason, posts)

    def run_ended(self, result: PipelineResult, pipeline: str, seconds: float) -> None:
        """A run ended, `seconds` after its start, waits included."""
        self._app.metrics.run_finished(str(result.status), seconds, pipeline=pipeline)
        if result.memory_peak_mb is not None:
            self._app.metrics.memory_peak(result.memory_peak_mb)
        if result.status is RunStatus.FAILED:
            once, said = f"{seconds:.3f}", result.reason
            self._app.alert("run_failed", result.run_id, said, once=once, pipeline=pipeline)

    def experiment_looked(self, test: ABTest, look: Look) -> None:
        """A look was taken."""
        for name, arm in (("baseline", look.baseline), ("candidate", look.candidate)):
            self._app.metrics.arm_looked_at(name, pipeline=test.pipeline, **_figures(arm))
        if look.verdict is Verdict.CONTINUE:
            self._app.metrics.test_looked_at(test.id, _share_met(test, look))
        else:
            self._app.metrics.test_ended(test.id)
        self._app.warm_soon(look)
        self._app.live.publish("look", test.id, look.number)
        if "next_share" in look.inputs:
            self._app.board.changed()

    def look_failed(self, subject: str, error: Exception) -> None:
        """A look raised; it is tried again at the next interval."""
        once = f"{self._app.clock.now():%Y-%m-%dT%H}"
        self._app.alert("look_failed", subject, f"{type(error).__name__}: {error}", once=once)

    def rollout_moved(self, deployment: Deployment) -> None:
        """A rollout is at another step or state."""
        state = str(deployment.state)
        self._app.metrics.rollout_moved(deployment.share, state, pipeline=deployment.pipeline)
        self._app.live.publish("deployment", deployment.id, deployment.version)
        if deployment.state in (DeploymentState.ROLLED_BACK, DeploymentState.PAUSED):
            said = deployment.cause or state
            once, pipeline = str(deployment.version), deployment.pipeline
            self._app.alert(state, deployment.id, said, once=once, pipeline=pipeline)

    def routing_changed(self, tasks: Sequence[str]) -> None:
        """These tasks may be served by other models or shares now."""
        self._app.board.changed()


def _figures(arm: ArmMetrics) -> dict[str, float | None]:
    return {
        "engagement_rate": arm.engagement_rate,
        "cost_per_token": arm.cost_per_token,
        "quality_score": arm.quality_score,
    }


def _share_met(test: ABTest, look: Look) -> float:
    """The share of the success criteria that this look's figures meet, 0–1."""
    criteria = test.criteria
    if test.objectives:
        held = [result.holds is True for result in look.criteria if result.criterion is not None]
        return sum(held) / len(held) if held else 0.0
    met = (
        look.is_significant,
        (look.lift or 0.0) > criteria.min_engagement_lift,
        (look.cost_gain or 0.0) > criteria.min_cost_efficiency_gain,
    )
    return sum(met) / len(met)
