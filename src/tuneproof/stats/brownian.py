"""How likely a test statistic is to cross its bounds, look by look, computed without chance.

It exists because three questions are one: which bounds spend a given error (group-sequential
tests), what p-value a stage has, and how long a sequential test takes. All are first crossings
of a Brownian motion with drift, watched at a few looks; the recursion is that of Armitage,
McPherson and Rowe (1969) on Gauss-Legendre nodes. It knows neither spending nor units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from tuneproof.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Crossing", "Walk", "check_information", "first_crossing"]

REACH: Final = 9.0
"""Standard deviations beyond which the density is taken as zero (mass below 1e-18)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossing:
    """Probabilities of leaving between the bounds for the first time, one for each look."""

    above: tuple[float, ...]
    below: tuple[float, ...]

    @property
    def ever_above(self) -> float:
        """Probability of leaving upwards at any look."""
        return sum(self.above)

    @property
    def ever_below(self) -> float:
        """Probability of leaving downwards at any look."""
        return sum(self.below)


class Walk:
    """The density of a Brownian score B(t) ~ N(drift t, t) among the paths not yet stopped.

    `information` is t. Call `exit_above`/`exit_below` for the next look's probabilities, then
    `advance` to that look keeping what lies between its bounds.
    """

    def __init__(self, drift: float = 0.0) -> None:
        self.drift = drift
        self.information = 0.0
        self._nodes: NDArray[np.float64] | None = None
        self._mass: NDArray[np.float64] | None = None

    def exit_above(self, information: float, bound: float) -> float:
        """Probability that B at `information` is at least `bound`, not having stopped before."""
        return self._beyond(information, bound, 1.0)

    def exit_below(self, information: float, bound: float) -> float:
        """Probability that B at `information` is at most `bound`, not having stopped before."""
        return self._beyond(information, bound, -1.0)

    def _beyond(self, information: float, bound: float, side: float) -> float:
        from scipy.special import ndtr

        if math.isinf(bound):
            return 0.0 if bound * side > 0 else self.mass
        step = information - self.information
        start: Any = 0.0 if self._nodes is None else self._nodes
        weight: Any = 1.0 if self._mass is None else self._mass
        tail = ndtr(side * (start + self.drift * step - bound) / math.sqrt(step))
        return float((weight * tail).sum())

    @property
    def mass(self) -> float:
        """Probability of not having stopped yet."""
        return 1.0 if self._mass is None else float(self._mass.sum())

    def advance(self, information: float, lower: float, upper: float) -> None:
        """Go to the look at `information`, keeping the paths within [lower, upper]."""
        import numpy as np

        step = information - self.information
        deviation = math.sqrt(step)
        centre, spread = self.drift * information, REACH * math.sqrt(information)
        low, high = max(lower, centre - spread), min(upper, centre + spread)
        if high <= low:
            self._nodes, self._mass = np.zeros(1), np.zeros(1)
            self.information = information
            return
        count = 32 * math.ceil(min(max(3 * (high - low) / deviation, 64), 1024) / 32)
        points, weights = _legendre(count)
        nodes = (high - low) / 2 * points + (high + low) / 2
        start = np.zeros(1) if self._nodes is None else self._nodes
        mass = np.ones(1) if self._mass is None else self._mass
        gaps = (nodes[:, None] - start[None, :] - self.drift * step) / deviation
        density = np.exp(-0.5 * gaps * gaps) @ mass / (deviation * math.sqrt(2 * math.pi))
        self._nodes = nodes
        self._mass = density * weights * ((high - low) / 2)
        self.information = information


def first_crossing(
    information: Sequence[float],
    upper: Sequence[float],
    lower: Sequence[float] | None = None,
    *,
    drift: float = 0.0,
) -> Crossing:
    """Probability of first leaving (lower, upper) at each look, on the scale of z.

    Shapes: three sequences of one value a look. `information` rises strictly, in any unit;
    `drift` is E[z] at information 1. Bounds may be infinite. Assumes independent normal
    increments with known variance. Accurate to about 1e-9 a look. Raises `InputError` for
    information that does not rise.

    >>> c = first_crossing([0.5, 1.0], [1.959964, 1.959964], [-1.959964, -1.959964])
    >>> round(c.ever_above + c.ever_below, 4)
    0.0831
    """
    check_information(information)
    lows = [-math.inf] * len(information) if lower is None else list(lower)
    if not len(information) == len(upper) == len(lows):
        raise InputError("one bound a look is needed.", mend="Give sequences of equal length.")
    walk = Walk(drift)
    above, below = [], []
    for t, high, low in zip(information, upper, lows, strict=True):
        scale = math.sqrt(t)
        above.append(walk.exit_above(t, high * scale))
        below.append(walk.exit_below(t, low * scale))
        walk.advance(t, low * scale, high * scale)
    return Crossing(above=tuple(above), below=tuple(below))


def check_information(information: Sequence[float]) -> None:
    """Raise `InputError` unless `information` is positive, finite and rises strictly.

    >>> check_information([0.2, 1.0])
    """
    before = 0.0
    for t in information:
        if not (math.isfinite(t) and t > before):
            raise InputError(
                f"information {list(information)} does not rise strictly from above 0.",
                mend="Give the looks in order, each with more information than the one before.",
            )
        before = t


@lru_cache(maxsize=256)
def _legendre(count: int) -> tuple[Any, Any]:
    import numpy as np

    return np.polynomial.legendre.leggauss(count)
