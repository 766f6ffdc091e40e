"""How texts are spelt and what they are about, as learnt from some of them.

Both say one thing of a text: how familiar its characters are, which those of another language are
not, and which of a few topics it is of. What was learnt stays as it is, so texts that it was not
learnt from can be compared with each other by it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tuneproof.evaluation.texts import Floats, Matrix, Rarity, counted_words, words_of

__all__ = ["Spelling", "Topics"]

LONGEST: Final = 500
"""How many characters of a text are looked at."""

GRAM: Final = 3
"""How many characters in a row are counted."""

MOST_TOPICS: Final = 8
TEXTS_EACH: Final = 25
"""How many texts there must be for each topic, in the mean."""

COMMON: Final = (0.05, 0.25, 1.0)
"""Words that more texts have than this share say nothing of a topic: the first that leaves most
texts some words."""

MOST_TEXTS: Final = 0.8

DIMENSIONS: Final = 50
ROUNDS: Final = 30
STARTS: Final = 5
NAMED: Final = 3
"""How many words name a topic."""


@dataclass(frozen=True)
class Spelling:
    """How often characters follow each other: `counts` of each `GRAM` of them, `total` of all."""

    counts: Counter[str]
    total: int

    @classmethod
    def learnt(cls, texts: Sequence[str]) -> Spelling:
        """From texts in the languages that are usual."""
        counts = Counter(gram for text in texts for gram in _grams(text))
        return cls(counts, counts.total())

    def familiarity(self, text: str) -> float:
        """The mean log-frequency of what it is spelt with: low where that is unusual; NaN for an
        empty text."""
        grams = _grams(text)
        if not grams:
            return math.nan
        among = math.log(self.total + len(self.counts) + 1)
        return math.fsum(math.log(self.counts[gram] + 1) - among for gram in grams) / len(grams)


def _grams(text: str) -> list[str]:
    plain = " ".join(text[:LONGEST].casefold().split())
    padded = f" {plain} " if plain else ""
    return [padded[at : at + GRAM] for at in range(len(padded) - GRAM + 1)]


@dataclass(frozen=True, eq=False)
class Topics:
    """Some directions among texts: a text is of the one it is nearest to.

    A text is seen as the words that it has, in `space` (shape `(columns, dimensions)`), which holds
    together what occurs together (latent semantic analysis). `centres` has the shape `(topics,
    dimensions)`; `names` are words that are more frequent in each than elsewhere.
    """

    rarity: Rarity
    space: Floats
    centres: Floats
    names: tuple[str, ...]

    @classmethod
    def learnt(cls, texts: Sequence[str]) -> Topics | None:
        """From texts: at most `MOST_TOPICS`, found by spherical k-means from several starts, the
        same for the same texts. None where there are too few for two."""
        number = min(MOST_TOPICS, len(texts) // TEXTS_EACH)
        if number < 2:
            return None
        counts = counted_words([text[:LONGEST] for text in texts])
        for common in COMMON:
            rarity = Rarity.fitted(counts, common)
            rows = rarity(counts)
            if np.diff(rows.indptr).astype(bool).mean() >= MOST_TEXTS:
                break
        dimensions = min(DIMENSIONS, len(texts) - 1, len(rarity.columns) - 1)
        if dimensions < number:
            return None
        space = _space(rows, dimensions)
        seen = _seen(rows, space)
        found = [_clusters(seen, number, start) for start in range(STARTS)]
        of, centres = max(found, key=lambda one: float((seen @ one[1].T).max(1).sum()))
        return cls(rarity, space, centres, _named(texts, of, number, common))

    def of(self, texts: Sequence[str]) -> list[int]:
        """The number of each text's topic."""
        rows = self.rarity(counted_words([text[:LONGEST] for text in texts]))
        return [int(place) for place in (_seen(rows, self.space) @ self.centres.T).argmax(1)]


def _space(rows: Matrix, dimensions: int) -> Floats:
    """The directions of words in which the rows differ most."""
    from scipy.sparse.linalg import svds

    start = np.ones(min(rows.shape))
    _, _, directions = svds(rows, k=dimensions, v0=start)
    return np.asarray(directions.T, dtype=np.float64)


def _seen(rows: Matrix, space: Floats) -> Floats:
    """The rows in the space, each of length 1, or 0 where it has none of the words."""
    found: Floats = rows @ space
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.maximum(lengths, 1e-12))


def _clusters(seen: Floats, number: int, start: int) -> tuple[NDArray[np.int64], Floats]:
    """The cluster of each row, and the clusters' directions."""
    centres = _start(seen, number, start)
    of = np.full(len(seen), -1)
    for _ in range(ROUNDS):
        nearest = (seen @ centres.T).argmax(1)
        if (nearest == of).all():
            break
        of, centres = nearest, _means(seen, nearest, centres)
    return of, centres


def _start(seen: Floats, number: int, seed: int) -> Floats:
    """Rows that are far from each other, drawn as k-means++ draws them."""
    draw = np.random.default_rng(seed)
    chosen = [int(draw.integers(len(seen)))]
    while len(chosen) < number:
        near = (seen @ seen[chosen].T).max(1)
        far = np.clip(1 - near, 1e-9, None)
        chosen.append(int(draw.choice(len(seen), p=far / far.sum())))
    return seen[chosen]


def _means(seen: Floats, of: NDArray[np.int64], before: Floats) -> Floats:
    """The direction of each topic's rows; one that has none stays where it was."""
    found = before.copy()
    for topic in range(len(before)):
        total = seen[of == topic].sum(0)
        length = float(np.linalg.norm(total))
        if length:
            found[topic] = total / length
    return found


def _named(
    texts: Sequence[str], of: NDArray[np.int64], number: int, common: float
) -> tuple[str, ...]:
    """The words that most more texts of a topic have than of the others."""
    held = [Counter[str]() for _ in range(number)]
    for text, topic in zip(texts, of, strict=True):
        held[topic].update(set(words_of(text[:LONGEST])))
    sizes = np.bincount(of, minlength=number)
    every = sum(held, Counter[str]())
    names = []
    for topic, words in enumerate(held):
        rest = max(1, len(texts) - int(sizes[topic]))
        size = max(1, int(sizes[topic]))
        lift = {
            word: count / size - (every[word] - count) / rest
            for word, count in words.items()
            if every[word] <= common * len(texts)
        }
        best = sorted(lift, key=lambda word: (-lift[word], word))[:NAMED]
        names.append(", ".join(best))
    return tuple(names)
