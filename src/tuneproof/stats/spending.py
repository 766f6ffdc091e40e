"""Bounds for a test that is looked at a few declared times.

It exists so that the error of all looks together is what was promised: a spending function says
how much of it is used by each share of the information, and the bounds follow. It knows no
metric; `sequential.group_sequential` applies the bounds to one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, Literal

from tuneproof.errors import InputError
from tuneproof.stats.brownian import Walk, check_information

__all__ = ["Spending", "bounds", "obrien_fleming", "pocock", "spent", "stagewise_p_value"]

Spending = Literal["obrien_fleming", "pocock"]

CEILING: Final = 8.3
"""The largest bound that is solved for: beyond it a look spends less than 1e-16, so nothing."""


def obrien_fleming(fraction: float, alpha: float) -> float:
    """The O'Brien-Fleming-type spending: almost nothing early, nearly all at the end.

    One-sided error spent at information `fraction` (0..1] of in all `alpha`:
    2 - 2 Φ(z_{alpha/2} / sqrt(fraction)) (Lan and DeMets 1983, Biometrika 70:659). At 1 it is
    `alpha`.

    >>> round(obrien_fleming(0.5, 0.025), 6), round(obrien_fleming(1.0, 0.025), 6)
    (0.001525, 0.025)
    """
    from scipy.special import ndtr, ndtri

    _check(fraction, alpha)
    return float(2 * ndtr(ndtri(alpha / 2) / math.sqrt(min(fraction, 1.0))))


def pocock(fraction: float, alpha: float) -> float:
    """The Pocock-type spending, about even over the looks.

    alpha log(1 + (e - 1) fraction) (Lan and DeMets 1983). At 1 it is `alpha`.

    >>> round(pocock(0.5, 0.025), 6), round(pocock(1.0, 0.025), 6)
    (0.015503, 0.025)
    """
    _check(fraction, alpha)
    return alpha * math.log1p((math.e - 1) * min(fraction, 1.0))


_SPENDING: Final[dict[str, Callable[[float, float], float]]] = {
    "obrien_fleming": obrien_fleming,
    "pocock": pocock,
}


def spent(fraction: float, alpha: float, spending: Spending = "obrien_fleming") -> float:
    """The one-sided error spent at `fraction`, by the name of the function.

    Raises `InputError` for an unknown name.

    >>> spent(1.0, 0.02, "pocock")
    0.02
    """
    if spending not in _SPENDING:
        raise InputError(
            f"spending {spending!r} is unknown.", mend=f"Use one of {', '.join(_SPENDING)}."
        )
    return _SPENDING[spending](fraction, alpha)


def bounds(
    fractions: Sequence[float],
    *,
    alpha_one_sided: float = 0.025,
    spending: Spending = "obrien_fleming",
    information: Sequence[float] | None = None,
) -> tuple[float, ...]:
    """The upper bounds on z at looks at these fractions of the declared maximum.

    Estimand: none; P(z crosses any of them without an effect) = `alpha_one_sided` spent so far.
    Assumes independent normal increments, and looks chosen without regard to the results; their
    number and times need not be known in advance (Lan and DeMets 1983). A two-sided test uses
    the same bounds with either sign at twice the error. `fractions` rise strictly in (0, 1] and
    say how much error is spent by each look; `information`, in any unit, is what had really come
    in by then (by default even with the fractions), for tests whose fractions are of the calendar
    while the split changes. A bound that would spend less than 1e-16 is infinite. Raises
    `InputError` for sequences that do not rise or do not match.

    >>> [round(b, 3) for b in bounds([0.2, 0.4, 0.6, 0.8, 1.0])]
    [4.877, 3.357, 2.68, 2.29, 2.031]
    >>> [round(b, 3) for b in bounds([3 / 7, 5 / 7, 1])]
    [3.231, 2.418, 2.004]
    """
    fractions = tuple(float(f) for f in fractions)
    check_information(fractions)
    if fractions and fractions[-1] > 1 + 1e-12:
        raise InputError(
            f"information fraction {fractions[-1]} is above 1.",
            mend="Fractions are of the declared maximum; at the last look it is 1.",
        )
    times = _information(fractions, information)
    return _bounds(fractions, times, alpha_one_sided, spending)


def _information(
    fractions: tuple[float, ...], information: Sequence[float] | None
) -> tuple[float, ...]:
    if information is None:
        return fractions
    check_information(information)
    if len(information) != len(fractions):
        raise InputError(
            f"{len(fractions)} looks but information at {len(information)} of them.",
            mend="Give the information at every look so far, this one last.",
        )
    return tuple(float(i) / information[-1] for i in information)


@lru_cache(maxsize=1024)
def _bounds(
    fractions: tuple[float, ...], times: tuple[float, ...], alpha: float, spending: Spending
) -> tuple[float, ...]:
    walk, found, before = Walk(), [], 0.0
    for fraction, t in zip(fractions, times, strict=True):
        now = spent(fraction, alpha, spending)
        bound = _solve(walk, t, now - before)
        walk.advance(t, -math.inf, bound * math.sqrt(t))
        found.append(bound)
        before = now
    return tuple(found)


def _solve(walk: Walk, t: float, error: float) -> float:
    from scipy.optimize import brentq

    scale = math.sqrt(t)

    def excess(z: float) -> float:
        return walk.exit_above(t, z * scale) - error

    if excess(CEILING) >= 0:
        return math.inf
    return float(brentq(excess, -CEILING, CEILING, xtol=1e-12, rtol=1e-12))


def stagewise_p_value(
    z: float,
    fractions: Sequence[float],
    *,
    alpha_one_sided: float = 0.025,
    spending: Spending = "obrien_fleming",
    information: Sequence[float] | None = None,
) -> float:
    """The one-sided p-value of `z` at the last of these looks, none before having crossed.

    Stage-wise ordering (Fairbanks and Madsen 1982): the probability, without an effect, of
    crossing at an earlier look, or of reaching `z` at this one. It is below `alpha_one_sided`
    at the last look exactly when the bound is crossed, and uniform without an effect.

    >>> round(stagewise_p_value(1.959964, [1.0]), 6)
    0.025
    >>> b = bounds([0.5, 1.0]); round(stagewise_p_value(b[1], [0.5, 1.0]), 6)
    0.025
    """
    if not math.isfinite(z):
        raise InputError(f"z is {z}, not a finite number.", mend="Wait for data with variance.")
    limits = bounds(
        fractions, alpha_one_sided=alpha_one_sided, spending=spending, information=information
    )
    times = _information(tuple(fractions), information)
    walk, total = Walk(), 0.0
    for t, bound in zip(times[:-1], limits[:-1], strict=True):
        total += walk.exit_above(t, bound * math.sqrt(t))
        walk.advance(t, -math.inf, bound * math.sqrt(t))
    last = times[-1]
    return min(total + walk.exit_above(last, z * math.sqrt(last)), 1.0)


def _check(fraction: float, alpha: float) -> None:
    if not 0 < fraction <= 1 + 1e-12:
        raise InputError(
            f"information fraction {fraction} is outside (0, 1].",
            mend="Give the share of the declared maximum that has been seen.",
        )
    if not 0 < alpha < 1:
        raise InputError(f"alpha {alpha} is outside (0, 1).", mend="Give e.g. 0.025.")
