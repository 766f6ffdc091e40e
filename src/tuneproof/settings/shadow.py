"""What the settings say of a task's shadow traffic, for whoever copies requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tuneproof.settings.pipelines import PipelineConfig
from tuneproof.settings.records import TaskConfig
from tuneproof.settings.relay import budget_usd

__all__ = ["Shadow", "shadows_of"]


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """A model that gets copies of a task's requests, unseen by users.

    `share` is that of the units, `concurrency` how many copies are under way in a process at most,
    `budget_usd` what all may cost in a day (UTC); None: as much as they like.
    """

    task: str
    model: str
    provider: str
    share: float
    concurrency: int
    budget_usd: float | None

    @property
    def name(self) -> str:
        """What it is called where its cost is counted; the salt, too, by which units are drawn."""
        return f"shadow:{self.task}"


def shadows_of(
    tasks: Mapping[str, TaskConfig], pipelines: Mapping[str, PipelineConfig]
) -> Mapping[str, Shadow]:
    """Who gets copies of requests, by task."""
    return {
        task.name: Shadow(
            task=task.name,
            model=task.shadow_model,
            provider=task.shadow_provider or task.model_provider or _trains(task.name, pipelines),
            share=task.shadow_share,
            concurrency=task.shadow_concurrency,
            budget_usd=budget_usd(task.shadow_budget_usd_per_day),
        )
        for task in tasks.values()
        if task.shadow_model is not None
    }


def _trains(task: str, pipelines: Mapping[str, PipelineConfig]) -> str:
    """The provider of the first pipeline that trains a task, else of the first one."""
    known = list(pipelines.values())
    return next((one for one in known if task in one.tasks), known[0]).provider
