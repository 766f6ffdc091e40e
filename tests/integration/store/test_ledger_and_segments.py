"""What experiments keep beside their events: the ledger, past lifts, looks, segments."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import timedelta

import pytest
from tests.integration.store.records import T0, experiment, look

from tuneproof.experiments import (
    Arm,
    Criterion,
    CriterionResult,
    ExpectedLift,
    ExperimentStatus,
    Exposure,
    Halves,
    ModelEvaluator,
    Outcome,
    Part,
    Segment,
    Verdict,
)
from tuneproof.settings import PipelineConfig
from tuneproof.store import Store
from tuneproof.store.tables import looks

HOUR = timedelta(hours=1)


async def ended(store: Store, test_id: str, verdict: Verdict) -> None:
    """End a test, so that its tasks are free again."""
    await store.experiments.end(
        test_id, status=ExperimentStatus.COMPLETED, verdict=verdict, reason="over"
    )
    await store.withdrawal.withdraw([test_id], T0, "over")


async def test_each_experiment_of_a_pipeline_takes_the_next_allotment(store: Store) -> None:
    evaluator = ModelEvaluator(store=store, clock=store.clock)
    alphas = []
    for model in ("m1", "m2", "m2"):
        test = await evaluator.create_a_b_test("base", model)
        alphas.append((test.alpha, test.retest))
        assert await store.experiments.get(test.id) == test
        await ended(store, test.id, Verdict.REJECT)
    assert [retest for _, retest in alphas] == [0, 0, 1]
    assert alphas[0][0] == pytest.approx(0.02187, abs=1e-5)
    assert alphas[0][0] > alphas[1][0] > alphas[2][0]  # type: ignore[operator]


async def test_without_a_ledger_the_declared_level_holds(store: Store) -> None:
    config = PipelineConfig(loop_ledger=False)
    evaluator = ModelEvaluator(store=store, clock=store.clock, config=config)
    test = await evaluator.create_a_b_test("base", "m1")
    assert (test.alpha, test.promotion_alpha) == (None, 0.05)


async def test_pipelines_have_ledgers_of_their_own(store: Store) -> None:
    for name in ("one", "two"):
        config = PipelineConfig(name=name, tasks=(name,))
        evaluator = ModelEvaluator(store=store, clock=store.clock, config=config)
        test = await evaluator.create_a_b_test("base", "m1")
        assert test.retest == 0


async def test_declared_criteria_are_kept(store: Store) -> None:
    config = PipelineConfig(criteria=("engagement superior 0.1", "quality non_inferior 0.02"))
    evaluator = ModelEvaluator(store=store, clock=store.clock, config=config)
    test = await evaluator.create_a_b_test("base", "m1")
    kept = await store.experiments.get(test.id)
    assert [str(c) for c in kept.all_criteria] == list(config.criteria)


async def test_a_look_is_kept_whole(store: Store) -> None:
    await store.experiments.add(experiment())
    part = Part(lift=0.1, lower=-0.1, upper=0.3, n_baseline=900, n_candidate=100)
    whole = look(
        experiment().id,
        1,
        alpha=0.04,
        standard_error=0.05,
        expected=ExpectedLift(
            lift=0.1, lower=0.0, upper=0.2, observed=0.2, weight=0.5, prior_mean=0.0,
            prior_sd=0.1, prior_experiments=4,
        ),
        halves=Halves(first=part, second=part, p_value=0.5, reason="the same"),
        criteria=(
            CriterionResult(
                metric="cost", criterion=Criterion(metric="cost", kind="superior", margin=0.1),
                holds=None, change=0.2, lower=-0.1, upper=0.3, reason="open",
            ),
        ),
        segments=(
            Segment(
                attribute="persona", value="a", lift=0.1, lower=None, upper=None, n_baseline=9,
                n_candidate=1, found=False, harmed=False, reason="",
            ),
        ),
    )  # fmt: skip
    await store.experiments.add_look(whole)
    assert await store.experiments.looks(experiment().id) == [whole]


async def test_a_look_from_before_the_mean_lift_was_kept_still_loads(store: Store) -> None:
    await store.experiments.add(experiment())
    expected = ExpectedLift(
        lift=0.1, lower=0.0, upper=0.2, observed=0.2, weight=0.5, prior_mean=0.0, prior_sd=0.1,
        prior_experiments=4, mean_lift=0.11,
    )  # fmt: skip
    await store.experiments.add_look(look(experiment().id, 1, expected=expected))
    older = {k: v for k, v in asdict(expected).items() if k != "mean_lift"}
    async with store.database.writing(None) as tx:
        await tx.execute(looks.update().values(expected=older))
    (found,) = await store.experiments.looks(experiment().id)
    assert found.expected == replace(expected, mean_lift=None)


async def test_past_lifts_are_those_of_the_last_looks_of_ended_experiments(store: Store) -> None:
    for i, lift in enumerate((0.2, 0.5)):
        id = f"ab-test-20250120-00{i}"
        await store.experiments.add(experiment(id))
        for number in (1, 2):
            await store.experiments.add_look(look(id, number, lift=lift * number, standard_error=1))
    await ended(store, "ab-test-20250120-000", Verdict.REJECT)
    assert await store.experiments.final_lifts("default") == [(0.4, 1.0)]
    assert await store.experiments.final_lifts("other") == []


async def test_units_are_split_by_an_attribute_of_their_first_exposure(store: Store) -> None:
    test = experiment()
    await store.experiments.add(test)
    await store.experiments.open_phase(test.id, 1, 0.5, T0)
    shown, told = [], []
    for i in range(40):
        arm = Arm.CANDIDATE if i % 2 else Arm.BASELINE
        for n, persona in enumerate((f"p{i % 4 // 2}", "later")):
            shown.append(
                Exposure(
                    id=f"e{i}-{n}", subject=test.id, phase=1, arm=arm, unit=f"u{i}",
                    at=T0 + n * HOUR, cost_usd=0.01, attributes={"persona": persona},
                )
            )  # fmt: skip
        told.append(
            Outcome(id=f"o{i}", subject=test.id, unit=f"u{i}", at=T0 + 3 * HOUR, value=i / 100)
        )
    await store.events.ingest(shown, told)
    evidence = await store.events.evidence(
        test.id, before=T0 + 5 * HOUR, halfway=T0 + HOUR, segments=("persona", "absent")
    )
    assert set(evidence.segments) == {("persona", "p0"), ("persona", "p1")}
    total = sum((c.units.sum_y for cells in evidence.segments.values() for c in cells), 0.0)
    assert total == pytest.approx(sum(c.units.sum_y for c in evidence.cells))
    for cells in evidence.segments.values():
        assert [(c.arm, c.units.n) for c in cells] == [(Arm.BASELINE, 10), (Arm.CANDIDATE, 10)]
    assert [c.units.n for c in evidence.first_half] == [20, 20]
    earlier = await store.events.evidence(test.id, before=T0, segments=("persona",))
    assert earlier.segments == {}


async def test_experiment_without_a_ledger_takes_its_declared_error(store: Store) -> None:
    old = replace(experiment(), alpha=None, identity=("model:ft:base:1",))
    await store.experiments.add(old)
    [entry] = await store.experiments.spent("default")
    assert entry.alpha == old.declaration.significance_threshold
    assert entry.identity == ("model:ft:base:1",)
