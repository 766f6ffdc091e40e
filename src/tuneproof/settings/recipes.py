"""Recipes: how a run makes its candidates, one each.

`as_is` takes a model as its provider has it: a newer base, or another house's. `train` trains one,
as a run without recipes does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tuneproof.settings import checks

__all__ = ["AS_IS", "TRAIN", "Recipe", "checked_recipes"]

AS_IS: Final = "as_is"
TRAIN: Final = "train"
MOST: Final = 20
"""As many candidates may be tested at once."""

MEND: Final = 'For example [[pipelines.default.recipes]] with make = "as_is" and model = "MODEL".'


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one candidate is made: `as_is` of a `model` at a `provider`, or by training.

    Without a provider it is the pipeline's; what is trained, and where, the pipeline says.
    """

    make: str
    model: str | None = None
    provider: str | None = None


def checked_recipes(field: str, given: Any) -> tuple[dict[str, str], ...]:
    """Recipes as the settings hold them: tables of texts. Raises `ConfigError`."""
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise checks.refuse(field, given, "must be a list of tables", mend=MEND)
    if len(given) > MOST:
        raise checks.refuse(field, len(given), f"may be {MOST} at most", mend="Name fewer.")
    found = tuple(_checked(f"{field}[{number}]", one) for number, one in enumerate(given))
    for number, one in enumerate(found):
        if one in found[:number] or (one["make"] == TRAIN and _trains(found[:number])):
            rule = "must name each candidate once, and train one at most"
            raise checks.refuse(f"{field}[{number}]", one, rule, mend=MEND)
    return found


def _trains(recipes: Sequence[Mapping[str, str]]) -> bool:
    return any(one["make"] == TRAIN for one in recipes)


def _checked(field: str, given: Any) -> dict[str, str]:
    if not isinstance(given, Mapping):
        raise checks.refuse(field, given, "must be a table", mend=MEND)
    for key, value in given.items():
        checks.choice(field, key, ("make", "model", "provider"))
        checks.text(f"{field}.{key}", value)
    make = given.get("make", TRAIN)
    checks.choice(f"{field}.make", make, (AS_IS, TRAIN))
    if make == AS_IS and "model" not in given:
        raise checks.refuse(f"{field}.model", None, "must be named where make is as_is", mend=MEND)
    if make == TRAIN and len(given.keys() - {"make"}):
        rule = "is training.base_model and training.provider where make is train"
        raise checks.refuse(field, dict(given), rule, mend="Leave it out here.")
    return {**given, "make": make}
