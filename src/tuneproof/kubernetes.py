"""The pipeline by the five methods that the first users call from their own jobs in a cluster.

A face, no more: collecting, training, cache, health and metrics are the parts that the service
uses. What makes it fit for a cluster (pools, breakers, keepalives) is theirs and always on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

from tuneproof.app import App
from tuneproof.cache import metrics_key
from tuneproof.collection import DataCollector, TrainingDataBatch
from tuneproof.errors import InputError
from tuneproof.experiments import Arm
from tuneproof.resilience import CircuitBreaker
from tuneproof.settings import PipelineConfig, Settings
from tuneproof.standalone import ensure_open, loaded, opening
from tuneproof.training import ModelTrainer, Provider

__all__ = ["KubernetesOptimizedPipeline"]

CACHED_S = 300.0
"""How long figures stay that are put into the cache by hand, as documented."""


class KubernetesOptimizedPipeline:
    """Collects, starts training, caches figures and says how it does.

    `app` is the open `App` whose parts are used; without one, one that runs nothing is opened from
    the settings for each call, or for as long as `async with pipeline.opened()`. The embedded
    trainer of such a one runs as long as a call does.
    """

    def __init__(
        self,
        config: PipelineConfig | None = None,
        *,
        app: App | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._told = config
        self._given = app
        self._settings = settings
        known = settings or (app.settings if app is not None else None)
        limits = known.breakers.of("openai") if known is not None else {}
        self.openai_circuit_breaker = CircuitBreaker.named("openai", **limits)

    @property
    def _app(self) -> App:
        return ensure_open(self._given, "pipeline", "App")

    @property
    def _config(self) -> PipelineConfig:
        """The settings of its pipeline."""
        return self._told or next(iter(self._app.settings.pipelines.values()))

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Self]:
        """This pipeline with an App open: its own, or one until the block ends."""
        if self._given is not None:
            yield self
            return
        settings = await loaded(self._settings)
        async with App.open(settings, engine=False, needs_store=False) as app:
            at = type(self)(self._told, app=app, settings=settings)
            at.openai_circuit_breaker = self.openai_circuit_breaker
            yield at

    @opening
    async def collect_training_data_optimized(
        self, engagement_threshold: float | None = None, days_back: float | None = None
    ) -> dict[str, Any]:
        """The examples of the last `days_back` days at or above the threshold, as the config says.

        `hook_examples`, `body_examples` and `total_records` are those of the batch, which is in
        `batch` itself. Raises as `DataCollector.collect_training_data` does.
        """
        config = self._config
        if engagement_threshold is not None:
            config = config.override(engagement_threshold=engagement_threshold)
        app = self._app
        source = app.sources.open(config)
        try:
            collector = DataCollector.of(
                config,
                source=source,
                tasks=[app.parts.tasks[name] for name in config.tasks],
                dir=app.settings.dir,
                clock=app.clock,
            )
            batch = await collector.collect_training_data(days_back)
        finally:
            await source.close()
        return {
            "hook_examples": batch.hook_examples,
            "body_examples": batch.body_examples,
            "total_records": batch.total_records,
            "batch": batch,
        }

    @opening
    async def start_fine_tuning_with_circuit_breaker(
        self, training_data: Mapping[str, Any]
    ) -> dict[str, str]:
        """Start a job on what was collected; the version that it will become, as texts.

        Raises `CircuitBreakerError` while the provider is left alone, `InputError` for what
        `collect_training_data_optimized` did not return, and as `ModelTrainer` does.
        """
        batch = training_data.get("batch")
        if not isinstance(batch, TrainingDataBatch):
            raise InputError(
                "training_data has no batch.",
                mend="Pass what collect_training_data_optimized() returned.",
            )
        trainer = ModelTrainer.of(
            self._config, provider=self._provider(), settings=self._app.settings
        )
        version = await self.openai_circuit_breaker.call(trainer.start_fine_tuning, batch)
        told = {
            "model_id": version.model_id,
            "version": version.version,
            "training_job_id": version.training_job_id,
            "base_model": version.base_model,
            "status": str(version.status),
        }
        return {name: text or "" for name, text in told.items()}

    def _provider(self) -> Provider | None:
        """Who trains; None is the embedded trainer, which the trainer then opens itself."""
        name = self._config.provider
        return self._app.providers.get(name) if self._app.providers.serves_now(name) else None

    @opening
    async def cache_evaluation_metrics(
        self, model_type: str, ab_test_id: str, metrics: Mapping[str, float]
    ) -> None:
        """Keep an arm's figures ("baseline", "candidate") as of the test's newest look, 300 s.

        Raises `InputError` for any other arm.
        """
        if model_type not in list(Arm):
            raise InputError(
                f"model_type is {model_type!r}, which is no arm.",
                mend=f"Use one of: {', '.join(Arm)}.",
            )
        app = self._app
        numbers = await app.store.experiments.numbers_of_looks([ab_test_id])
        key = metrics_key(ab_test_id, model_type, numbers.get(ab_test_id, 0))
        await app.cache.set(key, dict(metrics), CACHED_S)

    @opening
    async def health_check(self) -> dict[str, Any]:
        """What `GET /health` answers."""
        return dict(await self._app.health.report())

    @opening
    async def get_prometheus_metrics(self) -> str:
        """What `GET /metrics` answers, of this process."""
        return self._app.metrics.render()[0].decode()
