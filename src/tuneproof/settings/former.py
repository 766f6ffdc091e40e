"""Settings that became others, and are still read: from files and arguments for one more release,
from what was stored for as long as runs may be replayed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

from tuneproof.errors import ConfigError
from tuneproof.settings.recipes import TRAIN

__all__ = ["FORMER", "fold", "of_now", "split"]

log = logging.getLogger(__name__)

FORMER = ("successor_model", "successor_provider")
"""The base model and the provider to change to, which are a recipe of `successors` now."""


def of_now(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a pipeline as this version has them, of those that an earlier one had."""
    found = dict(stored)
    model, provider = (found.pop(name, None) for name in FORMER)
    if model:
        found["successors"] = (_recipe(model, provider),)
    return found


def split(table: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """A pipeline's table without the former settings, and these by name."""
    training = table.get("training")
    if not isinstance(training, Mapping) or not {*FORMER} & training.keys():
        return table, {}
    rest = {name: value for name, value in training.items() if name not in FORMER}
    former = {name: value for name, value in training.items() if name in FORMER}
    return {**table, "training": rest}, former


def fold(layers: MutableMapping[str, tuple[Any, str]]) -> None:
    """Make the former settings into those of now, once all layers are merged: each may say a part.

    `successors` of another layer go before them. Raises `ConfigError` where one file says both.
    """
    ends = tuple(f".{name}" for name in FORMER)
    tables = {path.rpartition(".")[0] for path in layers if path.endswith(ends)}
    for where in sorted(table for table in tables if table.startswith("pipelines.")):
        model, origin = layers.pop(f"{where}.successor_model", (None, ""))
        provider, _ = layers.pop(f"{where}.successor_provider", (None, ""))
        if model is None:
            continue
        now = layers.get(f"{where}.successors")
        if now is not None and now[1] == origin:
            raise ConfigError(
                f"{where}.training.successor_model says what {where}.successors says (set by "
                f"{origin}).",
                mend=f"Write [[{where}.successors]] alone.",
                field=f"{where}.training.successor_model",
                value=model,
            )
        if now is None:
            layers[f"{where}.successors"] = [_recipe(model, provider)], origin
        _tell(where, model, provider)


def _tell(where: str, model: Any, provider: Any) -> None:
    said = ", ".join(f'{key} = "{value}"' for key, value in _recipe(model, provider).items())
    log.warning(
        "%s.training.successor_model is read for one more release. Write [[%s.successors]] with %s",
        where,
        where,
        said,
    )


def _recipe(model: Any, provider: Any) -> dict[str, Any]:
    named = {"make": TRAIN, "model": model}
    return named if provider is None else {**named, "provider": provider}
