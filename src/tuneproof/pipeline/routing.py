"""What users meet changes: clients and targets are told, or a candidate is taken away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tuneproof import workflow
from tuneproof.errors import ConflictError
from tuneproof.experiments import Variant
from tuneproof.pipeline.context import RunContext
from tuneproof.pipeline.prompting import with_prompt
from tuneproof.pipeline.steps import StepName
from tuneproof.rollout import DeploymentManager
from tuneproof.training import ModelVersion
from tuneproof.workflow import Tx


def manager_of(run: RunContext) -> DeploymentManager:
    """The deployment manager with a run's settings."""
    parts = run.parts
    return DeploymentManager(
        store=parts.store,
        provider=parts.provider(run.config.provider),
        targets=parts.targets,
        clock=parts.clock,
        config=run.config,
        serves=parts.serves,
        asks=parts.asks(run.config.tasks),
    )


async def model_in_use(run: RunContext, base_model: str, tx: Tx | None = None) -> Variant:
    """The model in use: as it is routed, else as the settings name it, else the base.

    Raises `ConflictError` where the tasks have several.
    """
    config, parts = run.config, run.parts
    base = Variant(model_id=base_model, provider=parts.place(config.provider))
    routed, named = {}, {}
    for task in config.tasks:
        routing = await parts.store.routing.get(task, tx=tx)
        model = parts.models_in_use.get(task)
        if routing is not None:
            routed[task] = routing.baseline
        elif model is not None:
            named[task] = replace(model, provider=parts.place(model.provider or config.provider))
    in_use = in_use_of(config.tasks, {**named, **routed}, base if base_model else None)
    ensure_one(config.name, in_use)
    found = next(iter([*routed.values(), *named.values()]), base)
    return await with_prompt(run, found, tx)


def in_use_of(
    tasks: Sequence[str], known: Mapping[str, Variant], base: Variant | None
) -> dict[str, Variant]:
    """The model in use of each task: the known one, else the base, where that is known."""
    found = {task: known.get(task) or base for task in tasks}
    return {task: model for task, model in found.items() if model is not None}


def ensure_one(pipeline: str, in_use: Mapping[str, Variant]) -> None:
    """A run compares with one model: where its tasks have several, the test would put that of one
    into production for another. Raises `ConflictError`, which names both.
    """
    told = [(task, model, _place_of(model)) for task, model in in_use.items()]
    for task, model, at in told[1:]:
        first, other, there = told[0]
        if not replace(model, provider=at).same_as(replace(other, provider=there)):
            raise ConflictError(
                f"{first} is served by {other}, and {task} by {model}: a run of {pipeline} "
                "compares with one model in use, which it would put into production for both.",
                mend=f"Set train_together = false in [pipelines.{pipeline}.training], so that each "
                "task is trained and tested by itself; or let one model serve both.",
                tasks=[first, task],
            )


def _place_of(model: Variant) -> str | None:
    """Who serves it, wherever that is now."""
    return None if model.provider is None else model.provider.partition("@")[0]


async def baseline_of(run: RunContext, version: ModelVersion, tx: Tx | None = None) -> Variant:
    """What a version is compared with: the model in use; where none is, `base_of` it."""
    return await model_in_use(run, base_of(run, version), tx)


def base_of(run: RunContext, version: ModelVersion) -> str:
    """The base that the settings name, which users meet where nothing else is in use; else what
    the version was trained from. A recipe may train another one elsewhere."""
    return run.config.base_model or version.base_model


async def route(run: RunContext, name: StepName) -> None:
    """Tell clients and the targets outside our router; who does not answer delays nothing."""
    run.parts.hooks.routing_changed(run.config.tasks)
    if run.parts.targets:
        await workflow.step(name, manager_of(run).apply, run.config.tasks)


async def withdraw(run: RunContext, tx: Tx, cause: str) -> None:
    """Take what a run tests or rolls out away from users, wherever it still serves."""
    await run.parts.store.withdrawal.withdraw(run.subjects, run.now, cause, tx)
