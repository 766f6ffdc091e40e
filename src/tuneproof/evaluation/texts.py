"""What an outcome model sees of a text: its words and characters, and its form.

Words and characters are counted, and weighted by how rare they are (TF-IDF), in hashed columns, so
nothing has to be remembered of the texts but how many hold each.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

__all__ = ["Features", "Floats", "Matrix", "Rarity", "fit_features"]

Floats: TypeAlias = NDArray[np.float64]
Matrix: TypeAlias = "sparse.csr_array"

_Parts: TypeAlias = Callable[[str], Iterable[str]]

_BITS: Final = 18
_FORM_WEIGHT: Final = 0.3
_TOKEN: Final = re.compile(r"\w+(?:'\w+)?|[^\w\s]")


def _words(text: str) -> Iterator[str]:
    """Words and marks, one by one and two by two."""
    found = ["<", *_TOKEN.findall(text.lower()), ">"]
    yield from found
    yield from map(" ".join, pairwise(found))


def _characters(text: str) -> Iterator[str]:
    """Two to five characters in a row, over the bounds of words."""
    padded = f" {' '.join(text.lower().split())} "
    for size in range(2, 6):
        for start in range(len(padded) - size + 1):
            yield padded[start : start + size]


def _forms(texts: Sequence[str]) -> Floats:
    return np.array([_form(text) for text in texts])


def _form(text: str) -> list[float]:
    """Length, punctuation, digits, capitals: what a text looks like from afar."""
    size = max(1, len(text))
    return [
        math.log1p(len(text)),
        len(text.split()) / 10,
        *(float(text.count(mark)) for mark in "?!.,:'\""),
        sum(map(str.isdigit, text)) / 2,
        10 * sum(map(str.isupper, text)) / size,
    ]


def fit_features(texts: Sequence[str]) -> tuple[Features, Matrix]:
    """What makes features of texts, its rarities fitted to these, and their own features."""
    counts = [_counted(texts, parts) for parts in (_words, _characters)]
    form = _forms(texts)
    words, characters = map(Rarity.fitted, counts)
    middle, spread = form.mean(0), np.maximum(form.std(0), 1e-9)
    fitted = Features(words=words, characters=characters, middle=middle, spread=spread)
    return fitted, fitted.of(counts, form)


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Texts to a matrix of one row each: words, characters and form, side by side.

    `middle` and `spread` are of the form of the texts that it was fitted to.
    """

    words: Rarity
    characters: Rarity
    middle: Floats
    spread: Floats

    def __call__(self, texts: Sequence[str]) -> Matrix:
        return self.of([_counted(texts, parts) for parts in (_words, _characters)], _forms(texts))

    @property
    def width(self) -> int:
        """How many columns the matrix has."""
        return len(self.words.columns) + len(self.characters.columns) + len(self.middle)

    def of(self, counts: Sequence[Matrix], form: Floats) -> Matrix:
        """The features of what was counted."""
        kinds = (self.words, self.characters)
        parts = [rarity(count) for rarity, count in zip(kinds, counts, strict=True)]
        shape = np.clip((form - self.middle) / self.spread, -4, 4) * _FORM_WEIGHT
        return sparse.csr_array(sparse.hstack([*parts, sparse.csr_array(shape)]))


@dataclass(frozen=True, eq=False)
class Rarity:
    """TF-IDF of one kind of parts, rows of length 1: the hashed columns that count, and how rare
    each is. What one text alone has is left out."""

    columns: NDArray[np.int64]
    weights: Floats

    @classmethod
    def fitted(cls, counts: Matrix) -> Rarity:
        """From what was counted in texts."""
        held = np.bincount(counts.indices, minlength=1 << _BITS)
        columns = np.flatnonzero(held >= 2)
        return cls(columns, np.log((1 + counts.shape[0]) / (1 + held[columns])) + 1)

    def __call__(self, counts: Matrix) -> Matrix:
        kept = counts.tocsc()[:, self.columns]
        rare = sparse.csr_array(kept @ sparse.diags_array(self.weights))
        lengths = np.sqrt(np.asarray(rare.multiply(rare).sum(axis=1)).ravel())
        return sparse.csr_array(sparse.diags_array(1 / np.maximum(lengths, 1e-9)) @ rare)


def _counted(texts: Sequence[str], parts: _Parts) -> Matrix:
    """How often each hashed part is in each text, as 1 + log of the count."""
    columns: list[int] = []
    values: list[float] = []
    ends = [0]
    for text in texts:
        seen = Counter(_column(part) for part in parts(text))
        columns += seen
        values += [1 + math.log(count) for count in seen.values()]
        ends.append(len(columns))
    return sparse.csr_array(
        (np.array(values), np.array(columns, dtype=np.int32), np.array(ends)),
        shape=(len(texts), 1 << _BITS),
    )


def _column(part: str) -> int:
    return zlib.crc32(part.encode("utf-8", "surrogatepass")) % (1 << _BITS)
