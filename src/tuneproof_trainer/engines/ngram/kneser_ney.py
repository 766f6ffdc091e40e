"""Interpolated modified Kneser-Ney over words, counted and looked up in flat arrays.

P(w | c1 c2 c3) = (c − D(c)) / C + γ · P(w | c1 c2), down to single words and from there to
`zero(w)`, the spelling model. Counts below the highest order are continuation counts: in how
many different contexts a word was seen, not how often. Contexts are stored with the nearest
word in the highest bits, so the shorter context is a prefix of the longer one's key.
Source: Chen and Goodman 1999, "An empirical study of smoothing techniques", section 3.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tuneproof_trainer.engines.ngram.tokens import BOS, SHAPES

__all__ = ["BITS", "ORDER", "KneserNey", "Level", "Rows"]

ORDER = 4
BITS = 21
"""Bits for each context word, so three fit into a signed 64-bit key."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Rows = list[int]
"""Where a history's contexts stand in the levels, shortest first, as long as they were seen."""


class Level:
    """The n-grams of one order: contexts sorted by key, each with its words and shares."""

    __slots__ = ("cum", "gamma", "keys", "probs", "starts", "words")

    def __init__(self, keys: Ints, starts: Ints, gamma: Floats, words: Ints, probs: Floats) -> None:
        self.keys = array("q", keys.astype(np.int64).tobytes())
        self.starts = array("q", starts.astype(np.int64).tobytes())
        self.gamma = array("d", gamma.astype(np.float64).tobytes())
        self.words = array("q", words.astype(np.int64).tobytes())
        self.probs = array("d", probs.astype(np.float64).tobytes())
        cum = np.concatenate([[0.0], np.cumsum(probs)])
        self.cum = array("d", cum.tobytes())

    def find(self, key: int) -> int:
        """The row of the context `key`, or -1 if it was never seen."""
        keys = self.keys
        row = bisect_left(keys, key)
        return row if row < len(keys) and keys[row] == key else -1

    def share(self, row: int, word: int) -> float:
        """The discounted share of `word` after this context; 0 if never seen there."""
        high = self.starts[row + 1]
        at = bisect_left(self.words, word, self.starts[row], high)
        return self.probs[at] if at < high and self.words[at] == word else 0.0

    def arrays(self) -> dict[str, Any]:
        """What `Level` was made of, to be saved."""
        return {
            "keys": np.frombuffer(self.keys, dtype=np.int64),
            "starts": np.frombuffer(self.starts, dtype=np.int64),
            "gamma": np.frombuffer(self.gamma, dtype=np.float64),
            "words": np.frombuffer(self.words, dtype=np.int64),
            "probs": np.frombuffer(self.probs, dtype=np.float64),
        }


class KneserNey:
    """One model of words: single words below, levels of two, three and four words above."""

    def __init__(self, single: Floats, gamma: float, levels: Sequence[Level]) -> None:
        self.single = array("d", single.astype(np.float64).tobytes())
        self.gamma = gamma
        self.levels = list(levels)

    @classmethod
    def count(cls, stream: Ints, rare: Ints, size: int) -> KneserNey:
        """The model of `stream`: word numbers, each text led by `ORDER - 1` starts and ended.

        `rare` is the stream with rare words replaced by their stand-ins. Contexts with stand-ins
        are counted beside the exact ones, so that a word never seen has a context too; they do
        not touch the counts of exact contexts. `size` is the length of the vocabulary. A pure
        function of its arguments: the same text gives the same counts.
        """
        at = np.flatnonzero(stream != BOS)
        exact = _Grams(_keys(stream, at), stream[at])
        shaped = _Grams(_keys(rare, at), stream[at])
        levels: list[Level] = []
        for _ in range(ORDER, 1, -1):
            exact, shaped = exact.merged(), shaped.with_stand_ins().merged()
            levels.append(_level(*exact.beside(shaped)))
            exact, shaped = exact.shorter(), shaped.shorter()
        single = np.bincount(exact.words, minlength=size).astype(np.int64)
        shares, gamma = _discounted(single[single > 0])
        dense = np.zeros(size)
        dense[single > 0] = shares / max(single.sum(), 1)
        return cls(dense, gamma, levels[::-1])

    def rows(self, history: Sequence[int]) -> Rows:
        """The contexts of `history` (nearest word last) in the levels, shortest first."""
        found: Rows = []
        key = 0
        nearest = len(history) - 1
        for depth, level in enumerate(self.levels):
            key = (key << BITS) | history[nearest - depth]
            row = level.find(key)
            if row < 0:
                break
            found.append(row)
        return found

    def prob(self, word: int, rows: Rows, zero: float) -> float:
        """P(word | the contexts in `rows`); `zero` is the spelling model's probability of it."""
        p = self.gamma * zero
        if word < 0:
            return p * self.left_over(rows)
        if word < len(self.single):
            p += self.single[word]
        for level, row in zip(self.levels, rows, strict=False):
            words, starts = level.words, level.starts
            high = starts[row + 1]
            at = bisect_left(words, word, starts[row], high)
            p *= level.gamma[row]
            if at < high and words[at] == word:
                p += level.probs[at]
        return p

    def left_over(self, rows: Rows) -> float:
        """The mass that these contexts give away to single words: 1 where nothing was seen."""
        mass = 1.0
        for level, row in zip(self.levels, rows, strict=False):
            mass *= level.gamma[row]
        return mass

    def dense(self, rows: Rows, size: int) -> Floats:
        """P of each vocabulary word in these contexts, without the spelled words' part."""
        p = np.zeros(size)
        p[: len(self.single)] = np.frombuffer(self.single, dtype=np.float64)
        for level, row in zip(self.levels, rows, strict=False):
            low, high = level.starts[row], level.starts[row + 1]
            p *= level.gamma[row]
            words = np.frombuffer(level.words, dtype=np.int64)[low:high]
            p[words] += np.frombuffer(level.probs, dtype=np.float64)[low:high]
        return p

    def arrays(self, prefix: str) -> dict[str, Any]:
        """All arrays of this model, named to be saved in one file."""
        saved: dict[str, Any] = {
            f"{prefix}single": np.frombuffer(self.single, dtype=np.float64),
            f"{prefix}gamma": np.array([self.gamma]),
        }
        for order, level in enumerate(self.levels, start=2):
            saved |= {f"{prefix}{order}.{name}": a for name, a in level.arrays().items()}
        return saved

    @classmethod
    def restored(cls, arrays: Mapping[str, Any], prefix: str) -> KneserNey:
        """The model that `arrays(prefix)` described."""
        names = ("keys", "starts", "gamma", "words", "probs")
        levels = [
            Level(*(arrays[f"{prefix}{order}.{name}"] for name in names))
            for order in range(2, ORDER + 1)
        ]
        return cls(arrays[f"{prefix}single"], float(arrays[f"{prefix}gamma"][0]), levels)


def _keys(stream: Ints, at: Ints) -> Ints:
    """The full contexts of the words at `at`, the nearest word in the highest bits."""
    key = np.zeros(len(at), dtype=np.int64)
    for back in range(1, ORDER):
        key = (key << BITS) | stream[at - back]
    return key


class _Grams:
    """Contexts with the words after them, and how often."""

    def __init__(self, keys: Ints, words: Ints, counts: Ints | None = None) -> None:
        self.keys, self.words = keys, words
        self.counts = np.ones(len(keys), dtype=np.int64) if counts is None else counts

    def merged(self) -> _Grams:
        """Each distinct pair once, in order, with its counts added up."""
        order = np.lexsort((self.words, self.keys))
        keys, words, counts = self.keys[order], self.words[order], self.counts[order]
        new = np.ones(len(keys), dtype=bool)
        new[1:] = (keys[1:] != keys[:-1]) | (words[1:] != words[:-1])
        starts = np.flatnonzero(new)
        total = np.add.reduceat(counts, starts) if len(starts) else counts
        return _Grams(keys[starts], words[starts], total)

    def shorter(self) -> _Grams:
        """Each pair counted once in the context without its farthest word."""
        return _Grams(self.keys >> BITS, self.words)

    def with_stand_ins(self) -> _Grams:
        """Only the contexts in which a rare word was replaced."""
        found = np.zeros(len(self.keys), dtype=bool)
        rest = self.keys
        for _ in range(1, ORDER):
            nearest = rest & ((1 << BITS) - 1)
            found |= (nearest >= SHAPES[0]) & (nearest <= SHAPES[-1])
            rest = rest >> BITS
        return _Grams(self.keys[found], self.words[found], self.counts[found])

    def beside(self, other: _Grams) -> tuple[Ints, Ints, Ints]:
        """Both in one order; no pair is in both."""
        keys = np.concatenate([self.keys, other.keys])
        words = np.concatenate([self.words, other.words])
        counts = np.concatenate([self.counts, other.counts])
        order = np.lexsort((words, keys))
        return keys[order], words[order], counts[order]


def _level(key: Ints, words: Ints, counts: Ints) -> Level:
    new = np.ones(len(key), dtype=bool)
    new[1:] = key[1:] != key[:-1]
    first = np.flatnonzero(new)
    starts = np.append(first, len(key))
    discount = _discounts(counts)[np.minimum(counts, 3)]
    if not len(first):
        empty = np.zeros(0)
        return Level(key, np.zeros(1, dtype=np.int64), empty, words, empty)
    totals = np.add.reduceat(counts, first).astype(np.float64)
    gamma = np.add.reduceat(discount, first) / totals
    probs = (counts - discount) / np.repeat(totals, np.diff(starts))
    return Level(key[first], starts, gamma, words, probs)


def _discounted(counts: Ints) -> tuple[Floats, float]:
    discount = _discounts(counts)[np.minimum(counts, 3)]
    total = float(counts.sum())
    return counts - discount, float(discount.sum() / total) if total else 1.0


def _discounts(counts: Ints) -> Floats:
    """D(0) = 0, D(1), D(2), D(3+) from the counts of counts, kept inside (0, count)."""
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2) if n1 and n2 else 0.5
    raw = (
        1 - 2 * y * n2 / n1 if n1 else y,
        2 - 3 * y * n3 / n2 if n2 else 2 * y,
        3 - 4 * y * n4 / n3 if n3 else 3 * y,
    )
    return np.array([0.0, *(min(max(d, 0.1), c - 0.1) for c, d in enumerate(raw, start=1))])
