"""Words as tokens: split text so that joining the tokens gives the text back.

A token is a word with the space before it, a punctuation mark, a line break or a single space.
The split never looks at a vocabulary, so two models always see the same tokens of one text and
their losses can be compared. Words that a model does not know are spelled (`spelling`).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

__all__ = [
    "BOS",
    "EOS",
    "EOS_TEXT",
    "FIRST_WORD",
    "SHAPES",
    "Vocabulary",
    "public_id",
    "shape_of",
    "split",
]

BOS = 0
EOS = 1
EOS_TEXT = "<|end|>"
SHAPES = (2, 3, 4)
"""Stand-ins for rare words in contexts: a number, a capitalised word, anything else."""
FIRST_WORD = 5
_SPECIAL = ("<|start|>", EOS_TEXT, "<|number|>", "<|name|>", "<|rare|>")
_TOKEN = re.compile(r"\n| ?[^\W_]+(?:['’][^\W_]+)*| ?[^\w\s]|_|[^\S\n]")


def split(text: str) -> list[str]:
    """The tokens of `text`; `"".join(split(text)) == text` for every text."""
    return _TOKEN.findall(text)


def shape_of(token: str) -> int:
    """The stand-in under which a rare `token` appears in contexts."""
    word = token.lstrip()
    if word[:1].isdigit():
        return SHAPES[0]
    return SHAPES[1] if word[:1].isupper() else SHAPES[2]


class Vocabulary:
    """Tokens numbered in order of first appearance; a later model extends an earlier one's."""

    def __init__(self, words: Iterable[str] = ()) -> None:
        self.words: list[str] = list(_SPECIAL)
        self.index: dict[str, int] = {EOS_TEXT: EOS}
        self.shapes: list[int] = [BOS, EOS, *SHAPES]
        for word in words:
            self.add(word)

    def __len__(self) -> int:
        return len(self.words)

    def add(self, token: str) -> int:
        """The number of `token`, given one now if it is new."""
        known = self.index.get(token)
        if known is not None:
            return known
        number = len(self.words)
        self.index[token] = number
        self.words.append(token)
        self.shapes.append(shape_of(token))
        return number

    def first(self, size: int) -> Vocabulary:
        """The vocabulary as it was when it had `size` tokens (never fewer than the stand-ins)."""
        return Vocabulary(self.words[FIRST_WORD : max(size, FIRST_WORD)])

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Numbers of `tokens`; those not known are -1."""
        get = self.index.get
        return [get(token, -1) for token in tokens]

    def extended(self) -> Vocabulary:
        """A copy to which words can be added without touching this one."""
        copy = Vocabulary()
        copy.words, copy.index, copy.shapes = list(self.words), dict(self.index), list(self.shapes)
        return copy


def public_id(vocabulary: Vocabulary, token: str) -> int:
    """A token id for the wire: the vocabulary's number, or a stable hash for a spelled word."""
    known = vocabulary.index.get(token)
    return known if known is not None else 2**31 + zlib.crc32(token.encode("utf-8", "replace"))
