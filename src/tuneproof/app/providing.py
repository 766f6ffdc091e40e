"""Which provider serves which model, and what it charges; pipelines whose tasks train apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from tuneproof.errors import ConfigError
from tuneproof.experiments import Variant
from tuneproof.providers import default_price
from tuneproof.settings import PipelineConfig, ProviderConfig, Settings, revealed
from tuneproof.store import Store
from tuneproof.training import Price

T = TypeVar("T")


def apart(settings: Settings, config: PipelineConfig) -> list[PipelineConfig]:
    """The pipelines that really run: one for each task where they train apart, else itself.

    A task's pipeline is called `PIPELINE.TASK`; it has versions, runs and budgets of its own,
    and the task's own provider and base model where its settings name them.
    """
    if config.train_together or len(config.tasks) == 1:
        return [config]
    made = []
    for name in config.tasks:
        task = settings.tasks[name]
        child = f"{config.name}.{name}"
        if child in settings.pipelines:
            raise ConfigError(
                f"Pipeline {config.name} trains its tasks apart, and {child!r} is the name of "
                "another pipeline.",
                mend="Rename that one.",
                field=f"pipelines.{child}",
            )
        made.append(
            replace(
                config,
                name=child,
                tasks=(name,),
                provider=task.provider or config.provider,
                base_model=task.base_model
                or _base_at(settings, task.provider)
                or config.base_model,
            )
        )
    return made


def _base_at(settings: Settings, provider: str | None) -> str | None:
    """The base model of a provider, where one is named."""
    return None if provider is None else settings.providers[provider].base_model


def price_at(provider: ProviderConfig, model: str, method: str) -> Price | None:
    """A provider's price for training a model by a method, and for the answers of the result.

    What the settings say goes before the dated table. `method` "answers" asks for a model's
    answers alone.
    """
    bare = model.removeprefix("ft:")
    table = default_price(provider.kind, revealed(provider.base_url), model, method)
    training, answers = (
        longest_prefix(provider.training_prices, bare),
        longest_prefix(provider.prices, bare),
    )
    if training is None and answers is None:
        return table
    known = table or Price(source="the settings")
    return replace(
        known,
        training=known.training if training is None else training,
        prompt=known.prompt if answers is None else answers[0],
        completion=known.completion if answers is None else answers[1],
        source="the settings" if training is not None else known.source,
        as_of="" if training is not None else known.as_of,
    )


def longest_prefix(prices: Mapping[str, T], model: str) -> T | None:
    """The price of the longest prefix that this model begins with."""
    found = [prefix for prefix in prices if model.startswith(prefix)]
    return prices[max(found, key=len)] if found else None


async def provider_of(store: Store, settings: Settings, model: Variant) -> tuple[str, str]:
    """The name of the provider that serves a model, and the model's base.

    A version is served by who trained it, also where another provider has a model of the same
    name; a model that is none of ours by whom its reference names, else by who last trained a
    version on it, so a pipeline that moved on does not take its baseline along. Any other model
    is the first pipeline's. The provider may have moved or left the settings since (`Places`).
    """
    version = await store.versions.find(model.version) if model.version else None
    if version is None:
        known = await store.versions.list(model_id=model.model_id, limit=1)
        version = known[0] if known else None
    base = version.base_model if version else model.model_id
    if model.provider is not None and (version is None or version.id != model.version):
        return model.provider, base
    if version is not None:
        return version.provider, base
    known = await store.versions.list(base_model=model.model_id, limit=1)
    if known:
        return known[0].provider, model.model_id
    for config in settings.pipelines.values():
        if config.base_model == model.model_id:
            return config.provider, model.model_id
    return next(iter(settings.pipelines.values())).provider, model.model_id


__all__ = ["apart", "longest_prefix", "price_at", "provider_of"]
