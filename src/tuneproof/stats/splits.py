"""Whether units fell to the arms as they should: the exposed, and those without an outcome.

It exists because every bound rests on it: a split that is not as it was set, or arms that lack
outcomes unlike, make a comparison of anything. Both are asked by one e-value, at any look.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tuneproof.errors import DataError, InputError

__all__ = [
    "SRM_THRESHOLD",
    "AbsenceCheck",
    "SplitCheck",
    "absent_outcomes",
    "log_split_evalue",
    "srm",
]

SRM_THRESHOLD: Final = 1000.0
"""A split is broken from this e-value on: by chance in at most 1 of 1000 phases, ever."""

ABSENCE_THRESHOLD: Final = 100.0
"""Arms lack outcomes unlike from this e-value on. Simulated: below 1 in 1000 tests by chance, since
the draw without replacement makes it cautious."""

SPLIT_CONCENTRATION: Final = 300.0
"""Weight of the split's prior, in exposures: sharpest for shares off by about 2 points."""


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
class AbsenceCheck:
    """Whether the arms of a phase lack unlike shares of their outcomes."""

    unlike: bool
    phase: str
    log_e: float
    threshold: float
    absent: Mapping[str, int]
    exposed: Mapping[str, int]
    reason: str


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


def absent_outcomes(
    exposed_by_phase: Mapping[str, Mapping[str, int]],
    reported_by_phase: Mapping[str, Mapping[str, int]],
    *,
    threshold: float = ABSENCE_THRESHOLD,
    concentration: float = SPLIT_CONCENTRATION,
) -> dict[str, AbsenceCheck]:
    """For each phase by itself: do both arms lack outcomes alike?

    `exposed_by_phase[phase][arm]` counts units whose outcomes are due, `reported_by_phase` those
    of them that have one. Estimand: the share of due units without an outcome, by arm. Null:
    whether a unit reports does not depend on its arm. Then the units that are absent fall to the
    arms as a draw without replacement from those exposed, and so do those that reported. Formula:
    the mean of `srm`'s e-values of both counts, against the shares in which units were exposed. A
    draw without replacement is below the binomial in the convex order (Hoeffding 1963, theorem
    4), and the Bayes factor is convex in a count, so its expectation is at most 1 at each look.
    That nobody looks too often is held by the threshold, and by simulation.

    Edge cases: nobody absent, nobody reported, or one arm without units: e = 1. Raises
    `DataError` where more reported than were exposed.

    >>> found = absent_outcomes({"1": {"baseline": 9000, "candidate": 1000}},
    ...                         {"1": {"baseline": 8100, "candidate": 800}})
    >>> found["1"].unlike
    True
    >>> found["1"].reason.partition(", ")[2]
    'candidate 20.0% (200 of 1000)'
    >>> absent_outcomes({"1": {"baseline": 9000, "candidate": 1000}},
    ...                 {"1": {"baseline": 8100, "candidate": 900}})["1"].unlike
    False
    """
    if not threshold > 1:
        raise InputError(f"threshold {threshold!r} is not above 1.", mend="Use 100.")
    return {
        phase: _absence_check(
            phase, exposed, reported_by_phase.get(phase, {}), threshold, concentration
        )
        for phase, exposed in exposed_by_phase.items()
    }


def _absence_check(
    phase: str,
    exposed: Mapping[str, int],
    reported: Mapping[str, int],
    threshold: float,
    concentration: float,
) -> AbsenceCheck:
    absent = {arm: n - reported.get(arm, 0) for arm, n in exposed.items()}
    if any(n < 0 for n in absent.values()):
        raise DataError(
            f"phase {phase}: {dict(reported)} units reported of {dict(exposed)} exposed.",
            mend="Count both from one place.",
        )
    log_e = 0.0
    if len(exposed) > 1 and all(exposed.values()):
        total = sum(exposed.values())
        shares = [n / total for n in exposed.values()]
        parts = [
            log_split_evalue(counts, shares, concentration=concentration)
            for counts in (list(absent.values()), [reported.get(arm, 0) for arm in exposed])
        ]
        highest = max(parts)
        log_e = highest + math.log(sum(math.exp(part - highest) for part in parts) / len(parts))
    told = ", ".join(
        f"{arm} {'lacks ' if place == 0 else ''}{_share(n, exposed[arm])}"
        f"{' of its outcomes' if place == 0 else ''} ({n} of {exposed[arm]})"
        for place, (arm, n) in enumerate(absent.items())
    )
    return AbsenceCheck(
        unlike=log_e >= math.log(threshold),
        phase=phase,
        log_e=log_e,
        threshold=threshold,
        absent=absent,
        exposed=dict(exposed),
        reason=f"phase {phase}: {told}",
    )


def _share(n: int, total: int) -> str:
    return f"{n / total:.1%}" if total else "none"


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
        e_value=math.inf if log_e > 709 else math.exp(log_e),
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
