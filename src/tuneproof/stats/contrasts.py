"""The comparison of two arms over all phases, each phase compared within itself.

It exists so that a split that changes while the level drifts finds nothing where nothing is, and
so that every test judges the same number. It knows no error level and no look. Where there is no
comparison (an empty arm, a mean of zero), it returns a reason in words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuneproof.stats.aggregates import Aggregate, Stratum
from tuneproof.stats.effects import ENGAGEMENT, Metric, Variable, pooled_theta, sum_of, variance_of

__all__ = ["Contrast", "NoContrast", "contrast"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """The stratified comparison of candidate and baseline.

    `log_ratio` is the logarithm of candidate / baseline with `variance`; None where the
    candidate's mean is 0, and then `lift` is -1 and `variance` that of the relative difference.
    `n` is the information so far in units of the first phase (with one phase, simply its units).
    `exact` says that nothing varies: the answer is arithmetic. `saved` is the share of the
    variance that the covariate took away (0 where it took none and was left out); None where the
    metric has none.
    """

    lift: float
    log_ratio: float | None
    difference: float
    difference_variance: float
    variance: float
    baseline: float
    candidate: float
    n: float
    n_baseline: int
    n_candidate: int
    phases: tuple[str, ...]
    exact: bool
    saved: float | None = None

    def interval(self, reach: float) -> tuple[float, float]:
        """The lift's interval that reaches `reach` to each side on the scale of `variance`."""
        if self.log_ratio is None:
            return max(self.lift - reach, -1.0), self.lift + reach
        upper = self.log_ratio + reach
        return math.expm1(self.log_ratio - reach), math.inf if upper > 700 else math.expm1(upper)


@dataclass(frozen=True, kw_only=True, slots=True)
class NoContrast:
    """Why there is no comparison yet, in words for people."""

    reason: str
    n_baseline: int
    n_candidate: int


def contrast(
    strata: Sequence[Stratum],
    metric: Metric = ENGAGEMENT,
    *,
    min_units: int = 100,
    min_units_phase: int = 50,
) -> Contrast | NoContrast:
    """Candidate against baseline over all phases, each phase compared within itself.

    Estimand: the ratio of the arms' means, both standardised to the same mix of phases; 1 in
    every phase gives exactly 1 overall, however the level or the split moves. Phase p weighs
    w_p = n_b n_c / (n_b + n_c), the weight with the least variance for equal spreads; it
    depends on counts only, so it cannot correlate with the outcomes, and Σ w_p (c̄_p - b̄_p) is a
    sum of independent terms, which the sequential theory needs. With M_a = Σ w_p ā_p / Σ w_p,
    log(M_c / M_b) has by the delta method the variance
    Σ_a Σ_p (w_p/Σw)² Var_p(a) / (n_ap M_a²); ratios put the linearised u/M_u - v/M_v for a.
    CUPED is left out where it would widen the interval, as with a candidate close to 0, whose
    outcomes the common coefficient does not fit.

    Assumes units that are independent and were randomised within each phase. A phase with fewer
    than `min_units_phase` units in an arm has no weight; fewer than `min_units` in an arm over
    the weighted phases, a baseline or denominator of 0, and no variance in an outcome, give
    `NoContrast` with its reason. A cost or a ratio without any variance (constant price) is
    `exact`; engagement per item is not. Give the phases in order of time: `n` is counted in units
    of the first.

    >>> b, c = Aggregate.of([0.1, 0.3] * 100), Aggregate.of([0.2, 0.3] * 100)
    >>> answer = contrast([Stratum(baseline=b, candidate=c)])
    >>> round(answer.lift, 6), answer.n
    (0.25, 400.0)
    >>> contrast([]).reason
    'no phase has units yet'
    """
    fewest = max(min_units_phase, 2)
    used = [s for s in strata if s.baseline.n >= fewest and s.candidate.n >= fewest]
    n_b, n_c = sum([s.baseline.n for s in used]), sum([s.candidate.n for s in used])
    if not used or min(n_b, n_c) < min_units:
        return NoContrast(
            reason=_too_few(strata, len(used), min(n_b, n_c), min_units, min_units_phase),
            n_baseline=sum(s.baseline.n for s in strata),
            n_candidate=sum(s.candidate.n for s in strata),
        )
    weights = [s.baseline.n * s.candidate.n / (s.baseline.n + s.candidate.n) for s in used]
    whole = sum(weights)
    shares = [w / whole for w in weights]
    first = used[0].baseline.n + used[0].candidate.n
    answer = _adjusted(used, shares, metric) if metric.adjusted else _compare(used, shares, metric)
    if isinstance(answer, str):
        return NoContrast(reason=answer, n_baseline=n_b, n_candidate=n_c)
    return Contrast(
        lift=answer.lift,
        log_ratio=answer.log_ratio,
        difference=answer.candidate - answer.baseline,
        difference_variance=answer.difference_variance,
        variance=answer.variance,
        baseline=answer.baseline,
        candidate=answer.candidate,
        n=first * whole / weights[0],
        n_baseline=n_b,
        n_candidate=n_c,
        phases=tuple(s.phase for s in used),
        exact=answer.variance == 0.0,
        saved=answer.saved,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Comparison:
    baseline: float
    candidate: float
    lift: float
    log_ratio: float | None
    variance: float
    difference_variance: float
    saved: float | None = None


def _adjusted(
    used: Sequence[Stratum], shares: Sequence[float], metric: Metric
) -> _Comparison | str:
    """The comparison with the covariate, or without it where that is narrower."""
    plain = _compare(used, shares, replace(metric, adjusted=False))
    if isinstance(plain, str):
        return plain
    found = _compare(used, shares, metric)
    if isinstance(found, str) or plain.log_ratio is None or plain.variance <= found.variance:
        return replace(plain, saved=0.0)
    return replace(found, saved=1 - found.variance / plain.variance)


def _too_few(
    strata: Sequence[Stratum], used: int, fewest: int, min_units: int, min_units_phase: int
) -> str:
    if not any(s.baseline.n or s.candidate.n for s in strata):
        return "no phase has units yet"
    if not used:
        most = max(min(s.baseline.n, s.candidate.n) for s in strata)
        return (
            f"not enough data: no phase has {min_units_phase} matured units in both arms"
            f" ({most} so far)"
        )
    return f"not enough data: {fewest} of {min_units} matured units in the smaller arm"


def _compare(used: Sequence[Stratum], shares: Sequence[float], metric: Metric) -> _Comparison | str:
    baselines, candidates = [s.baseline for s in used], [s.candidate for s in used]
    theta = pooled_theta([*baselines, *candidates]) if metric.adjusted else 0.0
    top_b = _standard(baselines, shares, metric.numerator)
    top_c = _standard(candidates, shares, metric.numerator)
    bottom_b = bottom_c = 1.0
    if metric.denominator:
        bottom_b = _standard(baselines, shares, metric.denominator)
        bottom_c = _standard(candidates, shares, metric.denominator)
    if metric.adjusted:
        gap = _standard(candidates, shares, "x") - _standard(baselines, shares, "x")
        weight = sum(s.candidate.n for s in used) / sum(s.candidate.n + s.baseline.n for s in used)
        top_b, top_c = top_b + theta * weight * gap, top_c - theta * (1 - weight) * gap
    if bottom_b <= 0 or bottom_c <= 0:
        return f"the denominator of {metric.name} is 0, so the ratio is undefined"
    if top_b <= 0:
        return f"the baseline's {metric.name} is {top_b:g}: a relative lift is undefined"
    if top_c <= 0:
        return _against_nothing(used, shares, metric, (top_b, bottom_b), (top_c, bottom_c))
    var_b = _log_variance(baselines, shares, metric, top_b, bottom_b, theta)
    var_c = _log_variance(candidates, shares, metric, top_c, bottom_c, theta)
    flat = metric.numerator == "c" or metric.denominator in ("c", "d")  # a price lacks no data
    if not flat and (var_b == 0.0 or var_c == 0.0):
        arm = "baseline" if var_b == 0.0 else "candidate"
        return f"all units of the {arm} have the same {metric.name}: no variance to judge by"
    value_b, value_c = top_b / bottom_b, top_c / bottom_c
    return _Comparison(
        baseline=value_b,
        candidate=value_c,
        lift=value_c / value_b - 1,
        log_ratio=math.log(value_c / value_b),
        variance=var_b + var_c,
        difference_variance=var_b * value_b**2 + var_c * value_c**2,
    )


def _against_nothing(
    used: Sequence[Stratum],
    shares: Sequence[float],
    metric: Metric,
    baseline: tuple[float, float],
    candidate: tuple[float, float],
) -> _Comparison | str:
    """The score comparison where the candidate's mean is 0 and has no logarithm.

    The variance is that of no difference: each phase's, over both arms together; of a ratio per
    item that of u - R v, R being both arms' ratio together.
    """
    b, c = baseline[0] / baseline[1], candidate[0] / candidate[1]
    if metric.denominator not in (None, "m") or c < 0:
        return f"the candidate's {metric.name} is {c:g}: a relative lift is undefined"
    both = [s.baseline + s.candidate for s in used]
    whole = 0.0
    if metric.denominator:
        top = _standard(both, shares, metric.numerator)
        whole = top / _standard(both, shares, metric.denominator)
    variance = sum(
        share**2
        * variance_of(pooled, metric.numerator, 1.0, metric.denominator, -whole)
        * (1 / s.baseline.n / baseline[1] ** 2 + 1 / s.candidate.n / candidate[1] ** 2)
        for s, pooled, share in zip(used, both, shares, strict=True)
    )
    if variance == 0.0:
        return f"all units have the same {metric.name}: no variance to judge by"
    return _Comparison(
        baseline=b, candidate=c, lift=-1.0, log_ratio=None,
        variance=variance / b**2, difference_variance=variance,
    )  # fmt: skip


def _log_variance(
    arms: Sequence[Aggregate],
    shares: Sequence[float],
    metric: Metric,
    top: float,
    bottom: float,
    theta: float,
) -> float:
    """Variance of the logarithm of an arm's standardised value."""
    total = 0.0
    for arm, share in zip(arms, shares, strict=True):
        if metric.denominator:
            spread = variance_of(arm, metric.numerator, 1 / top, metric.denominator, -1 / bottom)
        elif metric.adjusted:
            spread = variance_of(arm, "y", 1 / top, "x", -theta / top)
        else:
            spread = variance_of(arm, metric.numerator, 1 / top)
        total += share**2 * spread / arm.n
    return total


def _standard(arms: Sequence[Aggregate], shares: Sequence[float], of: Variable) -> float:
    return sum([share * sum_of(arm, of) / arm.n for arm, share in zip(arms, shares, strict=True)])
