"""Artificial weeks of traffic, many at once, summed up as the store would sum them.

Shapes: runs R, hours H, units of an hour U, phases P, arms 2 (baseline 0, candidate 1). A unit's
outcome is Beta-distributed with mean 0.068 and κ = 20, as engagement rates are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MEAN = 0.068
KAPPA = 20.0
CV = ((1 - MEAN) / MEAN / (KAPPA + 1)) ** 0.5
"""Standard deviation over mean of one unit's outcome."""
WEEK = 168
CHUNK_UNITS = 2_000_000
"""Draws held in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Cumulative sums at each look: `n`, `s` (Σy), `q` (Σy²), shapes (R, H, P, 2)."""

    n: Array
    s: Array
    q: Array

    def pooled(self) -> Sums:
        """All phases thrown together: what a careless analysis looks at."""
        return Sums(**{k: getattr(self, k).sum(2, keepdims=True) for k in ("n", "s", "q")})

    def delayed(self, hours: int) -> Sums:
        """What had been there `hours` before each look: only the matured units."""
        return Sums(**{k: _shift(getattr(self, k), hours) for k in ("n", "s", "q")})

    def last(self) -> Sums:
        """The last look only."""
        return Sums(**{k: getattr(self, k)[:, -1:] for k in ("n", "s", "q")})


@dataclass(frozen=True, kw_only=True)
class Week:
    """What a world is made of. `share` and `level` have one value an hour."""

    units: int = 20
    hours: int = WEEK
    lift: float = 0.0
    share: tuple[float, ...] | float = 0.1
    drift: tuple[float, ...] | float = 1.0
    """The baseline's level at each hour, as a multiple of the usual mean."""

    def shares(self) -> Array:
        """The candidate's share at each hour, shape (H,)."""
        return np.broadcast_to(np.asarray(self.share, dtype=float), (self.hours,))

    def levels(self) -> Array:
        """The baseline's mean at each hour, shape (H,)."""
        return MEAN * np.broadcast_to(np.asarray(self.drift, dtype=float), (self.hours,))

    def phases(self) -> NDArray[np.int64]:
        """The phase of each hour: a new one wherever the split changes."""
        shares = self.shares()
        return np.concatenate([[0], np.cumsum(shares[1:] != shares[:-1])]).astype(np.int64)


def beta(rng: np.random.Generator, mean: Array, kappa: float = KAPPA) -> Array:
    """Outcomes with these means."""
    return rng.beta(mean * kappa, (1 - mean) * kappa)


def hourly(week: Week, runs: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Sums over each hour's own units: n, Σy, Σy², shapes (R, H, 2)."""
    shape = (runs, week.hours, week.units)
    candidate = rng.random(shape) < week.shares()[None, :, None]
    level = np.broadcast_to(week.levels()[None, :, None], shape)
    y = beta(rng, np.where(candidate, level * (1 + week.lift), level))
    out = []
    for value in (np.ones_like(y), y, y * y):
        whole = value.sum(-1)
        part = np.where(candidate, value, 0.0).sum(-1)
        out.append(np.stack([whole - part, part], axis=-1))
    return out[0], out[1], out[2]


def accumulate(week: Week, parts: tuple[Array, Array, Array]) -> Sums:
    """Hourly sums added up over time within each phase."""
    phases = week.phases()
    inside = (phases[:, None] == np.arange(phases.max() + 1)[None, :]).astype(float)
    n, s, q = (np.cumsum(v[:, :, None, :] * inside[None, :, :, None], axis=1) for v in parts)
    return Sums(n=n, s=s, q=q)


def weeks(week: Week, runs: int, rng: np.random.Generator) -> Iterator[Sums]:
    """The sums of `runs` weeks, a chunk of runs at a time."""
    for size in chunks(runs, week.hours * week.units):
        yield accumulate(week, hourly(week, size, rng))


def chunks(runs: int, units: int) -> Iterator[int]:
    """`runs` cut so that each piece holds at most `CHUNK_UNITS` units."""
    size = max(1, CHUNK_UNITS // units)
    for start in range(0, runs, size):
        yield min(size, runs - start)


def _shift(value: Array, hours: int) -> Array:
    out = np.zeros_like(value)
    out[:, hours:] = value[:, :-hours] if hours else value
    return out
