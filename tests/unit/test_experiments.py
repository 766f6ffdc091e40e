"""The judge: what a look says of which evidence."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from tuneproof.errors import InputError
from tuneproof.experiments import (
    ABTest,
    Arm,
    Cell,
    Criteria,
    Evidence,
    ExperimentStatus,
    Look,
    ModelRef,
    Requests,
    Verdict,
    judge,
    model_ref,
)
from tuneproof.stats.aggregates import Aggregate
from tuneproof.training import ModelVersion, VersionStatus

T0 = datetime(2025, 1, 20, tzinfo=UTC)
WEEK = timedelta(hours=168)


def ab_test(**changes: object) -> ABTest:
    made = ABTest(
        id="ab-test-20250120-001",
        run_id=None,
        pipeline="default",
        tasks=("hook", "body"),
        baseline=ModelRef(model_id="old"),
        candidate=ModelRef(model_id="new"),
        traffic_split=0.1,
        duration_hours=168,
        criteria=Criteria(),
        decision="spec",
        cost_metric="per_engagement",
        maturation_hours=24,
        min_units=100,
        min_units_phase=50,
        salt="s",
        status=ExperimentStatus.RUNNING,
        start_at=T0,
        end_at=T0 + WEEK,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def arm(mean: float, n: int, *, seed: int, cost: float = 0.001) -> Aggregate:
    draws = np.random.default_rng(seed).beta(mean * 20, (1 - mean) * 20, n)
    return Aggregate.of(draws.tolist(), c=[cost] * n, d=[200.0] * n)


def evidence(lift: float, *, n: int = 3400, split: float = 0.1, cost: float = 0.001) -> Evidence:
    baseline, candidate = int(n * (1 - split)), int(n * split)
    cells = (
        Cell(phase=1, arm=Arm.BASELINE, units=arm(0.068, baseline, seed=1), exposed=baseline),
        Cell(
            phase=1,
            arm=Arm.CANDIDATE,
            units=arm(0.068 * (1 + lift), candidate, seed=2, cost=cost),
            exposed=candidate,
        ),
    )
    return Evidence(cells=cells, exposed={(1, c.arm): c.exposed for c in cells}, shares={1: split})


def look(seen: Evidence, hours: float, test: ABTest | None = None, **more: object) -> Look:
    return judge(test or ab_test(), seen, at=T0 + timedelta(hours=hours), **more)  # type: ignore[arg-type]


def test_clear_winner_is_promoted_at_a_declared_look_only() -> None:
    strong = evidence(0.5)
    assert look(strong, 90).verdict is Verdict.CONTINUE
    found = look(strong, 24 + 72)
    assert (found.verdict, found.declared) == (Verdict.PROMOTE, True)
    assert found.lift is not None
    assert found.lift > 0.15
    assert "declared look 1" in found.method


def test_missed_declared_looks_coalesce_into_the_newest() -> None:
    found = look(evidence(0.5), 168 + 24)
    assert found.inputs["fractions"] == [1.0]
    assert found.verdict is Verdict.PROMOTE


def test_no_difference_is_never_promoted_and_ends_as_rejected() -> None:
    same = evidence(0.0)
    assert look(same, 96).verdict is not Verdict.PROMOTE
    found = look(same, 192, declared_before=(3 / 7, 5 / 7))
    assert found.verdict is Verdict.REJECT


def test_too_few_units_give_no_estimate_but_a_reason() -> None:
    found = look(evidence(0.5, n=400), 50)
    assert (found.lift, found.lower, found.upper, found.p_value) == (None, None, None, None)
    assert found.verdict is Verdict.CONTINUE
    assert found.reason.startswith("Not enough data")


def test_harmful_candidate_is_rejected_before_the_end() -> None:
    found = look(evidence(-0.5), 60)
    assert found.verdict is Verdict.REJECT
    assert found.reason.startswith("The candidate is worse")


def test_futile_test_ends_early() -> None:
    found = look(evidence(-0.05, n=60_000), 60)
    assert found.verdict is Verdict.REJECT
    assert found.reason.startswith(("It cannot reach", "The candidate is worse"))


def test_broken_split_makes_the_test_invalid_whatever_the_lift() -> None:
    broken = replace(evidence(0.5), shares={1: 0.2})
    found = look(broken, 96)
    assert found.verdict is Verdict.INVALID
    assert "the split is broken" in found.reason


def test_error_rate_rejects() -> None:
    failing = replace(
        evidence(0.5), requests={Arm.CANDIDATE: Requests(n=200, errors=60, mean_latency_ms=300)}
    )
    found = look(failing, 50)
    assert found.verdict is Verdict.REJECT
    assert "60 of 200" in found.reason


def test_dearer_candidate_fails_the_cost_criterion() -> None:
    found = look(evidence(0.5, cost=0.0016), 192, declared_before=(3 / 7, 5 / 7))
    assert found.verdict is Verdict.REJECT
    assert "the cost gain" in found.reason


def test_cost_criterion_is_waived_and_said_where_nothing_is_paid() -> None:
    free = evidence(0.5)
    cells = tuple(
        replace(c, units=Aggregate(n=c.units.n, sum_y=c.units.sum_y, sum_yy=c.units.sum_yy))
        for c in free.cells
    )
    found = look(replace(free, cells=cells), 96)
    assert found.verdict is Verdict.PROMOTE
    assert "waived" in found.reason


def test_confirmed_needs_the_lower_bound_above_the_required_lift() -> None:
    test = ab_test(decision="confirmed")
    assert look(evidence(0.5, n=60_000), 100, test).verdict is Verdict.CONTINUE
    assert look(evidence(0.5, n=60_000), 170, test).verdict is Verdict.PROMOTE
    assert look(evidence(0.17, n=8_000), 170, test).verdict is not Verdict.PROMOTE


def test_look_keeps_all_its_inputs() -> None:
    found = look(evidence(0.2), 50)
    assert [c["units"]["n"] for c in found.inputs["cells"]] == [3060, 340]
    assert found.inputs["exposed"] == [[1, "baseline", 3060], [1, "candidate", 340]]


def test_version_without_model_cannot_be_tested() -> None:
    version = ModelVersion(
        id="ver-1",
        pipeline="default",
        run_id=None,
        version="1.0.0",
        model_id=None,
        base_model="base",
        provider="default",
        training_job_id="ftjob-1",
        dataset_hash=None,
        tasks=("hook",),
        status=VersionStatus.TRAINING,
        created_at=T0,
    )
    with pytest.raises(InputError, match="has no model yet"):
        model_ref(version)
