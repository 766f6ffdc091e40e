"""Prompts: message templates with parameters, never changed, named by the hash of their content.

A template fills the variables that were declared for it, and nothing else: other braces, such as
those of JSON, stay. Client, gateway, gate and training fill it by this one function.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypedDict

from tuneproof.errors import InputError

__all__ = ["PARAMETERS", "Message", "Prompt", "PromptDocument", "check_values", "variables_in"]

PARAMETERS: Final = (
    "temperature",
    "top_p",
    "max_tokens",
    "stop",
    "tools",
    "tool_choice",
    "response_format",
    "reasoning_effort",
)
"""What a prompt may say of how a model answers, by its name in a chat request."""

ROLES: Final = ("system", "developer", "user", "assistant")

MOST_BYTES: Final = 1_000_000
"""Of a prompt as JSON: it is held by each process that serves it."""

_NAMED: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


Message = dict[str, str]
"""A message of a chat: its `role` and `content`."""


class PromptDocument(TypedDict):
    """A prompt as JSON."""

    messages: list[Message]
    parameters: dict[str, Any]
    variables: list[str]
    empty_prompt: str


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a model is asked and how. `messages` are pairs of a role and a template.

    `{name}` stands for a variable where `variables` names it. Where all of them are blank the last
    message is `empty_prompt`, if there is one. Raises `InputError` for what no chat could begin
    with.
    """

    messages: tuple[tuple[str, str], ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    variables: tuple[str, ...] = ()
    empty_prompt: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "variables", tuple(sorted(set(self.variables))))
        _check_messages(self.messages)
        _check_parameters(self.parameters)
        absent = set(self.variables) - set(self._named)
        if absent:
            raise InputError(
                f"The prompt does not say {_listed(absent)}.",
                mend="Each prompt of a task uses the same variables, written as "
                f"{_braced(sorted(absent))}.",
            )
        if len(self.canonical) > MOST_BYTES:
            raise InputError(
                f"The prompt has {len(self.canonical):,} bytes; {MOST_BYTES:,} may be.",
                mend="Shorten it.",
            )

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Prompt:
        """The prompt that JSON describes. Raises `InputError`."""
        try:
            messages = tuple((one["role"], one["content"]) for one in document["messages"])
            return cls(
                messages=messages,
                parameters=dict(document.get("parameters") or {}),
                variables=tuple(document.get("variables") or ()),
                empty_prompt=document.get("empty_prompt") or "",
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                "That is no prompt: it lacks messages of a role and a content.",
                mend='Send {"messages": [{"role": "user", "content": "About {topic}."}]}.',
            ) from error

    def document(self) -> PromptDocument:
        """It as JSON; `of` reads it."""
        return {
            "messages": [{"role": role, "content": content} for role, content in self.messages],
            "parameters": dict(self.parameters),
            "variables": list(self.variables),
            "empty_prompt": self.empty_prompt,
        }

    @cached_property
    def canonical(self) -> str:
        """It as JSON in the one form that is hashed: ASCII, sorted, without spaces."""
        return json.dumps(self.document(), sort_keys=True, separators=(",", ":"))

    @cached_property
    def hash(self) -> str:
        """Its name: 16 hex digits of SHA-256 over its canonical JSON."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()[:16]

    def __hash__(self) -> int:
        return hash(self.hash)

    @cached_property
    def _named(self) -> tuple[str, ...]:
        return tuple(name for _, content in self.messages for name in _NAMED.findall(content))

    @cached_property
    def _pieces(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Each message's role, and its template taken apart: texts and variables by turns."""
        return tuple((role, self._apart(content)) for role, content in self.messages)

    def _apart(self, content: str) -> tuple[str, ...]:
        found = [""]
        for number, piece in enumerate(_NAMED.split(content)):
            if number % 2 and piece in self.variables:
                found += [piece, ""]
            else:
                found[-1] += f"{{{piece}}}" if number % 2 else piece
        return tuple(found)

    def render(self, values: Mapping[str, object]) -> list[Message]:
        """The messages for these values; further ones are not read. Raises `InputError`."""
        texts = {name: _text(name, values) for name in self.variables}
        if texts and self.empty_prompt and not any(text.strip() for text in texts.values()):
            *before, (role, _) = self._pieces
            last: Message = {"role": role, "content": self.empty_prompt}
            return [*(_filled(one, texts) for one in before), last]
        return [_filled(one, texts) for one in self._pieces]

    def values_of(self, messages: Sequence[Mapping[str, str]]) -> dict[str, str]:
        """Values of which `render` makes these messages, so that held-out inputs that were asked by
        one prompt can be asked by another.

        Where there are several ways to read them, that with the shortest values first. Raises
        `InputError` where this prompt does not make them.
        """
        given = [dict(one) for one in messages]
        blank = dict.fromkeys(self.variables, "")
        found = blank if self.render(blank) == given else {}
        if not found and len(given) == len(self._pieces):
            for (_, pieces), message in zip(self._pieces, given, strict=True):
                found = {**_parsed(pieces, message["content"]), **found}
        if found.keys() != blank.keys() or self.render(found) != given:
            raise InputError(
                f"The prompt {self.hash} does not make {str(given)[:80]}.",
                mend="Ask by the prompt that the messages were made by.",
            )
        return found


def check_values(parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that no provider takes; raises `InputError`.

    For who makes a prompt: one that is kept already is read as it is.
    """
    for name, value in parameters.items():
        right, rule = _VALUES.get(name, (lambda _: True, ""))
        if not right(value):
            raise InputError(
                f"The parameter {name} is {str(value)[:50]!r}, but must be {rule}.",
                mend=f"Change {name}, or leave it out.",
                field=name,
            )


def _number(value: object, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


_VALUES: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "temperature": (lambda value: _number(value, 0, 2), "a number of 0 to 2"),
    "top_p": (lambda value: _number(value, 0, 1), "a number of 0 to 1"),
    "max_tokens": (
        lambda value: _number(value, 1, 10_000_000) and isinstance(value, int),
        "a whole number above 0",
    ),
    "stop": (lambda value: isinstance(value, str) or _texts(value), "a text or a list of texts"),
    "tools": (lambda value: isinstance(value, list), "a list"),
    "tool_choice": (lambda value: isinstance(value, (str, Mapping)), "a text or an object"),
    "response_format": (lambda value: isinstance(value, Mapping), "an object"),
    "reasoning_effort": (lambda value: isinstance(value, str), "a text"),
}


def variables_in(templates: Iterable[str]) -> tuple[str, ...]:
    """The names in braces of all templates."""
    return tuple(sorted({name for template in templates for name in _NAMED.findall(template)}))


def _filled(piece: tuple[str, tuple[str, ...]], texts: Mapping[str, str]) -> Message:
    role, parts = piece
    if len(parts) == 1:
        return {"role": role, "content": parts[0]}
    said = [texts[part] if number % 2 else part for number, part in enumerate(parts)]
    return {"role": role, "content": "".join(said)}


def _text(name: str, values: Mapping[str, object]) -> str:
    if name not in values:
        raise InputError(
            f"The variable {name} is missing; there {'is' if len(values) == 1 else 'are'} "
            f"{_listed(values)}.",
            mend=f"Send a value for {name}; an empty one is one.",
            variable=name,
        )
    value = values[name]
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, (int, float)):
        return json.dumps(value)
    raise InputError(
        f"The variable {name} is {str(value)[:50]!r}, which is neither text nor a number.",
        mend="Send text.",
        variable=name,
    )


def _parsed(pieces: tuple[str, ...], content: str) -> dict[str, str]:
    """The variables' values in this text, the shortest first; none where it does not fit."""
    found = re.fullmatch(_pattern(pieces), content, re.DOTALL)
    return found.groupdict() if found else {}


def _pattern(pieces: tuple[str, ...]) -> str:
    said, known = [], set()
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            said.append(re.escape(piece))
        elif piece in known:
            said.append(f"(?P={piece})")
        else:
            known.add(piece)
            said.append(f"(?P<{piece}>.*?)")
    return "".join(said)


def _check_messages(messages: Sequence[tuple[str, str]]) -> None:
    for role, content in messages:
        if role not in ROLES:
            raise InputError(
                f"A prompt's message has the role {role!r}.", mend=f"Use {', '.join(ROLES)}."
            )
        if not isinstance(content, str):
            raise InputError(
                f"A prompt's content is {str(content)[:50]!r}, no text.", mend="Send text."
            )
        if any("\ud800" <= letter <= "\udfff" for letter in content):
            raise InputError(
                "A prompt's content has half of a surrogate pair.", mend="Send Unicode text."
            )
    if not messages or messages[-1][0] != "user":
        raise InputError(
            "A prompt ends with a message of the user, which is what the model answers.",
            mend='Let the last message have the role "user".',
        )


def _check_parameters(parameters: Mapping[str, Any]) -> None:
    unknown = set(parameters) - set(PARAMETERS)
    if unknown:
        raise InputError(
            f"A prompt has no parameter {_listed(unknown)}.",
            mend=f"Use {', '.join(PARAMETERS)}.",
        )
    try:
        json.dumps(dict(parameters), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"A prompt's parameters cannot be written as JSON: {error}.",
            mend="Use texts, finite numbers, lists and objects.",
        ) from error


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _braced(names: Iterable[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)
