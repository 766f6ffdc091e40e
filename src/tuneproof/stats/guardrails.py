"""Harm and broken splits, seen at once and never by accident.

It exists because guardrails are looked at every hour for weeks: a test of the last hour's rate
cries wolf on a healthy model. Everything here is an e-value from counts since the phase began:
without harm it ever exceeds 1/α with probability at most α, at any number of looks. It knows
neither how the counts were taken nor what is done about a finding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tuneproof.errors import DataError, InputError
from tuneproof.stats.aggregates import Histogram
from tuneproof.stats.sequential import LiftEstimate

__all__ = [
    "SRM_THRESHOLD",
    "EValue",
    "EngagementDrop",
    "GrossFailure",
    "SplitCheck",
    "bernoulli_evalue",
    "engagement_drop",
    "error_rate",
    "gross_failure",
    "latency",
    "log_bernoulli_evalue",
    "log_split_evalue",
    "split_alpha",
    "srm",
]

SRM_THRESHOLD: Final = 1000.0
"""A split is broken from this e-value on: by chance in at most 1 of 1000 phases, ever."""

SPLIT_CONCENTRATION: Final = 300.0
"""Weight of the split's prior, in exposures: sharpest for shares off by about 2 points."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EValue:
    """Evidence that a rate is above its limit. `fired` means harm is shown at `alpha`.

    `rate` is None without trials. `p_value` = min(1, 1/e) is anytime-valid. `reason` says in
    words what was found.
    """

    fired: bool
    e_value: float
    log_e: float
    p_value: float
    threshold: float
    failures: int
    trials: int
    rate: float | None
    limit: float
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitCheck:
    """Whether a phase's exposures came in the shares that were set."""

    broken: bool
    phase: str
    e_value: float
    log_e: float
    threshold: float
    counts: Mapping[str, int]
    expected_shares: Mapping[str, float]
    observed_shares: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngagementDrop:
    """Whether engagement fell by more than was allowed. `fired` None: no estimate yet."""

    fired: bool | None
    drop: float
    estimate: LiftEstimate
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GrossFailure:
    """Whether so many of the last requests failed that nobody should wait for statistics."""

    fired: bool
    failures: int
    seen: int
    reason: str


def bernoulli_evalue(
    failures: int, trials: int, limit: float, *, alpha: float = 0.01, name: str = "error rate"
) -> EValue:
    """Evidence that a failure probability is above `limit`, exact from counts, at any look.

    Estimand: P(failure). Null: given all before, each trial fails with probability at most
    `limit` (trials may depend on each other otherwise). Formula:
    e = ∫ (p/L)^k ((1-p)/(1-L))^(n-k) dπ(p) over p > L, with π a Beta(1, 1/L - 1) truncated to
    (L, 1): each factor has expectation ≤ 1 under the null, so e is a test supermartingale and by
    Ville's inequality P(e ever ≥ 1/α) ≤ α (Ville 1939; Robbins 1970; Ramdas et al. 2023,
    arXiv:2210.01948). Fires at e ≥ 1/`alpha`. All counts since the phase began, not those of the
    last hour. With no trials e is 1.

    Raises `InputError` for limit or alpha outside (0, 1), `DataError` for counts that cannot be.

    >>> bernoulli_evalue(20, 100, 0.05).fired, bernoulli_evalue(300, 10_000, 0.05).fired
    (True, False)
    >>> bernoulli_evalue(0, 0, 0.05).e_value
    1.0
    """
    _check_alpha(alpha)
    log_e = float(log_bernoulli_evalue(failures, trials, limit))
    fired = log_e >= -math.log(alpha)
    rate = failures / trials if trials else None
    seen = "no requests yet" if rate is None else f"{failures} of {trials} ({rate:.1%})"
    finding = "is above" if fired else "is not shown to be above"
    return EValue(
        fired=fired,
        e_value=_exp(log_e),
        log_e=log_e,
        p_value=math.exp(-log_e) if log_e > 0 else 1.0,
        threshold=1 / alpha,
        failures=failures,
        trials=trials,
        rate=rate,
        limit=limit,
        reason=f"{name} {finding} its limit of {limit:.1%}: {seen}",
    )


def log_bernoulli_evalue(failures: int, trials: int, limit: float) -> float:
    """The logarithm of `bernoulli_evalue`'s e-value, finite for any counts.

    >>> log_bernoulli_evalue(0, 0, 0.05)
    0.0
    """
    if not 0 < limit < 1:
        raise InputError(f"limit {limit!r} is outside (0, 1).", mend="5 % is 0.05.")
    if not 0 <= failures <= trials:
        raise DataError(
            f"{failures} failures of {trials} trials cannot be.", mend="Count both from one place."
        )
    if trials == 0:
        return 0.0
    a, b = 1.0, 1.0 / limit - 1.0
    k, m = float(failures), float(trials - failures)
    mixture, prior = _log_beta_above(a + k, b + m, limit), _log_beta_above(a, b, limit)
    return mixture - prior - k * math.log(limit) - m * math.log1p(-limit)


def _log_beta_above(a: float, b: float, x: float) -> float:
    """The logarithm of ∫_x^1 p^(a-1) (1-p)^(b-1) dp, also where it underflows a float.

    Far above the mode the series x^a (1-x)^b / b · Σ_j Π_{i<j} (a+b+i)/(b+1+i) (1-x)^j (DLMF
    8.17.22 and 15.2.1) converges, since its first ratio is then below 1 and those after fall.
    """
    from scipy.special import betaincc, betaln

    tail = float(betaincc(a, b, x))
    if tail > 1e-280:
        return float(betaln(a, b)) + math.log(tail)
    term = total = 1.0
    step = 0
    while term > 1e-16 * total:
        term *= (a + b + step) / (b + 1 + step) * (1 - x)
        total += term
        step += 1
    return a * math.log(x) + b * math.log1p(-x) - math.log(b) + math.log(total)


def error_rate(errors: int, requests: int, *, limit: float = 0.05, alpha: float = 0.01) -> EValue:
    """The guardrail "error rate > 5 %". See `bernoulli_evalue`.

    >>> error_rate(3, 100).fired
    False
    """
    return bernoulli_evalue(errors, requests, limit, alpha=alpha)


def latency(
    histogram: Histogram, *, limit_ms: float = 2000.0, quantile: float = 0.95, alpha: float = 0.01
) -> EValue:
    """The guardrail "p95 latency > 2000 ms", from the latency histogram.

    "The 95 % quantile is above L" is "more than 5 % of requests take longer than L", which is a
    Bernoulli question: exact, and about all requests since the phase began. Raises `DataError`
    where `limit_ms` is not an edge of the histogram.

    >>> from tuneproof.stats.aggregates import LATENCY_MS_EDGES
    >>> fast = Histogram.of([300.0] * 990 + [2500.0] * 10, LATENCY_MS_EDGES)
    >>> latency(fast).fired, latency(Histogram.of([2500.0] * 99, LATENCY_MS_EDGES)).fired
    (False, True)
    """
    if not 0 < quantile < 1:
        raise InputError(f"quantile {quantile!r} is outside (0, 1).", mend="p95 is 0.95.")
    name = f"share of requests slower than {limit_ms:g} ms"
    slow = histogram.above(limit_ms)
    return bernoulli_evalue(slow, histogram.n, round(1 - quantile, 12), alpha=alpha, name=name)


def split_alpha(alpha: float, guardrails: int) -> float:
    """The error for each of several guardrails of which any one rolls back: alpha / number.

    Any one fires, so their errors add up (Bonferroni); the whole stays at `alpha`.

    >>> split_alpha(0.03, 3)
    0.01
    """
    _check_alpha(alpha)
    if guardrails < 1:
        raise InputError(f"{guardrails} guardrails share no error.", mend="Give 1 or more.")
    return alpha / guardrails


def engagement_drop(estimate: LiftEstimate, *, drop: float = 0.15) -> EngagementDrop:
    """The guardrail "engagement fell by 15 %": upper bound below 0 and point below -`drop`.

    `estimate` is `sequential.lift`'s, at the error this guardrail has. The bound makes false
    alarms rare at any number of looks (at most half the sequence's alpha, the other half being
    upwards); the point keeps small harmless drops from rolling back. Raises `InputError` for a
    drop outside (0, 1).

    >>> def seen(lift, upper):
    ...     return LiftEstimate(lift=lift, lower=-0.5, upper=upper, p_value=0.01, n_baseline=900,
    ...                         n_candidate=100, method="", reason="")
    >>> [engagement_drop(e).fired for e in (seen(-0.2, -0.05), seen(-0.1, -0.05), seen(-0.2, 0.1))]
    [True, False, False]
    """
    if not 0 < drop < 1:
        raise InputError(f"drop {drop!r} is outside (0, 1).", mend="A drop of 15 % is 0.15.")
    if estimate.lift is None or estimate.upper is None:
        return EngagementDrop(fired=None, drop=drop, estimate=estimate, reason=estimate.reason)
    fired = estimate.upper < 0 and estimate.lift < -drop
    finding = "fell by more than" if fired else "is not shown to have fallen by"
    return EngagementDrop(
        fired=fired,
        drop=drop,
        estimate=estimate,
        reason=(
            f"engagement {finding} {drop:.0%}: {estimate.lift:+.1%}, at most {estimate.upper:+.1%}"
        ),
    )


def gross_failure(
    outcomes: Sequence[bool], *, failures: int = 10, window: int = 20
) -> GrossFailure:
    """The immediate breaker: at least `failures` of the last `window` requests failed.

    `outcomes` in order of time, newest last, True where the request failed; only the last
    `window` are read. At a true error rate of 5 % it fires by chance about once in 100 million
    requests. Fires before the window is full, too. Raises `InputError` unless
    0 < failures <= window.

    >>> gross_failure([False] * 30 + [True] * 10).fired, gross_failure([True] * 9).fired
    (True, False)
    """
    if not 0 < failures <= window:
        raise InputError(
            f"{failures} failures of {window} requests cannot be.", mend="Use 10 of 20."
        )
    last = outcomes[-window:]
    failed = sum(map(bool, last))
    return GrossFailure(
        fired=failed >= failures,
        failures=failed,
        seen=len(last),
        reason=f"{failed} of the last {len(last)} requests failed; the breaker opens at {failures}",
    )


def srm(
    counts_by_phase: Mapping[str, Mapping[str, int]],
    expected_shares: Mapping[str, Mapping[str, float]],
    *,
    threshold: float = SRM_THRESHOLD,
    concentration: float = SPLIT_CONCENTRATION,
) -> dict[str, SplitCheck]:
    """Sample-ratio mismatch, for each phase by itself: are exposures split as was set?

    `counts_by_phase[phase][arm]` counts units by their first exposure; `expected_shares` has the
    same keys with shares that sum to 1. Null: each unit falls to arm a with its share. Formula:
    the Dirichlet-multinomial Bayes factor B(κθ + n) / B(κθ) / Π θ^n with concentration κ, a
    test martingale: P(ever ≥ threshold) ≤ 1/threshold (Lindon and Malek 2022, arXiv:2011.03567).
    A phase with a finding is not repaired by later units: freeze it.

    Edge cases: no exposures: e = 1. A share of 0 with exposures: broken, e infinite. Raises
    `DataError` for negative counts, unknown arms, phases without shares, and shares that do not
    sum to 1.

    >>> found = srm({"1": {"baseline": 8800, "candidate": 1200}},
    ...             {"1": {"baseline": 0.9, "candidate": 0.1}})
    >>> found["1"].broken
    True
    >>> srm({"1": {}}, {"1": {"baseline": 0.9, "candidate": 0.1}})["1"].e_value
    1.0
    """
    if not threshold > 1:
        raise InputError(f"threshold {threshold!r} is not above 1.", mend="Use 1000.")
    return {
        phase: _split_check(phase, counts, expected_shares, threshold, concentration)
        for phase, counts in counts_by_phase.items()
    }


def _split_check(
    phase: str,
    counts: Mapping[str, int],
    expected: Mapping[str, Mapping[str, float]],
    threshold: float,
    concentration: float,
) -> SplitCheck:
    if phase not in expected:
        raise DataError(
            f"phase {phase!r} has exposures but no expected shares.",
            mend="Give the shares of every phase that has exposures.",
        )
    shares = expected[phase]
    unknown = set(counts) - set(shares)
    if unknown:
        raise DataError(
            f"phase {phase!r} has exposures of unknown arms {sorted(unknown)}.",
            mend="Give a share for each arm, 0 where none should be.",
        )
    full = {arm: counts.get(arm, 0) for arm in shares}
    log_e = log_split_evalue(
        list(full.values()), list(shares.values()), concentration=concentration
    )
    total = sum(full.values())
    broken = log_e >= math.log(threshold)
    seen = {arm: n / total for arm, n in full.items()} if total else {}
    return SplitCheck(
        broken=broken,
        phase=phase,
        e_value=_exp(log_e),
        log_e=log_e,
        threshold=threshold,
        counts=full,
        expected_shares=dict(shares),
        observed_shares=seen,
        reason=_split_reason(phase, broken, full, shares, total),
    )


def _split_reason(
    phase: str, broken: bool, counts: Mapping[str, int], shares: Mapping[str, float], total: int
) -> str:
    if not total:
        return f"phase {phase}: no exposures yet"
    arms = ", ".join(
        f"{arm} {n} ({n / total:.2%}, set {shares[arm]:.2%})" for arm, n in counts.items()
    )
    return f"phase {phase}: the split is {'broken' if broken else 'as set'}: {arms}"


def log_split_evalue(
    counts: Sequence[int],
    shares: Sequence[float],
    *,
    concentration: float = SPLIT_CONCENTRATION,
) -> float:
    """The logarithm of `srm`'s e-value for one phase: log 1 without exposures.

    `counts` and `shares` have one value an arm, shapes (arms,). `concentration` (in exposures)
    says how closely the prior holds to the shares; every value keeps the error, and 300 finds
    slight and gross mismatches soonest. Raises `DataError` for lengths that differ, negative
    counts and shares that do not sum to 1, `InputError` for a concentration that is not positive.

    >>> round(log_split_evalue([900, 100], [0.9, 0.1]), 4) < 0
    True
    """
    if not (math.isfinite(concentration) and concentration > 0):
        raise InputError(f"concentration {concentration!r} is not positive.", mend="Use 300.")
    if len(counts) != len(shares):
        raise DataError(
            f"{len(counts)} arms have exposures and {len(shares)} have shares.",
            mend="Give one share an arm, 0 where none should be.",
        )
    if any(n < 0 for n in counts):
        raise DataError(f"negative exposures: {list(counts)}.", mend="Count exposures anew.")
    if any(not 0 <= s <= 1 for s in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-9):
        raise DataError(f"shares {list(shares)} do not sum to 1.", mend="Give shares of 0..1.")
    if any(n and not s for n, s in zip(counts, shares, strict=True)):
        return math.inf
    log_e = math.lgamma(concentration) - math.lgamma(concentration + sum(counts))
    for n, share in zip(counts, shares, strict=True):
        if n:
            a = concentration * share
            log_e += math.lgamma(a + n) - math.lgamma(a) - n * math.log(share)
    return log_e


def _exp(log_e: float) -> float:
    """The e-value, infinite where it does not fit a float."""
    return math.inf if log_e > 709 else math.exp(log_e)


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise InputError(f"alpha {alpha!r} is outside (0, 1).", mend="Give e.g. 0.01.")
