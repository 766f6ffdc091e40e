"""Recipes: how a run makes its candidates, one each.

`as_is` takes a model as its provider has it: a newer base, or another house's. `prompt` asks a
model, that in use where none is named, by another prompt: one that is said, or with `optimise` one
that is looked for. `train` trains one, as a run without recipes does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from tuneproof.errors import InputError
from tuneproof.prompts import Prompt, check_values
from tuneproof.settings import checks

__all__ = [
    "AS_IS",
    "OUTCOMES",
    "PROMPT",
    "TRAIN",
    "Optimise",
    "Recipe",
    "checked_recipes",
    "checked_successors",
]

AS_IS: Final = "as_is"
PROMPT: Final = "prompt"
TRAIN: Final = "train"
OUTCOMES: Final = "outcomes"
"""What `optimise` names where the reward is a model of the outcomes, not a scorer."""

MOST: Final = 20
"""As many candidates may be tested at once."""

MEND: Final = 'For example [[pipelines.default.recipes]] with make = "as_is" and model = "MODEL".'
MEND_SUCCESSORS: Final = (
    'For example [[pipelines.default.successors]] with make = "train" and model = "BASE".'
)
MEND_PROMPT: Final = (
    'For example make = "prompt" with prompt = "Write about {topic}." or hash = "…", the name of '
    "one that `tuneproof prompt list` shows."
)
MEND_OPTIMISE: Final = (
    'For example make = "prompt" with optimise = "SCORER" (or "outcomes"), '
    'reflection = "MODEL@PROVIDER" and budget_usd = 5.'
)
SEARCH: Final = {"optimise", "reflection", "budget_usd", "prompt_max_tokens", "calls"}
"""What a recipe says that looks for a prompt."""

SEARCH_NUMBERS: Final = {"budget_usd": 0, "prompt_max_tokens": 16, "calls": 20}
"""Which of these are numbers, and what each is at least."""


@dataclass(frozen=True, kw_only=True)
class Optimise:
    """How a prompt is looked for: by which `reward`, who proposes, and what it may take.

    `budget_usd` is all that answers, scores and proposals of a run may cost, `calls` how often at
    most a prompt is tried on an input, `prompt_max_tokens` how long a prompt may be.
    """

    reward: str
    model: str
    provider: str
    budget_usd: float
    prompt_max_tokens: int = 2_000
    calls: int = 500


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one candidate is made: `as_is` of a `model` at a `provider`, by a prompt, or by training.

    Without a provider it is the pipeline's. What is trained, and where, the pipeline says, or
    `model` and `provider` in place of its base model and provider. A prompt
    is a kept one, by its `hash`, or what is said here of its messages and its `parameters` (JSON);
    what is not said is as in use; or it is looked for, as `search` says.
    """

    make: str
    model: str | None = None
    provider: str | None = None
    hash: str | None = None
    prompt: str | None = None
    system: str | None = None
    parameters: str | None = None
    optimise: str | None = None
    reflection: str | None = None
    budget_usd: str | None = None
    prompt_max_tokens: str | None = None
    calls: str | None = None

    @property
    def search(self) -> Optimise | None:
        """How its prompt is looked for; None where it is said."""
        if self.optimise is None or self.reflection is None or self.budget_usd is None:
            return None
        model, _, provider = self.reflection.rpartition("@")
        whole = {"prompt_max_tokens": self.prompt_max_tokens, "calls": self.calls}
        return Optimise(
            reward=self.optimise,
            model=model,
            provider=provider,
            budget_usd=float(self.budget_usd),
            **{name: int(text) for name, text in whole.items() if text is not None},
        )

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


def checked_successors(field: str, given: Any) -> tuple[dict[str, str], ...]:
    """The same, of recipes for a day on which the model in use is gone: each names another."""
    found = checked_recipes(field, given)
    for number, one in enumerate(found):
        if "model" not in one:
            rule = "must be named: the model in use is the one that goes"
            raise checks.refuse(f"{field}[{number}].model", None, rule, mend=MEND_SUCCESSORS)
    return found


def _trains(recipes: Sequence[Mapping[str, str]]) -> bool:
    return any(one["make"] == TRAIN for one in recipes)


def _checked(field: str, given: Any) -> dict[str, str]:
    if not isinstance(given, Mapping):
        raise checks.refuse(field, given, "must be a table", mend=MEND)
    told: dict[str, Any] = {"make": TRAIN, **given}
    if "parameters" in told:
        told["parameters"] = _parameters(f"{field}.parameters", told["parameters"])
    for key, least in SEARCH_NUMBERS.items():
        if key in told:
            told[key] = _number(f"{field}.{key}", told[key], least)
    for key, value in told.items():
        checks.choice(field, key, tuple(Recipe.__dataclass_fields__))
        checks.text(f"{field}.{key}", value)
    make, others = told["make"], told.keys() - {"make"}
    checks.choice(f"{field}.make", make, (AS_IS, PROMPT, TRAIN))
    if make == AS_IS:
        _check_as_is(field, told, others)
    if make == PROMPT and others & SEARCH:
        _check_search(field, told, others)
    elif make == PROMPT:
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
    _check_place(field, told, others)


def _check_search(field: str, told: Mapping[str, str], others: set[str]) -> None:
    for key in ("optimise", "reflection", "budget_usd"):
        if key not in others:
            rule = "must be said where a prompt is looked for"
            raise checks.refuse(f"{field}.{key}", None, rule, mend=MEND_OPTIMISE)
    said = sorted(others & {"prompt", "system", "parameters", "hash"})
    if said:
        rule = "cannot stand beside optimise: what is looked for begins with the prompt in use"
        raise checks.refuse(f"{field}.{said[0]}", told[said[0]], rule, mend="Leave it out.")
    model, mark, provider = told["reflection"].rpartition("@")
    if not (mark and model.strip() and provider.strip()):
        rule = "must be MODEL@PROVIDER"
        mend = "Name a model and a provider of the settings."
        raise checks.refuse(f"{field}.reflection", told["reflection"], rule, mend=mend)
    _check_place(field, told, others)


def _check_place(field: str, told: Mapping[str, str], others: set[str]) -> None:
    if "provider" in others and "model" not in others:
        rule = "needs model beside it"
        raise checks.refuse(f"{field}.provider", told["provider"], rule, mend="Name the model.")


def _number(field: str, given: Any, least: int) -> str:
    """A number as text, however it was given: money above 0, or a whole number of at `least`."""
    number = given
    if isinstance(given, str):
        try:
            number = int(given) if least else float(given)
        except ValueError:
            number = None
    if number is None:
        raise checks.refuse(field, given, "must be a number", mend=MEND_OPTIMISE)
    if least:
        checks.number(field, number, at_least=least, at_most=100_000, whole=True)
    else:
        checks.number(field, number, above=0, at_most=1_000_000)
    return f"{number}"


def _parameters(field: str, given: Any) -> str:
    """Parameters as one JSON text, however they were given."""
    try:
        found = json.loads(given) if isinstance(given, str) else given
        if not isinstance(found, Mapping):
            raise InputError("It is no table.", mend=MEND_PROMPT)
        Prompt(messages=(("user", ""),), parameters=found)
        check_values(found)
        return json.dumps(found, sort_keys=True)
    except (ValueError, InputError) as error:
        mend = error.mend if isinstance(error, InputError) else MEND_PROMPT
        raise checks.refuse(field, given, f"must be parameters: {error}", mend=mend) from error
