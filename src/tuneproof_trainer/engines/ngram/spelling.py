"""A character model of words, so that a word never seen still has a proper probability.

Interpolated Witten-Bell over the last `ORDER - 1` characters, trained on the distinct tokens of
a vocabulary, each also with a capital, and closed by an end mark. Below order one printable
ASCII is likely and every other code point possible. The probabilities of all strings sum to one.
Source: Witten and Bell 1991, "The zero-frequency problem".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice

__all__ = ["ORDER", "Spelling"]

ORDER = 5
_START = "\x02" * (ORDER - 1)
_END = "\x03"
_PRINTABLE = frozenset(map(chr, range(32, 127))) | {_END}
_CODE_POINTS = 0x110000
_MOST_WORDS = 30_000


class Spelling:
    """Probabilities of words by their characters."""

    def __init__(self, tokens: Iterable[str]) -> None:
        texts = [_START + form + _END for t in islice(tokens, _MOST_WORDS) for form in _forms(t)]
        self._counts: Counter[str] = Counter()
        """How often each run of up to `ORDER` characters was seen."""

        for length in range(1, ORDER + 1):
            self._counts.update(
                text[end - length + 1 : end + 1]
                for text in texts
                for end in range(ORDER - 1, len(text))
            )
        self._contexts: dict[str, list[int]] = {}
        """For each context, how many characters followed and how many different ones."""

        for run, count in self._counts.items():
            following = self._contexts.setdefault(run[:-1], [0, 0])
            following[0] += count
            following[1] += 1
        self.prob = lru_cache(maxsize=50_000)(self._prob)

    def _prob(self, token: str) -> float:
        """P(token), a product over its characters and the end mark; never zero."""
        text = _START + token + _END
        product = 1.0
        for end in range(ORDER - 1, len(text)):
            product *= self._char(text, end)
        return max(product, 1e-300)

    def _char(self, text: str, end: int) -> float:
        char = text[end]
        p = 0.01 / _CODE_POINTS
        if char in _PRINTABLE:
            p += 0.99 / len(_PRINTABLE)
        for start in range(end, end - ORDER, -1):
            context = text[start:end]
            following = self._contexts.get(context)
            if following is None:
                break
            total, kinds = following
            p = (self._counts[context + char] + kinds * p) / (total + kinds)
        return p


def _forms(token: str) -> tuple[str, ...]:
    """A word as it stands, and with a capital if it has none."""
    word = token.lstrip(" ")
    if not word.islower():
        return (token,)
    return (token, token[: -len(word)] + word.capitalize())
