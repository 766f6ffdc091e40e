"""The judge: evidence in, look out. Pure; the verdict is all decided here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from tuneproof.experiments.records import ABTest, Arm, Evidence, Look, Requests, Verdict
from tuneproof.stats import guardrails, sequential
from tuneproof.stats.aggregates import Stratum
from tuneproof.stats.effects import ENGAGEMENT, Metric

DECLARED = (3 / 7, 5 / 7, 1.0)
"""The declared looks of `decision="spec"`, as shares of the duration: days 3, 5, 7 of a week."""

FULL_DAYS = 7
"""`decision="confirmed"` promotes at any look after this many full days."""

GUARDRAILS = 2
"""Errors and latency are watched during the test; each has its share of the error."""

_VALUE_PER_COST = {
    "per_engagement": Metric(name="engagement per cost", numerator="y", denominator="c"),
    "per_token": Metric(name="tokens per cost", numerator="d", denominator="c"),
}


def judge(
    test: ABTest,
    evidence: Evidence,
    *,
    at: datetime,
    number: int = 1,
    declared_before: Sequence[float] = (),
    max_error_rate: float = 0.05,
    max_p95_latency_ms: float = 2000.0,
) -> Look:
    """One analysis of an experiment, pure.

    `declared_before` are the information fractions of the declared looks already taken. In this
    order: a broken split is `invalid`; a candidate that fails its guardrails or is significantly
    worse is rejected; a candidate that meets all criteria at a look that may promote is
    promoted; one that can no longer reach the required lift, or did not by the last look, is
    rejected; else the test continues.
    """
    matured = at - timedelta(hours=test.maturation_hours)
    view = _View(
        test=test, evidence=evidence, at=at, matured=matured, declared_before=tuple(declared_before)
    )
    verdict, reason = _decide(view, max_error_rate, max_p95_latency_ms)
    lift = view.lift
    declared = view.declared
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
        p_value=declared.p_value if declared else lift.p_value,
        cost_gain=view.cost_gain,
        is_significant=view.significant,
        declared=declared is not None,
        method=_method(lift, declared),
        verdict=verdict,
        reason=reason,
        inputs=view.inputs(),
    )


@dataclass(frozen=True, kw_only=True)
class _View:
    test: ABTest
    evidence: Evidence
    at: datetime
    matured: datetime
    declared_before: tuple[float, ...]

    @cached_property
    def strata(self) -> list[Stratum]:
        return self.evidence.strata()

    @cached_property
    def lift(self) -> sequential.LiftEstimate:
        return sequential.lift(
            self.strata,
            alpha=self.test.criteria.significance_threshold,
            min_units=self.test.min_units,
            min_units_phase=self.test.min_units_phase,
        )

    @cached_property
    def fraction(self) -> float:
        """The share of the enrolment whose outcomes have matured, 0–1."""
        enrolled = (self.test.end_at - self.test.start_at).total_seconds()
        return min(1.0, max(0.0, (self.matured - self.test.start_at).total_seconds() / enrolled))

    @cached_property
    def fractions(self) -> tuple[float, ...]:
        """The declared looks up to this one; empty where this look is not declared."""
        last = self.declared_before[-1] if self.declared_before else 0.0
        due = [f for f in DECLARED if last < f <= self.fraction + 1e-9]
        return (*self.declared_before, due[-1]) if due else ()

    @cached_property
    def declared(self) -> sequential.GroupSequentialEstimate | None:
        return self._group_sequential(ENGAGEMENT)

    def _group_sequential(self, metric: Metric) -> sequential.GroupSequentialEstimate | None:
        if not self.fractions or self.test.decision != "spec":
            return None
        return sequential.group_sequential(
            self.strata,
            fractions=self.fractions,
            alpha_one_sided=self.test.criteria.significance_threshold / 2,
            metric=metric,
            min_units=self.test.min_units,
            min_units_phase=self.test.min_units_phase,
        )

    @property
    def significant(self) -> bool:
        """Above zero at the level that this look may use."""
        if self.declared is not None:
            return self.declared.significant
        return self.lift.lower is not None and self.lift.lower > 0

    @cached_property
    def value_per_cost(self) -> sequential.LiftEstimate:
        return sequential.lift(
            self.strata,
            metric=_VALUE_PER_COST[self.test.cost_metric],
            alpha=self.test.criteria.significance_threshold,
            min_units=self.test.min_units,
            min_units_phase=self.test.min_units_phase,
        )

    @property
    def costs_nothing(self) -> bool:
        return not any(c.units.sum_c for c in self.evidence.cells)

    @property
    def cost_gain(self) -> float | None:
        """The fall in cost per engagement (or per token), as a share."""
        if self.costs_nothing or self.value_per_cost.lift is None:
            return None
        ratio = 1 + self.value_per_cost.lift
        return 1 - 1 / ratio if ratio > 0 else None

    def cost_holds(self) -> bool:
        """Whether the cost criterion is met at this look (waived where nothing is paid)."""
        if self.costs_nothing:
            return True
        needed = self.test.criteria.min_cost_efficiency_gain
        if self.cost_gain is None or self.cost_gain <= needed:
            return False
        if self.test.decision == "spec":
            seen = self._group_sequential(_VALUE_PER_COST[self.test.cost_metric])
            return bool(seen and seen.significant)
        lower = self.value_per_cost.lower
        return lower is not None and 1 - 1 / (1 + lower) > needed

    def inputs(self) -> dict[str, Any]:
        """All that went in, as JSON types, so that the look can be made again."""
        return {
            "cells": [
                {
                    "phase": c.phase,
                    "arm": str(c.arm),
                    "units": c.units.to_dict(),
                    "exposed": c.exposed,
                    "quality": c.quality,
                }
                for c in self.evidence.cells
            ],
            "exposed": [[p, str(a), n] for (p, a), n in sorted(self.evidence.exposed.items())],
            "shares": {str(p): s for p, s in self.evidence.shares.items()},
            "requests": {
                str(a): {"n": r.n, "errors": r.errors} for a, r in self.evidence.requests.items()
            },
            "fraction": self.fraction,
            "fractions": list(self.fractions),
        }


def _decide(view: _View, max_error_rate: float, max_p95_latency_ms: float) -> tuple[Verdict, str]:
    broken = broken_split(view.evidence)
    if broken:
        return Verdict.INVALID, f"{broken} Nothing can be concluded."
    harm = harmful_requests(
        view.evidence.requests.get(Arm.CANDIDATE, Requests()),
        max_error_rate=max_error_rate,
        max_p95_latency_ms=max_p95_latency_ms,
        alpha=guardrails.split_alpha(0.02, GUARDRAILS),
    )
    if harm:
        return Verdict.REJECT, f"The candidate does harm: {harm}."
    lift = view.lift
    last = view.at >= view.test.last_look_at
    if lift.lift is None:
        if last:
            return Verdict.REJECT, f"The test is over without an answer: {lift.reason}."
        return Verdict.CONTINUE, f"{lift.reason[:1].upper()}{lift.reason[1:]}."
    if lift.upper is not None and lift.upper < 0:
        return Verdict.REJECT, f"The candidate is worse: {_range(lift)}."
    missing = _missing(view)
    if not missing:
        return Verdict.PROMOTE, f"All criteria hold: {_range(lift)}; {_cost(view)}."
    needed = view.test.criteria.min_engagement_lift
    if lift.upper is not None and lift.upper < needed:
        return Verdict.REJECT, f"It cannot reach {needed:+.0%} any more: {_range(lift)}."
    if last:
        return Verdict.REJECT, f"The test is over and {missing}: {_range(lift)}."
    return Verdict.CONTINUE, f"So far {missing}: {_range(lift)}."


def _missing(view: _View) -> str:
    """What keeps this look from promoting, in words; empty when nothing does."""
    needed = view.test.criteria.min_engagement_lift
    if view.test.decision == "confirmed":
        days = min(timedelta(days=FULL_DAYS), view.test.end_at - view.test.start_at)
        if view.at < view.test.start_at + days:
            return f"{FULL_DAYS} full days have not passed"
        if view.lift.lower is None or view.lift.lower <= needed:
            return f"the lower bound is not above {needed:+.0%}"
    else:
        if view.declared is None:
            return "no declared look is due"
        if not view.declared.significant:
            return f"the lift is not significant at declared look {view.declared.look}"
        if view.declared.lift is None or view.declared.lift <= needed:
            return f"the lift is not above {needed:+.0%}"
    if not view.cost_holds():
        gain = "unknown" if view.cost_gain is None else f"{view.cost_gain:+.1%}"
        return (
            f"the cost gain ({gain}) is not shown to be above "
            f"{view.test.criteria.min_cost_efficiency_gain:+.0%}"
        )
    return ""


def broken_split(evidence: Evidence) -> str:
    """Which phase's exposures do not come in the shares that were set; empty when all do."""
    counts: dict[str, dict[str, int]] = {}
    for (phase, arm), n in evidence.exposed.items():
        counts.setdefault(str(phase), {})[str(arm)] = n
    shares = {
        str(phase): {str(Arm.BASELINE): 1 - share, str(Arm.CANDIDATE): share}
        for phase, share in evidence.shares.items()
    }
    found = guardrails.srm(counts, shares)
    return " ".join(f"{c.reason[:1].upper()}{c.reason[1:]}." for c in found.values() if c.broken)


def harmful_requests(
    requests: Requests, *, max_error_rate: float, max_p95_latency_ms: float, alpha: float
) -> str:
    """Which limit the requests are shown to break (at error `alpha` each); empty when none."""
    errors = guardrails.error_rate(requests.errors, requests.n, limit=max_error_rate, alpha=alpha)
    if errors.fired:
        return errors.reason
    if requests.latency is not None:
        slow = guardrails.latency(requests.latency, limit_ms=max_p95_latency_ms, alpha=alpha)
        if slow.fired:
            return slow.reason
    return ""


def _range(lift: sequential.LiftEstimate) -> str:
    if lift.lift is None or lift.lower is None or lift.upper is None:
        return lift.reason
    return (
        f"engagement {lift.lift:+.1%} ({lift.lower:+.1%}, {lift.upper:+.1%}) on "
        f"{lift.n_baseline} and {lift.n_candidate} units"
    )


def _cost(view: _View) -> str:
    if view.costs_nothing:
        return "no cost was recorded, so the cost criterion is waived"
    return f"cost {view.test.cost_metric.replace('_', ' ')} {-(view.cost_gain or 0):+.1%}"


def _method(
    lift: sequential.LiftEstimate, declared: sequential.GroupSequentialEstimate | None
) -> str:
    if declared is None:
        return f"{lift.method}; p anytime-valid"
    return f"declared look {declared.look}: {declared.method}, p stage-wise; interval {lift.method}"
