"""What each look decides, to the last unit, and what it says in words."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tuneproof.experiments import (
    ABTest,
    Arm,
    Cell,
    DeclaredLook,
    Evidence,
    ExperimentStatus,
    HourRequests,
    Look,
    Requests,
    Variant,
    Verdict,
    broken_split,
    harmful_requests,
    judge,
    unlike_absence,
)
from tuneproof.experiments.allocation import reweighted_lift
from tuneproof.experiments.view import VALUE_PER_COST, saved
from tuneproof.settings import Declaration
from tuneproof.stats import guardrails, sequential
from tuneproof.stats.aggregates import LATENCY_MS_EDGES, Aggregate, Histogram
from tuneproof.stats.declared import GroupSequentialEstimate, group_sequential

T0 = datetime(2025, 1, 20, tzinfo=UTC)
MEAN = 0.068
FIRST, SECOND, LAST = 96.0, 144.0, 192.0
"""Hours at which the declared looks of a week are due, with a day for outcomes to come in."""

LOOKED = (DeclaredLook(fraction=3 / 7), DeclaredLook(fraction=5 / 7))


def ab_test(**changes: Any) -> ABTest:
    """A week of testing a half against a half; `changes` are of its declaration or of itself."""
    told = {k: v for k, v in changes.items() if k in Declaration.__dataclass_fields__}
    facts = {k: v for k, v in changes.items() if k not in told}
    made = ABTest(
        id="ab-test-20250120-001",
        run_id=None,
        pipeline="default",
        tasks=("hook",),
        baseline=Variant(model_id="old"),
        candidate=Variant(model_id="new"),
        declaration=Declaration(**{"traffic_split": 0.5, **told}),
        family="ab-test-1",
        status=ExperimentStatus.RUNNING,
        start_at=T0,
        end_at=T0 + timedelta(hours=168),
    )
    return replace(made, **facts)


def units(n: int, mean: float, *, cost: float = 0.001, spread: float = 1.2) -> Aggregate:
    """n units of this mean and cost; their standard deviation is `spread` times the mean."""
    return Aggregate(
        n=n,
        sum_y=n * mean,
        sum_yy=n * mean**2 * (1 + spread**2),
        sum_c=n * cost,
        sum_cc=n * cost**2,
        sum_cy=n * mean * cost,
        sum_d=n * 200.0,
        sum_dd=n * 200.0**2,
        sum_yd=n * mean * 200.0,
        sum_cd=n * cost * 200.0,
    )


def cells(change: float, n: int = 2000, *, phase: int = 1, **more: Any) -> tuple[Cell, Cell]:
    """A phase of n units an arm; `more` is of the candidate's."""
    return (
        Cell(phase=phase, arm=Arm.BASELINE, units=units(n, MEAN), exposed=n),
        Cell(
            phase=phase, arm=Arm.CANDIDATE, units=units(n, MEAN * (1 + change), **more), exposed=n
        ),
    )


def of(*found: Cell) -> Evidence:
    """Evidence of cells whose split is as it was set."""
    return Evidence(
        cells=found,
        exposed={(c.phase, c.arm): c.exposed for c in found},
        shares={c.phase: 0.5 for c in found},
    )


def evidence(change: float, n: int = 2000, **more: Any) -> Evidence:
    return of(*cells(change, n, **more))


def look(seen: Evidence, hours: float, test: ABTest | None = None, **more: Any) -> Look:
    return judge(test or ab_test(), seen, at=T0 + timedelta(hours=hours), **more)


def verdict(seen: Evidence, hours: float, test: ABTest | None = None, **more: Any) -> Verdict:
    return look(seen, hours, test, **more).verdict


def sequence(seen: Evidence, alpha: float = 0.05, **more: Any) -> sequential.LiftEstimate:
    return sequential.lift(seen.strata(), alpha=alpha, **more)


def declared(
    seen: Evidence, alpha: float, fractions: Sequence[float], **more: Any
) -> GroupSequentialEstimate:
    return group_sequential(seen.strata(), fractions=fractions, alpha_one_sided=alpha, **more)


def fewest(holds: Callable[[int], bool], among: range) -> int:
    """The least of these numbers from which on it holds."""
    found = among[bisect_left(among, True, key=holds)]
    assert not holds(found - 1)
    return found


def bounds(seen: Evidence, alpha: float = 0.05) -> str:
    """As a look tells the lift."""
    found = sequence(seen, alpha)
    assert found.lift is not None
    assert found.lower is not None
    assert found.upper is not None
    return (
        f"engagement {found.lift:+.1%} ({found.lower:+.1%}, {found.upper:+.1%}) on "
        f"{found.n_baseline} and {found.n_candidate} units"
    )


# --- levels: what may promote, and what the ledger leaves -----------------------------------


def test_a_declared_look_is_one_sided_at_half_of_the_declared_error() -> None:
    def shown(n: int, alpha: float = 0.025) -> bool:
        return declared(evidence(0.2, n), alpha, [3 / 7]).significant

    n = fewest(shown, range(100, 5000))
    assert shown(n - 1, 0.026)
    assert not shown(n, 0.024)
    assert verdict(evidence(0.2, n - 1), FIRST) is Verdict.CONTINUE
    found = look(evidence(0.2, n), FIRST)
    assert (found.verdict, found.is_significant) == (Verdict.PROMOTE, True)
    strict = look(evidence(0.2, n), FIRST, ab_test(significance_threshold=0.04))
    assert (strict.verdict, strict.is_significant) == (Verdict.CONTINUE, False)


@pytest.mark.parametrize(
    "changes", [{"alpha": 0.004}, {"lanes": 5, "significance_threshold": 0.04}]
)
def test_a_declared_look_promotes_at_what_the_ledger_or_the_family_leaves(
    changes: dict[str, Any],
) -> None:
    """Both leave 0.008 of two sides."""
    test = ab_test(**changes)
    assert test.promotion_alpha == 0.008

    def shown(n: int, alpha: float = 0.004) -> bool:
        return declared(evidence(0.2, n), alpha, [3 / 7]).significant

    n = fewest(shown, range(100, 5000))
    assert shown(n - 1, 0.0042)
    assert not shown(n, 0.0038)
    below = look(evidence(0.2, n - 1), FIRST, test)
    assert (below.verdict, below.is_significant, below.alpha) == (Verdict.CONTINUE, True, 0.008)
    why = "by the ledger" if "alpha" in changes else "its part of the family's"
    declared_error = test.declaration.significance_threshold
    assert below.reason == (
        "So far the lift (+20.0%) is not shown to be above +15% at declared look 1 (level 0.008, "
        f"{why}), it is not significant: {bounds(evidence(0.2, n - 1), declared_error)}."
    )
    assert verdict(evidence(0.2, n), FIRST, test) is Verdict.PROMOTE


@pytest.mark.parametrize(("changes", "alpha"), [({}, 0.05), ({"alpha": 0.004}, 0.008)])
def test_confirmed_promotes_at_the_level_that_the_ledger_leaves(
    changes: dict[str, Any], alpha: float
) -> None:
    test = ab_test(decision="confirmed", **changes)

    def shown(n: int, level: float = alpha) -> bool:
        found = sequence(evidence(0.3, n), level).lower
        return found is not None and found > 0.15

    n = fewest(shown, range(100, 9000))
    assert shown(n - 1, alpha * 1.05)
    assert not shown(n, alpha * 0.95)
    below = look(evidence(0.3, n - 1), 170, test)
    assert (below.verdict, below.is_significant) == (Verdict.CONTINUE, True)
    assert "the lower bound is not above +15%" in below.reason
    assert verdict(evidence(0.3, n), 170, test) is Verdict.PROMOTE


@pytest.mark.parametrize(("changes", "alpha"), [({}, 0.05), ({"alpha": 0.004}, 0.008)])
@pytest.mark.parametrize("metric", ["per_engagement", "per_token"])
def test_cost_is_judged_at_the_level_that_the_ledger_leaves(
    metric: str, changes: dict[str, Any], alpha: float
) -> None:
    seen = evidence(0.0, n=3000, cost=0.0008)
    found = look(seen, 60, ab_test(cost_metric=metric, **changes))
    expected = sequence(seen, alpha, metric=VALUE_PER_COST[metric])
    [cost] = [r for r in found.criteria if r.metric == "cost"]
    assert expected.lift is not None
    assert expected.lower is not None
    assert expected.upper is not None
    assert found.cost_gain == cost.change == pytest.approx(0.2)
    assert cost.change == saved(expected.lift) == 1 - 1 / (1 + expected.lift)
    assert (cost.lower, cost.upper) == (saved(expected.lower), saved(expected.upper))


@pytest.mark.parametrize(("changes", "alpha"), [({}, 0.025), ({"alpha": 0.004}, 0.004)])
def test_cost_at_a_declared_look_is_judged_at_the_level_that_the_ledger_leaves(
    changes: dict[str, Any], alpha: float
) -> None:
    test = ab_test(criteria=("cost superior 0.1",), **changes)
    metric = VALUE_PER_COST["per_engagement"]

    def at(n: int) -> Evidence:
        return evidence(0.0, n, cost=0.00085)

    def shown(n: int, level: float = alpha) -> bool:
        return declared(at(n), level, [3 / 7], metric=metric).significant

    n = fewest(shown, range(100, 9000))
    assert shown(n - 1, alpha * 1.05)
    assert not shown(n, alpha * 0.95)
    assert verdict(at(n - 1), FIRST, test) is Verdict.CONTINUE
    assert verdict(at(n), FIRST, test) is Verdict.PROMOTE


def test_the_information_of_the_lift_is_none_of_the_costs() -> None:
    """Costs have an information of their own, so their bound takes the calendar."""
    test = ab_test(criteria=("cost superior 0.1",))
    metric = VALUE_PER_COST["per_engagement"]
    before = (DeclaredLook(fraction=3 / 7, information=300.0),)

    def at(n: int) -> Evidence:
        return evidence(0.0, n, cost=0.00085)

    def shown(n: int) -> bool:
        return declared(at(n), 0.025, [3 / 7, 5 / 7], metric=metric).significant

    n = fewest(shown, range(100, 9000))
    assert verdict(at(n - 1), SECOND, test, declared_before=before) is Verdict.CONTINUE
    assert verdict(at(n), SECOND, test, declared_before=before) is Verdict.PROMOTE


def test_cost_that_one_arm_lacks_is_not_waived() -> None:
    seen = evidence(0.5, cost=0.0)
    found = look(seen, FIRST)
    assert found.verdict is Verdict.CONTINUE
    assert found.cost_gain is None
    [cost] = [r for r in found.criteria if r.metric == "cost"]
    assert (cost.holds, cost.change) == (None, None)
    assert found.reason == (
        "So far the cost gain (unknown) is not shown to be above +10%, no cost above 0 is known of "
        "any of the 2000 units of the candidate in phase 1, so costs cannot be compared: send "
        f"cost_usd with each exposure, or set a price: {bounds(seen)}."
    )


@pytest.mark.parametrize("phase", [1, 2])
def test_cost_that_one_phase_of_the_candidate_lacks_is_not_waived(phase: int) -> None:
    seen = of(
        *cells(0.5, 1000, cost=0.0 if phase == 1 else 0.001),
        *cells(0.5, 1000, phase=2, cost=0.0 if phase == 2 else 0.001),
    )
    found = look(seen, FIRST)
    assert (found.verdict, found.cost_gain) == (Verdict.CONTINUE, None)
    assert f"any of the 1000 units of the candidate in phase {phase}, so costs" in found.reason


def test_a_cost_of_nothing_is_waived_and_said() -> None:
    free = [replace(c, units=replace(c.units, sum_c=0.0)) for c in cells(0.5)]
    found = look(of(*free), FIRST)
    assert (found.verdict, found.cost_gain) == (Verdict.PROMOTE, None)
    assert found.reason == (
        f"All criteria hold: {bounds(of(*free))}; no cost was recorded, so the cost criterion is "
        "waived."
    )


# --- harm of requests -----------------------------------------------------------------------


def slow(n: int, late: int, ms: float = 2500.0) -> Requests:
    return Requests(n=n, latency=Histogram.of([300.0] * (n - late) + [ms] * late, LATENCY_MS_EDGES))


def least_errors(alpha: float, limit: float = 0.05) -> int:
    """Of 400 requests, how many must fail to be shown above the limit."""
    return fewest(
        lambda k: guardrails.error_rate(k, 400, limit=limit, alpha=alpha).fired, range(1, 400)
    )


def with_requests(candidate: Requests, baseline: Requests | None = None) -> Evidence:
    requests = {Arm.CANDIDATE: candidate, Arm.BASELINE: baseline or Requests()}
    return replace(evidence(0.1), requests=requests)


def test_errors_and_latency_have_0_01_each() -> None:
    k = least_errors(0.01)
    assert least_errors(0.02) < k < least_errors(0.005)
    assert verdict(with_requests(Requests(n=400, errors=k - 1)), 60) is Verdict.CONTINUE
    found = look(with_requests(Requests(n=400, errors=k)), 60)
    assert found.verdict is Verdict.REJECT
    assert found.reason == (
        f"The candidate does harm: error rate is above its limit of 5.0%: {k} of 400 "
        f"({k / 400:.1%})."
    )
    assert verdict(with_requests(slow(400, k - 1)), 60) is Verdict.CONTINUE
    found = look(with_requests(slow(400, k)), 60)
    assert found.verdict is Verdict.REJECT
    assert found.reason == (
        "The candidate does harm: share of requests slower than 2000 ms is above its limit of "
        f"5.0%: {k} of 400 ({k / 400:.1%})."
    )


def test_the_baselines_requests_are_no_harm_of_the_candidate() -> None:
    assert verdict(with_requests(slow(400, 1), slow(400, 300)), 60) is Verdict.CONTINUE
    failing = with_requests(Requests(), Requests(n=400, errors=300))
    assert verdict(failing, 60) is Verdict.CONTINUE


def test_requests_are_judged_by_the_limits_that_are_set() -> None:
    k = least_errors(0.01, limit=0.2)
    willing = with_requests(Requests(n=400, errors=k - 1))
    assert verdict(willing, 60, max_error_rate=0.2) is Verdict.CONTINUE
    found = look(with_requests(Requests(n=400, errors=k)), 60, max_error_rate=0.2)
    assert found.verdict is Verdict.REJECT
    assert "its limit of 20.0%" in found.reason
    late = with_requests(slow(400, 200, 1500.0))
    assert verdict(late, 60) is Verdict.CONTINUE
    found = look(late, 60, max_p95_latency_ms=1000.0)
    assert found.verdict is Verdict.REJECT
    assert "slower than 1000 ms" in found.reason


def hours(of_candidate: Requests, of_baseline: Requests, count: int = 8) -> list[HourRequests]:
    return [HourRequests(phase=1, baseline=of_baseline, candidate=of_candidate)] * count


def both(n: int, errors: int, late: int) -> Requests:
    return replace(slow(n, late), errors=errors)


def test_slowness_is_harm_also_where_both_arms_fail_alike() -> None:
    found = harmful_requests(
        both(80, 56, 56),
        max_error_rate=0.05,
        max_p95_latency_ms=2000.0,
        alpha=0.01,
        hours=hours(both(10, 7, 7), both(90, 60, 0)),
    )
    assert found.shared == (
        "error rate is above its limit of 5.0%: 56 of 80 (70.0%), the baseline's at the same time "
        "66.7%"
    )
    assert found.harm == (
        "share of requests slower than 2000 ms is above its limit of 5.0%: 56 of 80 (70.0%), the "
        "baseline's at the same time 0.0%"
    )


def test_errors_that_harm_are_told_and_slowness_is_not_looked_at() -> None:
    found = harmful_requests(
        both(80, 56, 56),
        max_error_rate=0.05,
        max_p95_latency_ms=2000.0,
        alpha=0.01,
        hours=hours(both(10, 7, 7), both(90, 0, 60)),
    )
    assert found.harm.startswith("error rate is above")
    assert found.shared == ""


def test_hours_without_a_latency_count_for_errors_alone() -> None:
    found = harmful_requests(
        both(80, 0, 56),
        max_error_rate=0.05,
        max_p95_latency_ms=2000.0,
        alpha=0.01,
        hours=[*hours(slow(10, 7), slow(90, 0)), *hours(Requests(n=5), Requests(n=45))],
    )
    assert "56 of 80 (70.0%), the baseline's at the same time 0.0%" in found.harm
    healthy = harmful_requests(
        Requests(n=80), max_error_rate=0.05, max_p95_latency_ms=2000.0, alpha=0.01
    )
    assert healthy == ("", "")


def test_what_a_burst_explains_is_neither_harm_nor_shared() -> None:
    """Ten failures of forty in one hour are above the limit, and no more than a usual burst."""
    assert guardrails.error_rate(10, 40, alpha=0.01).fired
    found = harmful_requests(
        Requests(n=40, errors=10),
        max_error_rate=0.05,
        max_p95_latency_ms=2000.0,
        alpha=0.01,
        hours=hours(Requests(n=40, errors=10), Requests(n=90, errors=2), count=1),
    )
    assert found == ("", "")


# --- splits and absent outcomes -------------------------------------------------------------


def test_each_phase_whose_split_is_broken_is_named() -> None:
    fine = {(1, Arm.BASELINE): 500, (1, Arm.CANDIDATE): 500}
    odd = {(2, Arm.BASELINE): 900, (2, Arm.CANDIDATE): 100}
    more = {(3, Arm.BASELINE): 100, (3, Arm.CANDIDATE): 900}
    shares = {1: 0.5, 2: 0.5, 3: 0.5}
    found = broken_split(Evidence(exposed={**fine, **odd, **more}, shares=shares))
    assert found.startswith("Phase 2: the split is broken")
    assert ". Phase 3: the split is broken" in found
    assert "Phase 1" not in found
    assert found.endswith(".")
    assert broken_split(Evidence(exposed=fine, shares=shares)) == ""
    tenth = Evidence(exposed=odd, shares={2: 0.1})
    assert broken_split(tenth) == ""
    told = look(replace(evidence(0.5), exposed={**fine, **odd}, shares=shares), FIRST)
    assert told.verdict is Verdict.INVALID
    assert told.reason.endswith(". Nothing can be concluded.")


def lacking(found: Evidence, arm: Arm, n: int) -> Evidence:
    """The same, where an arm lacks n of its outcomes."""
    return replace(
        found,
        cells=tuple(replace(c, exposed=c.units.n + n * (c.arm is arm)) for c in found.cells),
    )


def test_arms_that_lack_outcomes_unlike_are_named_by_phase_unless_a_rule_counts_them() -> None:
    seen = lacking(of(*cells(0.5, 400), *cells(0.5, 400, phase=2)), Arm.CANDIDATE, 100)
    found = unlike_absence(seen, Declaration())
    assert found.startswith("Phase 1: ")
    assert " Phase 2: " in found
    assert found.count("candidate 20.0% (100 of 500)") == 2
    assert unlike_absence(seen, Declaration(missing="zero")) == ""
    unknown = [replace(c, exposed=0) for c in cells(0.5, 400)]
    assert unlike_absence(of(*unknown), Declaration()) == ""
    told = look(seen, FIRST)
    assert told.verdict is Verdict.INVALID
    assert told.reason.endswith("Those that are there are no fair sample of either arm.")


# --- the verdict ----------------------------------------------------------------------------


def test_all_criteria_that_hold_are_told_with_their_figures() -> None:
    seen = evidence(0.5)
    found = look(seen, FIRST)
    assert found.verdict is Verdict.PROMOTE
    assert found.reason == f"All criteria hold: {bounds(seen)}; cost per engagement -33.3%."
    tokens = look(evidence(0.5, cost=0.0008), FIRST, ab_test(cost_metric="per_token"))
    assert tokens.reason.endswith("; cost per token -20.0%.")
    alone = look(seen, FIRST, ab_test(criteria=("engagement superior 0.15",)))
    assert alone.reason == f"All criteria hold: {bounds(seen)}; nothing else was asked."


def with_quality(seen: Evidence, baseline: float, candidate: float) -> Evidence:
    means = {Arm.BASELINE: baseline, Arm.CANDIDATE: candidate}
    scored = [replace(c, qualities=units(c.units.n, means[c.arm], spread=0.3)) for c in seen.cells]
    return replace(seen, cells=tuple(scored))


def test_quality_and_latency_that_hold_are_told_with_their_figures() -> None:
    asked = ("engagement superior 0.15", "quality non_inferior 0.1", "latency non_inferior 0.02")
    seen = replace(
        with_quality(evidence(0.5), 0.5, 0.5),
        requests={Arm.BASELINE: slow(2000, 80), Arm.CANDIDATE: slow(2000, 40)},
    )
    found = look(seen, FIRST, ab_test(criteria=asked), max_error_rate=0.5)
    assert found.verdict is Verdict.PROMOTE
    assert found.reason.endswith("; quality +0.0%; requests slower than 2000 ms -2.0%.")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            "quality non_inferior 0.1",
            "the quality (-20.0%) is not shown to be worse by no more than 10.0%",
        ),
        (
            "quality superior 0.1",
            "the quality (-20.0%) is not shown to be above +10%, it is not significant",
        ),
        (
            "latency superior 0.1",
            "the share of slow requests (-2.0%) is not shown to be above +10%, it is not "
            "significant",
        ),
        (
            "cost superior 0.4",
            "the cost gain (+33.3%) is not shown to be above +40%, it is not above +40%",
        ),
    ],
)
def test_what_is_not_shown_is_told_with_what_was_asked(asked: str, said: str) -> None:
    seen = replace(
        with_quality(evidence(0.5), 0.5, 0.4),
        requests={Arm.BASELINE: slow(2000, 0), Arm.CANDIDATE: slow(2000, 40)},
    )
    found = look(seen, FIRST, ab_test(criteria=("engagement superior 0.15", asked)))
    assert found.verdict is Verdict.CONTINUE
    assert found.reason == f"So far {said}: {bounds(seen)}."


def test_before_a_declared_look_nothing_is_promoted() -> None:
    seen = evidence(0.5)
    before = look(seen, FIRST - 0.01)
    assert (before.verdict, before.declared) == (Verdict.CONTINUE, False)
    assert before.reason == f"So far no declared look is due: {bounds(seen)}."
    at = look(seen, FIRST)
    assert (at.verdict, at.declared) == (Verdict.PROMOTE, True)
    again = look(seen, FIRST + 1, declared_before=LOOKED[:1])
    assert (again.verdict, again.declared) == (Verdict.CONTINUE, False)


def test_confirmed_waits_for_seven_full_days_or_the_end_of_a_shorter_test() -> None:
    week = ab_test(decision="confirmed")
    seen = evidence(0.5)
    before = look(seen, 167.99, week)
    assert before.verdict is Verdict.CONTINUE
    assert before.reason == f"So far 7 full days have not passed: {bounds(seen)}."
    assert verdict(seen, 168, week) is Verdict.PROMOTE
    month = replace(week, end_at=T0 + timedelta(days=30))
    assert verdict(seen, 167.99, month) is Verdict.CONTINUE
    assert verdict(seen, 168, month) is Verdict.PROMOTE
    short = replace(week, end_at=T0 + timedelta(hours=48))
    assert verdict(seen, 47.99, short) is Verdict.CONTINUE
    assert verdict(seen, 48, short) is Verdict.PROMOTE


def test_too_few_units_are_waited_for_until_the_last_look() -> None:
    few = evidence(0.5, 40)
    waits = look(few, LAST - 0.01)
    assert waits.verdict is Verdict.CONTINUE
    assert waits.reason == (
        "Not enough data: no phase has 50 matured units in both arms (40 so far)."
    )
    over = look(few, LAST)
    assert over.verdict is Verdict.REJECT
    assert over.reason == (
        "The test is over without an answer: not enough data: no phase has 50 matured units in "
        "both arms (40 so far)."
    )


def test_a_candidate_is_worse_once_its_upper_bound_is_below_zero() -> None:
    def shown(n: int) -> bool:
        upper = sequence(evidence(-0.2, n)).upper
        return upper is not None and upper < 0

    n = fewest(shown, range(100, 5000))
    waits = look(evidence(-0.2, n - 1), 60, ab_test(min_engagement_lift=0.0))
    assert waits.verdict is Verdict.CONTINUE
    found = look(evidence(-0.2, n), 60, ab_test(min_engagement_lift=0.0))
    assert found.verdict is Verdict.REJECT
    assert found.reason == f"The candidate is worse: {bounds(evidence(-0.2, n))}."


def test_a_loss_that_was_allowed_is_not_worse_until_it_is_beyond_its_margin() -> None:
    asked = ("engagement non_inferior 0.1", "cost superior 0.1", "quality non_inferior 0.9")
    test = ab_test(criteria=asked)
    assert verdict(evidence(-0.05, 60_000), 60, test) is Verdict.CONTINUE
    assert verdict(evidence(-0.05, 60_000), 60) is Verdict.REJECT
    beyond = look(evidence(-0.2, 60_000), 60, test)
    assert beyond.verdict is Verdict.REJECT
    assert beyond.reason.startswith("The candidate is worse: engagement -20.0%")
    other = ab_test(criteria=("engagement superior 0.1", "quality non_inferior 0.9"))
    assert look(evidence(-0.05, 60_000), 60, other).reason.startswith("The candidate is worse")


def test_a_lift_that_cannot_be_reached_any_more_ends_the_test() -> None:
    def futile(n: int) -> bool:
        upper = sequence(evidence(0.02, n)).upper
        return upper is not None and upper < 0.15

    n = fewest(futile, range(100, 20_000))
    assert verdict(evidence(0.02, n - 1), 60) is Verdict.CONTINUE
    found = look(evidence(0.02, n), 60)
    assert found.verdict is Verdict.REJECT
    assert found.reason == f"It cannot reach +15% any more: {bounds(evidence(0.02, n))}."
    assert verdict(evidence(0.02, n), 60, ab_test(min_engagement_lift=0.2)) is Verdict.REJECT
    lower = look(evidence(0.02, n), 60, ab_test(min_engagement_lift=0.1))
    assert lower.verdict is Verdict.CONTINUE


def test_no_lift_is_out_of_reach_where_none_was_asked_for() -> None:
    cheaper = ab_test(criteria=("engagement non_inferior 0.1", "cost superior 0.2"))
    assert verdict(evidence(0.02, 60_000), 60, cheaper) is Verdict.CONTINUE


def test_what_is_missing_at_the_last_look_rejects() -> None:
    seen = evidence(0.16, 2000)
    assert verdict(seen, LAST - 0.01, declared_before=LOOKED) is Verdict.CONTINUE
    found = look(seen, LAST, ab_test(min_engagement_lift=0.17), declared_before=LOOKED)
    assert found.verdict is Verdict.REJECT
    assert found.reason == (
        "The test is over and the lift (+16.0%) is not shown to be above +17% at declared look 3, "
        f"it is not above +17%: {bounds(seen)}."
    )


def around(mean: float, n: int = 2000) -> Evidence:
    """The baseline's outcomes have this mean and a standard deviation of 1, the candidate's 2."""
    baseline = Aggregate(n=n, sum_y=n * mean, sum_yy=n * (mean**2 + 1))
    candidate = Aggregate(n=n, sum_y=2.0 * n, sum_yy=5.0 * n)
    arms = ((Arm.BASELINE, baseline), (Arm.CANDIDATE, candidate))
    return of(*[Cell(phase=1, arm=arm, units=units, exposed=n) for arm, units in arms])


def test_a_lift_promotes_only_from_a_baseline_three_standard_errors_above_zero() -> None:
    test = ab_test(decision="confirmed", criteria=("engagement superior 0.15",), cap=9.0)
    error = (1 / 2000) ** 0.5
    found = look(around(2.99 * error), 168, test)
    assert found.verdict is Verdict.CONTINUE
    assert "So far the baseline's engagement (0.0669 ± 0.022) is not clearly above 0, so" in (
        found.reason
    )
    assert verdict(around(3.01 * error), 168, test) is Verdict.PROMOTE
    below = look(around(-0.5), LAST, test)
    assert below.verdict is Verdict.REJECT
    assert below.reason.startswith("The test is over without an answer: the baseline's engagement")
    assert ". Measure so that more is better" in below.reason
    early = look(around(-0.5), 60, test)
    assert early.reason.startswith("The baseline's engagement is -0.5")
    assert early.reason.endswith("to every outcome.")


# --- a lift that fades ----------------------------------------------------------------------


def fading(first: float, second: float, n: int = 4000) -> Evidence:
    """Two halves of n units an arm with these lifts."""
    early, late = cells(first, n), cells(second, n)
    whole = [
        replace(a, units=a.units + b.units, exposed=2 * n) for a, b in zip(early, late, strict=True)
    ]
    return replace(of(*whole), first_half=early)


def test_a_fall_that_would_leave_nothing_after_two_more_halves_is_waited_out() -> None:
    found = look(fading(0.6, 0.39), FIRST)
    assert found.verdict is Verdict.CONTINUE
    assert "So far the lift fades (+60%, then +39%): what is left may not suffice: " in found.reason
    assert verdict(fading(0.6, 0.41), FIRST) is Verdict.PROMOTE
    assert verdict(fading(0.39, 0.6), FIRST) is Verdict.PROMOTE


def test_at_the_last_look_a_fall_must_be_shown_and_leave_too_little() -> None:
    def last(first: float, second: float, n: int = 4000) -> Look:
        return look(fading(first, second, n), LAST, declared_before=LOOKED)

    gone = last(0.6, 0.1)
    assert gone.halves is not None
    assert gone.halves.p_value is not None
    assert gone.halves.p_value < 0.02
    assert gone.halves.second.lower is not None
    assert gone.halves.second.lower > 0
    assert gone.verdict is Verdict.REJECT
    assert gone.reason.startswith("The test is over and the lift fades (+60%, then +10%): what")
    assert last(0.6, 0.3).verdict is Verdict.PROMOTE
    unsure = last(1.6, 0.2, 300)
    assert unsure.halves is not None
    assert unsure.halves.p_value is not None
    assert unsure.halves.p_value < 0.02
    assert unsure.halves.second.lower is not None
    assert unsure.halves.second.lower < 0
    assert unsure.verdict is Verdict.REJECT
    chance = last(0.5, 0.1, 250)
    assert chance.halves is not None
    assert chance.halves.p_value is not None
    assert chance.halves.p_value > 0.02
    assert chance.verdict is Verdict.PROMOTE


def test_halves_that_cannot_be_compared_keep_nothing_from_being_promoted() -> None:
    seen = fading(0.5, 0.5, 400)
    few = replace(seen, first_half=cells(0.9, 40))
    found = look(few, FIRST)
    assert found.halves is not None
    assert found.halves.p_value is None
    assert found.verdict is Verdict.PROMOTE


def test_a_lift_that_was_not_asked_for_may_fade() -> None:
    test = ab_test(criteria=("engagement non_inferior 0.1", "cost superior 0.1"))
    assert verdict(fading(0.6, 0.2), FIRST, test) is Verdict.PROMOTE


# --- what a look keeps ----------------------------------------------------------------------


def test_a_declared_look_keeps_its_figures() -> None:
    seen = evidence(-0.1, 500)
    found = look(seen, FIRST, number=4)
    lift, one = sequence(seen), declared(seen, 0.025, [3 / 7])
    assert one.p_value is not None
    assert one.p_value > 0.5
    assert (found.experiment_id, found.number) == ("ab-test-20250120-001", 4)
    assert found.at == T0 + timedelta(hours=96)
    assert found.matured_before == T0 + timedelta(hours=72)
    assert (found.lift, found.lower, found.upper) == (lift.lift, lift.lower, lift.upper)
    assert found.standard_error == lift.standard_error
    assert found.p_value == 2 * (1 - one.p_value)
    assert found.declared
    assert found.method == (
        "declared look 1: group-sequential, obrien-fleming spending, p stage-wise; interval "
        "log-ratio confidence sequence"
    )
    assert found.baseline == seen.arm(Arm.BASELINE)
    assert found.candidate == seen.arm(Arm.CANDIDATE)
    assert look(seen, FIRST).number == 1
    better = declared(evidence(0.1, 500), 0.025, [3 / 7])
    assert better.p_value is not None
    assert look(evidence(0.1, 500), FIRST).p_value == 2 * better.p_value


def test_any_other_look_keeps_the_anytime_valid_figures() -> None:
    seen = evidence(-0.1, 500)
    found = look(seen, 60)
    assert not found.declared
    assert found.p_value == sequence(seen).p_value
    assert found.method == "log-ratio confidence sequence; p anytime-valid"
    assert found.is_significant is False


def test_an_undeclared_look_is_significant_where_its_lower_bound_is_above_zero() -> None:
    def shown(n: int) -> bool:
        lower = sequence(evidence(0.3, n)).lower
        return lower is not None and lower > 0

    n = fewest(shown, range(100, 5000))
    assert look(evidence(0.3, n), 60).is_significant
    assert not look(evidence(0.3, n - 1), 60).is_significant


def test_the_lift_over_all_units_is_kept_where_shares_were_adapted() -> None:
    seen = of(*cells(0.5, 400), *cells(0.1, 2000, phase=2))
    adapted = look(seen, FIRST, ab_test(allocation="thompson"))
    assert adapted.reweighted == reweighted_lift(seen.strata(), ab_test().metric)
    assert adapted.reweighted is not None
    assert look(seen, FIRST).reweighted is None


def test_limits_that_are_set_reach_the_view() -> None:
    """A segment is judged by the drop that is set, and a criterion by the latency that is set."""
    harmed = {("persona", "a"): cells(-0.4, 4000)}
    seen = replace(evidence(0.5), segments=harmed)
    guarded = ab_test(segment_guardrail=True, segments=("persona",))
    assert verdict(seen, 60, guarded) is Verdict.REJECT
    assert verdict(seen, 60, guarded, max_engagement_drop=0.5) is Verdict.CONTINUE
    asked = ab_test(criteria=("engagement superior 0.15", "latency superior 0.1"))
    requests = {Arm.BASELINE: slow(2000, 800, 700.0), Arm.CANDIDATE: slow(2000, 20)}
    seen = replace(evidence(0.5), requests=requests)
    assert verdict(seen, FIRST, asked) is Verdict.CONTINUE
    fast = look(seen, FIRST, asked, max_p95_latency_ms=500.0)
    assert fast.verdict is Verdict.PROMOTE
    assert fast.reason.endswith("; requests slower than 500 ms -39.0%.")


def test_what_both_arms_fail_alike_and_a_heavy_tail_are_said_after_the_reason() -> None:
    hour = HourRequests(phase=1, baseline=both(90, 60, 0), candidate=both(10, 7, 0))
    heavy = [replace(c, units=units(2000, MEAN, spread=4.0)) for c in cells(0.0)]
    seen = replace(of(*heavy), requests={Arm.CANDIDATE: both(80, 56, 0)}, hours=(hour,) * 8)
    found = look(seen, 60)
    assert found.verdict is Verdict.CONTINUE
    assert found.reason == (
        f"So far no declared look is due: {bounds(seen)}. Both arms fail alike, which is waited "
        "out: error rate is above its limit of 5.0%: 56 of 80 (70.0%), the baseline's at the same "
        "time 66.7%. Outcomes have a heavy tail: about 118 of the 2000 units of the baseline carry "
        "their sum, so bounds can be wrong more often than they say. Declare a cap in the next "
        "test."
    )
