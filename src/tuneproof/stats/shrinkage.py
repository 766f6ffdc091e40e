"""What a winner's lift will be worth once everybody has it.

It exists because the winner is chosen for its high figure, so that figure is too high: the more
so the noisier the test. Past experiments say how large lifts are in truth; the posterior mean
under that prior is what to expect, and selection does not bias it. It knows no test and decides
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tuneproof.errors import DataError, InputError
from tuneproof.stats.sequential import LiftEstimate

__all__ = ["DEFAULT_PRIOR", "NormalPrior", "Shrunk", "fit_prior", "shrink", "shrink_estimate"]

MIN_EXPERIMENTS: Final = 3
"""Below this many past experiments their spread is not estimated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalPrior:
    """True log-lifts as N(mean, sd²), from `experiments` past ones (0: assumed)."""

    mean: float
    sd: float
    experiments: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.sd) and self.sd >= 0):
            raise InputError(
                f"a prior N({self.mean}, {self.sd}²) cannot be.",
                mend="Give a finite mean and a standard deviation of at least 0.",
            )


DEFAULT_PRIOR: Final = NormalPrior(mean=0.0, sd=0.15)
"""Assumed without history: two thirds of candidates are within ±15 % of the baseline."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shrunk:
    """A lift as it is to be expected, beside the one observed; shares, 0.15 = +15 %.

    `lower` and `upper` are the central credible interval; `weight` is how much of the observed
    log-lift was kept (0..1).
    """

    lift: float
    lower: float
    upper: float
    observed: float
    weight: float
    prior: NormalPrior


def fit_prior(log_lifts: Sequence[float], standard_errors: Sequence[float]) -> NormalPrior:
    """The prior that past experiments support.

    Estimand: mean and standard deviation of the *true* log-lifts over experiments like these.
    Assumes independent experiments, all of them, winners or not: a history of winners only gives
    a prior that shrinks nothing. Input: log(1 + lift) and its standard error for each, shapes
    (k,). Formula: Paule and Mandel (1982): the sd at which Σ (d - mean)² / (sd² + s²) = k - 1,
    with the mean weighted by 1/(sd² + s²); 0 where the spread is no more than noise.

    Fewer than 3 experiments: `DEFAULT_PRIOR`. Raises `DataError` for lengths that differ, values
    that are not finite, or standard errors that are not positive.

    >>> p = fit_prior([0.3, -0.3, 0.1, -0.1], [0.01] * 4); round(p.mean, 6), round(p.sd, 3)
    (0.0, 0.258)
    >>> fit_prior([0.02, -0.01, 0.0], [0.1] * 3).sd
    0.0
    """
    if len(log_lifts) != len(standard_errors):
        raise DataError(
            f"{len(log_lifts)} lifts and {len(standard_errors)} standard errors.",
            mend="Give one standard error a lift.",
        )
    if not all(map(math.isfinite, log_lifts)):
        raise DataError("a past lift is not finite.", mend="Leave tests without an answer out.")
    if not all(math.isfinite(s) and s > 0 for s in standard_errors):
        raise DataError(
            "a standard error is not positive.", mend="Leave exact and unanswered tests out."
        )
    if len(log_lifts) < MIN_EXPERIMENTS:
        return DEFAULT_PRIOR
    sd = _paule_mandel(log_lifts, standard_errors)
    mean, _ = _weighted(log_lifts, standard_errors, sd * sd)
    return NormalPrior(mean=mean, sd=sd, experiments=len(log_lifts))


def _paule_mandel(lifts: Sequence[float], errors: Sequence[float]) -> float:
    from scipy.optimize import brentq

    degrees = len(lifts) - 1

    def excess(variance: float) -> float:
        return _weighted(lifts, errors, variance)[1] - degrees

    if excess(0.0) <= 0:
        return 0.0
    top = (max(lifts) - min(lifts)) ** 2 + max(errors) ** 2
    return math.sqrt(float(brentq(excess, 0.0, top * len(lifts), xtol=1e-15)))


def _weighted(
    lifts: Sequence[float], errors: Sequence[float], variance: float
) -> tuple[float, float]:
    """The weighted mean, and the weighted sum of squares about it."""
    weights = [1 / (variance + s * s) for s in errors]
    mean = sum(w * d for w, d in zip(weights, lifts, strict=True)) / sum(weights)
    return mean, sum(w * (d - mean) ** 2 for w, d in zip(weights, lifts, strict=True))


def shrink(
    log_lift: float,
    standard_error: float,
    prior: NormalPrior = DEFAULT_PRIOR,
    *,
    alpha: float = 0.05,
) -> Shrunk:
    """The posterior of a lift under a normal prior: the observed drawn towards the prior's mean.

    Estimand: the true lift of this candidate. weight = sd² / (sd² + s²); median of the lift
    expm1(mean + weight (observed - mean)); interval ± z sd sqrt(1 - weight) on the log scale
    (Efron 2011, JASA 106:1602, for why this undoes selection). `standard_error` is on the log
    scale; 0 (arithmetic) keeps the observed. Raises `DataError` for values that are not finite,
    `InputError` for alpha outside (0, 1).

    >>> s = shrink(math.log(1.3), 0.1, NormalPrior(mean=0.0, sd=0.1))
    >>> round(s.observed, 3), round(s.lift, 3), s.weight
    (0.3, 0.14, 0.5)
    """
    if not (math.isfinite(log_lift) and math.isfinite(standard_error) and standard_error >= 0):
        raise DataError(
            f"cannot shrink {log_lift} ± {standard_error}.", mend="Give finite numbers."
        )
    if not 0 < alpha < 1:
        raise InputError(f"alpha {alpha!r} is outside (0, 1).", mend="Give e.g. 0.05.")
    from scipy.special import ndtri

    total = prior.sd**2 + standard_error**2
    weight = 1.0 if standard_error == 0 else prior.sd**2 / total
    centre = prior.mean + weight * (log_lift - prior.mean)
    reach = float(ndtri(1 - alpha / 2)) * standard_error * math.sqrt(weight)
    return Shrunk(
        lift=math.expm1(centre),
        lower=math.expm1(centre - reach),
        upper=math.expm1(centre + reach),
        observed=math.expm1(log_lift),
        weight=weight,
        prior=prior,
    )


def shrink_estimate(
    estimate: LiftEstimate, prior: NormalPrior = DEFAULT_PRIOR, *, alpha: float = 0.05
) -> Shrunk | None:
    """`shrink` of what `sequential.lift` returned; None where it has no answer on the log scale.

    Raises `InputError` for an absolute difference, whose standard error is on another scale.

    >>> from tuneproof.stats import sequential
    >>> shrink_estimate(sequential.lift([])) is None
    True
    """
    if estimate.method.startswith("difference"):
        raise InputError(
            "an absolute difference cannot be shrunk as a lift.", mend="Use `sequential.lift`."
        )
    if estimate.lift is None or estimate.standard_error is None or estimate.lift <= -1:
        return None
    return shrink(math.log1p(estimate.lift), estimate.standard_error, prior, alpha=alpha)
