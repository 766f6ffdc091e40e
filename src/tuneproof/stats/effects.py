"""Effects and their variances, from aggregates alone.

It exists so that fixed-horizon, sequential and group-sequential tests all judge the same
estimate: a value, the variance of its estimator, and how many units it stands on. It knows no
error level and no look. Where a number cannot be had (an empty arm, a mean of zero), it returns
a reason in words, never a number that looks like an answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, Literal

from tuneproof.errors import DataError, InputError
from tuneproof.stats.aggregates import Aggregate, Histogram

__all__ = [
    "COST",
    "COST_PER_ENGAGEMENT",
    "COST_PER_TOKEN",
    "ENGAGEMENT",
    "ENGAGEMENT_CUPED",
    "ENGAGEMENT_PER_ITEM",
    "Effect",
    "Estimate",
    "Metric",
    "Quantile",
    "Variable",
    "cuped",
    "difference",
    "log_ratio",
    "mean",
    "pooled_theta",
    "proportion",
    "quantile",
    "ratio",
    "sum_of",
    "variance_of",
]

Variable = Literal["y", "x", "d", "c", "m"]

NO_VARIANCE: Final = 1e-10
"""Below this share of the raw second moment a variance is rounding: it is taken as none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What is compared between the arms.

    `numerator` alone is a mean over units; with `denominator` the ratio of the two sums (delta
    method), which is also how units of analysis within units of randomisation are handled: sum
    `y` over each author's posts, let `m` be their number, and compare `y` per `m`. `adjusted` takes
    out what the covariate `x` explains. Raises `InputError` for combinations without sums.
    """

    name: str
    numerator: Variable = "y"
    denominator: Variable | None = None
    adjusted: bool = False

    def __post_init__(self) -> None:
        pair = (self.numerator, self.denominator)
        if self.denominator is not None and frozenset(pair) not in _PAIRS:
            raise InputError(
                f"metric {self.name!r}: no cross product of {pair[0]} and {pair[1]} is kept.",
                mend="Use y per m, y per d, c per y or c per d.",
            )
        if self.adjusted and pair != ("y", None):
            raise InputError(
                f"metric {self.name!r}: CUPED adjusts the mean of y only.",
                mend="Use numerator='y' without a denominator.",
            )


_PAIRS: Final = {frozenset(p) for p in ("xy", "yd", "cy", "cd", "ym")}
_SUM: Final[dict[str, Callable[[Aggregate], float]]] = {
    v: attrgetter(f"sum_{v}") for v in ("y", "x", "d", "c", "m")
}
_PRODUCT: Final[dict[tuple[str, str], Callable[[Aggregate], float]]] = {
    pair: attrgetter(f"sum_{k}")
    for k in ("yy", "xx", "xy", "dd", "yd", "cc", "cy", "cd", "mm", "ym")
    for pair in ((k[0], k[1]), (k[1], k[0]))
}

ENGAGEMENT: Final = Metric(name="engagement")
"""Mean of per-unit engagement rates."""
ENGAGEMENT_CUPED: Final = Metric(name="engagement (CUPED)", adjusted=True)
"""The same, adjusted by the covariate `x` from before the experiment."""
ENGAGEMENT_PER_ITEM: Final = Metric(name="engagement per item", denominator="m")
"""Σy / Σm: for units (authors) that hold several items (posts); `y` is the sum over them."""
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
        value=sum_of(aggregate, of) / aggregate.n,
        variance=variance_of(aggregate, of) / aggregate.n,
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
    total = sum_of(aggregate, denominator)
    if total == 0:
        raise DataError(
            f"the denominator {denominator!r} sums to 0, so the ratio is undefined.",
            mend="Wait for data, or choose another denominator.",
        )
    value = sum_of(aggregate, numerator) / total
    spread = variance_of(aggregate, numerator, 1.0, denominator, -value)
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
    theta = pooled_theta((baseline, candidate))
    shared = (baseline.sum_x + candidate.sum_x) / (baseline.n + candidate.n)
    return _adjusted(baseline, theta, shared), _adjusted(candidate, theta, shared)


def _adjusted(arm: Aggregate, theta: float, shared: float) -> Estimate:
    value = arm.sum_y / arm.n - theta * (arm.sum_x / arm.n - shared)
    return Estimate(value=value, variance=variance_of(arm, "y", 1.0, "x", -theta) / arm.n, n=arm.n)


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


def pooled_theta(arms: Iterable[Aggregate]) -> float:
    """CUPED's coefficient: Cov(x, y) / Var(x) within arms, pooled; 0 where x does not vary.

    >>> pooled_theta([Aggregate.of([2.0, 4.0], x=[1.0, 2.0])])
    2.0
    """
    xx = xy = raw = 0.0
    for arm in arms:
        xx += _centred(arm, "x", "x")
        xy += _centred(arm, "x", "y")
        raw += arm.sum_xx
    return 0.0 if xx <= NO_VARIANCE * raw else xy / xx


def variance_of(
    arm: Aggregate, u: Variable, a: float = 1.0, v: Variable | None = None, b: float = 0.0
) -> float:
    """Sample variance of a·u + b·v over the units; exactly 0 where only rounding is left.

    >>> variance_of(Aggregate.of([1.0, 2.0, 3.0]), "y"), variance_of(Aggregate.of([0.1] * 9), "y")
    (1.0, 0.0)
    """
    square = a * a * _centred(arm, u, u)
    raw = a * a * _product(arm, u, u)
    if v is not None:
        square += 2 * a * b * _centred(arm, u, v) + b * b * _centred(arm, v, v)
        raw += b * b * _product(arm, v, v)
    return 0.0 if square <= NO_VARIANCE * raw else square / (arm.n - 1)


def _centred(arm: Aggregate, u: Variable, v: Variable) -> float:
    return _product(arm, u, v) - sum_of(arm, u) * sum_of(arm, v) / arm.n


def _product(arm: Aggregate, u: Variable, v: Variable) -> float:
    return _PRODUCT[u, v](arm)


def sum_of(arm: Aggregate, of: Variable) -> float:
    """The sum of a variable over the units.

    >>> sum_of(Aggregate.of([1.0, 2.0]), "y")
    3.0
    """
    return _SUM[of](arm)


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
