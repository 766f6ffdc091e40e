"""What an outcome model sees of a text: its words and characters, its form, a model's vector of it.

Words and characters are counted, and weighted by how rare they are (TF-IDF), in hashed columns, so
nothing has to be remembered of the texts but how many hold each. Vectors come from elsewhere, by
the text: where there are none it sees the rest.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy import sparse

__all__ = [
    "Features",
    "Floats",
    "Matrix",
    "Rarity",
    "Seen",
    "Vectors",
    "counted_words",
    "fit_features",
    "words_of",
]

Floats: TypeAlias = NDArray[np.float64]
Matrix: TypeAlias = "sparse.csr_array"

Vectors: TypeAlias = Mapping[str, NDArray[np.floating[Any]]]
"""Of some texts, all of one size."""

Columns: TypeAlias = NDArray[np.int64]

_Parts: TypeAlias = Callable[[str], Columns]
"""The columns of a text's parts, each as often as it is there."""

_SIZE: Final = 2**18
_FORM_WEIGHT: Final = 0.3
_VECTOR_WEIGHT: Final = 1.0
"""Of a whole vector, whatever its size: as much as all words of a text, or all its characters."""

_TOKEN: Final = re.compile(r"\w+(?:'\w+)?|[^\w\s]")


def words_of(text: str) -> list[str]:
    """Its words, in small letters."""
    return [token for token in _TOKEN.findall(text.lower()) if token[0].isalpha()]


def counted_words(texts: Sequence[str]) -> Matrix:
    """How often each hashed word is in each text, as 1 + log of the count."""
    return _counted(texts, lambda text: _hashed(words_of(text)))


def _words(text: str) -> Columns:
    """Words and marks, one by one and two by two."""
    found = ["<", *_TOKEN.findall(text.lower()), ">"]
    return _hashed([*found, *map(" ".join, pairwise(found))])


def _hashed(parts: Sequence[str]) -> Columns:
    hashes = [zlib.crc32(part.encode("utf-8", "surrogatepass")) for part in parts]
    return np.array(hashes, np.int64) % _SIZE


def _characters(text: str) -> Columns:
    """Two to five characters in a row, over the bounds of words."""
    padded = f" {' '.join(text.lower().split())} "
    bytes = np.frombuffer(padded.encode("utf-8", "surrogatepass"), np.uint8)
    bounds = np.append(np.flatnonzero(bytes & 0xC0 != 0x80), len(bytes))  # of characters
    found = [_crc32(bytes, bounds[:-size], bounds[size:]) for size in range(2, 6)]
    return np.concatenate(found).astype(np.int64) % _SIZE


def _crc32(bytes: NDArray[np.uint8], starts: Columns, ends: Columns) -> NDArray[np.uint32]:
    """As `zlib.crc32` has it, of many stretches at once: one by one they take forty times as long,
    and keep all other threads of the process waiting."""
    found = np.full(len(starts), 0xFFFFFFFF, np.uint32)
    lengths = ends - starts
    for place in range(int(lengths.max(initial=0))):
        longer = np.flatnonzero(lengths > place)
        now = found[longer]
        found[longer] = _CRC[(now ^ bytes[starts[longer] + place]) & 0xFF] ^ (now >> 8)
    return found ^ np.uint32(0xFFFFFFFF)


def _crc_table() -> NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0xEDB88320), table >> 1)
    return table


_CRC: Final = _crc_table()


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


def fit_features(texts: Sequence[str], vectors: Vectors | None = None) -> tuple[Features, Seen]:
    """What makes features of texts, fitted to these, and their own features.

    `vectors` are of the texts; one that has none is seen as the middle of those that have.
    """
    counts = [_counted(texts, parts) for parts in (_words, _characters)]
    form = _forms(texts)
    words, characters = map(Rarity.fitted, counts)
    middle, spread = form.mean(0), np.maximum(form.std(0), 1e-9)
    fitted = Features(
        words=words,
        characters=characters,
        middle=middle,
        spread=spread,
        space=Space.fitted(texts, vectors) if vectors else None,
    )
    return fitted, fitted.of(texts, counts, form, vectors)


@dataclass(frozen=True, eq=False)
class Seen:
    """A row for each text: what is counted, mostly nothing, beside what is dense."""

    counted: Matrix
    dense: Floats

    @property
    def width(self) -> int:
        """How many columns there are."""
        return int(self.counted.shape[1]) + int(self.dense.shape[1])

    def __matmul__(self, weights: Floats) -> Floats:
        edge = self.counted.shape[1]
        return np.asarray(self.counted @ weights[:edge] + self.dense @ weights[edge:])

    def __getitem__(self, rows: NDArray[np.bool_]) -> Seen:
        return Seen(self.counted[rows], self.dense[rows])

    def summed(self, shares: Floats) -> Floats:
        """The sum of the rows, each as often as its share says, shape `(width,)`."""
        return np.concatenate([self.counted.T @ shares, shares @ self.dense])


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Texts to a row each: words, characters and form, and the vector where it was fitted to some.

    `middle` and `spread` are of the form of the texts that it was fitted to.
    """

    words: Rarity
    characters: Rarity
    middle: Floats
    spread: Floats
    space: Space | None = None

    def __call__(self, texts: Sequence[str], vectors: Vectors | None = None) -> Seen:
        counts = [_counted(texts, parts) for parts in (_words, _characters)]
        return self.of(texts, counts, _forms(texts), vectors)

    @property
    def width(self) -> int:
        """How many columns there are."""
        counted = len(self.words.columns) + len(self.characters.columns) + len(self.middle)
        return counted + (0 if self.space is None else len(self.space.middle))

    def of(
        self, texts: Sequence[str], counts: Sequence[Matrix], form: Floats, vectors: Vectors | None
    ) -> Seen:
        """The features of what was counted."""
        from scipy import sparse

        kinds = (self.words, self.characters)
        parts = [rarity(count) for rarity, count in zip(kinds, counts, strict=True)]
        shape = np.clip((form - self.middle) / self.spread, -4, 4) * _FORM_WEIGHT
        dense = np.zeros((len(texts), 0))
        if self.space is not None:
            dense = self.space(texts, vectors or {})
        return Seen(sparse.csr_array(sparse.hstack([*parts, sparse.csr_array(shape)])), dense)


@dataclass(frozen=True, eq=False)
class Space:
    """The vectors of some model: their middle, and how far each dimension spreads."""

    middle: Floats
    spread: Floats

    @classmethod
    def fitted(cls, texts: Sequence[str], vectors: Vectors) -> Space:
        """To the vectors of texts, of which one at least has one."""
        known = np.array([vectors[text] for text in texts if text in vectors], np.float64)
        return cls(known.mean(0), np.maximum(known.std(0), 1e-9))

    def __call__(self, texts: Sequence[str], vectors: Vectors) -> Floats:
        found = np.zeros((len(texts), len(self.middle)))
        for row, text in enumerate(texts):
            if text in vectors:
                found[row] = (vectors[text] - self.middle) / self.spread
        return found * (_VECTOR_WEIGHT / math.sqrt(len(self.middle)))


@dataclass(frozen=True, eq=False)
class Rarity:
    """TF-IDF of one kind of parts, rows of length 1: the hashed columns that count, and how rare
    each is. What one text alone has is left out, and what more than a share of them have."""

    columns: NDArray[np.int64]
    weights: Floats

    @classmethod
    def fitted(cls, counts: Matrix, most_share: float = 1.0) -> Rarity:
        """From what was counted in texts."""
        held = np.bincount(counts.indices, minlength=_SIZE)
        columns = np.flatnonzero((held >= 2) & (held <= most_share * counts.shape[0]))
        return cls(columns, np.log((1 + counts.shape[0]) / (1 + held[columns])) + 1)

    def __call__(self, counts: Matrix) -> Matrix:
        from scipy import sparse

        places = np.searchsorted(self.columns, counts.indices)
        places[places == len(self.columns)] = 0
        known = np.zeros(len(places), bool)
        if len(self.columns):
            known = self.columns[places] == counts.indices
        rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))[known]
        places = places[known]
        values = counts.data[known] * self.weights[places]
        lengths = np.sqrt(np.bincount(rows, values**2, counts.shape[0]))
        ends = np.append(0, np.cumsum(np.bincount(rows, minlength=counts.shape[0])))
        return sparse.csr_array(
            (values / np.maximum(lengths, 1e-9)[rows], places.astype(np.int32), ends),
            shape=(counts.shape[0], len(self.columns)),
        )


def _counted(texts: Sequence[str], parts: _Parts) -> Matrix:
    """How often each hashed part is in each text, as 1 + log of the count."""
    from scipy import sparse

    found = [np.unique(parts(text), return_counts=True) for text in texts]
    columns = [seen.astype(np.int32) for seen, _ in found]
    counts = [1 + np.log(count) for _, count in found]
    ends = np.cumsum([0, *map(len, columns)])
    return sparse.csr_array(
        (_joined(counts, np.float64), _joined(columns, np.int32), ends),
        shape=(len(texts), _SIZE),
    )


def _joined(arrays: Sequence[NDArray[Any]], kind: type[Any]) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, kind), *arrays])
