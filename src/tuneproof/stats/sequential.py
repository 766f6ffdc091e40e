"""Answers that stay true however often they are looked at.

It exists because the loop looks every hour. The asymptotic confidence sequence covers the true
lift at all looks at once; the group-sequential test is sharper at a few declared looks. Both
judge `contrasts.contrast`, stratified by phase. A failed precondition gives no number but a reason;
nothing is ever encoded as p = 1 or an interval (0, 0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from tuneproof.errors import DataError, InputError
from tuneproof.stats.aggregates import Stratum
from tuneproof.stats.contrasts import Contrast, NoContrast, contrast
from tuneproof.stats.declared import GroupSequentialEstimate, group_sequential
from tuneproof.stats.effects import ENGAGEMENT, Metric

__all__ = [
    "OPTIMUM_N",
    "GroupSequentialEstimate",
    "LiftEstimate",
    "NonInferiority",
    "anytime_p_value",
    "critical_value",
    "difference",
    "group_sequential",
    "lift",
    "log_e_value",
    "non_inferiority",
    "tuning",
]

OPTIMUM_N: Final = 1_500.0
"""Default number of units (both arms) at which the sequence is tightest: about half of a week
at 20 posts/h. Choose it before the experiment, from its plan; never from its data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LiftEstimate:
    """The candidate against the baseline, as relative shares (0.15 is +15 %).

    `lift`, `lower`, `upper`, `p_value` and `log_e` are None where `reason` says why there is no
    answer yet. `p_value` is anytime-valid and two-sided; it is None too where nothing varies
    (`method` "arithmetic": the lift is exact and no test is needed). `log_e` is the logarithm of
    the e-value behind it. `standard_error` is on the log scale (on the relative scale for
    `method` "score confidence sequence"). `saved` is the share of the variance that a covariate
    took away, None where there is none.
    """

    lift: float | None
    lower: float | None
    upper: float | None
    p_value: float | None
    n_baseline: int
    n_candidate: int
    method: str
    reason: str
    standard_error: float | None = None
    log_e: float | None = None
    baseline: float | None = None
    candidate: float | None = None
    phases: tuple[str, ...] = ()
    alpha: float = 0.05
    saved: float | None = None

    @property
    def significant(self) -> bool:
        """Whether there is an answer and its interval excludes no difference."""
        return (
            self.lower is not None
            and self.upper is not None
            and not (self.lower <= 0 <= self.upper)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class NonInferiority:
    """Whether the candidate is worse by no more than `margin`, at any look.

    `holds` is True when shown, False when the whole interval lies beyond the margin, None while
    open; `p_value` is anytime-valid, one-sided, for "worse by the margin or more".
    """

    holds: bool | None
    margin: float
    p_value: float | None
    estimate: LiftEstimate
    reason: str


@lru_cache(maxsize=256)
def tuning(alpha: float, optimum_n: float) -> float:
    """ρ², which makes the sequence at `alpha` tightest at `optimum_n` units.

    ρ² = (-2 log α + log(1 - 2 log α)) / n (Waudby-Smith et al. 2021, arXiv:2103.06476, appendix).
    Raises `InputError` for alpha outside (0, 1) or an optimum that is not positive.

    >>> round(tuning(0.05, 5000), 9)
    0.001587231
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha {alpha!r} is outside (0, 1).", mend="Give e.g. 0.05.")
    if not (math.isfinite(optimum_n) and optimum_n > 0):
        raise InputError(
            f"optimum_n {optimum_n!r} is not a positive number of units.",
            mend="Give the number of units about which a decision is wanted.",
        )
    reach = -2 * math.log(alpha)
    return (reach + math.log1p(reach)) / optimum_n


def critical_value(n: float, *, alpha: float = 0.05, optimum_n: float = OPTIMUM_N) -> float:
    """How many standard errors the sequence reaches to each side at `n` units.

    sqrt(2 (n ρ² + 1) / (n ρ²) · log(sqrt(n ρ² + 1) / α)): equation 9 of Waudby-Smith, Arbour,
    Sinha, Kennedy and Ramdas 2021 (arXiv:2103.06476), two-sided, divided by σ/sqrt(n). At a
    fixed n Welch's test has 1.96 here; what is above that is the price of looking always.

    >>> round(critical_value(1500, alpha=0.05, optimum_n=1500), 4)
    3.0352
    """
    t = n * tuning(alpha, optimum_n)
    if not t > 0:
        raise InputError(f"n is {n!r}, not a positive number of units.", mend="Wait for data.")
    return math.sqrt(2 * (t + 1) / t * math.log(math.sqrt(t + 1) / alpha))


def log_e_value(z: float, n: float, *, alpha: float = 0.05, optimum_n: float = OPTIMUM_N) -> float:
    """The logarithm of the e-value against "z has mean 0", at `n` units.

    z² t / (2 (t + 1)) - log(t + 1)/2 with t = n ρ²: a normal mixture of likelihood ratios, whose
    expectation without an effect is (asymptotically) at most 1 at any stopping time. It exceeds
    log(1/α) exactly when |z| exceeds `critical_value`. At 0 units it is 0. Raises `DataError`
    for z that is NaN, `InputError` for n below 0.

    >>> n = 700; c = critical_value(n)
    >>> round(math.exp(-log_e_value(c, n)), 12)
    0.05
    """
    if math.isnan(z):
        raise DataError("z is NaN.", mend="Wait for data with variance.")
    if not n >= 0:
        raise InputError(f"n is {n!r}, no number of units.", mend="Give 0 or more.")
    t = n * tuning(alpha, optimum_n)
    return z * z * t / (2 * (t + 1)) - 0.5 * math.log1p(t)


def anytime_p_value(
    z: float, n: float, *, alpha: float = 0.05, optimum_n: float = OPTIMUM_N
) -> float:
    """The two-sided p-value that inverts the sequence: min(1, 1/e-value).

    Valid at any look and any stopping rule; it is at most `alpha` exactly when the interval at
    1 - `alpha` excludes the null. `alpha` tunes ρ only.

    >>> anytime_p_value(0.0, 100)
    1.0
    """
    return min(1.0, math.exp(-log_e_value(z, n, alpha=alpha, optimum_n=optimum_n)))


def lift(
    strata: Sequence[Stratum],
    *,
    metric: Metric = ENGAGEMENT,
    alpha: float = 0.05,
    min_units: int = 100,
    min_units_phase: int = 50,
    optimum_n: float = OPTIMUM_N,
) -> LiftEstimate:
    """The relative lift with a two-sided confidence sequence at 1 - `alpha`.

    Estimand: candidate mean / baseline mean - 1, standardised to the same mix of phases
    (`contrasts.contrast`, which also lists the assumptions). Log-ratio ± critical_value · standard
    error, then expm1. `n` of equation 9 is the information in units of the first phase: with one
    phase its units, both arms.

    Asymptotic, so `min_units` in each arm must make means about normal: 100 do for rates and
    shares of 0..1 (measured under hourly looks: 1.8 % ever false at alpha 0.05, split 90/10).
    For heavy tails they do not: lognormal outcomes with σ = 1 have 5 %, with σ = 1.5 8 % (2 % from
    800 units on); cap such outcomes or raise the minimum.

    Where the candidate's mean is exactly 0 the log-ratio does not exist; the interval is then on
    the relative difference with the variance of no difference (`method` "score confidence
    sequence"), so a dead candidate is still seen. A ratio without variance (constant price) is
    exact: lower = upper = lift, `method` "arithmetic". Otherwise see `LiftEstimate.reason`.
    Raises `InputError` for alpha or optimum_n out of range.

    >>> from tuneproof.stats.aggregates import Aggregate
    >>> b, c = Aggregate.of([0.1, 0.3] * 500), Aggregate.of([0.2, 0.3] * 500)
    >>> e = lift([Stratum(baseline=b, candidate=c)])
    >>> round(e.lift, 3), e.significant, round(e.lower, 3), round(e.upper, 3)
    (0.25, True, 0.187, 0.316)
    >>> lift([Stratum(baseline=b, candidate=Aggregate.of([0.2] * 20))]).reason
    'not enough data: no phase has 50 matured units in both arms (20 so far)'
    """
    tuning(alpha, optimum_n)
    answer = contrast(strata, metric, min_units=min_units, min_units_phase=min_units_phase)
    if isinstance(answer, NoContrast):
        return _no_lift(answer, alpha)
    if answer.exact:
        return _exact(answer, alpha)
    error = math.sqrt(answer.variance)
    reach = critical_value(answer.n, alpha=alpha, optimum_n=optimum_n) * error
    z = (answer.lift if answer.log_ratio is None else answer.log_ratio) / error
    evidence = log_e_value(z, answer.n, alpha=alpha, optimum_n=optimum_n)
    lower, upper = answer.interval(reach)
    return LiftEstimate(
        lift=answer.lift,
        lower=lower,
        upper=upper,
        p_value=min(1.0, math.exp(-evidence)),
        n_baseline=answer.n_baseline,
        n_candidate=answer.n_candidate,
        method=_method(answer, "confidence sequence"),
        reason="",
        standard_error=error,
        log_e=evidence,
        baseline=answer.baseline,
        candidate=answer.candidate,
        phases=answer.phases,
        alpha=alpha,
        saved=answer.saved,
    )


def difference(
    strata: Sequence[Stratum],
    *,
    metric: Metric = ENGAGEMENT,
    alpha: float = 0.05,
    min_units: int = 100,
    min_units_phase: int = 50,
    optimum_n: float = OPTIMUM_N,
) -> LiftEstimate:
    """As `lift`, but absolute: candidate mean minus baseline mean, in the metric's own unit.

    Formula: difference ± critical_value · sqrt(Var_c + Var_b), equation 9 as it stands.

    >>> from tuneproof.stats.aggregates import Aggregate
    >>> b, c = Aggregate.of([0.1, 0.3] * 500), Aggregate.of([0.2, 0.3] * 500)
    >>> round(difference([Stratum(baseline=b, candidate=c)]).lift, 3)
    0.05
    """
    tuning(alpha, optimum_n)
    answer = contrast(strata, metric, min_units=min_units, min_units_phase=min_units_phase)
    if isinstance(answer, NoContrast):
        return _no_lift(answer, alpha)
    error = math.sqrt(answer.difference_variance)
    exact = error == 0.0
    reach = error and critical_value(answer.n, alpha=alpha, optimum_n=optimum_n) * error
    evidence = (
        None
        if exact
        else log_e_value(answer.difference / error, answer.n, alpha=alpha, optimum_n=optimum_n)
    )
    return LiftEstimate(
        lift=answer.difference,
        lower=answer.difference - reach,
        upper=answer.difference + reach,
        p_value=None if evidence is None else min(1.0, math.exp(-evidence)),
        n_baseline=answer.n_baseline,
        n_candidate=answer.n_candidate,
        method="arithmetic" if exact else "difference confidence sequence",
        reason="",
        standard_error=error,
        log_e=evidence,
        baseline=answer.baseline,
        candidate=answer.candidate,
        phases=answer.phases,
        alpha=alpha,
    )


def non_inferiority(
    strata: Sequence[Stratum],
    *,
    margin: float,
    metric: Metric = ENGAGEMENT,
    higher_is_better: bool = True,
    alpha: float = 0.05,
    min_units: int = 100,
    min_units_phase: int = 50,
    optimum_n: float = OPTIMUM_N,
) -> NonInferiority:
    """Whether the candidate is worse by no more than `margin` (relative, 0..1), at any look.

    Estimand and assumptions as `lift`. Shown when the sequence's bound is inside the margin:
    lower > -margin, or upper < +margin where lower is better (cost, latency). The p-value inverts
    the same sequence at the margin. Raises `InputError` for a margin outside (0, 1).

    >>> from tuneproof.stats.aggregates import Aggregate
    >>> arm = Aggregate.of([0.1, 0.3] * 5000)
    >>> r = non_inferiority([Stratum(baseline=arm, candidate=arm)], margin=0.05)
    >>> r.holds, r.p_value < 0.05
    (True, True)
    """
    if not 0 < margin < 1:
        raise InputError(
            f"margin {margin!r} is outside (0, 1).", mend="5 % worse at most is margin=0.05."
        )
    estimate = lift(
        strata, metric=metric, alpha=alpha, min_units=min_units,
        min_units_phase=min_units_phase, optimum_n=optimum_n,
    )  # fmt: skip
    if estimate.lift is None or estimate.lower is None or estimate.upper is None:
        return NonInferiority(
            holds=None, margin=margin, p_value=None, estimate=estimate, reason=estimate.reason
        )
    edge = -margin if higher_is_better else margin
    inside = estimate.lower > edge if higher_is_better else estimate.upper < edge
    beyond = estimate.upper < edge if higher_is_better else estimate.lower > edge
    holds = True if inside else False if beyond else None
    word = {True: "shown", False: "refuted", None: "open"}[holds]
    answer = contrast(strata, metric, min_units=min_units, min_units_phase=min_units_phase)
    return NonInferiority(
        holds=holds,
        margin=margin,
        p_value=_margin_p_value(answer, edge, alpha, optimum_n),
        estimate=estimate,
        reason=(
            f"{metric.name} worse by no more than {margin:.1%} is {word}:"
            f" {estimate.lift:+.1%} ({estimate.lower:+.1%}, {estimate.upper:+.1%})"
        ),
    )


def _margin_p_value(
    answer: Contrast | NoContrast, edge: float, alpha: float, optimum_n: float
) -> float | None:
    if isinstance(answer, NoContrast) or answer.exact:
        return None
    distance = (
        answer.lift - edge if answer.log_ratio is None else answer.log_ratio - math.log1p(edge)
    )
    if distance * -edge <= 0:
        return 1.0
    z = distance / math.sqrt(answer.variance)
    return anytime_p_value(z, answer.n, alpha=alpha, optimum_n=optimum_n)


def _method(answer: Contrast, name: str) -> str:
    adjusted = "CUPED " if answer.saved else ""
    return f"{adjusted}log-ratio {name}" if answer.log_ratio is not None else f"score {name}"


def _no_lift(answer: NoContrast, alpha: float) -> LiftEstimate:
    return LiftEstimate(
        lift=None, lower=None, upper=None, p_value=None, n_baseline=answer.n_baseline,
        n_candidate=answer.n_candidate, method="none", reason=answer.reason, alpha=alpha,
    )  # fmt: skip


def _exact(answer: Contrast, alpha: float) -> LiftEstimate:
    return LiftEstimate(
        lift=answer.lift, lower=answer.lift, upper=answer.lift, p_value=None,
        n_baseline=answer.n_baseline, n_candidate=answer.n_candidate, method="arithmetic",
        reason="", standard_error=0.0, baseline=answer.baseline, candidate=answer.candidate,
        phases=answer.phases, alpha=alpha,
    )  # fmt: skip
