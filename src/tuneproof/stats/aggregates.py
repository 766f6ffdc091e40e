"""What an analysis needs of many units, in a few numbers that can be added and taken away.

It exists so that an analysis costs the same at a hundred units as at twenty million: the store
keeps one `Aggregate` for each phase, hour and arm, and every effect in this package is computed
from their sum. It knows neither experiments nor SQL; the field names are the column names.

The variables of a unit: `y` the outcome (engagement rate; where a unit holds several items, their
sum), `m` how many items it holds (0 where items are not counted), `x` a covariate from before the
experiment (CUPED), `d` a denominator (tokens, impressions), `c` the cost.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Self

from tuneproof.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "ENGAGEMENT_EDGES",
    "LATENCY_MS_EDGES",
    "SUMS",
    "Aggregate",
    "Histogram",
    "Stratum",
    "merge",
]

ENGAGEMENT_EDGES: Final[tuple[float, ...]] = (
    0.0,
    *(round(10 ** (-3 + i / 10), 6) for i in range(31)),
)
"""Upper edges of the engagement histogram: zero by itself, then ten to a decade up to 1."""

# fmt: off
LATENCY_MS_EDGES: Final[tuple[float, ...]] = (
    10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300, 400, 500, 600, 700, 800, 900, 1000, 1200,
    1400, 1600, 1800, 2000, 2500, 3000, 4000, 5000, 7000, 10_000, 15_000, 20_000, 30_000, 60_000,
)
# fmt: on
"""Upper edges of the latency histogram, in milliseconds; the default limit, 2000, is one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Counts of values between fixed edges; adds and subtracts like everything here.

    `edges` rise strictly; `counts` has one more entry: `counts[i]` is the number of values in
    (`edges[i-1]`, `edges[i]`], the first one of values up to `edges[0]`, the last one of values
    above the last edge. So "how many are above an edge" is exact.

    Raises `DataError` where the shapes or values do not fit.

    >>> h = Histogram.of([1.0, 2.0, 2.5, 9.0], edges=(1.0, 2.0, 5.0))
    >>> h.counts, h.above(2.0), (h + h).n
    ((1, 1, 1, 1), 2, 8)
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.edges) + 1:
            raise DataError(
                f"a histogram of {len(self.edges)} edges has {len(self.counts)} counts.",
                mend="It takes one count more than edges.",
            )
        if any(count < 0 for count in self.counts):
            raise DataError(
                f"a histogram has a negative count: {min(self.counts)}.",
                mend="Only subtract what was added before.",
            )

    @classmethod
    def empty(cls, edges: Sequence[float]) -> Self:
        """A histogram of no values. Raises `DataError` unless the edges rise strictly."""
        rising = all(a < b for a, b in pairwise(edges))
        if not edges or not rising or not all(map(math.isfinite, edges)):
            raise DataError(
                f"histogram edges {list(edges)} do not rise strictly.",
                mend="Give finite edges in rising order, at least one.",
            )
        return cls(edges=tuple(map(float, edges)), counts=(0,) * (len(edges) + 1))

    @classmethod
    def of(cls, values: Iterable[float], edges: Sequence[float]) -> Self:
        """The histogram of `values`. Raises `DataError` for NaN."""
        counts = list(cls.empty(edges).counts)
        for value in values:
            if math.isnan(value):
                raise DataError("a histogram cannot hold NaN.", mend="Leave the row out.")
            counts[bisect_left(edges, value)] += 1
        return cls(edges=tuple(map(float, edges)), counts=tuple(counts))

    @property
    def n(self) -> int:
        """The number of values."""
        return sum(self.counts)

    def edge_from(self, limit: float) -> float | None:
        """The first edge at or above `limit`, from which values can be counted; None beyond all."""
        place = bisect_left(self.edges, limit)
        return None if place == len(self.edges) else self.edges[place]

    def above(self, limit: float) -> int:
        """How many values are above `limit`, exactly.

        Raises `DataError` where `limit` is not an edge: the answer would be a guess.
        """
        place = bisect_left(self.edges, limit)
        if place == len(self.edges) or self.edges[place] != limit:
            raise DataError(
                f"limit {limit:g} is not an edge of this histogram, so the values above it"
                " cannot be counted.",
                mend="Make the limit an edge of the histogram.",
            )
        return sum(self.counts[place + 1 :])

    def __add__(self, other: Histogram) -> Histogram:
        return self._combine(other, 1)

    def __sub__(self, other: Histogram) -> Histogram:
        return self._combine(other, -1)

    def _combine(self, other: Histogram, sign: int) -> Histogram:
        if self.edges != other.edges:
            raise DataError(
                "two histograms with different edges cannot be combined.",
                mend="Build both with the same edges.",
            )
        counts = tuple(a + sign * b for a, b in zip(self.counts, other.counts, strict=True))
        return Histogram(edges=self.edges, counts=counts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregate:
    """The sums over a set of units from which every effect here is computed.

    Sums are plain and uncentred, so that a database can add them: relative precision of a
    variance is about 1e-16 · n · mean² / variance. All sums must be finite and `n` at least 0,
    else `DataError`. With `n` 0 all sums are exactly 0.

    >>> a = Aggregate.of([0.1, 0.3]); b = Aggregate.of([0.2])
    >>> (a + b).n, round((a + b).sum_y, 12), (a + b - b).n
    (3, 0.6, 2)
    >>> Aggregate.from_dict(a.to_dict()) == a
    True
    """

    n: int = 0
    sum_y: float = 0.0
    sum_yy: float = 0.0
    sum_x: float = 0.0
    sum_xx: float = 0.0
    sum_xy: float = 0.0
    sum_d: float = 0.0
    sum_dd: float = 0.0
    sum_yd: float = 0.0
    sum_c: float = 0.0
    sum_cc: float = 0.0
    sum_cy: float = 0.0
    sum_cd: float = 0.0
    sum_m: float = 0.0
    sum_mm: float = 0.0
    sum_ym: float = 0.0
    histogram: Histogram | None = None

    def __post_init__(self) -> None:
        if self.n < 0:
            raise DataError(
                f"an aggregate of {self.n} units cannot be.",
                mend="Only subtract units that were added before.",
            )
        for name in SUMS:
            value = getattr(self, name)
            if not math.isfinite(value):
                raise DataError(
                    f"{name} is {value}, not a finite number.",
                    mend="Refuse NaN and infinite outcomes where they come in.",
                )
            if self.n == 0 and value != 0.0:
                object.__setattr__(self, name, 0.0)  # what is left of subtracting is rounding

    @classmethod
    def of(
        cls,
        y: ArrayLike,
        *,
        x: ArrayLike | None = None,
        d: ArrayLike | None = None,
        c: ArrayLike | None = None,
        m: ArrayLike | None = None,
        edges: Sequence[float] | None = None,
    ) -> Self:
        """The aggregate of units given as equally long arrays of shape (n,).

        `y` outcomes, `x` covariates, `d` denominators, `c` costs, `m` items; those left out
        count as 0.
        `edges` adds a histogram of `y`. Raises `DataError` for NaN, infinity, or lengths that
        differ.
        """
        import numpy as np

        ya = np.asarray(y, dtype=float)
        named = (x, d, c, m)
        given = [np.zeros_like(ya) if v is None else np.asarray(v, dtype=float) for v in named]
        if ya.ndim != 1 or any(v.shape != ya.shape for v in given):
            raise DataError(
                f"arrays of shapes {[v.shape for v in (ya, *given)]} do not match.",
                mend="Give one value a unit in each array.",
            )
        for name, values in zip("yxdcm", (ya, *given), strict=True):
            if not np.isfinite(values).all():
                raise DataError(
                    f"{name} has NaN or infinite values.", mend="Refuse them where they come in."
                )
        xa, da, ca, ma = given
        dot = {
            "yy": ya @ ya, "xx": xa @ xa, "xy": xa @ ya, "dd": da @ da, "yd": ya @ da,
            "cc": ca @ ca, "cy": ca @ ya, "cd": ca @ da, "mm": ma @ ma, "ym": ya @ ma,
        }  # fmt: skip
        sums = {"y": ya.sum(), "x": xa.sum(), "d": da.sum(), "c": ca.sum(), "m": ma.sum(), **dot}
        return cls(
            n=len(ya),
            **{f"sum_{k}": float(v) for k, v in sums.items()},
            histogram=None if edges is None else Histogram.of(ya.tolist(), edges),
        )

    def __add__(self, other: Aggregate) -> Aggregate:
        """The units of both."""
        return self._combine(other, 1)

    def __sub__(self, other: Aggregate) -> Aggregate:
        """These units without those of `other`, which must have been among them."""
        return self._combine(other, -1)

    def _combine(self, other: Aggregate, sign: int) -> Aggregate:
        sums = {name: getattr(self, name) + sign * getattr(other, name) for name in SUMS}
        return Aggregate(
            n=self.n + sign * other.n,
            **sums,
            histogram=_combine_histograms(self, other, sign),
        )

    def to_dict(self) -> dict[str, Any]:
        """This aggregate as JSON types, keys as the fields; `histogram` null or an object."""
        data: dict[str, Any] = {"n": self.n, **{name: getattr(self, name) for name in SUMS}}
        shape = self.histogram
        data["histogram"] = shape and {"edges": list(shape.edges), "counts": list(shape.counts)}
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The aggregate that `to_dict` described; absent sums are 0.

        Raises `DataError` for unknown keys and for values that are not numbers.
        """
        unknown = set(data) - {"n", "histogram", *SUMS}
        if unknown:
            raise DataError(
                f"unknown keys in an aggregate: {sorted(unknown)}.",
                mend=f"The keys are n, histogram and {', '.join(SUMS)}.",
            )
        shape = data.get("histogram")
        try:
            return cls(
                n=int(data.get("n", 0)),
                **{name: float(data.get(name, 0.0)) for name in SUMS},
                histogram=shape
                and Histogram(
                    edges=tuple(map(float, shape["edges"])), counts=tuple(map(int, shape["counts"]))
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"malformed aggregate: {error!r}.", mend="Give what `to_dict` returns."
            ) from error


SUMS: Final[tuple[str, ...]] = tuple(f.name for f in fields(Aggregate) if f.name.startswith("sum_"))
"""The names of all sums, in the order of the fields."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stratum:
    """The two arms during one phase: a stretch of time with one fixed split.

    Units of different phases are never pooled: when the split changes while the level drifts,
    pooling finds effects where there are none.
    """

    baseline: Aggregate
    candidate: Aggregate
    phase: str = "1"


def merge(aggregates: Iterable[Aggregate]) -> Aggregate:
    """The sum of many aggregates, correctly rounded, so the order never shows.

    >>> merge([Aggregate.of([0.1]), Aggregate.of([0.2]), Aggregate.of([0.3])]).n
    3
    >>> merge([]) == Aggregate()
    True
    """
    parts = list(aggregates)
    shape: Histogram | None = None
    for part in parts:
        if part.histogram is not None:
            shape = part.histogram if shape is None else shape + part.histogram
    if shape is not None and any(part.histogram is None and part.n for part in parts):
        shape = None
    return Aggregate(
        n=sum(part.n for part in parts),
        **{name: math.fsum(getattr(part, name) for part in parts) for name in SUMS},
        histogram=shape,
    )


def _combine_histograms(a: Aggregate, b: Aggregate, sign: int) -> Histogram | None:
    if a.histogram is None and a.n == 0 and sign > 0:
        return b.histogram
    if b.histogram is None and b.n == 0:
        return a.histogram
    if a.histogram is None or b.histogram is None:
        return None  # a histogram of only some of the units would lie
    return a.histogram + b.histogram if sign > 0 else a.histogram - b.histogram
