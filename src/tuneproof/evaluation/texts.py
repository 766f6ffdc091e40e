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
from itertools import pairwise
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

__all__ = ["Embedded", "Embedding", "Features", "Floats", "Matrix", "TextFeatures"]

Floats: TypeAlias = NDArray[np.float64]
Matrix: TypeAlias = "sparse.csr_array | Floats"
Features = Callable[[Sequence[str]], Matrix]
"""Texts to a matrix of one row each, whose lengths are about 1."""

Embedding = Callable[[Sequence[str]], Floats]
"""Texts to vectors, shape `(len(texts), dimensions)`."""

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


class TextFeatures:
    """Words, characters and form, side by side; rarities and form are fitted to the texts given."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._kinds = [_Rare(texts, grams) for grams in (_words, _characters)]
        form = np.array([_form(text) for text in texts])
        self._middle, self._spread = form.mean(0), np.maximum(form.std(0), 1e-9)

    def __call__(self, texts: Sequence[str]) -> Matrix:
        form = (np.array([_form(text) for text in texts]) - self._middle) / self._spread
        parts = [*(kind(texts) for kind in self._kinds)]
        parts.append(sparse.csr_array(np.clip(form, -4, 4) * _FORM_WEIGHT))
        return sparse.csr_array(sparse.hstack(parts))


class _Rare:
    """TF-IDF of one kind of parts of a text, rows of length 1; what one text alone has is out."""

    def __init__(self, texts: Sequence[str], parts: _Parts) -> None:
        self._parts = parts
        held = np.bincount(_counted(texts, parts).indices, minlength=1 << _BITS)
        self._columns = np.flatnonzero(held >= 2)
        self._rarity = np.log((1 + len(texts)) / (1 + held[self._columns])) + 1

    def __call__(self, texts: Sequence[str]) -> sparse.csr_array:
        counts = _counted(texts, self._parts).tocsc()[:, self._columns]
        rare = sparse.csr_array(counts @ sparse.diags_array(self._rarity))
        lengths = np.sqrt(np.asarray(rare.multiply(rare).sum(axis=1)).ravel())
        return sparse.csr_array(sparse.diags_array(1 / np.maximum(lengths, 1e-9)) @ rare)


def _counted(texts: Sequence[str], parts: _Parts) -> sparse.csr_array:
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


class Embedded:
    """Vectors of an embedding, each dimension centred and scaled by the texts given first."""

    def __init__(self, embedding: Embedding, texts: Sequence[str]) -> None:
        self._embedding = embedding
        vectors = self._vectors(texts)
        self._middle = vectors.mean(0)
        self._spread = np.maximum(vectors.std(0), 1e-9) * math.sqrt(vectors.shape[1])

    def __call__(self, texts: Sequence[str]) -> Floats:
        return np.asarray((self._vectors(texts) - self._middle) / self._spread)

    def _vectors(self, texts: Sequence[str]) -> Floats:
        return np.asarray(self._embedding(texts), float)
