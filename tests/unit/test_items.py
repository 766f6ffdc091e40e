"""What a test declares to count: units, items of units, or units adjusted by a covariate."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from tuneproof.errors import ConfigError, InputError
from tuneproof.experiments import (
    ABTest,
    Arm,
    Cell,
    Evidence,
    ExperimentStatus,
    Look,
    Variant,
    declare,
    engagement_metric,
    judge,
)
from tuneproof.experiments.allocation import reweighted_lift, thompson_share
from tuneproof.experiments.families import shared_control
from tuneproof.experiments.report import report_html
from tuneproof.rollout import Advice, Deployment, DeploymentState, plan, watch
from tuneproof.settings import Declaration, PipelineConfig
from tuneproof.stats import fixed
from tuneproof.stats.aggregates import Aggregate, Stratum
from tuneproof.stats.effects import ENGAGEMENT_CUPED, ENGAGEMENT_PER_ITEM

T0 = datetime(2025, 1, 20, tzinfo=UTC)
TEST = ABTest(
    id="ab-test-20250120-001", run_id=None, pipeline="default", tasks=("hook",),
    baseline=Variant(model_id="old"), candidate=Variant(model_id="new"),
    declaration=Declaration(traffic_split=0.5, maturation_hours=0), family="s",
    status=ExperimentStatus.RUNNING, start_at=T0, end_at=T0 + timedelta(hours=168),
)  # fmt: skip
BY_ITEM = replace(TEST, declaration=replace(TEST.declaration, analysis_unit="item"))
ADJUSTED = replace(TEST, declaration=replace(TEST.declaration, cuped=True))


def authors(n: int, mean: float, seed: int) -> Aggregate:
    """Authors with 1 to 30 posts each; busy authors do worse."""
    rng = np.random.default_rng(seed)
    posts = rng.integers(1, 31, n)
    rates = rng.beta(mean * 20, (1 - mean) * 20, n) * (1.5 - posts / 30)
    return Aggregate.of(rates * posts, m=posts.astype(float), c=np.full(n, 0.01))


def adjusted(n: int, lift: float, seed: int) -> Aggregate:
    rng = np.random.default_rng(seed)
    x, own = rng.beta(1.4, 18.6, (2, n))
    return Aggregate.of((0.5 * x + 0.5 * own) * (1 + lift), x=x, c=np.full(n, 0.01))


def evidence(baseline: Aggregate, candidate: Aggregate) -> Evidence:
    cells = (
        Cell(phase=1, arm=Arm.BASELINE, units=baseline, exposed=baseline.n),
        Cell(phase=1, arm=Arm.CANDIDATE, units=candidate, exposed=candidate.n),
    )
    return Evidence(cells=cells, exposed={(1, c.arm): c.exposed for c in cells}, shares={1: 0.5})


def look(test: ABTest, seen: Evidence, hours: float = 168) -> Look:
    return judge(test, seen, at=T0 + timedelta(hours=hours))


def test_items_are_compared_by_the_ratio_of_sums_and_counted_by_units() -> None:
    seen = evidence(authors(400, 0.068, 1), authors(400, 0.1, 2))
    found = look(BY_ITEM, seen)
    b, c = (cell.units for cell in seen.cells)
    assert found.lift == pytest.approx((c.sum_y / c.sum_m) / (b.sum_y / b.sum_m) - 1)
    assert found.baseline.engagement_rate == pytest.approx(b.sum_y / b.sum_m)
    assert (found.baseline.sample_size, found.candidate.sample_size) == (400, 400)
    assert "per item" in found.method
    assert found.inputs["metric"] == "engagement per item"
    assert "items (each" in report_html(BY_ITEM, [found])


def test_too_few_authors_are_no_answer_however_many_posts_they_have() -> None:
    many = Aggregate.of(np.linspace(50, 90, 99), m=np.full(99, 1000.0))
    found = look(BY_ITEM, evidence(many, many))
    assert found.lift is None
    assert "99 of 100 matured units" in found.reason


def test_candidate_whose_items_all_fail_is_rejected() -> None:
    dead = Aggregate.of(np.zeros(400), m=np.full(400, 5.0))
    found = look(BY_ITEM, evidence(authors(400, 0.068, 1), dead), hours=90)
    assert found.verdict == "reject"
    assert "score" in found.method


def test_covariate_narrows_the_interval_and_says_by_how_much() -> None:
    seen = evidence(adjusted(2000, 0.0, 1), adjusted(2000, 0.1, 2))
    plain, found = look(TEST, seen), look(ADJUSTED, seen)
    assert plain.standard_error is not None
    assert found.standard_error is not None
    saved = found.inputs["variance_saved"]
    assert saved == pytest.approx(0.5, abs=0.06)
    assert found.standard_error == pytest.approx(plain.standard_error * math.sqrt(1 - saved))
    assert f"the covariate saved {saved:.0%} of the variance" in found.method
    assert plain.inputs["variance_saved"] is None
    page = report_html(ADJUSTED, [found])
    assert "variance that the covariate saved" in page
    assert "units, adjusted by their covariate" in page
    assert found.baseline.engagement_rate == plain.baseline.engagement_rate


def test_test_that_declares_nothing_looks_as_it_did() -> None:
    seen = evidence(adjusted(2000, 0.0, 1), adjusted(2000, 0.1, 2))
    without = replace(
        seen,
        cells=tuple(
            replace(c, units=replace(c.units, sum_x=0.0, sum_xx=0.0, sum_xy=0.0))
            for c in seen.cells
        ),
    )
    one, other = look(TEST, seen), look(TEST, without)
    assert replace(one, inputs={}) == replace(other, inputs={})
    assert "CUPED" not in one.method
    assert "item" not in one.method


@pytest.mark.parametrize(
    ("metric", "seen"),
    [
        (ENGAGEMENT_PER_ITEM, (authors(500, 0.068, 3), authors(300, 0.08, 4))),
        (ENGAGEMENT_CUPED, (adjusted(1500, 0.0, 3), adjusted(900, 0.1, 4))),
    ],
    ids=["items", "cuped"],
)
def test_reweighted_lift_of_one_phase_is_the_plain_one(
    metric: Any, seen: tuple[Aggregate, Aggregate]
) -> None:
    strata = [Stratum(baseline=seen[0], candidate=seen[1])]
    plain, found = fixed.lift(strata, metric=metric), reweighted_lift(strata, metric)
    assert found is not None
    assert (found.lift, found.lower, found.upper) == pytest.approx(
        (plain.effect, plain.lower, plain.upper), rel=1e-9
    )
    assert thompson_share(strata, 0.2, metric=metric) == 0.5


def test_rollout_of_items_sees_the_drop_that_means_of_units_would_hide() -> None:
    """The candidate's busy authors do much worse: most posts, few authors."""
    posts = np.tile([1.0, 1.0, 1.0, 57.0], 200)
    rate = np.random.default_rng(1).beta(7, 93, 800)
    worse = np.where(posts > 1, rate * 0.3, rate * 1.2)
    seen = evidence(Aggregate.of(rate * posts, m=posts), Aggregate.of(worse * posts, m=posts))
    config = PipelineConfig()
    rollout = Deployment(
        id="deploy-20250120-001", run_id=None, pipeline="default", tasks=("hook",),
        ab_test_id=None, version_id=None, candidate=TEST.candidate, previous=TEST.baseline,
        plan=plan(config), state=DeploymentState.STEPPING, step=0, share=0.5, salt="s",
        created_at=T0, next_at=T0 + timedelta(days=9), declaration=BY_ITEM.declaration,
    )  # fmt: skip
    found = watch(rollout, seen, {}, config, T0 + timedelta(days=1))
    assert found.advice is Advice.ROLL_BACK
    assert found.evidence["lift"] == pytest.approx(-0.65, abs=0.03)


def test_candidates_at_once_share_a_baseline_of_items() -> None:
    lanes = [replace(BY_ITEM, id=f"t{i}", family="f", lane=i, lanes=2) for i in range(2)]
    seen = {
        t.id: evidence(authors(300, 0.068, i), authors(200, 0.1, i + 9))
        for i, t in enumerate(lanes)
    }
    shared = shared_control(lanes[0], seen, ["t0", "t1"])
    found = look(lanes[0], shared)
    own, other = (seen[t.id].cells[0].units for t in lanes)
    candidate = seen["t0"].cells[1].units
    rate = (own.sum_y + other.sum_y) / (own.sum_m + other.sum_m)
    assert found.lift == pytest.approx(candidate.sum_y / candidate.sum_m / rate - 1)
    assert found.baseline.sample_size == 600


def test_declaration_goes_into_the_test_and_a_bad_one_is_refused() -> None:
    config = declare(PipelineConfig(), {"analysis_unit": "item"})
    assert engagement_metric(config) is ENGAGEMENT_PER_ITEM
    assert engagement_metric(ADJUSTED.declaration) is ENGAGEMENT_CUPED
    with pytest.raises(InputError, match="'post'") as refused:
        declare(PipelineConfig(), {"analysis_unit": "post"})
    assert refused.value.mend
    with pytest.raises(InputError, match="cuped is True, but must be false") as refused:
        declare(PipelineConfig(analysis_unit="item"), {"cuped": True})
    assert "choose one" in refused.value.mend
    with pytest.raises(ConfigError, match="cuped"):
        PipelineConfig(cuped="yes")  # type: ignore[arg-type]
