"""The gauges of what models show, by the newest looks: the same at every worker, also anew."""

from __future__ import annotations

from collections.abc import Sequence

from tuneproof.app.look_cache import LookCache
from tuneproof.app.pipelines import Pipelines
from tuneproof.app.routing import RoutingService
from tuneproof.experiments import ABTest, ArmMetrics, Look
from tuneproof.resilience import Supervisor
from tuneproof.settings import PipelineConfig
from tuneproof.store import Store
from tuneproof.telemetry import Metrics, ModelFigures

__all__ = ["REFRESH_EVERY_S", "Gauges"]

REFRESH_EVERY_S = 60.0

NEWEST = 10
"""In how many of a pipeline's newest tests the model in use is looked for."""

Looked = tuple[ABTest, Look]


class Gauges:
    """Reads the looks and sets the gauges."""

    def __init__(
        self,
        *,
        store: Store,
        metrics: Metrics,
        pipelines: Pipelines,
        routing: RoutingService,
        figures: LookCache,
        supervisor: Supervisor,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._pipelines = pipelines
        self._routing = routing
        self._figures = figures
        self._supervisor = supervisor

    def refresh_soon(self) -> None:
        """There is a new look."""
        self._supervisor.soon("gauges-refresh", self.refresh, attempts=1)

    async def refresh(self) -> None:
        """Set them to what the newest looks say."""
        for number, config in enumerate(self._pipelines.running):
            looked = await self._looked(config)
            if looked:
                self._show_arms(config.name, looked)
            if number == 0:
                self._metrics.model_in_use(self._in_use(config, looked))

    async def _looked(self, config: PipelineConfig) -> Sequence[Looked]:
        """A pipeline's tests that have a look, newest first."""
        page = await self._store.experiments.page(pipeline=config.name, limit=NEWEST)
        looks = await self._figures.newest(page.items)
        return [(t, look) for t, look in zip(page.items, looks, strict=True) if look is not None]

    def _show_arms(self, pipeline: str, looked: Sequence[Looked]) -> None:
        """Those of the newest test; of several candidates at once the leading one's."""
        family = looked[0][0].family
        looks = [look for test, look in looked if test.family == family]
        leading = max(looks, key=lambda look: -1.0 if look.lift is None else look.lift)
        for arm, shown in (("baseline", leading.baseline), ("candidate", leading.candidate)):
            self._metrics.arm_looked_at(arm, _figures(shown), pipeline=pipeline)

    def _in_use(self, config: PipelineConfig, looked: Sequence[Looked]) -> ModelFigures:
        """What the newest test of the model in use says of it."""
        by_task = self._routing.board.snapshot.by_task
        model = next((by_task[t].baseline.model_id for t in config.tasks if t in by_task), None)
        for test, look in looked:
            if model == test.baseline.model_id:
                return _figures(look.baseline)
            if model == test.candidate.model_id:
                return _figures(look.candidate)
        return ModelFigures()


def _figures(arm: ArmMetrics) -> ModelFigures:
    return ModelFigures(
        engagement_rate=arm.engagement_rate,
        cost_per_token=arm.cost_per_token,
        quality_score=arm.quality_score,
    )
