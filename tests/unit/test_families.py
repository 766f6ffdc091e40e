"""Families: lanes that share a baseline, one winner, one error; and one rule of assignment."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.test_experiments import T0, ab_test, arm

from tuneproof.app import RoutingSnapshot
from tuneproof.assignment import BUCKETS, arm_among, bucket, candidate_buckets, in_lane, lane_of
from tuneproof.client.state import HeldRouting
from tuneproof.experiments import (
    ABTest,
    Arm,
    Cell,
    Evidence,
    ExpectedLift,
    ExperimentStatus,
    Look,
    Requests,
    Spent,
    Variant,
    Verdict,
    allot,
    judge,
    largest_split,
    winner,
)
from tuneproof.experiments.families import controls, settled, shared_control
from tuneproof.experiments.report import report_html
from tuneproof.rollout import Lane, Routing

BASE = Variant(model_id="base")


# --- assignment ---------------------------------------------------------------------------------

shares = st.integers(2, 8).flatmap(
    lambda k: st.lists(st.floats(0, 1 / (k + 1)), min_size=k, max_size=k)
)


@given(shares, st.integers(0, BUCKETS - 1))
def test_each_unit_has_one_candidate_at_most_and_it_is_that_of_its_lane(
    each: list[float], place: int
) -> None:
    found = arm_among(place, each)
    assert found in (None, lane_of(place, len(each)))


@given(shares, st.lists(st.floats(0, 1), min_size=8), st.integers(0, BUCKETS - 1))
def test_raising_a_share_moves_nobody_from_a_candidate(
    each: list[float], raised: list[float], place: int
) -> None:
    most = 1 / (len(each) + 1)
    wide = [a + (most - a) * r for a, r in zip(each, raised, strict=False)]
    before = arm_among(place, each)
    if before is not None:
        assert arm_among(place, wide) == before


@given(shares)
@settings(max_examples=20, deadline=None)
def test_share_within_a_lane_is_exact(each: list[float]) -> None:
    k = len(each)
    for lane, share in enumerate(each):
        own = [b for b in range(BUCKETS) if lane_of(b, k) == lane]
        served = sum(arm_among(b, each) == lane for b in own)
        assert served == candidate_buckets(share)
        assert in_lane(share, lane, k) == served / len(own)


routings = st.builds(
    lambda each, stopped: Routing(
        task="hook",
        baseline=BASE,
        salt="family-1",
        phase=2,
        version=5,
        lanes=tuple(
            Lane(
                subject=f"ab-test-{i}",
                candidate=None if i in stopped else Variant(model_id=f"c{i}", version=f"v{i}"),
                share=0.0 if i in stopped else share,
            )
            for i, share in enumerate(each)
        ),
    ),
    shares,
    st.sets(st.integers(0, 7)),
)


def chooser(routing: Routing) -> HeldRouting:
    """A client that heard of this routing as the service tells it."""
    state = HeldRouting(path=None, defaults={})
    state.update(json.loads(RoutingSnapshot.of([routing]).body[True]))
    return state


@given(routings, st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_client_service_and_gateway_decide_alike(routing: Routing, unit: str) -> None:
    served = routing.serve(unit)
    choice = chooser(routing).choose("hook", unit)
    assert (choice.model, choice.arm, choice.subject) == (
        served.model.model_id,
        str(served.arm),
        served.subject,
    )
    assert choice.model_version == served.model.version
    decided: dict[str, Any] = json.loads(
        RoutingSnapshot.of([routing]).answers[False]["hook"].decide(unit)
    )
    assert {k: decided[k] for k in ("model", "arm", "subject", "phase", "unit")} == {
        "model": choice.model,
        "arm": choice.arm,
        "subject": choice.subject,
        "phase": 2,
        "unit": unit,
    }


@given(st.floats(0, 1), st.integers())
def test_client_decides_for_one_candidate_by_the_rule_of_assignment(share: float, n: int) -> None:
    lane = Lane(subject="ab-test-1", candidate=Variant(model_id="new"), share=share)
    routing = Routing(task="hook", baseline=BASE, lanes=(lane,), salt="s")
    expected = "candidate" if bucket("s", str(n)) < candidate_buckets(share) else "baseline"
    assert chooser(routing).choose("hook", str(n)).arm == expected
    assert str(routing.serve(str(n)).arm) == expected


def test_stopped_candidate_leaves_its_lane_to_the_baseline() -> None:
    lanes = (Lane(subject="a"), Lane(subject="b", candidate=Variant(model_id="two"), share=0.5))
    routing = Routing(task="hook", baseline=BASE, salt="s", lanes=lanes)
    found = {(s.model.model_id, s.subject) for s in map(routing.serve, map(str, range(200)))}
    assert found == {("base", "a"), ("two", "b")}
    assert routing.subjects == ("a", "b")
    assert routing.candidates_share == 0.5


# --- evidence -----------------------------------------------------------------------------------


def siblings(count: int = 2, **changes: Any) -> list[ABTest]:
    return [
        replace(
            ab_test(id=f"ab-test-{i}", candidate=Variant(model_id=f"c{i}"), traffic_split=0.2),
            family="family-1",
            lane=i,
            lanes=count,
            **changes,
        )
        for i in range(count)
    ]


def lane(seed: int, *, base: int = 900, candidate: int = 600, lift: float = 0.0) -> Evidence:
    cells = [
        Cell(
            phase=1,
            arm=a,
            units=arm(mean, n, seed=seed + offset),
            exposed=n,
            qualities=arm(0.5, 10 * (seed + 1), seed=seed),
        )
        for offset, (a, n, mean) in enumerate(
            ((Arm.BASELINE, base, 0.068), (Arm.CANDIDATE, candidate, 0.068 * (1 + lift)))
        )
    ]
    return Evidence(
        cells=tuple(cells),
        exposed={(1, c.arm): c.exposed for c in cells},
        shares={1: 0.2},
        requests={Arm.BASELINE: Requests(n=base), Arm.CANDIDATE: Requests(n=candidate)},
        first_half=tuple(cells),
        segments={("persona", str(seed)): tuple(cells)},
    )


def test_baseline_of_all_lanes_stands_beside_a_candidate_of_its_own() -> None:
    tests, evidence = siblings(), {"ab-test-0": lane(0), "ab-test-1": lane(7)}
    seen = shared_control(tests[1], evidence, list(evidence))
    [baseline, candidate] = seen.cells
    assert baseline.units.n == 1800
    assert baseline.exposed == 1800
    assert baseline.qualities.n == 90
    assert baseline.quality == pytest.approx(baseline.qualities.sum_y / 90)
    assert candidate == evidence["ab-test-1"].cells[1]
    assert [c.units.n for c in seen.first_half] == [1800, 600]
    assert seen.segments[("persona", "7")][0].units.n == 900
    assert [c.arm for c in seen.segments[("persona", "0")]] == [Arm.BASELINE]


def test_split_and_requests_stay_those_of_the_lane() -> None:
    tests, evidence = siblings(), {"ab-test-0": lane(0), "ab-test-1": lane(7)}
    seen = shared_control(tests[1], evidence, list(evidence))
    assert seen.exposed == evidence["ab-test-1"].exposed
    assert seen.requests == evidence["ab-test-1"].requests
    assert seen.shares == {1: 0.4}


def test_lane_with_a_broken_split_is_no_control() -> None:
    tests = siblings(3)
    evidence = {
        "ab-test-0": lane(0),
        "ab-test-1": lane(3, candidate=200),
        "ab-test-2": lane(5),
    }
    evidence = {
        id: replace(e, shares={1: 4 / 30}) if id != "ab-test-2" else e for id, e in evidence.items()
    }
    assert controls(tests[:2], evidence) == ("ab-test-0",)
    ended = [replace(tests[0], verdict=Verdict.INVALID), tests[2]]
    assert "ab-test-0" not in controls(ended, evidence)


# --- the verdict --------------------------------------------------------------------------------


def looked(test: ABTest, verdict: Verdict, *, expected: float = 0.1, lift: float = 0.2) -> Look:
    look = judge(test, lane(test.lane), at=T0 + timedelta(hours=96))
    shrunk = ExpectedLift(
        lift=expected, lower=0.0, upper=1.0, observed=lift, weight=0.5, prior_mean=0.0,
        prior_sd=0.1, prior_experiments=0,
    )  # fmt: skip
    return replace(look, verdict=verdict, expected=shrunk, lift=lift, reason="Said so.")


def test_highest_expected_lift_wins_not_the_highest_observed_one() -> None:
    tests = siblings(4)
    looks = [
        looked(tests[0], Verdict.PROMOTE, expected=0.12, lift=0.9),
        looked(tests[1], Verdict.PROMOTE, expected=0.18, lift=0.3),
        looked(tests[2], Verdict.CONTINUE, expected=0.30),
        looked(tests[3], Verdict.INVALID),
    ]
    best = winner(looks)
    assert best is looks[1]
    found = settled(looks, tests)
    assert [x.verdict for x in found] == [
        Verdict.REJECT,
        Verdict.PROMOTE,
        Verdict.REJECT,
        Verdict.INVALID,
    ]
    assert "c1 (ab-test-1)" in found[0].reason
    assert "+18.0% against +12.0%" in found[0].reason
    assert "c1 (ab-test-1)" in found[2].reason
    assert found[3].reason == "Said so."


def test_family_goes_on_while_nothing_is_promoted() -> None:
    tests = siblings()
    looks = [looked(tests[0], Verdict.REJECT), looked(tests[1], Verdict.CONTINUE)]
    assert settled(looks, tests) == tuple(looks)
    assert winner(looks) is None


def test_stopped_candidate_goes_on_counting_as_baseline_until_its_family_can_end() -> None:
    [first, _] = siblings()
    stopped = replace(first, status=ExperimentStatus.ABORTED)
    before, after = first.end_at, first.last_look_at
    assert [first.counts(after), stopped.counts(before), stopped.counts(after)] == [
        True,
        True,
        False,
    ]
    alone = ab_test(status=ExperimentStatus.ABORTED)
    assert not alone.counts(before)
    assert ab_test(status=ExperimentStatus.COMPLETED).counts(before)


# --- the error ----------------------------------------------------------------------------------


def test_candidates_share_the_declared_error_evenly() -> None:
    assert [t.promotion_alpha for t in siblings(4)] == [0.0125] * 4
    assert siblings(2, alpha=0.005)[0].promotion_alpha == 0.01
    assert ab_test().promotion_alpha == 0.05


def test_family_takes_one_allotment_and_a_retest_gets_no_more_than_its_part() -> None:
    alone = allot([], ("model:a",), loop_alpha=0.05)
    part = allot([], ("model:a",), loop_alpha=0.05, among=4)
    assert part.alpha == pytest.approx(alone.alpha / 4)
    family = Spent(experiment="f", identity=("model:a", "model:b"), alpha=0.02, candidates=4)
    later = allot([family], ("model:a",), loop_alpha=0.05)
    assert (later.alpha, later.retest) == (0.005, 1)
    fresh = allot([family], ("model:z",), loop_alpha=0.05)
    assert fresh.alpha == allot([replace(family, candidates=1)], ("x",), loop_alpha=0.05).alpha


def test_baseline_has_at_least_as_much_as_any_candidate() -> None:
    for k in range(1, 20):
        assert 1 - k * largest_split(k) == pytest.approx(largest_split(k))


# --- the report ---------------------------------------------------------------------------------


def test_report_shows_all_candidates_on_one_scale() -> None:
    tests = siblings(3)
    family = [(t, [looked(t, Verdict.CONTINUE)] if t.lane else []) for t in tests]
    page = report_html(tests[1], family[1][1], family)
    assert page.count("<h3>") == 3
    assert "a 3th of the whole" not in page
    scales = [part.split("</svg>")[0].count('class="grid"') for part in page.split("<svg")[1:]]
    assert len(set(scales[1:])) == 1
    assert "Side by side" not in report_html(ab_test(), [])
