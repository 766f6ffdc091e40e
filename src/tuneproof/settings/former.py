"""Settings that became others, and are still read: from files for one more release, from what was
stored for as long as runs may be replayed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from tuneproof.errors import ConfigError
from tuneproof.settings.recipes import TRAIN

__all__ = ["of_now", "table_of_now"]

log = logging.getLogger(__name__)

FORMER = ("successor_model", "successor_provider")
"""The base model and the provider to change to, which are a recipe of `successors` now."""


def of_now(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a pipeline as this version has them, of those that an earlier one stored."""
    found = dict(stored)
    model, provider = (found.pop(name, None) for name in FORMER)
    if model is not None:
        found["successors"] = (_recipe(model, provider),)
    return found


def table_of_now(table: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A pipeline's table in the words of this version; those that will go are told of.

    Raises `ConfigError` where a setting stands there in both its forms, or by half.
    """
    training = table.get("training")
    if not isinstance(training, Mapping) or not {*FORMER} & training.keys():
        return table
    model, provider = (training.get(name) for name in FORMER)
    mend = f'Write [[{where}.successors]] with make = "train", model and provider instead of them.'
    if model is None:
        raise _refused(f"{where}.training.successor_provider", "needs successor_model", mend)
    if "successors" in table:
        path = f"{where}.training.successor_model"
        raise _refused(path, f"says what {where}.successors says", mend)
    recipe = _recipe(model, provider)
    log.warning(
        "%s.training.successor_model is read for one more release. Write [[%s.successors]] with %s",
        where,
        where,
        ", ".join(f'{key} = "{value}"' for key, value in recipe.items()),
    )
    rest = {name: value for name, value in training.items() if name not in FORMER}
    return {**table, "training": rest, "successors": [recipe]}


def _recipe(model: Any, provider: Any) -> dict[str, Any]:
    named = {"make": TRAIN, "model": model}
    return named if provider is None else {**named, "provider": provider}


def _refused(path: str, rule: str, mend: str) -> ConfigError:
    return ConfigError(f"{path} {rule}.", mend=mend, field=path)
