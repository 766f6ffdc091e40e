"""Effects and their variances, from aggregates alone.

It exists so that fixed-horizon, sequential and group-sequential tests all judge the same
estimate: a value, the variance of its estimator, and how many units it stands on. It knows no
error level and no look. Where a number cannot be had (an empty arm, a mean of zero), it returns
a reason in words, never a number that looks like an answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tuneproof.errors import DataError, InputError
from tuneproof.stats.aggregates import Aggregate, Histogram, Stratum

__all__ = [
    "COST",
    "COST_PER_ENGAGEMENT",
    "COST_PER_TOKEN",
    "ENGAGEMENT",
    "ENGAGEMENT_CUPED",
    "ENGAGEMENT_PER_DENOMINATOR",
    "Contrast",
    "Effect",
    "Estimate",
    "Metric",
    "NoContrast",
    "Quantile",
    "contrast",
    "cuped",
    "difference",
    "log_ratio",
    "mean",
    "proportion",
    "quantile",
    "ratio",
]

Variable = Literal["y", "x", "d", "c"]

NO_VARIANCE: Final = 1e-10
"""Below this share of the raw second moment a variance is rounding: it is taken as none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What is compared between the arms.

    `numerator` alone is a mean over units; with `denominator` the ratio of the two sums (delta
    method), which is also how units of analysis within units of randomisation are handled: sum
    `y` over each author's posts, let `d` be their number, and compare `y` per `d`. `cuped` takes
    out what the covariate `x` explains. Raises `InputError` for combinations without sums.
    """

    name: str
    numerator: Variable = "y"
    denominator: Variable | None = None
    cuped: bool = False

    def __post_init__(self) -> None:
        pair = (self.numerator, self.denominator)
        if self.denominator is not None and frozenset(pair) not in _PAIRS:
            raise InputError(
                f"metric {self.name!r}: no cross product of {pair[0]} and {pair[1]} is kept.",
                mend="Use y per d, c per y or c per d.",
            )
        if self.cuped and pair != ("y", None):
            raise InputError(
                f"metric {self.name!r}: CUPED adjusts the mean of y only.",
                mend="Use numerator='y' without a denominator.",
            )


_PAIRS: Final = {frozenset(p) for p in ("xy", "yd", "cy", "cd")}
_PRODUCT: Final = {
    frozenset(k): f"sum_{k}" for k in ("yy", "xx", "xy", "dd", "yd", "cc", "cy", "cd")
}

ENGAGEMENT: Final = Metric(name="engagement")
"""Mean of per-unit engagement rates."""
ENGAGEMENT_CUPED: Final = Metric(name="engagement (CUPED)", cuped=True)
"""The same, adjusted by the covariate `x` from before the experiment."""
ENGAGEMENT_PER_DENOMINATOR: Final = Metric(name="engagement per item", denominator="d")
"""Σy / Σd: for units (authors) that hold several items (posts)."""
COST: Final = Metric(name="cost per unit", numerator="c")
"""Mean cost of a unit."""
COST_PER_ENGAGEMENT: Final = Metric(name="cost per engagement", numerator="c", denominator="y")
"""Σcost / Σengagement."""
COST_PER_TOKEN: Final = Metric(name="cost per token", numerator="c", denominator="d")
"""Σcost / Σtokens; with a flat price this is arithmetic and has no variance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """An arm's value, the variance of that estimator (not of a unit), and its units."""

    value: float
    variance: float
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """A comparison of two arms on some scale, and the variance of its estimator."""

    value: float
    variance: float

    @property
    def standard_error(self) -> float:
        """The square root of the variance."""
        return math.sqrt(self.variance)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantile:
    """A quantile from a histogram with its confidence interval, in the unit of the edges.

    `upper` is infinite, and `value` a lower bound, where the quantile falls above the last edge.
    """

    value: float
    lower: float
    upper: float
    n: int
    alpha: float = 0.05

    @property
    def estimate(self) -> Estimate:
        """As an estimate for `difference` or `log_ratio`: Woodruff's variance, from the interval.

        Raises `DataError` where the interval has no upper end.
        """
        if math.isinf(self.upper):
            raise DataError(
                f"the quantile's interval ({self.lower:g}, ∞) is open above.",
                mend="Add edges above it, or wait for more data.",
            )
        from scipy.special import ndtri

        error = (self.upper - self.lower) / 2 / float(ndtri(1 - self.alpha / 2))
        return Estimate(value=self.value, variance=error * error, n=self.n)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """The stratified comparison of candidate and baseline.

    `log_ratio` is the logarithm of candidate / baseline with `variance`; None where the
    candidate's mean is 0, and then `lift` is -1 and `variance` that of the relative difference.
    `n` is the information so far in units of the first phase (with one phase, simply its units).
    `exact` says that nothing varies: the answer is arithmetic.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class NoContrast:
    """Why there is no comparison yet, in words for people."""

    reason: str
    n_baseline: int
    n_candidate: int


def mean(aggregate: Aggregate, of: Variable = "y") -> Estimate:
    """The mean of a variable over units.

    Estimand: the expectation of one unit's value. Assumes independent units with finite
    variance. Formula: m = Σv/n, Var(m) = Σ(v-m)² / ((n-1) n). Raises `DataError` for fewer than
    2 units. With equal values the variance is 0.

    >>> e = mean(Aggregate.of([1.0, 2.0, 3.0])); e.value, round(e.variance, 6), e.n
    (2.0, 0.333333, 3)
    """
    _need_two(aggregate)
    return Estimate(
        value=_sum(aggregate, of) / aggregate.n,
        variance=_spread(aggregate, of) / aggregate.n,
        n=aggregate.n,
    )


def proportion(aggregate: Aggregate) -> Estimate:
    """The share of units with `y` = 1, where each `y` is 0 or 1.

    Estimand: the probability of y = 1. Var = p(1-p)/n. Raises `DataError` for no units, or when
    the sums show values other than 0 and 1 (then Σy² is not Σy). At 0 or n successes the
    variance is 0: use an exact method there (`guardrails.error_rate`).

    >>> e = proportion(Aggregate.of([1, 0, 0, 0])); e.value, e.variance
    (0.25, 0.046875)
    """
    if aggregate.n < 1:
        raise DataError("a proportion of no units is undefined.", mend="Wait for data.")
    if not math.isclose(aggregate.sum_y, aggregate.sum_yy, rel_tol=1e-9, abs_tol=1e-9):
        raise DataError(
            "these units are not 0 or 1, so they have no proportion.",
            mend="Use `mean` for other values.",
        )
    p = aggregate.sum_y / aggregate.n
    return Estimate(value=p, variance=max(p * (1 - p), 0.0) / aggregate.n, n=aggregate.n)


def ratio(aggregate: Aggregate, numerator: Variable = "c", denominator: Variable = "y") -> Estimate:
    """The ratio of two sums over units, e.g. cost per engagement.

    Estimand: E[numerator] / E[denominator] (not the mean of ratios). Assumes independent units.
    Delta method: with R = Σu/Σv, Var(R) = Var(u - R v) / (n v̄²) (Deng et al. 2018,
    arXiv:1803.06336). Exactly 0 variance where u is proportional to v (a constant price). Raises
    `DataError` for fewer than 2 units or a denominator that sums to 0.

    >>> r = ratio(Aggregate.of([1.0, 2.0, 4.0], c=[0.5, 1.0, 2.0])); r.value, r.variance
    (0.5, 0.0)
    """
    _need_two(aggregate)
    total = _sum(aggregate, denominator)
    if total == 0:
        raise DataError(
            f"the denominator {denominator!r} sums to 0, so the ratio is undefined.",
            mend="Wait for data, or choose another denominator.",
        )
    value = _sum(aggregate, numerator) / total
    spread = _spread(aggregate, numerator, 1.0, denominator, -value)
    per_unit = total / aggregate.n
    return Estimate(
        value=value, variance=spread / (aggregate.n * per_unit * per_unit), n=aggregate.n
    )


def cuped(baseline: Aggregate, candidate: Aggregate) -> tuple[Estimate, Estimate]:
    """Both arms' means of `y`, adjusted by the covariate `x` from before the experiment.

    Estimand: the same means (randomisation makes E[x] equal), with less variance: by the factor
    1 - ρ². θ = pooled within-arm Cov(x, y) / Var(x); mean = ȳ - θ (x̄ - x̄ of both arms)
    (Deng, Xu, Kohavi, Walker 2013, doi:10.1145/2433396.2433413). Where `x` does not vary, θ is
    0. Raises `DataError` for fewer than 2 units an arm.

    >>> b = Aggregate.of([1.0, 2.0, 3.0], x=[1.0, 2.0, 3.0])
    >>> c = Aggregate.of([2.0, 3.0, 4.0], x=[1.0, 2.0, 3.0])
    >>> [round(e.value, 9) for e in cuped(b, c)], cuped(b, c)[0].variance
    ([2.0, 3.0], 0.0)
    """
    _need_two(baseline)
    _need_two(candidate)
    theta = _theta([Stratum(baseline=baseline, candidate=candidate)])
    shared = (baseline.sum_x + candidate.sum_x) / (baseline.n + candidate.n)
    return _adjusted(baseline, theta, shared), _adjusted(candidate, theta, shared)


def _adjusted(arm: Aggregate, theta: float, shared: float) -> Estimate:
    value = arm.sum_y / arm.n - theta * (arm.sum_x / arm.n - shared)
    return Estimate(value=value, variance=_spread(arm, "y", 1.0, "x", -theta) / arm.n, n=arm.n)


def difference(baseline: Estimate, candidate: Estimate) -> Effect:
    """Candidate minus baseline, for independent arms: variances add.

    >>> difference(Estimate(value=1, variance=0.5, n=9), Estimate(value=3, variance=0.5, n=9))
    Effect(value=2, variance=1.0)
    """
    return Effect(
        value=candidate.value - baseline.value, variance=candidate.variance + baseline.variance
    )


def log_ratio(baseline: Estimate, candidate: Estimate) -> Effect:
    """log(candidate / baseline): `math.expm1` of it is the lift as a share.

    Delta method: Var = Var_c/c² + Var_b/b². Better than the relative difference, whose
    distribution is skewed by a noisy baseline. Raises `DataError` unless both values are
    positive.

    >>> e = log_ratio(Estimate(value=2, variance=0.04, n=9), Estimate(value=2, variance=0.04, n=9))
    >>> e.value, round(e.variance, 12)
    (0.0, 0.02)
    """
    if baseline.value <= 0 or candidate.value <= 0:
        raise DataError(
            f"a log-ratio needs positive values, not {baseline.value:g} and {candidate.value:g}.",
            mend="Compare by `difference`, or wait for outcomes that are not zero.",
        )
    return Effect(
        value=math.log(candidate.value / baseline.value),
        variance=candidate.variance / candidate.value**2 + baseline.variance / baseline.value**2,
    )


def quantile(histogram: Histogram, q: float, *, alpha: float = 0.05) -> Quantile:
    """The q-quantile of the values in a histogram, with a fixed-horizon interval at 1 - alpha.

    Estimand: the value below which a share q of values lies, interpolated linearly within its
    bin, so exact to the bin's width. Interval: Woodruff's (1952), the quantiles at
    q ± z sqrt(q(1-q)/n). Raises `InputError` for q or alpha outside (0, 1), `DataError` for an
    empty histogram. Values below the first edge are taken as that edge.

    >>> h = Histogram.of([float(i) for i in range(1, 101)], edges=tuple(range(0, 101, 10)))
    >>> quantile(h, 0.5).value
    50.0
    """
    _check_share("q", q)
    _check_share("alpha", alpha)
    if histogram.n == 0:
        raise DataError("a quantile of no values is undefined.", mend="Wait for data.")
    from scipy.special import ndtri

    reach = float(ndtri(1 - alpha / 2)) * math.sqrt(q * (1 - q) / histogram.n)
    return Quantile(
        value=min(_at(histogram, q), histogram.edges[-1]),
        lower=min(_at(histogram, max(q - reach, 0.0)), histogram.edges[-1]),
        upper=_at(histogram, min(q + reach, 1.0)),
        n=histogram.n,
        alpha=alpha,
    )


def _at(histogram: Histogram, q: float) -> float:
    """The interpolated q-quantile; infinite above the last edge."""
    rank, seen = q * histogram.n, 0
    for i, count in enumerate(histogram.counts[:-1]):
        if count and seen + count >= rank:
            top = histogram.edges[i]
            bottom = histogram.edges[i - 1] if i else top
            return bottom + (top - bottom) * max(rank - seen, 0.0) / count
        seen += count
    return math.inf


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

    Assumes units that are independent and were randomised within each phase. A phase with fewer
    than `min_units_phase` units in an arm has no weight; fewer than `min_units` in an arm over
    the weighted phases, a baseline or denominator of 0, and no variance in a mean, give
    `NoContrast` with its reason. A ratio without any variance (constant price) is `exact`.

    >>> b, c = Aggregate.of([0.1, 0.3] * 100), Aggregate.of([0.2, 0.3] * 100)
    >>> answer = contrast([Stratum(baseline=b, candidate=c)])
    >>> round(answer.lift, 6), answer.n
    (0.25, 400.0)
    >>> contrast([]).reason
    'no phase has units yet'
    """
    used = [s for s in strata if min(s.baseline.n, s.candidate.n) >= max(min_units_phase, 2)]
    n_b, n_c = sum(s.baseline.n for s in used), sum(s.candidate.n for s in used)
    reason = _too_few(strata, len(used), min(n_b, n_c), min_units, min_units_phase)
    if reason:
        return NoContrast(
            reason=reason,
            n_baseline=sum(s.baseline.n for s in strata),
            n_candidate=sum(s.candidate.n for s in strata),
        )
    weights = [s.baseline.n * s.candidate.n / (s.baseline.n + s.candidate.n) for s in used]
    whole = sum(weights)
    shares = [w / whole for w in weights]
    first = used[0].baseline.n + used[0].candidate.n
    answer = _compare(used, shares, metric)
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
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Comparison:
    baseline: float
    candidate: float
    lift: float
    log_ratio: float | None
    variance: float
    difference_variance: float


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
    if fewest < min_units:
        return f"not enough data: {fewest} of {min_units} matured units in the smaller arm"
    return ""


def _compare(used: Sequence[Stratum], shares: Sequence[float], metric: Metric) -> _Comparison | str:
    theta = _theta(used) if metric.cuped else 0.0
    baselines, candidates = [s.baseline for s in used], [s.candidate for s in used]
    top_b = _standard(baselines, shares, metric.numerator)
    top_c = _standard(candidates, shares, metric.numerator)
    bottom_b = bottom_c = 1.0
    if metric.denominator:
        bottom_b = _standard(baselines, shares, metric.denominator)
        bottom_c = _standard(candidates, shares, metric.denominator)
    if metric.cuped:
        gap = _standard(candidates, shares, "x") - _standard(baselines, shares, "x")
        weight = sum(s.candidate.n for s in used) / sum(s.candidate.n + s.baseline.n for s in used)
        top_b, top_c = top_b + theta * weight * gap, top_c - theta * (1 - weight) * gap
    if bottom_b <= 0 or bottom_c <= 0:
        return f"the denominator of {metric.name} is 0, so the ratio is undefined"
    if top_b <= 0:
        return f"the baseline's {metric.name} is {top_b:g}: a relative lift is undefined"
    if top_c <= 0:
        return _against_nothing(used, shares, metric, top_b / bottom_b, top_c / bottom_c)
    var_b = _log_variance(baselines, shares, metric, top_b, bottom_b, theta)
    var_c = _log_variance(candidates, shares, metric, top_c, bottom_c, theta)
    if metric.denominator is None and (var_b == 0.0 or var_c == 0.0):
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
    used: Sequence[Stratum], shares: Sequence[float], metric: Metric, b: float, c: float
) -> _Comparison | str:
    """The score comparison where the candidate's mean is 0 and has no logarithm.

    The variance is that of no difference: each phase's, over both arms together.
    """
    if metric.denominator or c < 0:
        return f"the candidate's {metric.name} is {c:g}: a relative lift is undefined"
    variance = sum(
        share**2
        * _spread(s.baseline + s.candidate, metric.numerator)
        * (1 / s.baseline.n + 1 / s.candidate.n)
        for s, share in zip(used, shares, strict=True)
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
            spread = _spread(arm, metric.numerator, 1 / top, metric.denominator, -1 / bottom)
        elif metric.cuped:
            spread = _spread(arm, "y", 1 / top, "x", -theta / top)
        else:
            spread = _spread(arm, metric.numerator, 1 / top)
        total += share**2 * spread / arm.n
    return total


def _theta(strata: Sequence[Stratum]) -> float:
    arms = [arm for s in strata for arm in (s.baseline, s.candidate)]
    xx = sum(_centred(arm, "x", "x") for arm in arms)
    raw = sum(arm.sum_xx for arm in arms)
    if xx <= NO_VARIANCE * raw:
        return 0.0
    return sum(_centred(arm, "x", "y") for arm in arms) / xx


def _standard(arms: Sequence[Aggregate], shares: Sequence[float], of: Variable) -> float:
    return sum(share * _sum(arm, of) / arm.n for arm, share in zip(arms, shares, strict=True))


def _spread(
    arm: Aggregate, u: Variable, a: float = 1.0, v: Variable | None = None, b: float = 0.0
) -> float:
    """Sample variance of a·u + b·v over the units; exactly 0 where only rounding is left."""
    square = a * a * _centred(arm, u, u)
    raw = a * a * _product(arm, u, u)
    if v is not None:
        square += 2 * a * b * _centred(arm, u, v) + b * b * _centred(arm, v, v)
        raw += b * b * _product(arm, v, v)
    return 0.0 if square <= NO_VARIANCE * raw else square / (arm.n - 1)


def _centred(arm: Aggregate, u: Variable, v: Variable) -> float:
    return _product(arm, u, v) - _sum(arm, u) * _sum(arm, v) / arm.n


def _product(arm: Aggregate, u: Variable, v: Variable) -> float:
    return float(getattr(arm, _PRODUCT[frozenset((u, v))]))


def _sum(arm: Aggregate, of: Variable) -> float:
    return float(getattr(arm, f"sum_{of}"))


def _need_two(aggregate: Aggregate) -> None:
    if aggregate.n < 2:
        raise DataError(
            f"{aggregate.n} units have no variance; at least 2 are needed.", mend="Wait for data."
        )


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise InputError(
            f"{name} {value!r} is outside (0, 1).", mend="Give a share between 0 and 1."
        )
