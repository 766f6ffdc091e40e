"""Cut an answer at its stop sequences, also where one spans several tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from typing import Literal

from tuneproof_trainer.engines.protocol import Token, ToolCall

__all__ = ["Cut", "cut_at_stops"]


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """Text that may be shown, and the tokens that it came from."""

    text: str
    tokens: tuple[Token, ...]
    finish: Literal["stop", "length", "tool_calls"] | None = None
    calls: tuple[ToolCall, ...] = ()


def cut_at_stops(tokens: Iterator[Token], stops: Sequence[str]) -> Generator[Cut, None, None]:
    """The answer piece by piece, without the first stop sequence and what follows it.

    Text that may be the beginning of a stop sequence is held back until that is decided.
    """
    held_text = ""
    held: list[Token] = []
    for token in tokens:
        if token.finish is not None:
            yield Cut(held_text, tuple(held), token.finish, token.calls)
            return
        held_text += token.text
        held.append(token)
        at = min((i for stop in stops if (i := held_text.find(stop)) >= 0), default=-1)
        if at >= 0:
            yield Cut(held_text[:at], tuple(held), "stop")
            return
        if not any(_may_begin(held_text, stop) for stop in stops):
            yield Cut(held_text, tuple(held))
            held_text, held = "", []


def _may_begin(text: str, stop: str) -> bool:
    """Whether some end of `text` is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return any(text.endswith(stop[:n]) for n in range(longest, 0, -1))
