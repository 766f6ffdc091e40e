"""Harm and broken splits, seen at once and never by accident.

It exists because guardrails are looked at every hour for weeks: a test of the last hour's rate
cries wolf on a healthy model. Everything here is an e-value from counts since the phase began:
without harm it ever exceeds 1/α with probability at most α, at any number of looks. It knows
neither how the counts were taken nor what is done about a finding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tuneproof.errors import DataError, InputError
from tuneproof.stats.aggregates import Histogram
from tuneproof.stats.exact import fisher_greater
from tuneproof.stats.sequential import LiftEstimate

__all__ = [
    "EValue",
    "EngagementDrop",
    "ExcessFailures",
    "GrossFailure",
    "Stretch",
    "bernoulli_evalue",
    "engagement_drop",
    "error_rate",
    "excess_failures",
    "gross_failure",
    "latency",
    "log_bernoulli_evalue",
    "split_alpha",
]

BESIDE_AT_LEAST: Final = 10
"""So many of the baseline's requests without a failure tell of it; of fewer, nothing is known."""

BY_CHANCE: Final = 1e-4
"""How improbable the candidate's share of the failures must be for the breaker to open: it reads
anew with each failure."""

_ODDS: Final = (1.5, 2.0, 3.0, 5.0, 10.0)
"""How many times the baseline's odds of failing the candidate's may be, alike likely."""

_BURSTS: Final = (0.09, 4.0)
"""The correlation of failures within an hour that is assumed beforehand (a rate that is drawn anew
each hour, beta-distributed with κ = 10), and the hours that this is worth."""


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
class Stretch:
    """The requests of both arms in a stretch of time, and how many of them failed."""

    baseline: int
    baseline_failures: int
    candidate: int
    candidate_failures: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ExcessFailures:
    """Whether the candidate fails more often than allowed, and than the baseline.

    `shared`: it is above its limit, and no more so than the baseline is at the same time.
    """

    fired: bool
    shared: bool
    log_e: float
    failures: int
    trials: int
    limit: float
    reason: str


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
    shared: bool = False


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
    last hour. With no trials e is 1, and so it is at a limit of 1, which nothing can be above.

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
    if not 0 < limit <= 1:
        raise InputError(f"limit {limit!r} is outside (0, 1].", mend="5 % is 0.05.")
    if not 0 <= failures <= trials:
        raise DataError(
            f"{failures} failures of {trials} trials cannot be.", mend="Count both from one place."
        )
    if trials == 0 or limit == 1:
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


def excess_failures(
    stretches: Sequence[Stretch], limit: float, *, alpha: float = 0.01, name: str = "error rate"
) -> ExcessFailures:
    """Does the candidate fail more often than `limit`, and more often than the baseline then?

    `stretches` are stretches of time (hours), each with both arms' requests and failures. Estimand:
    the candidate's failure probability against the limit, and against the baseline's in the same
    stretch. Null: it is at most the higher of the two. Fires where both are refuted, so a limit
    that the provider of both arms breaks is nobody's fault. Against the limit: `bernoulli_evalue`.
    Against the baseline: given a stretch's failures, each is the candidate's with the odds of its
    requests under the null and with θ times these under the alternative, a likelihood ratio mixed
    over θ (`_ODDS`).

    Failures that come in bursts are no independent trials. How far from it is read from the
    baseline's stretches: ρ, the correlation within a stretch, from Pearson's X² (Williams 1982),
    beginning at what bursts usually are.
    Both log e-values are divided by the variance inflation that it means, 1 + (n - 1)ρ, so bursts
    cost time, not error.

    Edge cases: no requests of the candidate: e = 1. No requests of the baseline beside it: the
    limit alone decides. Raises as `bernoulli_evalue` does.

    >>> hours = [Stretch(baseline=90, baseline_failures=2, candidate=10, candidate_failures=3)] * 9
    >>> excess_failures(hours, 0.05).fired
    True
    >>> outage = [Stretch(baseline=90, baseline_failures=60, candidate=10, candidate_failures=7)]
    >>> found = excess_failures(outage * 4, 0.05)
    >>> found.fired, found.shared
    (False, True)
    """
    _check_alpha(alpha)
    needed = -math.log(alpha)
    n = sum(s.candidate for s in stretches)
    k = sum(s.candidate_failures for s in stretches)
    alone, alike = _inflation(stretches)
    against_limit = float(log_bernoulli_evalue(k, n, limit)) / alone
    beside = [s for s in stretches if s.baseline and s.candidate]
    against_baseline = _log_excess(beside) / alike if beside else math.inf
    above = against_limit >= needed
    base_n, base_k = sum(s.baseline for s in beside), sum(s.baseline_failures for s in beside)
    seen = f"{k} of {n} ({k / n:.1%})" if n else "no requests yet"
    other = f", the baseline's at the same time {base_k / base_n:.1%}" if base_n else ""
    finding = "is above" if above else "is not shown to be above"
    return ExcessFailures(
        fired=above and against_baseline >= needed,
        shared=above and against_baseline < needed,
        log_e=min(against_limit, against_baseline),
        failures=k,
        trials=n,
        limit=limit,
        reason=f"{name} {finding} its limit of {limit:.1%}: {seen}{other}",
    )


def _log_excess(stretches: Sequence[Stretch]) -> float:
    """The logarithm of the mixture of likelihood ratios that the candidate's odds are θ times."""
    parts = []
    for odds in _ODDS:
        total = 0.0
        for s in stretches:
            failures = s.candidate_failures + s.baseline_failures
            if failures:
                share = s.candidate / (s.candidate + s.baseline)
                total += s.candidate_failures * math.log(odds)
                total -= failures * math.log1p(share * (odds - 1))
        parts.append(total)
    highest = max(parts)
    return highest + math.log(sum(math.exp(part - highest) for part in parts) / len(parts))


def _inflation(stretches: Sequence[Stretch]) -> tuple[float, float]:
    """How much larger the variance is than of independent trials: of the candidate's failures, and
    of how both arms' failures are split."""
    rho = _correlation([(s.baseline, s.baseline_failures) for s in stretches if s.baseline > 1])
    candidate = 1 + (_typical([s.candidate for s in stretches]) - 1) * rho
    baseline = 1 + (_typical([s.baseline for s in stretches]) - 1) * rho
    n = sum(s.candidate for s in stretches)
    share = n / max(1, n + sum(s.baseline for s in stretches))
    return max(1.0, candidate), max(1.0, (1 - share) * candidate + share * baseline)


def _typical(sizes: Sequence[int]) -> float:
    """The size of the stretch that a request is in, on average."""
    return sum(n * n for n in sizes) / max(1, sum(sizes))


def _correlation(counts: Sequence[tuple[int, int]]) -> float:
    """The correlation of failures within a stretch, by Pearson's X², from `_BURSTS` on."""
    n, k = sum(n for n, _ in counts), sum(k for _, k in counts)
    correlation, weight = _BURSTS
    if len(counts) < 2 or not 0 < k < n:
        return correlation
    rate, known = k / n, len(counts) - 1
    squares = sum((k - n * rate) ** 2 / (n * rate * (1 - rate)) for n, k in counts)
    found = (squares / known - 1) / max(1.0, _typical([n for n, _ in counts]) - 1)
    return min(1.0, max(0.0, (known * found + weight * correlation) / (known + weight)))


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
    upwards); the point keeps small harmless drops from rolling back. A drop of 1 never fires.
    Raises `InputError` for a drop outside (0, 1].

    >>> def seen(lift, upper):
    ...     return LiftEstimate(lift=lift, lower=-0.5, upper=upper, p_value=0.01, n_baseline=900,
    ...                         n_candidate=100, method="", reason="")
    >>> [engagement_drop(e).fired for e in (seen(-0.2, -0.05), seen(-0.1, -0.05), seen(-0.2, 0.1))]
    [True, False, False]
    """
    if not 0 < drop <= 1:
        raise InputError(f"drop {drop!r} is outside (0, 1].", mend="A drop of 15 % is 0.15.")
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
    outcomes: Sequence[bool],
    *,
    baseline: Sequence[bool] = (),
    failures: int = 10,
    window: int = 20,
) -> GrossFailure:
    """The immediate breaker: at least `failures` of the last `window` requests failed.

    `outcomes` in order of time, newest last, True where the request failed; only the last
    `window` are read. `baseline` are those of the baseline at the same time, or the last of some
    minutes: as many as there are. Where any of them failed, or there are at least
    `BESIDE_AT_LEAST`, it fires only if so many failures would fall to the candidate with a
    probability of at most `BY_CHANCE` were both to fail alike (Fisher's exact test, one-sided);
    otherwise it is an outage of both (`shared`), and what the candidate adds to it is for
    `excess_failures` to say. At a true error rate of 5 % it fires by chance about once in 100
    million requests. Fires before the window is full, too. Raises `InputError` unless
    0 < failures <= window.

    >>> gross_failure([False] * 30 + [True] * 10).fired, gross_failure([True] * 9).fired
    (True, False)
    >>> outage = gross_failure([True] * 12, baseline=[True] * 60 + [False] * 40)
    >>> outage.fired, outage.shared
    (False, True)
    """
    if not 0 < failures <= window:
        raise InputError(
            f"{failures} failures of {window} requests cannot be.", mend="Use 10 of 20."
        )
    last = outcomes[-window:]
    failed, beside = sum(map(bool, last)), sum(map(bool, baseline))
    many = failed >= failures
    told = beside > 0 or len(baseline) >= BESIDE_AT_LEAST
    chance = fisher_greater(failed, len(last), beside, len(baseline)) if many and told else 0.0
    return GrossFailure(
        fired=many and chance <= BY_CHANCE,
        shared=many and chance > BY_CHANCE,
        failures=failed,
        seen=len(last),
        reason=f"{failed} of the last {len(last)} requests failed; the breaker opens at {failures}",
    )


def _exp(log_e: float) -> float:
    """The e-value, infinite where it does not fit a float."""
    return math.inf if log_e > 709 else math.exp(log_e)


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise InputError(f"alpha {alpha!r} is outside (0, 1).", mend="Give e.g. 0.01.")
