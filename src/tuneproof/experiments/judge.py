"""The judge: evidence in, look out. Pure; the verdict is all decided here."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from tuneproof.experiments.allocation import reweighted_lift
from tuneproof.experiments.criteria import judge_criteria
from tuneproof.experiments.records import (
    ABTest,
    Arm,
    CriterionResult,
    Evidence,
    HourRequests,
    Look,
    Requests,
    Verdict,
)
from tuneproof.experiments.view import ABOVE_ZERO, DeclaredLook, View
from tuneproof.settings import Declaration
from tuneproof.stats import guardrails, sequential, splits
from tuneproof.stats.shrinkage import Prior, default_prior

__all__ = [
    "DeclaredLook",
    "RequestHarm",
    "broken_split",
    "candidate_harm",
    "harmful_requests",
    "judge",
    "unlike_absence",
]

FULL_DAYS = 7
"""`decision="confirmed"` promotes at any look after this many full days."""

GUARDRAILS = 2
"""Errors and latency are watched during the test; each has its share of the error."""

FADING = 0.02
"""At the last look, below this p-value of no change between the halves, the first alone promotes
nobody."""

_NAMES = {
    "engagement": "the lift",
    "cost": "the cost gain",
    "quality": "the quality",
    "latency": "the share of slow requests",
}


def judge(
    test: ABTest,
    evidence: Evidence,
    *,
    at: datetime,
    number: int = 1,
    declared_before: Sequence[DeclaredLook] = (),
    prior: Prior | None = None,
    max_error_rate: float = 0.05,
    max_p95_latency_ms: float = 2000.0,
    max_engagement_drop: float = 0.15,
) -> Look:
    """One analysis of an experiment, pure.

    `declared_before` are the declared looks already taken, `prior` what past experiments of the
    pipeline were worth. In this order: a broken split is `invalid`, and so are arms that lack
    unlike shares of their outcomes; a candidate that fails its guardrails (a segment's too, where
    the test says so) or is significantly worse is rejected; a candidate that meets all criteria
    at a look that may promote, at the level that the pipeline's ledger leaves, is promoted; one
    that can no longer reach the required lift, or did not by the last look, is rejected; else the
    test continues.
    """
    matured = at - timedelta(hours=test.declaration.maturation_hours)
    view = View(
        test=test,
        evidence=evidence,
        at=at,
        matured=matured,
        declared_before=tuple(declared_before),
        prior=prior or default_prior(),
        max_engagement_drop=max_engagement_drop,
        max_p95_latency_ms=max_p95_latency_ms,
    )
    results = judge_criteria(view)
    requests = candidate_harm(
        evidence, max_error_rate=max_error_rate, max_p95_latency_ms=max_p95_latency_ms
    )
    verdict, reason = _decide(view, results, requests)
    notes = (reason, _outage(requests), view.heavy_tail)
    reason = " ".join(note for note in notes if note)
    lift, declared = view.lift, view.declared
    return Look(
        experiment_id=test.id,
        number=number,
        at=at,
        matured_before=matured,
        baseline=evidence.arm(Arm.BASELINE),
        candidate=evidence.arm(Arm.CANDIDATE),
        lift=lift.lift,
        lower=lift.lower,
        upper=lift.upper,
        p_value=_p_value(view),
        cost_gain=view.cost_gain,
        is_significant=view.significant,
        declared=declared is not None,
        method=_method(view),
        verdict=verdict,
        reason=reason,
        inputs=view.inputs(),
        alpha=test.promotion_alpha,
        standard_error=lift.standard_error,
        expected=view.expected,
        halves=view.halves,
        criteria=results,
        segments=view.segments,
        reweighted=(
            reweighted_lift(view.strata, test.metric)
            if test.declaration.allocation != "fixed"
            else None
        ),
    )


def _decide(
    view: View, results: Sequence[CriterionResult], requests: RequestHarm
) -> tuple[Verdict, str]:
    broken = broken_split(view.evidence)
    if broken:
        return Verdict.INVALID, f"{broken} Nothing can be concluded."
    unlike = unlike_absence(view.evidence, view.test.declaration)
    if unlike:
        return Verdict.INVALID, f"{unlike} Those that are there are no fair sample of either arm."
    harm = requests.harm or _segment_harm(view)
    if harm:
        return Verdict.REJECT, f"The candidate does harm: {harm}."
    lift = view.lift
    last = view.at >= view.test.last_look_at
    if lift.lift is None:
        why = f"{lift.reason}. {ABOVE_ZERO}" if view.unclear_baseline else f"{lift.reason}."
        if last:
            return Verdict.REJECT, f"The test is over without an answer: {why}"
        return Verdict.CONTINUE, f"{why[:1].upper()}{why[1:]}"
    if lift.upper is not None and lift.upper < _allowed_loss(view):
        return Verdict.REJECT, f"The candidate is worse: {_range(lift)}."
    missing = _missing(view, results)
    if not missing:
        return Verdict.PROMOTE, f"All criteria hold: {_range(lift)}; {_others(view, results)}."
    needed = _needed(view)
    if needed is not None and lift.upper is not None and lift.upper < needed:
        return Verdict.REJECT, f"It cannot reach {needed:+.0%} any more: {_range(lift)}."
    if last:
        return Verdict.REJECT, f"The test is over and {missing}: {_range(lift)}."
    return Verdict.CONTINUE, f"So far {missing}: {_range(lift)}."


def _p_value(view: View) -> float | None:
    """Two-sided, of no difference: anytime-valid, and stage-wise at a declared look."""
    if view.declared is None:
        return view.lift.p_value
    upwards = view.declared.p_value
    return None if upwards is None else 2 * min(upwards, 1 - upwards)


def _outage(requests: RequestHarm) -> str:
    if not requests.shared:
        return ""
    return f"Both arms fail alike, which is waited out: {requests.shared}."


def candidate_harm(
    evidence: Evidence, *, max_error_rate: float, max_p95_latency_ms: float
) -> RequestHarm:
    """What the candidate's requests in a test say, at the error that its guardrails have."""
    return harmful_requests(
        evidence.requests.get(Arm.CANDIDATE, Requests()),
        max_error_rate=max_error_rate,
        max_p95_latency_ms=max_p95_latency_ms,
        alpha=guardrails.split_alpha(0.02, GUARDRAILS),
        hours=evidence.hours,
    )


def _segment_harm(view: View) -> str:
    if not view.test.guards_segments:
        return ""
    harmed = (f"{s.attribute} {s.value}: {s.reason}" for s in view.segments if s.harmed)
    return next(harmed, "")


def _allowed_loss(view: View) -> float:
    """How far engagement may be shown to fall: 0, or the margin of non-inferiority."""
    margins = [
        c.margin
        for c in view.test.all_criteria
        if (c.metric, c.kind) == ("engagement", "non_inferior")
    ]
    return -max(margins, default=0.0)


def _needed(view: View) -> float | None:
    """The lift that is asked for; None where engagement need not rise."""
    wanted = [
        c.margin for c in view.test.all_criteria if (c.metric, c.kind) == ("engagement", "superior")
    ]
    return max(wanted, default=None)


def _missing(view: View, results: Sequence[CriterionResult]) -> str:
    """What keeps this look from promoting, in words; empty when nothing does."""
    if view.test.declaration.decision == "confirmed":
        days = min(timedelta(days=FULL_DAYS), view.test.end_at - view.test.start_at)
        if view.at < view.test.start_at + days:
            return f"{FULL_DAYS} full days have not passed"
    elif view.declared is None:
        return "no declared look is due"
    if view.unclear_baseline:
        return view.unclear_baseline
    open_ = [r for r in results if r.criterion is not None and not r.holds]
    return _says(view, open_[0]) if open_ else _fading(view)


def _fading(view: View) -> str:
    """That the lift may wear off, in words; empty where what is left of it suffices.

    Before the last look it waits where two further halves that fall by as much again would leave
    nothing: time will tell. At the last look the fall must be shown. Much of a fall over a week
    is not: its mean may well be above what is asked, and a stricter rule costs true winners.
    """
    halves, needed = view.halves, _needed(view)
    if halves is None or needed is None or halves.p_value is None:
        return ""
    first, second = halves.first.lift, halves.second.lift
    if first is None or second is None or second >= first:
        return ""
    if view.at < view.test.last_look_at:
        fades = second + 2 * (second - first) <= 0
    else:
        fades = halves.p_value < FADING and not (
            second > needed and (halves.second.lower or 0.0) > 0
        )
    if not fades:
        return ""
    return f"the lift fades ({first:+.0%}, then {second:+.0%}): what is left may not suffice"


def _says(view: View, result: CriterionResult) -> str:
    shown = "unknown" if result.change is None else f"{result.change:+.1%}"
    needed = result.criterion
    assert needed is not None
    wanted = (
        f"to be above {needed.margin:+.0%}"
        if needed.kind == "superior"
        else f"to be worse by no more than {needed.margin:.1%}"
    )
    look = view.declared
    where = f" at declared look {look.look}" if look and needed.metric == "engagement" else ""
    level = f" (level {view.test.promotion_alpha:.2g}, {_why(view)})" if _stricter(view) else ""
    said = f"{_NAMES[result.metric]} ({shown}) is not shown {wanted}{where}{level}"
    return f"{said}, {result.reason}" if needed.kind == "superior" else said


def _why(view: View) -> str:
    return "by the ledger" if view.test.lanes == 1 else "its part of the family's"


def _stricter(view: View) -> bool:
    return view.test.promotion_alpha < view.test.declaration.significance_threshold


def broken_split(evidence: Evidence) -> str:
    """Which phase's exposures do not come in the shares that were set; empty when all do."""
    counts: dict[str, dict[str, int]] = {}
    for (phase, arm), n in evidence.exposed.items():
        counts.setdefault(str(phase), {})[str(arm)] = n
    shares = {
        str(phase): {str(Arm.BASELINE): 1 - share, str(Arm.CANDIDATE): share}
        for phase, share in evidence.shares.items()
    }
    found = splits.srm(counts, shares)
    return " ".join(f"{c.reason[:1].upper()}{c.reason[1:]}." for c in found.values() if c.broken)


def unlike_absence(evidence: Evidence, declaration: Declaration) -> str:
    """Which phase's arms lack unlike shares of the outcomes that are due; empty where none does, or
    where absent outcomes count by rule."""
    if declaration.missing != "exclude":
        return ""
    exposed: dict[str, dict[str, int]] = {}
    reported: dict[str, dict[str, int]] = {}
    for cell in evidence.cells:
        due = max(cell.exposed, cell.units.n)
        exposed.setdefault(str(cell.phase), {})[str(cell.arm)] = due
        reported.setdefault(str(cell.phase), {})[str(cell.arm)] = cell.units.n
    found = splits.absent_outcomes(exposed, reported)
    return " ".join(f"{c.reason[:1].upper()}{c.reason[1:]}." for c in found.values() if c.unlike)


class RequestHarm(NamedTuple):
    """Which limit the candidate's requests are shown to break, in words; empty where none is.

    `shared`: which one the requests of both arms break alike, so that it is nobody's fault.
    """

    harm: str = ""
    shared: str = ""


def harmful_requests(
    requests: Requests,
    *,
    max_error_rate: float,
    max_p95_latency_ms: float,
    alpha: float,
    hours: Sequence[HourRequests] = (),
) -> RequestHarm:
    """Which limit the candidate's `requests` are shown to break, at error `alpha` each.

    With `hours` it must also be shown that they do worse than the baseline's at the same time, and
    that it is no burst (`guardrails.excess_failures`); without, they are a suspicion only.
    """
    errors = guardrails.error_rate(requests.errors, requests.n, limit=max_error_rate, alpha=alpha)
    found = RequestHarm()
    if errors.fired:
        stretches = [_failed_stretch(hour) for hour in hours]
        found = _beside_baseline(errors, stretches, alpha, "error rate")
    latency = requests.latency
    limit_ms = None if latency is None else latency.edge_from(max_p95_latency_ms)
    if not found.harm and latency is not None and limit_ms is not None:
        slow = guardrails.latency(latency, limit_ms=limit_ms, alpha=alpha)
        if slow.fired:
            slower = [_slow_stretch(h, limit_ms) for h in hours]
            name = f"share of requests slower than {limit_ms:g} ms"
            late = _beside_baseline(slow, slower, alpha, name)
            found = RequestHarm(harm=late.harm, shared=found.shared or late.shared)
    return found


def _beside_baseline(
    suspected: guardrails.EValue, stretches: Sequence[guardrails.Stretch], alpha: float, name: str
) -> RequestHarm:
    if not stretches:
        return RequestHarm(harm=suspected.reason)
    found = guardrails.excess_failures(stretches, suspected.limit, alpha=alpha, name=name)
    if found.fired:
        return RequestHarm(harm=found.reason)
    return RequestHarm(shared=found.reason if found.shared else "")


def _failed_stretch(hour: HourRequests) -> guardrails.Stretch:
    baseline, candidate = hour.baseline, hour.candidate
    return guardrails.Stretch(
        baseline=baseline.n,
        baseline_failures=baseline.errors,
        candidate=candidate.n,
        candidate_failures=candidate.errors,
    )


def _slow_stretch(hour: HourRequests, limit_ms: float) -> guardrails.Stretch:
    (slow_b, n_b), (slow_c, n_c) = (
        (0, 0) if r.latency is None else (r.latency.above(limit_ms), r.latency.n)
        for r in (hour.baseline, hour.candidate)
    )
    return guardrails.Stretch(
        baseline=n_b, baseline_failures=slow_b, candidate=n_c, candidate_failures=slow_c
    )


def _range(lift: sequential.LiftEstimate) -> str:
    assert lift.lift is not None
    assert lift.lower is not None
    assert lift.upper is not None
    return (
        f"engagement {lift.lift:+.1%} ({lift.lower:+.1%}, {lift.upper:+.1%}) on "
        f"{lift.n_baseline} and {lift.n_candidate} units"
    )


def _others(view: View, results: Sequence[CriterionResult]) -> str:
    asked = [r for r in results if r.criterion is not None and r.metric != "engagement"]
    return "; ".join(_other(view, r) for r in asked) or "nothing else was asked"


def _other(view: View, result: CriterionResult) -> str:
    if result.metric == "cost":
        if view.costs_nothing:
            return "no cost was recorded, so the cost criterion is waived"
        counted = view.test.declaration.cost_metric.replace("_", " ")
        return f"cost {counted} {-(view.cost_gain or 0):+.1%}{_known_of(view)}"
    change = result.change or 0.0
    if result.metric == "latency":
        return f"requests slower than {view.max_p95_latency_ms:g} ms {-change:+.1%}"
    return f"{result.metric} {change:+.1%}"


def _known_of(view: View) -> str:
    """Of how many units costs are known, in words; empty where of all."""
    known, units = (
        sum(s.baseline.n + s.candidate.n for s in strata)
        for strata in (view.cost_strata, view.strata)
    )
    return "" if known == units else f" (known of {known} of {units} units)"


def _method(view: View) -> str:
    lift, declared = view.lift, view.declared
    counted = " per item" if view.test.declaration.analysis_unit == "item" else ""
    if declared is None:
        return f"{lift.method}{counted}{_spared(lift)}; p anytime-valid"
    return (
        f"declared look {declared.look}: {declared.method}, p stage-wise; "
        f"interval {lift.method}{counted}{_spared(lift)}"
    )


def _spared(lift: sequential.LiftEstimate) -> str:
    return f" (the covariate saved {lift.saved:.0%} of the variance)" if lift.saved else ""
