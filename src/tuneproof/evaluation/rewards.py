"""Whether what a prompt is optimised by goes with what it shall stand for.

A reward that says nothing of outcomes would be optimised all the same, and the winner would be
the prompt that pleases it. So it first scores published answers whose outcomes are known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

__all__ = ["LEAST", "Correlation", "correlation"]

LEAST: Final = 20
"""Fewer answers say too little of a reward."""

_Z: Final = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Spearman's correlation of scores and outcomes with its interval (95 %), of `count` answers.

    None where nothing can be said: too few answers, or all alike.
    """

    count: int
    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def usable(self) -> bool:
        """Whether the reward is known to go with the outcomes."""
        return self.low is not None and self.low > 0

    def sentence(self) -> str:
        """What a person is told of it."""
        if self.value is None or self.low is None or self.high is None:
            return (
                f"{self.count} published answers that the search does not see are too few, or "
                f"their scores all alike ({LEAST} at least are needed)"
            )
        return (
            f"scores and outcomes of {self.count} published answers that the search does not see "
            f"correlate by {self.value:.2f} ({self.low:.2f} to {self.high:.2f})"
        )


def correlation(scores: Sequence[float], outcomes: Sequence[float]) -> Correlation:
    """How far scores go with outcomes, whatever their scales.

    The interval is Fisher's, with the variance of Bonett and Wright (Psychometrika 65, 2000).
    """
    from scipy.stats import rankdata

    count = len(scores)
    if count < LEAST or len(set(scores)) < 2 or len(set(outcomes)) < 2:
        return Correlation(count=count)
    ours, theirs = rankdata(scores), rankdata(outcomes)
    ours, theirs = ours - ours.mean(), theirs - theirs.mean()
    value = float((ours @ theirs) / math.sqrt((ours @ ours) * (theirs @ theirs)))
    middle = math.atanh(max(-0.999999, min(0.999999, value)))
    half = _Z * math.sqrt((1 + value**2 / 2) / (count - 3))
    low, high = math.tanh(middle - half), math.tanh(middle + half)
    return Correlation(count=count, value=value, low=low, high=high)
