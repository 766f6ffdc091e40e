"""One look, at a sample size that was fixed before: the classical read-out.

It exists for final reports and for comparing with other tools. Looked at every hour, these tests
call a third of all no-difference experiments significant: use `sequential` there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tuneproof.errors import DataError, InputError
from tuneproof.stats.aggregates import Aggregate, Stratum
from tuneproof.stats.contrasts import NoContrast, contrast
from tuneproof.stats.effects import ENGAGEMENT, Metric, mean, proportion

__all__ = ["FixedEstimate", "lift", "proportions", "srm_p_value", "welch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedEstimate:
    """An effect with its interval at 1 - alpha and two-sided p-value, for one look only.

    Numbers are None where `reason` says why there is no answer. `effect` is in the unit that
    `method` names: a difference, or a relative lift as a share.
    """

    effect: float | None
    lower: float | None
    upper: float | None
    p_value: float | None
    statistic: float | None
    degrees: float | None
    n_baseline: int
    n_candidate: int
    method: str
    reason: str


def welch(baseline: Aggregate, candidate: Aggregate, *, alpha: float = 0.05) -> FixedEstimate:
    """The difference of the means of `y`, by Welch's t-test.

    Estimand: E[candidate] - E[baseline]. Assumes independent units and means that are about
    normal; variances may differ. Degrees of freedom by Welch-Satterthwaite (Welch 1947,
    Biometrika 34:28). An arm with fewer than 2 units, or no variance in both, gives a reason and
    no numbers. Raises `InputError` for alpha outside (0, 1).

    >>> e = welch(Aggregate.of([1.0, 2.0, 3.0, 4.0]), Aggregate.of([3.0, 4.0, 5.0, 6.0]))
    >>> e.effect, round(e.p_value, 5), round(e.degrees, 3)
    (2.0, 0.07099, 6.0)
    >>> welch(Aggregate.of([1.0]), Aggregate.of([1.0, 2.0])).reason
    'not enough data: 1 and 2 units, at least 2 an arm are needed'
    """
    _check_alpha(alpha)
    if min(baseline.n, candidate.n) < 2:
        reason = (
            f"not enough data: {baseline.n} and {candidate.n} units, at least 2 an arm are needed"
        )
        return _nothing(baseline, candidate, "Welch", reason)
    b, c = mean(baseline), mean(candidate)
    variance = b.variance + c.variance
    if variance == 0:
        return _nothing(baseline, candidate, "Welch", "all units are equal: no variance")
    degrees = variance**2 / (b.variance**2 / (b.n - 1) + c.variance**2 / (c.n - 1))
    from scipy.special import stdtr, stdtrit

    statistic = (c.value - b.value) / math.sqrt(variance)
    reach = float(stdtrit(degrees, 1 - alpha / 2)) * math.sqrt(variance)
    return FixedEstimate(
        effect=c.value - b.value,
        lower=c.value - b.value - reach,
        upper=c.value - b.value + reach,
        p_value=2 * float(stdtr(degrees, -abs(statistic))),
        statistic=statistic,
        degrees=degrees,
        n_baseline=b.n,
        n_candidate=c.n,
        method="Welch, difference of means",
        reason="",
    )


def lift(
    strata: Sequence[Stratum],
    *,
    metric: Metric = ENGAGEMENT,
    alpha: float = 0.05,
    min_units: int = 2,
    min_units_phase: int = 2,
) -> FixedEstimate:
    """The relative lift at one look: the log-ratio with a normal interval.

    Estimand and assumptions as `contrasts.contrast`; interval expm1(log-ratio ± z · standard
    error). A candidate mean of 0 and a constant price have no normal test: the lift is given
    without p-value, with the reason.

    >>> b, c = Aggregate.of([0.1, 0.3] * 500), Aggregate.of([0.2, 0.3] * 500)
    >>> e = lift([Stratum(baseline=b, candidate=c)])
    >>> round(e.effect, 3), round(e.lower, 3), round(e.upper, 3)
    (0.25, 0.209, 0.292)
    """
    _check_alpha(alpha)
    answer = contrast(strata, metric, min_units=min_units, min_units_phase=min_units_phase)
    if isinstance(answer, NoContrast):
        return FixedEstimate(
            effect=None, lower=None, upper=None, p_value=None, statistic=None, degrees=None,
            n_baseline=answer.n_baseline, n_candidate=answer.n_candidate, method="log-ratio",
            reason=answer.reason,
        )  # fmt: skip
    if answer.log_ratio is None or answer.exact:
        exact = answer.lift if answer.exact else None
        why = "nothing varies: the lift is exact" if answer.exact else "the candidate's mean is 0"
        return FixedEstimate(
            effect=answer.lift, lower=exact, upper=exact, p_value=None, statistic=None,
            degrees=None, n_baseline=answer.n_baseline, n_candidate=answer.n_candidate,
            method="arithmetic" if answer.exact else "log-ratio", reason=why,
        )  # fmt: skip
    from scipy.special import ndtr, ndtri

    error = math.sqrt(answer.variance)
    reach = float(ndtri(1 - alpha / 2)) * error
    statistic = answer.log_ratio / error
    return FixedEstimate(
        effect=answer.lift,
        lower=math.expm1(answer.log_ratio - reach),
        upper=math.expm1(answer.log_ratio + reach),
        p_value=2 * float(ndtr(-abs(statistic))),
        statistic=statistic,
        degrees=None,
        n_baseline=answer.n_baseline,
        n_candidate=answer.n_candidate,
        method="log-ratio, relative lift",
        reason="",
    )


def proportions(
    baseline: Aggregate, candidate: Aggregate, *, alpha: float = 0.05, pooled: bool = True
) -> FixedEstimate:
    """The difference of two proportions (each `y` 0 or 1), by the normal test.

    Estimand: p_candidate - p_baseline. `pooled` uses the variance of no difference for test and
    interval both (Pearson's chi-squared without correction); else each arm's own. Valid from
    about 10 successes and failures an arm. An empty arm, or no successes or only successes in
    both, gives a reason. Raises `DataError` where `y` is not 0 or 1.

    >>> b, c = (Aggregate(n=100, sum_y=k, sum_yy=k) for k in (10.0, 20.0))
    >>> e = proportions(b, c); round(e.effect, 3), round(e.p_value, 4)
    (0.1, 0.0477)
    """
    _check_alpha(alpha)
    if min(baseline.n, candidate.n) < 1:
        return _nothing(baseline, candidate, "proportions", "not enough data: an arm is empty")
    b, c = proportion(baseline), proportion(candidate)
    shared = (baseline.sum_y + candidate.sum_y) / (b.n + c.n)
    variance = shared * (1 - shared) * (1 / b.n + 1 / c.n) if pooled else b.variance + c.variance
    if variance <= 0:
        return _nothing(baseline, candidate, "proportions", "all units are equal: no variance")
    from scipy.special import ndtr, ndtri

    error = math.sqrt(variance)
    reach = float(ndtri(1 - alpha / 2)) * error
    effect = c.value - b.value
    return FixedEstimate(
        effect=effect,
        lower=effect - reach,
        upper=effect + reach,
        p_value=2 * float(ndtr(-abs(effect / error))),
        statistic=effect / error,
        degrees=None,
        n_baseline=b.n,
        n_candidate=c.n,
        method=f"difference of proportions, {'pooled' if pooled else 'unpooled'} variance",
        reason="",
    )


def srm_p_value(counts: Sequence[int], shares: Sequence[float]) -> float:
    """The chi-squared test of a split, at one look.

    Null: multinomial with these shares. Valid from about 5 expected exposures an arm. At no
    exposures there is no test: raises `DataError`, as for shares that do not sum to 1 and for
    lengths that differ.

    >>> round(srm_p_value([44_700, 45_489], [0.5, 0.5]), 4)
    0.0086
    """
    if len(counts) != len(shares):
        raise DataError(
            f"{len(counts)} counts and {len(shares)} shares.", mend="Give one share an arm."
        )
    total = sum(counts)
    if total < 1 or any(n < 0 for n in counts):
        raise DataError(f"exposures {list(counts)} have no split.", mend="Wait for data.")
    if any(not 0 < s < 1 for s in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-9):
        raise DataError(f"shares {list(shares)} do not sum to 1.", mend="Give positive shares.")
    from scipy.special import chdtrc

    statistic = sum((n - s * total) ** 2 / (s * total) for n, s in zip(counts, shares, strict=True))
    return float(chdtrc(len(counts) - 1, statistic))


def _nothing(b: Aggregate, c: Aggregate, method: str, reason: str) -> FixedEstimate:
    return FixedEstimate(
        effect=None, lower=None, upper=None, p_value=None, statistic=None, degrees=None,
        n_baseline=b.n, n_candidate=c.n, method=method, reason=reason,
    )  # fmt: skip


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise InputError(f"alpha {alpha!r} is outside (0, 1).", mend="Give e.g. 0.05.")
