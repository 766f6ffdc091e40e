"""What a prompt says about its answer: the instruction it ends with and the words it names.

The *keys* of a prompt name the kind of answer it asks for (last line, long form, first words);
a model that has seen enough examples under one of them answers from these alone, and falls back
on all examples. The *topic* words are its content words, which answers tend to repeat.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from tuneproof_trainer.engines.ngram.tokens import split
from tuneproof_trainer.engines.protocol import Message

__all__ = ["MOST_KEYS", "PLAIN", "Prompt", "key_names", "number_of", "prompt_keys", "read_prompt"]

MOST_KEYS = 8
"""A prompt never has more keys."""

_PLAIN = "plain"
_LONG = re.compile(r"\b(?:detailed|post|body|paragraphs?|article|caption|thread|newsletter)\b")
_WORDS = re.compile(r"\w+")
_MOST_TOPIC_WORDS = 6
_STOP_WORDS = """
    a about above after again all also am an and any are as at be because been before being
    below between both but by can create detailed did do does doing down during each engaging
    content few for from further get good had has have having he her here hers him his how i if
    in into is it its just like make me more most my new no nor not now of off on once one only
    or other our out over own post same she should so some such than that the their them then
    there these they thing things this those through to too under until up use very was way we
    were what when where which while who why will with would write you your
"""
_STOP = frozenset(_STOP_WORDS.split())


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """The parts of a conversation that a word model can use."""

    keys: tuple[int, ...]
    """The kinds of answer asked for, by `number_of`, the most telling first; never empty."""

    topic: tuple[str, ...]
    """Tokens, each with a leading space, that an answer may repeat."""


def read_prompt(messages: Sequence[Message]) -> Prompt:
    """The prompt of an assistant message that follows `messages`."""
    lines = _lines(messages)
    topic = " ".join(lines[:-1] if len(lines) > 1 and len(lines[-1]) < 60 else lines)
    keys = map(number_of, _keys(lines, _system(messages)))
    return Prompt(keys=tuple(keys), topic=_topic(topic))


def prompt_keys(messages: Sequence[Message]) -> tuple[int, ...]:
    """Only the keys of `read_prompt`, which is all that counting needs."""
    return tuple(map(number_of, key_names(messages)))


def key_names(messages: Sequence[Message]) -> tuple[str, ...]:
    """The keys of a prompt as text."""
    return _keys(_lines(messages), _system(messages))


def number_of(name: str) -> int:
    """A key as a positive 63-bit number, the same on every machine."""
    return (xxh3_64_intdigest(name.encode("utf-8", "replace")) >> 1) | 1


PLAIN = number_of(_PLAIN)
"""The key of prompts that show no instruction known to a model."""


def _lines(messages: Sequence[Message]) -> list[str]:
    user = next((m.content for m in reversed(messages) if m.role == "user"), "")
    return [line for line in user.splitlines() if line and not line.isspace()]


def _system(messages: Sequence[Message]) -> str:
    return next((m.content for m in messages if m.role in ("system", "developer")), "")


def _plain(line: str) -> str:
    return " ".join(_WORDS.findall(line[:200].lower()))


def _keys(lines: list[str], system: str) -> tuple[str, ...]:
    keys: list[str] = []
    if lines:
        tail = _plain(lines[-1])
        keys.append(f"tail:{tail}")
        if len(lines) > 1 and len(lines[-1]) < 80 and _LONG.search(tail):
            keys.append("long")
        keys.append("head:" + " ".join(_plain(lines[0][:80]).split()[:4]))
    keys.append(_PLAIN)
    if system:
        persona = _plain(system)
        return (*(f"{key}|{persona}" for key in keys), *keys)
    return tuple(keys)


def _topic(text: str) -> tuple[str, ...]:
    seen: dict[str, None] = {}
    for token in split(text):
        word = token.strip()
        if len(word) > 2 and word[0].isalpha() and word.lower() not in _STOP:
            seen.setdefault(word.lower(), None)
    longest = sorted(seen, key=len, reverse=True)[:_MOST_TOPIC_WORDS]
    return tuple(
        f" {form}" for word in seen if word in longest for form in (word, word.capitalize())
    )
