"""Whether each criterion holds, and what the candidate does to the metrics nobody asked about.

All criteria must hold at one look (intersection-union: no error is split over them). Engagement
is judged by the test's rule, the other metrics by the same confidence sequence on their own
scale. A change is always positive where the candidate is better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tuneproof.experiments.records import METRICS, Arm, Criterion, CriterionResult
from tuneproof.experiments.view import VALUE_PER_COST, View, saved
from tuneproof.stats import sequential
from tuneproof.stats.aggregates import Aggregate, Histogram, Stratum
from tuneproof.stats.effects import Metric

__all__ = ["judge_criteria"]

_QUALITY = Metric(name="quality")
"""The mean of units' scores; of a unit with several items it is the mean of theirs."""


@dataclass(frozen=True, kw_only=True)
class _Change:
    """How a metric changed; positive is better. `significant` is a declared look's own answer."""

    value: float | None
    lower: float | None
    upper: float | None
    reason: str
    significant: bool | None = None


def judge_criteria(view: View) -> tuple[CriterionResult, ...]:
    """The declared criteria in their order, then the other metrics that something is known of."""
    changes = {metric: _CHANGES[metric](view) for metric in METRICS}
    declared = view.test.all_criteria
    judged = [_judged(view, c, changes[c.metric]) for c in declared]
    named = {c.metric for c in declared}
    others = [
        CriterionResult(
            metric=metric,
            criterion=None,
            holds=None,
            change=change.value,
            lower=change.lower,
            upper=change.upper,
            reason="nothing is asked of it",
        )
        for metric, change in changes.items()
        if metric not in named and change.value is not None
    ]
    return (*judged, *others)


def _judged(view: View, criterion: Criterion, change: _Change) -> CriterionResult:
    holds: bool | None
    if criterion.metric == "cost" and view.costs_nothing:
        holds, reason = True, "no cost was recorded, so the cost criterion is waived"
    elif change.value is None:
        holds, reason = None, change.reason
    elif criterion.kind == "superior":
        holds, reason = _superior(view, criterion, change)
    else:
        holds = None if change.lower is None else change.lower > -criterion.margin
        if holds is False and change.upper is not None and change.upper >= -criterion.margin:
            holds = None
        reason = "" if holds else f"worse by no more than {criterion.margin:.1%} is not shown"
    return CriterionResult(
        metric=criterion.metric,
        criterion=criterion,
        holds=holds,
        change=change.value,
        lower=change.lower,
        upper=change.upper,
        reason=reason,
    )


def _superior(view: View, criterion: Criterion, change: _Change) -> tuple[bool | None, str]:
    assert change.value is not None
    refuted = change.upper is not None and change.upper < criterion.margin
    if view.test.declaration.decision == "confirmed":
        if change.lower is not None and change.lower > criterion.margin:
            return True, ""
        return False if refuted else None, f"the lower bound is not above {criterion.margin:+.0%}"
    if change.significant is False or (change.significant is None and (change.lower or 0) <= 0):
        return False if refuted else None, "it is not significant"
    if change.value <= criterion.margin:
        return False if refuted else None, f"it is not above {criterion.margin:+.0%}"
    return True, ""


def _engagement(view: View) -> _Change:
    found = view.promotable
    declared = view.declared_promotable
    return _Change(
        value=found.lift if declared is None or declared.lift is None else declared.lift,
        lower=found.lower,
        upper=found.upper,
        reason=found.reason,
        significant=declared.significant if declared else None,
    )


def _cost(view: View) -> _Change:
    if view.costs_nothing:
        return _Change(value=None, lower=None, upper=None, reason="no cost was recorded")
    if view.cost_lacking:
        return _Change(value=None, lower=None, upper=None, reason=view.cost_lacking)
    found = view.value_per_cost
    declared = view.group_sequential(
        view.cost_strata,
        VALUE_PER_COST[view.test.declaration.cost_metric],
        view.test.promotion_alpha,
    )
    bounds = [None if x is None else saved(x) for x in (found.lower, found.upper)]
    return _Change(
        value=view.cost_gain,
        lower=bounds[0],
        upper=bounds[1],
        reason=found.reason,
        significant=declared.significant if declared else None,
    )


def _quality(view: View) -> _Change:
    strata = view.evidence.quality_strata()
    if not any(s.baseline.n or s.candidate.n for s in strata):
        return _Change(value=None, lower=None, upper=None, reason="no quality was recorded")
    found = view.sequence(strata, _QUALITY, view.test.promotion_alpha)
    return _Change(value=found.lift, lower=found.lower, upper=found.upper, reason=found.reason)


def _latency(view: View) -> _Change:
    """The fall in the share of requests that are slower than the limit, in absolute terms."""
    slow = [_slow(view, arm) for arm in (Arm.BASELINE, Arm.CANDIDATE)]
    if not all(a.n for a in slow):
        return _Change(value=None, lower=None, upper=None, reason="no latency was recorded")
    found = _slow_difference(view, [Stratum(baseline=slow[0], candidate=slow[1])])
    return _Change(
        value=_minus(found.lift),
        lower=_minus(found.upper),
        upper=_minus(found.lower),
        reason=found.reason,
    )


def _slow(view: View, arm: Arm) -> Aggregate:
    requests = view.evidence.requests.get(arm)
    histogram: Histogram | None = requests.latency if requests else None
    limit_ms = None if histogram is None else histogram.edge_from(view.max_p95_latency_ms)
    if histogram is None or not histogram.n or limit_ms is None:
        return Aggregate()
    # One slow and one fast request more (Agresti and Caffo 2000), so that an arm without any slow
    # one still has a variance.
    slow = float(histogram.above(limit_ms)) + 1
    return Aggregate(n=histogram.n + 2, sum_y=slow, sum_yy=slow)


def _slow_difference(view: View, strata: Sequence[Stratum]) -> sequential.LiftEstimate:
    return sequential.difference(
        strata,
        alpha=view.test.promotion_alpha,
        min_units=view.test.declaration.min_units,
        min_units_phase=view.test.declaration.min_units_phase,
        optimum_n=view.optimum_n,
    )


def _minus(value: float | None) -> float | None:
    return None if value is None else 0.0 - value


_CHANGES: dict[str, Callable[[View], _Change]] = {
    "engagement": _engagement,
    "cost": _cost,
    "quality": _quality,
    "latency": _latency,
}
