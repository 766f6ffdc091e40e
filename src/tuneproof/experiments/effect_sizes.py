"""How large an effect is beside how much units differ anyway: Cohen's h and d, in a word.

A lift says how much better the candidate is, not whether anybody would notice among outcomes that
differ that much by themselves. This decides nothing; it is shown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuneproof.experiments.records import Look
from tuneproof.stats.aggregates import Aggregate, merge

__all__ = ["EffectSize", "effect_size"]

_WORDS = ((0.8, "large"), (0.5, "medium"), (0.2, "small"))
_LEAST = "negligible"


@dataclass(frozen=True, kw_only=True)
class EffectSize:
    """Cohen's h where outcomes are yes or no, else Cohen's d; positive is better."""

    value: float

    @property
    def word(self) -> str:
        """Cohen's words: small from 0.2, medium from 0.5, large from 0.8; negligible below.

        >>> EffectSize(value=-0.6).word
        'medium'
        """
        return next((word for least, word in _WORDS if abs(self.value) >= least), _LEAST)


def effect_size(look: Look | None) -> EffectSize | None:
    """The effect of a look; None where it estimated none, or where all units are alike.

    The difference is the look's own lift (of all phases, each by itself) on the baseline's mean.
    It is set against the spread of units within phase and arm, so a change of the traffic split
    adds nothing to it. h is `2 asin √p₂ - 2 asin √p₁`, d the difference in standard deviations
    (Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988, 2.2 and 6.2).
    """
    if look is None or look.lift is None:
        return None
    cells = [
        (c["arm"], Aggregate.from_dict(dict(c["units"]))) for c in look.inputs.get("cells", ())
    ]
    baseline = merge(units for arm, units in cells if arm == "baseline")
    if baseline.n == 0:
        return None
    mean = baseline.sum_y / baseline.n
    if all(units.sum_yy == units.sum_y for _, units in cells):
        return EffectSize(value=_h(mean, mean * (1 + look.lift)))
    spread = _spread([units for _, units in cells])
    return EffectSize(value=look.lift * mean / spread) if spread > 0 else None


def _h(before: float, after: float) -> float:
    """Cohen's h of two shares.

    >>> round(_h(0.25, 0.5), 3)
    0.524
    """
    first, second = (2 * math.asin(math.sqrt(min(1.0, max(0.0, p)))) for p in (before, after))
    return second - first


def _spread(cells: list[Aggregate]) -> float:
    """The standard deviation of units within their cells; 0 where nothing is known of it."""
    freedom = sum(units.n - 1 for units in cells if units.n)
    squares = math.fsum(u.sum_yy - u.sum_y * u.sum_y / u.n for u in cells if u.n)
    return math.sqrt(max(0.0, squares) / freedom) if freedom > 0 else 0.0
