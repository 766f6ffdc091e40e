"""By which prompt a run's examples are made and its candidates asked, where variants own it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from tuneproof.collection import Task
from tuneproof.errors import InputError, RetryableError
from tuneproof.experiments import Variant
from tuneproof.pipeline.context import RunContext
from tuneproof.prompts import Prompt
from tuneproof.training import ModelVersion
from tuneproof.workflow import Tx

__all__ = [
    "asked_tasks",
    "ensure_all_know",
    "ensure_asks_for",
    "owned_task",
    "prompt_in_use",
    "tracked_prompt",
    "with_prompt",
]

SETTINGS = "settings"
"""Where a prompt came from that is made of a task's settings."""


def owned_task(run: RunContext) -> Task | None:
    """The task of the run whose prompt variants own; such a run has no other."""
    found = (run.parts.tasks[name] for name in run.config.tasks)
    return next((task for task in found if task.owned_by_variants), None)


async def prompt_in_use(run: RunContext, task: Task, tx: Tx | None = None) -> Prompt:
    """The prompt of the model in use: as it is routed, else as the settings say it."""
    routing = await run.parts.store.routing.get(task.name, tx=tx)
    if routing is None or routing.baseline.prompt is None:
        return task.first_prompt
    return (await run.parts.store.prompts.get(routing.baseline.prompt, tx=tx)).prompt


async def with_prompt(run: RunContext, model: Variant, tx: Tx | None = None) -> Variant:
    """The same model with the prompt that it is asked by, which is kept from now on; without one
    where the application owns that (again)."""
    task = owned_task(run)
    if task is None:
        return replace(model, prompt=None)
    if model.prompt is not None:
        return model
    await run.parts.store.prompts.keep(task.first_prompt, origin=SETTINGS, tx=tx)
    return replace(model, prompt=task.first_prompt.hash)


def ensure_asks_for(task: Task, prompt: Prompt) -> None:
    """Refuse a prompt with other variables than the task's; raises `InputError`."""
    if set(prompt.variables) != set(task.columns):
        raise InputError(
            f"The prompt {prompt.hash} has the variables {', '.join(prompt.variables) or 'none'}, "
            f"and {task.name} has {', '.join(task.columns) or 'none'}.",
            mend="Each prompt of a task uses the same variables: those of its settings' template.",
        )


def tracked_prompt(version: ModelVersion) -> dict[str, str]:
    """A version's prompt as the tracking server names it: one name for each task."""
    return {"name": f"{version.tasks[0]}-prompt", "hash": version.prompt or ""}


async def ensure_all_know(older_workers: Callable[[], Awaitable[int]]) -> None:
    """Refuse to test prompts while a worker lives that would serve them without; raises
    `RetryableError`, which is waited for."""
    older = await older_workers()
    if older:
        raise RetryableError(
            f"Workers of an earlier version still run ({older}): they would ask candidates "
            "without their prompts.",
            mend="Finish the upgrade: replace or stop them.",
            workers=older,
        )


async def asked_tasks(run: RunContext, hash: str | None = None) -> list[Task]:
    """The run's tasks, each with the prompt that its examples are made by: that in use, or the one
    with this hash."""
    store, found = run.parts.store, []
    for name in run.config.tasks:
        task = run.parts.tasks[name]
        if task.owned_by_variants:
            if hash is not None:
                asked_by = (await store.prompts.get(hash)).prompt
            else:
                asked_by = await prompt_in_use(run, task)
                await store.prompts.keep(asked_by, origin=SETTINGS)
            task = replace(task, asked_by=asked_by)
        found.append(task)
    return found
