"""One look's figures, each computed once: what the judge reads and the report shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TypedDict

from tuneproof.experiments.records import (
    AbsentInputs,
    ABTest,
    Arm,
    Cell,
    Evidence,
    ExpectedLift,
    Halves,
    LookInputs,
    Part,
    Segment,
    strata_of,
)
from tuneproof.stats import fixed, guardrails, multiplicity, sequential, shrinkage
from tuneproof.stats.aggregates import Stratum, merge
from tuneproof.stats.declared import GroupSequentialEstimate, group_sequential
from tuneproof.stats.effects import Metric, variance_of

DECLARED = (3 / 7, 5 / 7, 1.0)
"""The declared looks of `decision="spec"`, as shares of the duration: days 3, 5, 7 of a week."""

SEGMENT_ALPHA = 0.01
"""The chance that the guardrail of any segment fires where none is harmed."""

LEAST_OPTIMUM = 500.0
"""Bounds are tuned to no fewer units: a plan from few posts may be far too low."""

HEAVY = 0.2
"""Below this share of units that carry their sum, an arm's outcomes have a heavy tail: their
coefficient of variation is above 2."""

CLEARLY = 3.0
"""How many standard errors above 0 the baseline's mean must be for a relative lift to promote."""

ABOVE_ZERO = (
    "Measure so that more is better and the mean is above 0, such as by adding the same constant "
    "to every outcome."
)
"""What to do about a metric whose mean is not above 0: no relative lift of it can be shown."""

VALUE_PER_COST = {
    "per_engagement": Metric(name="engagement per cost", numerator="y", denominator="c"),
    "per_token": Metric(name="tokens per cost", numerator="d", denominator="c"),
}


@dataclass(frozen=True, kw_only=True)
class DeclaredLook:
    """A declared look that was taken: its share of the duration, and its information.

    `information` is None where there was no answer yet.
    """

    fraction: float
    information: float | None = None


@dataclass(frozen=True, kw_only=True)
class View:
    """The evidence of one look, read through the statistics."""

    test: ABTest
    evidence: Evidence
    at: datetime
    matured: datetime
    declared_before: tuple[DeclaredLook, ...] = ()
    prior: shrinkage.Prior = field(default_factory=shrinkage.default_prior)
    max_engagement_drop: float = 0.15
    max_p95_latency_ms: float = 2000.0

    @cached_property
    def strata(self) -> list[Stratum]:
        return self.evidence.strata()

    def sequence(
        self,
        strata: Sequence[Stratum],
        metric: Metric | None = None,
        alpha: float | None = None,
    ) -> sequential.LiftEstimate:
        """The confidence sequence of a lift: of engagement, at the test's own level, if not
        another is named."""
        return sequential.lift(
            strata,
            metric=metric or self.test.metric,
            alpha=alpha or self.test.declaration.significance_threshold,
            min_units=self.test.declaration.min_units,
            min_units_phase=self.test.declaration.min_units_phase,
            optimum_n=self.optimum_n,
        )

    @property
    def optimum_n(self) -> float:
        """The number of units at which bounds are tightest: half of those declared beforehand."""
        planned = self.test.declaration.planned_units
        return sequential.OPTIMUM_N if planned is None else max(planned / 2, LEAST_OPTIMUM)

    @cached_property
    def lift(self) -> sequential.LiftEstimate:
        return self.sequence(self.strata)

    @cached_property
    def promotable(self) -> sequential.LiftEstimate:
        """The lift at the level that the ledger leaves for promoting."""
        if self.test.promotion_alpha == self.test.declaration.significance_threshold:
            return self.lift
        return self.sequence(self.strata, alpha=self.test.promotion_alpha)

    @cached_property
    def fraction(self) -> float:
        """The share of the enrolment whose outcomes have matured, 0–1."""
        enrolled = (self.test.end_at - self.test.start_at).total_seconds()
        return min(1.0, max(0.0, (self.matured - self.test.start_at).total_seconds() / enrolled))

    @cached_property
    def fractions(self) -> tuple[float, ...]:
        """The declared looks up to this one; empty where this look is not declared."""
        before = tuple(look.fraction for look in self.declared_before)
        last = before[-1] if before else 0.0
        due = [f for f in DECLARED if last < f <= self.fraction + 1e-9]
        return (*before, due[-1]) if due else ()

    @cached_property
    def declared(self) -> GroupSequentialEstimate | None:
        """The declared look at the test's own level; None where none is due."""
        return self.group_sequential(
            self.strata, self.test.metric, self.test.declaration.significance_threshold
        )

    @cached_property
    def declared_promotable(self) -> GroupSequentialEstimate | None:
        """The declared look at the level that the ledger leaves for promoting."""
        if self.test.promotion_alpha == self.test.declaration.significance_threshold:
            return self.declared
        return self.group_sequential(self.strata, self.test.metric, self.test.promotion_alpha)

    def group_sequential(
        self, strata: Sequence[Stratum], metric: Metric, alpha: float
    ) -> GroupSequentialEstimate | None:
        """A metric at this declared look, at the two-sided level `alpha`."""
        if not self.fractions or self.test.declaration.decision != "spec":
            return None
        return group_sequential(
            strata,
            fractions=self.fractions,
            information_before=self._information_before() if metric is self.test.metric else (),
            alpha_one_sided=alpha / 2,
            metric=metric,
            min_units=self.test.declaration.min_units,
            min_units_phase=self.test.declaration.min_units_phase,
        )

    def _information_before(self) -> list[float]:
        """The information of each earlier declared look; empty where one had no answer."""
        known = [look.information for look in self.declared_before]
        return [] if None in known else [i for i in known if i is not None]

    @property
    def significant(self) -> bool:
        """Above zero at the test's own level, as far as this look may use it."""
        if self.declared is not None:
            return self.declared.significant
        return self.lift.lower is not None and self.lift.lower > 0

    @cached_property
    def cost_strata(self) -> list[Stratum]:
        """The units that costs are judged by: those of which all that they take is known."""
        per_token = self.test.declaration.cost_metric == "per_token"
        return self.evidence.cost_strata(per_token=per_token)

    @property
    def costs_nothing(self) -> bool:
        return not any(c.costed.sum_c for c in self.evidence.cells)

    @cached_property
    def cost_lacking(self) -> str:
        """Which arm has no known cost in a phase in which the other has one; empty where none.

        What the other phases say then is no answer: one arm's costs are compared with nothing.
        """
        all_units = {s.phase: (s.baseline.n, s.candidate.n) for s in self.strata}
        for stratum in self.cost_strata:
            known = (stratum.baseline.sum_c > 0, stratum.candidate.sum_c > 0)
            lacking = known.index(False) if any(known) and not all(known) else None
            if lacking is not None and all_units[stratum.phase][lacking]:
                arm, n = (Arm.BASELINE, Arm.CANDIDATE)[lacking], all_units[stratum.phase][lacking]
                return (
                    f"no cost above 0 is known of any of the {n} units of the {arm} in phase "
                    f"{stratum.phase}, so costs cannot be compared: send cost_usd with each "
                    "exposure, or set a price"
                )
        return ""

    @cached_property
    def value_per_cost(self) -> sequential.LiftEstimate:
        return self.sequence(
            self.cost_strata,
            VALUE_PER_COST[self.test.declaration.cost_metric],
            self.test.promotion_alpha,
        )

    @property
    def cost_gain(self) -> float | None:
        """The fall in cost per engagement (or per token), as a share."""
        if self.costs_nothing or self.cost_lacking or self.value_per_cost.lift is None:
            return None
        return saved(self.value_per_cost.lift)

    @cached_property
    def expected(self) -> ExpectedLift | None:
        """The observed lift shrunk towards what past experiments were worth."""
        found = shrinkage.shrink_estimate(self.lift, self.prior)
        if found is None:
            return None
        return ExpectedLift(
            lift=found.lift,
            lower=found.lower,
            upper=found.upper,
            observed=found.observed,
            weight=found.weight,
            prior_mean=self.prior.mean,
            prior_sd=self.prior.sd,
            prior_experiments=self.prior.experiments,
            mean_lift=found.mean_lift,
        )

    @cached_property
    def halves(self) -> Halves | None:
        """The first half of the time against the second; None before there are two."""
        if not self.evidence.first_half:
            return None
        parts = [strata_of(self.evidence.first_half), strata_of(self.evidence.second_half())]
        first, second = [self._part(strata) for strata in parts]
        return halves(first, second)

    def _part(self, strata: Sequence[Stratum]) -> fixed.FixedEstimate:
        least = self.test.declaration.min_units_phase
        return fixed.lift(strata, metric=self.test.metric, min_units_phase=least)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Each segment's lift, with the multiplicity of all of them handled."""
        known = sorted(self.evidence.segments.items())
        if not known:
            return ()
        estimates = [self.sequence(strata_of(cells)) for _, cells in known]
        answered = [i for i, e in enumerate(estimates) if e.log_e is not None]
        alpha = self.test.declaration.significance_threshold
        called = multiplicity.e_bh([estimates[i].log_e or 0.0 for i in answered], alpha=alpha)
        found = {answered[i] for i in called}
        guard = 2 * guardrails.split_alpha(SEGMENT_ALPHA, len(known))
        guarded = [self.sequence(strata_of(cells), alpha=guard) for _, cells in known]
        return tuple(
            self._segment(key, estimates[i], i in found, guarded[i])
            for i, (key, _) in enumerate(known)
        )

    def _segment(
        self,
        key: tuple[str, str],
        estimate: sequential.LiftEstimate,
        found: bool,
        guarded: sequential.LiftEstimate,
    ) -> Segment:
        drop = guardrails.engagement_drop(guarded, drop=self.max_engagement_drop)
        return Segment(
            attribute=key[0],
            value=key[1],
            lift=estimate.lift,
            lower=estimate.lower,
            upper=estimate.upper,
            n_baseline=estimate.n_baseline,
            n_candidate=estimate.n_candidate,
            found=found,
            harmed=bool(drop.fired),
            reason=drop.reason if drop.fired else estimate.reason,
        )

    @cached_property
    def unclear_baseline(self) -> str:
        """That the baseline's mean is not clearly above 0, in words; empty where it is, or where
        there are too few units to tell.

        A relative lift divides by it: close to 0 it is any number, and below 0 upside down.
        """
        units = merge(c.units for c in self.evidence.cells if c.arm is Arm.BASELINE)
        if units.n < self.test.declaration.min_units:
            return ""
        mean, error = units.sum_y / units.n, math.sqrt(variance_of(units, "y") / units.n)
        if mean > 0 and mean >= CLEARLY * error:
            return ""
        return (
            f"the baseline's {self.test.metric.name} ({mean:.3g} ± {error:.2g}) is not clearly "
            "above 0, so a relative lift says nothing"
        )

    @cached_property
    def heavy_tail(self) -> str:
        """Which arm's sum a few units carry, in words; empty where none's, or a cap is declared.

        A sum is carried by about (Σy)²/Σy² units (Kish 1965): all of them where they are alike.
        """
        if self.test.declaration.cap is not None:
            return ""
        for arm in (Arm.BASELINE, Arm.CANDIDATE):
            units = merge(c.units for c in self.evidence.cells if c.arm is arm)
            if units.n < self.test.declaration.min_units or not units.sum_yy:
                continue
            carrying = units.sum_y**2 / units.sum_yy
            if carrying < HEAVY * units.n:
                return (
                    f"Outcomes have a heavy tail: about {carrying:.0f} of the {units.n} units of "
                    f"the {arm} carry their sum, so bounds can be wrong more often than they say. "
                    "Declare a cap in the next test."
                )
        return ""

    @cached_property
    def absent(self) -> AbsentInputs | None:
        """The units whose outcomes are due and absent, and what the lift would be if all of one
        arm's were 0; None before any is due, and where a rule counts them."""
        if self.test.declaration.missing != "exclude":
            return None
        arms = (Arm.BASELINE, Arm.CANDIDATE)
        due = {arm: sum(c.exposed for c in self.evidence.cells if c.arm is arm) for arm in arms}
        n = {arm: sum(c.units.n for c in self.evidence.cells if c.arm is arm) for arm in arms}
        if not all(due.values()) or not all(n.values()):
            return None
        lift = self.lift.lift
        kept = {arm: n[arm] / due[arm] for arm in arms}
        return {
            "baseline": due[Arm.BASELINE] - n[Arm.BASELINE],
            "candidate": due[Arm.CANDIDATE] - n[Arm.CANDIDATE],
            "baseline_due": due[Arm.BASELINE],
            "candidate_due": due[Arm.CANDIDATE],
            "lift_lowest": None if lift is None else (1 + lift) * kept[Arm.CANDIDATE] - 1,
            "lift_highest": None if lift is None else (1 + lift) / kept[Arm.BASELINE] - 1,
        }

    def inputs(self) -> LookInputs:
        """All that went in, as JSON types, so that the look can be made again."""
        declared = self.declared
        return {
            "cells": [
                {
                    "phase": c.phase,
                    "arm": str(c.arm),
                    "units": c.units.to_dict(),
                    "exposed": c.exposed,
                    "quality": c.quality,
                    **_unknown(c),
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
            "information": declared.information if declared else None,
            "metric": self.test.metric.name,
            "variance_saved": self.lift.saved,
            "absent": self.absent,
            "prior": asdict(self.prior),
        }


class _UnknownInputs(TypedDict, total=False):
    uncosted: Mapping[str, object]
    unmetered: Mapping[str, object]


def _unknown(cell: Cell) -> _UnknownInputs:
    """What is not known of a cell's units; nothing where all is."""
    if not cell.unmetered.n:
        return {}
    return {"uncosted": cell.uncosted.to_dict(), "unmetered": cell.unmetered.to_dict()}


def saved(value_per_cost: float) -> float | None:
    """The fall in cost for the same value, from the relative change of value for the same cost."""
    ratio = 1 + value_per_cost
    return 1 - 1 / ratio if ratio > 0 else None


def halves(first: fixed.FixedEstimate, second: fixed.FixedEstimate) -> Halves:
    """Two parts of a test beside each other, with the test of no change between them."""
    p_value = None
    reason = first.reason or second.reason
    errors = [_log_error(e) for e in (first, second)]
    if errors[0] and errors[1] and first.effect is not None and second.effect is not None:
        from scipy.special import ndtr

        change = math.log1p(second.effect) - math.log1p(first.effect)
        p_value = 2 * float(ndtr(-abs(change) / math.hypot(errors[0], errors[1])))
        word = "has changed" if p_value < 0.05 else "is not shown to have changed"
        reason = f"the effect {word}: {first.effect:+.1%}, then {second.effect:+.1%}"
    return Halves(first=_part(first), second=_part(second), p_value=p_value, reason=reason)


def _log_error(estimate: fixed.FixedEstimate) -> float | None:
    if not estimate.statistic or estimate.effect is None:
        return None
    return abs(math.log1p(estimate.effect) / estimate.statistic)


def _part(estimate: fixed.FixedEstimate) -> Part:
    return Part(
        lift=estimate.effect,
        lower=estimate.lower,
        upper=estimate.upper,
        n_baseline=estimate.n_baseline,
        n_candidate=estimate.n_candidate,
    )
