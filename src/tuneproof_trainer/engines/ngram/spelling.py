"""A character model of words, so that a word never seen still has a proper probability.

Interpolated Witten-Bell over the last `ORDER - 1` characters, trained on the distinct tokens of
a vocabulary and closed by an end mark; below order one every Unicode code point is equally
likely. The probabilities of all strings therefore sum to one.
Source: Witten and Bell 1991, "The zero-frequency problem".
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

__all__ = ["ORDER", "Spelling"]

ORDER = 5
_END = "\x03"
_CODE_POINTS = 0x110000 + 1
_MOST_WORDS = 30_000


class Spelling:
    """Probabilities of words by their characters."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._counts: dict[str, dict[str, int]] = {}
        for number, token in enumerate(tokens):
            if number >= _MOST_WORDS:
                break
            self._learn(token)
        self._totals = {
            context: (sum(following.values()), len(following))
            for context, following in self._counts.items()
        }
        self.prob = lru_cache(maxsize=50_000)(self._prob)

    def _learn(self, token: str) -> None:
        counts = self._counts
        text = "\x02" * (ORDER - 1) + token + _END
        for end in range(ORDER - 1, len(text)):
            char = text[end]
            for start in range(end - ORDER + 1, end + 1):
                following = counts.setdefault(text[start:end], {})
                following[char] = following.get(char, 0) + 1

    def _prob(self, token: str) -> float:
        """P(token), a product over its characters and the end mark; never zero."""
        text = "\x02" * (ORDER - 1) + token + _END
        product = 1.0
        for end in range(ORDER - 1, len(text)):
            product *= self._char(text, end)
        return max(product, 1e-300)

    def _char(self, text: str, end: int) -> float:
        p = 1.0 / _CODE_POINTS
        char = text[end]
        for start in range(end, end - ORDER, -1):
            context = text[start:end]
            total = self._totals.get(context)
            if total is None:
                break
            count, kinds = total
            p = (self._counts[context].get(char, 0) + kinds * p) / (count + kinds)
        return p
