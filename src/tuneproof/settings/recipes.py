"""Recipes: how a run makes its candidates, one each.

`as_is` takes a model as its provider has it: a newer base, or another house's. `prompt` asks a
model, that in use where none is named, by another prompt. `train` trains one, as a run without
recipes does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from tuneproof.errors import InputError
from tuneproof.prompts import Prompt
from tuneproof.settings import checks

__all__ = ["AS_IS", "PROMPT", "TRAIN", "Recipe", "checked_recipes"]

AS_IS: Final = "as_is"
PROMPT: Final = "prompt"
TRAIN: Final = "train"
MOST: Final = 20
"""As many candidates may be tested at once."""

MEND: Final = 'For example [[pipelines.default.recipes]] with make = "as_is" and model = "MODEL".'
MEND_PROMPT: Final = (
    'For example make = "prompt" with prompt = "Write about {topic}." or hash = "…", the name of '
    "one that `tuneproof prompt list` shows."
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one candidate is made: `as_is` of a `model` at a `provider`, by a prompt, or by training.

    Without a provider it is the pipeline's. What is trained, and where, the pipeline says, or
    `model` and `provider` in place of its base model and provider. A prompt
    is a kept one, by its `hash`, or what is said here of its messages and its `parameters` (JSON);
    what is not said is as in use.
    """

    make: str
    model: str | None = None
    provider: str | None = None
    hash: str | None = None
    prompt: str | None = None
    system: str | None = None
    parameters: str | None = None

    def prompt_from(self, in_use: Prompt) -> Prompt:
        """The prompt that this makes of the one in use, where it names no kept one.

        Raises `InputError` for one that is none.
        """
        messages = in_use.messages
        if self.prompt is not None:
            system = [("system", self.system)] if self.system else []
            messages = (*system, ("user", self.prompt))
        parameters = in_use.parameters if self.parameters is None else json.loads(self.parameters)
        return replace(in_use, messages=messages, parameters=parameters)


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
    told: dict[str, Any] = {"make": TRAIN, **given}
    if "parameters" in told:
        told["parameters"] = _parameters(f"{field}.parameters", told["parameters"])
    for key, value in told.items():
        checks.choice(field, key, tuple(Recipe.__dataclass_fields__))
        checks.text(f"{field}.{key}", value)
    make, others = told["make"], told.keys() - {"make"}
    checks.choice(f"{field}.make", make, (AS_IS, PROMPT, TRAIN))
    if make == AS_IS:
        _check_as_is(field, told, others)
    if make == PROMPT:
        _check_prompt(field, told, others)
    if make == TRAIN and others - {"model", "provider"}:
        rule = "has a prompt, and what is trained keeps that of its examples"
        raise checks.refuse(field, dict(given), rule, mend="Leave it out here.")
    if make == TRAIN and "provider" in others and "model" not in others:
        rule = "needs model beside it: which base is trained there"
        raise checks.refuse(f"{field}.provider", told["provider"], rule, mend="Name the model.")
    return told


def _check_as_is(field: str, told: Mapping[str, str], others: set[str]) -> None:
    if "model" not in others:
        raise checks.refuse(f"{field}.model", None, "must be named where make is as_is", mend=MEND)
    if others - {"model", "provider"}:
        rule = 'has a prompt, so make must be "prompt"'
        raise checks.refuse(field, dict(told), rule, mend=MEND_PROMPT)


def _check_prompt(field: str, told: Mapping[str, str], others: set[str]) -> None:
    said = others & {"prompt", "system", "parameters"}
    if bool(said) == ("hash" in others):
        rule = "must say a prompt, or parameters, or the hash of a kept prompt"
        raise checks.refuse(field, dict(told), rule, mend=MEND_PROMPT)
    if "system" in said and "prompt" not in said:
        rule = "needs prompt beside it: the messages are said as a whole"
        raise checks.refuse(f"{field}.system", told["system"], rule, mend=MEND_PROMPT)
    if "provider" in others and "model" not in others:
        rule = "needs model beside it"
        raise checks.refuse(f"{field}.provider", told["provider"], rule, mend="Name the model.")


def _parameters(field: str, given: Any) -> str:
    """Parameters as one JSON text, however they were given."""
    try:
        found = json.loads(given) if isinstance(given, str) else given
        if not isinstance(found, Mapping):
            raise InputError("It is no table.", mend=MEND_PROMPT)
        Prompt(messages=(("user", ""),), parameters=found)
        return json.dumps(found, sort_keys=True)
    except (ValueError, InputError) as error:
        mend = error.mend if isinstance(error, InputError) else MEND_PROMPT
        raise checks.refuse(field, given, f"must be parameters: {error}", mend=mend) from error
