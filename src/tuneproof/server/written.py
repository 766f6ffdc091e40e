"""What is gathered of an answer while it passes: its usage, and its text where that is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tuneproof.server.chatting import size
from tuneproof.server.meter import BYTES_PER_TOKEN

if TYPE_CHECKING:
    from tuneproof.server.chatting import ChatRequest

__all__ = ["Spent", "Written"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """The tokens of several answers of which one is given; None where they are not all known."""

    tokens: dict[str, int] | None


@dataclass(kw_only=True, slots=True)
class Written:
    """What is known of an answer by now: `usage` as far as its provider names it.

    `spent` is said where others were asked for beside it.
    """

    usage: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    texts: list[str] | None = None
    whole: bool = False
    spent: Spent | None = None

    def note(self, usage: Mapping[str, int], text: str) -> None:
        """Gather the usage and the text of an answer, or of a part of it."""
        if usage:
            self.usage.update(usage)
        if text:
            self.bytes += size(text)
            if self.texts is not None:
                self.texts.append(text)

    def spent_tokens(self, asked: ChatRequest) -> dict[str, int] | None:
        """The usage of all answers that were asked for; None where that is not known."""
        return self.tokens(asked) if self.spent is None else self.spent.tokens

    def tokens(self, asked: ChatRequest) -> dict[str, int]:
        """The usage of both sides; what the provider does not name is estimated."""
        if len(self.usage) >= 2:
            return self.usage
        read = sum(size(message["content"]) for message in asked.messages)
        estimated = {
            "prompt_tokens": -(-read // BYTES_PER_TOKEN),
            "completion_tokens": -(-self.bytes // BYTES_PER_TOKEN),
        }
        return {**estimated, **self.usage}
