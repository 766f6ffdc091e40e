"""One look's figures: each at its level, from its cells, by its formula."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.test_verdicts import (
    FIRST,
    MEAN,
    T0,
    ab_test,
    cells,
    declared,
    evidence,
    fading,
    fewest,
    look,
    of,
    sequence,
    units,
    verdict,
)

from tuneproof.experiments import Arm, Cell, DeclaredLook, Evidence, Requests, Verdict
from tuneproof.experiments.view import View, halves, saved
from tuneproof.stats import fixed, sequential, shrinkage
from tuneproof.stats.aggregates import Aggregate
from tuneproof.stats.declared import group_sequential


def view(seen: Evidence, hours: float = 60, **changes: Any) -> View:
    """The view of a look at this hour; a day is left for outcomes to come in."""
    told = {k: v for k, v in changes.items() if k in View.__dataclass_fields__}
    test = ab_test(**{k: v for k, v in changes.items() if k not in told})
    at = T0 + timedelta(hours=hours)
    return View(test=test, evidence=seen, at=at, matured=at - timedelta(hours=24), **told)


# --- the lift and its looks -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, {"alpha": 0.05, "optimum_n": 1500}),
        ({"significance_threshold": 0.2}, {"alpha": 0.2, "optimum_n": 1500}),
        ({"planned_units": 9000}, {"alpha": 0.05, "optimum_n": 4500}),
        ({"planned_units": 1100}, {"alpha": 0.05, "optimum_n": 550}),
        ({"planned_units": 900}, {"alpha": 0.05, "optimum_n": 500}),
    ],
)
def test_the_lift_is_the_sequence_as_declared(
    changes: dict[str, Any], more: dict[str, Any]
) -> None:
    seen = evidence(0.2, 700)
    assert view(seen, **changes).lift == sequence(seen, **more)
    assert look(seen, 60, ab_test(**changes)).upper == sequence(seen, **more).upper


def test_the_lift_is_known_from_the_least_units_that_are_declared() -> None:
    few = evidence(0.2, 90)
    assert view(few).lift.lift is None
    assert view(few, min_units=90).lift == sequence(few, min_units=90)
    apart = of(*cells(0.2, 120), *cells(0.2, 40, phase=2))
    assert view(apart).lift.n_candidate == 120
    assert view(apart, min_units_phase=40).lift == sequence(apart, min_units_phase=40)
    assert view(apart, min_units_phase=40).lift.n_candidate == 160
    at = {"hours": FIRST}
    assert view(few, **at).declared == declared(few, 0.025, [3 / 7])
    assert view(few, **at, min_units=90).declared == declared(few, 0.025, [3 / 7], min_units=90)
    assert view(apart, **at, min_units_phase=40).declared == declared(
        apart, 0.025, [3 / 7], min_units_phase=40
    )


@pytest.mark.parametrize(
    ("hours", "before", "fractions"),
    [
        (0, (), ()),
        (95.9, (), ()),
        (96, (), (3 / 7,)),
        (143.9, (), (3 / 7,)),
        (144, (), (5 / 7,)),
        (191.9, (), (5 / 7,)),
        (192, (), (1.0,)),
        (500, (), (1.0,)),
        (96, (3 / 7,), ()),
        (144, (3 / 7,), (3 / 7, 5 / 7)),
        (192, (3 / 7,), (3 / 7, 1.0)),
        (192, (3 / 7, 5 / 7), (3 / 7, 5 / 7, 1.0)),
        (500, (3 / 7, 5 / 7, 1.0), ()),
    ],
)
def test_a_declared_look_is_due_once_its_share_has_matured(
    hours: float, before: tuple[float, ...], fractions: tuple[float, ...]
) -> None:
    looked = tuple(DeclaredLook(fraction=f) for f in before)
    found = view(evidence(0.2), hours, declared_before=looked)
    assert found.fractions == fractions
    assert (found.declared is None) == (not fractions)
    assert found.fraction == pytest.approx(min(1.0, max(0.0, (hours - 24) / 168)))


def test_a_test_of_another_length_has_its_looks_at_the_same_shares() -> None:
    day = {"end_at": T0 + timedelta(hours=70)}
    assert view(evidence(0.2), 53.9, **day).fractions == ()
    assert view(evidence(0.2), 54, **day).fractions == (3 / 7,)


def test_only_the_rule_that_declares_looks_has_them() -> None:
    assert view(evidence(0.2), FIRST, decision="confirmed").declared is None
    assert view(evidence(0.2), FIRST, decision="confirmed").declared_promotable is None


def test_declared_looks_are_at_the_tests_level_and_at_the_ledgers() -> None:
    seen = evidence(0.2, 500)
    plain = view(seen, FIRST)
    assert plain.declared == plain.declared_promotable == declared(seen, 0.025, [3 / 7])
    assert plain.promotable == plain.lift
    held = view(seen, FIRST, alpha=0.004)
    assert held.declared == declared(seen, 0.025, [3 / 7])
    assert held.declared_promotable == declared(seen, 0.004, [3 / 7])
    assert held.lift == sequence(seen)
    assert held.promotable == sequence(seen, 0.008)


def test_earlier_looks_give_the_information_that_they_had_unless_one_had_none() -> None:
    seen = evidence(0.2, 500)

    def at(*information: float | None) -> object:
        before = tuple(
            DeclaredLook(fraction=f, information=i)
            for f, i in zip((3 / 7, 5 / 7), information, strict=True)
        )
        return view(seen, 192, declared_before=before).declared

    def exact(*information: float) -> object:
        return group_sequential(
            seen.strata(), fractions=[3 / 7, 5 / 7, 1.0], information_before=information
        )

    assert at(200, 900) == exact(200, 900) != exact()
    assert at(200, None) == exact()
    assert at(None, None) == exact()


def test_a_lift_is_significant_by_the_declared_look_where_there_is_one() -> None:
    def by_sequence(n: int) -> bool:
        lower = sequence(evidence(0.3, n)).lower
        return lower is not None and lower > 0

    n = fewest(by_sequence, range(100, 5000)) - 1
    assert declared(evidence(0.3, n), 0.025, [1.0]).significant
    assert view(evidence(0.3, n), 192).significant
    assert not view(evidence(0.3, n), 95).significant
    assert view(evidence(0.3, n + 1), 95).significant
    assert not view(evidence(0.3, 40), 95).significant


# --- cost -----------------------------------------------------------------------------------


def test_what_is_saved_is_the_fall_in_cost_for_the_same_value() -> None:
    assert saved(0.25) == pytest.approx(0.2)
    assert saved(0.0) == 0
    assert saved(-0.5) == -1
    assert saved(-1.0) is None
    assert saved(-1.5) is None


def test_cost_is_known_where_any_cell_has_one() -> None:
    free = [replace(c, units=replace(c.units, sum_c=0.0)) for c in cells(0.5)]
    assert view(of(*free)).costs_nothing
    assert view(of(*free)).cost_gain is None
    assert not view(of(free[0], cells(0.5)[1])).costs_nothing
    assert not view(of(cells(0.5)[0], free[1])).costs_nothing


# --- what is to be expected, and the halves -------------------------------------------------


def test_the_lift_to_be_expected_is_the_shrunk_one_with_its_prior() -> None:
    prior = shrinkage.Prior.normal(mean=0.02, sd=0.1, experiments=12)
    seen = evidence(0.3, 700)
    found = view(seen, prior=prior).expected
    shrunk = shrinkage.shrink_estimate(sequence(seen), prior)
    assert found is not None
    assert shrunk is not None
    assert (found.lift, found.lower, found.upper) == (shrunk.lift, shrunk.lower, shrunk.upper)
    assert (found.observed, found.weight) == (shrunk.observed, shrunk.weight)
    assert found.mean_lift == shrunk.mean_lift
    assert (found.prior_mean, found.prior_sd, found.prior_experiments) == (
        prior.mean,
        prior.sd,
        12,
    )
    assert view(evidence(0.3, 40)).expected is None
    default = look(seen, 60).expected
    assert default is not None
    assert default.prior_mean == shrinkage.default_prior().mean


def log_error(part: fixed.FixedEstimate) -> float:
    """From the 95 % interval on the log scale."""
    assert part.lower is not None
    assert part.upper is not None
    return (math.log1p(part.upper) - math.log1p(part.lower)) / 2 / 1.959963985


def test_halves_are_compared_by_the_difference_of_their_log_lifts() -> None:
    first = fixed.lift(of(*cells(0.6, 700)).strata())
    second = fixed.lift(of(*cells(0.35, 500)).strata())
    found = halves(first, second)
    z = (math.log(1.35) - math.log(1.6)) / math.hypot(log_error(first), log_error(second))
    assert found.p_value == pytest.approx(math.erfc(-z / math.sqrt(2)), rel=1e-4)
    assert (found.p_value or 0) > 0.05
    assert found.reason == "the effect is not shown to have changed: +60.0%, then +35.0%"
    shown = halves(first, fixed.lift(of(*cells(0.01, 700)).strata()))
    assert shown.reason == "the effect has changed: +60.0%, then +1.0%"
    assert halves(second, first).p_value == pytest.approx(found.p_value)
    assert (found.first.lift, found.first.lower, found.first.upper) == (
        first.effect,
        first.lower,
        first.upper,
    )
    assert (found.second.n_baseline, found.second.n_candidate) == (500, 500)


def test_halves_without_an_answer_say_why() -> None:
    known, few = (fixed.lift(of(*cells(0.6, n)).strata()) for n in (700, 1))
    for pair in ((known, few), (few, known)):
        found = halves(*pair)
        assert found.p_value is None
        assert found.reason == few.reason != ""
    assert halves(few, few).first.lift is None


def test_halves_of_a_look_are_cut_from_its_cells_at_the_least_units_of_a_phase() -> None:
    seen = fading(0.6, 0.3, 60)
    found = view(seen, min_units_phase=60).halves
    expected = [
        fixed.lift(of(*cells(lift, 60)).strata(), min_units=60, min_units_phase=60)
        for lift in (0.6, 0.3)
    ]
    assert found is not None
    assert found.first.lift == expected[0].effect
    assert found.second.lift == pytest.approx(expected[1].effect)
    assert view(seen, min_units_phase=61).halves == halves(
        *[fixed.lift(of(*cells(0.6, 60)).strata(), min_units=61, min_units_phase=61)] * 2
    )
    assert view(evidence(0.6)).halves is None


# --- segments -------------------------------------------------------------------------------


def in_segments(**each: tuple[float, int]) -> Evidence:
    parts = {("persona", name): cells(lift, n) for name, (lift, n) in each.items()}
    return replace(evidence(0.1), segments=parts)


@pytest.mark.parametrize(("others", "alpha"), [(0, 0.02), (1, 0.01), (3, 0.005)])
def test_a_segment_is_guarded_at_0_01_divided_by_their_number(others: int, alpha: float) -> None:
    """One side of a sequence at twice that; one alone has all of it."""

    def shown(n: int, level: float = alpha) -> bool:
        upper = sequence(evidence(-0.3, n), level).upper
        return upper is not None and upper < 0

    n = fewest(shown, range(100, 5000))
    assert shown(n - 1, alpha * 1.1)
    assert not shown(n, alpha * 0.9)
    rest = {f"z{i}": (0.0, 400) for i in range(others)}
    harmed = in_segments(a=(-0.3, n), **rest)
    assert [s.harmed for s in view(harmed).segments] == [True] + [False] * others
    nearly = in_segments(a=(-0.3, n - 1), **rest)
    assert not any(s.harmed for s in view(nearly).segments)
    guarded = ab_test(segments=("persona",), segment_guardrail=True)
    assert verdict(nearly, 60, guarded) is Verdict.CONTINUE
    found = look(harmed, 60, guarded)
    upper = sequence(evidence(-0.3, n), alpha).upper
    assert found.verdict is Verdict.REJECT
    assert found.reason == (
        "The candidate does harm: persona a: engagement fell by more than 15%: -30.0%, at most "
        f"{upper:+.1%}."
    )
    assert verdict(harmed, 60) is Verdict.CONTINUE


def test_a_segment_is_shown_at_the_tests_own_level() -> None:
    seen = in_segments(b=(0.9, 900), a=(0.0, 40), c=(0.02, 400))
    few, found, calm = view(seen).segments
    estimate = sequence(evidence(0.9, 900))
    assert [s.value for s in (few, found, calm)] == ["a", "b", "c"]
    assert [s.found for s in (few, found, calm)] == [False, True, False]
    assert (found.attribute, found.n_baseline, found.n_candidate) == ("persona", 900, 900)
    assert (found.lift, found.lower, found.upper) == (
        estimate.lift,
        estimate.lower,
        estimate.upper,
    )
    assert (few.lift, few.harmed) == (None, False)
    assert few.reason.startswith("not enough data: no phase has 50")
    assert calm.reason == ""
    strict = view(seen, significance_threshold=0.2).segments[1]
    assert strict.lower == sequence(evidence(0.9, 900), 0.2).lower
    assert view(evidence(0.1)).segments == ()


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_one_segment_alone_is_found_at_the_declared_error(alpha: float) -> None:
    """e-BH of one: its e-value must reach 1 / alpha."""

    def shown(n: int) -> bool:
        return (sequence(evidence(0.3, n), alpha).log_e or 0.0) >= -math.log(alpha)

    def found(n: int) -> bool:
        seen = in_segments(a=(0.3, n))
        return view(seen, significance_threshold=alpha).segments[0].found

    n = fewest(shown, range(100, 5000))
    assert (found(n - 1), found(n)) == (False, True)


# --- tails, absent outcomes, inputs ---------------------------------------------------------


def with_arm(arm: Arm, aggregate: Aggregate) -> Evidence:
    """An arm's units are these, the other's are as ever."""
    changed = [replace(c, units=aggregate) if c.arm is arm else c for c in cells(0.0, 400)]
    return of(*changed)


@pytest.mark.parametrize("arm", Arm)
def test_a_tail_is_heavy_where_less_than_a_fifth_of_the_units_carry_their_sum(arm: Arm) -> None:
    """(Σy)² / Σy² is n / (1 + spread²): a fifth at a spread of 2."""
    heavy = view(with_arm(arm, units(400, MEAN, spread=2.01))).heavy_tail
    assert heavy.startswith(
        f"Outcomes have a heavy tail: about 79 of the 400 units of the {arm} carry their sum"
    )
    assert view(with_arm(arm, units(400, MEAN, spread=1.99))).heavy_tail == ""
    assert view(with_arm(arm, units(99, MEAN, spread=3))).heavy_tail == ""
    assert view(with_arm(arm, units(100, MEAN, spread=3))).heavy_tail != ""
    assert view(with_arm(arm, units(99, MEAN, spread=3)), min_units=99).heavy_tail != ""
    assert view(with_arm(arm, Aggregate(n=400))).heavy_tail == ""
    assert view(with_arm(arm, units(400, MEAN, spread=3)), cap=1.0).heavy_tail == ""


def test_a_heavy_tail_of_the_candidate_is_told_while_the_baseline_has_too_few_units() -> None:
    few = replace(cells(0.0, 99)[0], units=units(99, MEAN))
    heavy = Cell(phase=1, arm=Arm.CANDIDATE, units=units(400, MEAN, spread=3))
    assert "of the candidate carry" in view(of(few, heavy)).heavy_tail


def test_the_tail_of_an_arm_is_that_of_all_its_phases() -> None:
    two = of(*cells(0.0, 60, spread=3), *cells(0.0, 60, phase=2, spread=3))
    assert "about 12 of the 120 units of the candidate" in view(two).heavy_tail


def test_absent_outcomes_are_counted_with_what_they_could_do_to_the_lift() -> None:
    lacks = [
        replace(c, exposed=c.units.n + (100 if c.arm is Arm.BASELINE else 300))
        for c in (*cells(0.5, 400), *cells(0.5, 400, phase=2))
    ]
    found = view(of(*lacks)).absent
    lift = sequence(of(*lacks)).lift
    assert lift is not None
    assert found == {
        "baseline": 200,
        "candidate": 600,
        "baseline_due": 1000,
        "candidate_due": 1400,
        "lift_lowest": (1 + lift) * (800 / 1400) - 1,
        "lift_highest": (1 + lift) / (800 / 1000) - 1,
    }
    assert view(of(*lacks), missing="zero").absent is None
    few = view(evidence(0.5, 40)).absent
    assert few is not None
    assert (few["lift_lowest"], few["lift_highest"], few["candidate_due"]) == (None, None, 40)


@pytest.mark.parametrize("arm", Arm)
def test_absent_outcomes_are_unknown_until_both_arms_have_some_due_and_some_in(arm: Arm) -> None:
    nothing_in = [replace(c, units=Aggregate()) if c.arm is arm else c for c in cells(0.5, 400)]
    assert view(of(*nothing_in)).absent is None
    nothing_due = [replace(c, exposed=0) if c.arm is arm else c for c in cells(0.5, 400)]
    assert view(of(*nothing_due)).absent is None


def test_all_that_a_look_read_can_be_read_again() -> None:
    baseline, candidate = cells(0.2, 500)
    seen = Evidence(
        cells=(baseline, replace(candidate, quality=0.75)),
        exposed={(1, Arm.CANDIDATE): 501, (1, Arm.BASELINE): 502},
        shares={1: 0.5},
        requests={Arm.CANDIDATE: Requests(n=900, errors=3)},
    )
    prior = shrinkage.Prior.normal(mean=0.02, sd=0.1, experiments=12)
    found = view(seen, FIRST, prior=prior)
    inputs = dict(found.inputs())
    told = inputs.pop("prior")
    assert isinstance(told, dict)
    assert told["experiments"] == 12
    assert inputs == {
        "cells": [
            {
                "phase": 1,
                "arm": "baseline",
                "units": baseline.units.to_dict(),
                "exposed": 500,
                "quality": None,
            },
            {
                "phase": 1,
                "arm": "candidate",
                "units": candidate.units.to_dict(),
                "exposed": 500,
                "quality": 0.75,
            },
        ],
        "exposed": [[1, "baseline", 502], [1, "candidate", 501]],
        "shares": {"1": 0.5},
        "requests": {"candidate": {"n": 900, "errors": 3}},
        "fraction": 3 / 7,
        "fractions": [3 / 7],
        "information": 1000.0,
        "metric": "engagement",
        "variance_saved": None,
        "absent": found.absent,
    }
    assert found.absent is not None
    assert view(seen, 60).inputs()["information"] is None


def test_a_view_has_the_defaults_of_the_settings() -> None:
    plain = view(evidence(0.1))
    assert (plain.max_engagement_drop, plain.max_p95_latency_ms) == (0.15, 2000.0)
    assert plain.prior == shrinkage.default_prior()
    assert isinstance(plain.lift, sequential.LiftEstimate)
    assert plain.declared_before == ()
    assert Cell(phase=1, arm=Arm.BASELINE, units=Aggregate()).quality is None
