"""What users meet changes: clients and targets are told, or a candidate is taken away."""

from __future__ import annotations

from dataclasses import replace

from tuneproof import workflow
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
    """The model in use: as it is routed, else as the settings name it, else the base."""
    config, parts = run.config, run.parts
    for task in config.tasks:
        routing = await parts.store.routing.get(task, tx=tx)
        if routing is not None:
            return await with_prompt(run, routing.baseline, tx)
    named = (parts.models_in_use.get(task) for task in config.tasks)
    found = next((m for m in named if m), Variant(model_id=base_model))
    found = replace(found, provider=parts.place(found.provider or config.provider))
    return await with_prompt(run, found, tx)


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
