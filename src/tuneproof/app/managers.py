"""Deployment managers with a pipeline's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tuneproof.app.pipelines import Pipelines
from tuneproof.app.providers import Providers
from tuneproof.rollout import Deployment, DeploymentManager, Target
from tuneproof.settings import PipelineConfig, TaskConfig
from tuneproof.store import Store
from tuneproof.workflow import Clock

__all__ = ["Managers"]


class Managers:
    """Makes them."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        pipelines: Pipelines,
        providers: Providers,
        targets: Sequence[Target],
        tasks: Mapping[str, TaskConfig],
    ) -> None:
        self._store = store
        self._clock = clock
        self._pipelines = pipelines
        self._providers = providers
        self._targets = targets
        self._tasks = tasks

    def of(self, config: PipelineConfig) -> DeploymentManager:
        """One with these settings."""
        return DeploymentManager(
            store=self._store,
            provider=self._providers.get(config.provider),
            targets=self._targets,
            clock=self._clock,
            config=config,
            serves=self._providers.serves,
            asks=self.asks(config.tasks),
        )

    def asks(self, tasks: Sequence[str]) -> bool:
        """Whether our checks may ask the models of any of these tasks."""
        return any(t not in self._tasks or self._tasks[t].asked_here for t in tasks)

    def for_rollout(self, deployment: Deployment) -> DeploymentManager:
        """One with the settings of the rollout's pipeline, or the first's where it left them."""
        known = self._pipelines.known
        return self.of(known.get(deployment.pipeline) or next(iter(known.values())))
