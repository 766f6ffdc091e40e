"""Several candidates at once, end to end: lanes, shared baseline, one winner, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from tests.integration.loop import Loop, open_loop

from tuneproof.errors import ConfigError, ConflictError, InputError, StateError
from tuneproof.experiments import (
    ABTest,
    Arm,
    ExperimentStatus,
    ModelEvaluator,
    Variant,
    Verdict,
)
from tuneproof.settings import PipelineConfig
from tuneproof.store import RunStatus
from tuneproof.testing import MemoryProvider
from tuneproof.training import VersionStatus

BASE = Variant(model_id="base")
ONE, TWO, THREE = (Variant(model_id=name) for name in ("one", "two", "three"))


@asynccontextmanager
async def family_of(
    directory: Path, database: str, lifts: dict[str, float], **changes: object
) -> AsyncIterator[tuple[Loop, list[ABTest]]]:
    """A family of the models in `lifts` under way."""
    provider = MemoryProvider(base_models=("base", *lifts))
    split = {"traffic_split": 1 / (len(lifts) + 1), **changes}
    async with open_loop(directory, database, provider=provider, changes=split) as loop:
        loop.traffic.lifts = lifts
        candidates = [Variant(model_id=name) for name in lifts]
        tests = await loop.app.experiments.create(baseline=BASE, candidates=candidates)
        yield loop, list(tests)


async def test_best_candidate_is_promoted_and_the_others_are_rejected_for_it(
    tmp_path: Path, database_url: str
) -> None:
    lifts = {"one": 0.3, "two": 0.8, "three": 0.0}
    async with family_of(tmp_path, database_url, lifts) as (loop, tests):
        family = tests[0].family
        assert [t.lane for t in tests] == [0, 1, 2]
        assert {t.salt for t in tests} == {family}
        won = await loop.app.engine.result(family)
        ended = await loop.app.store.experiments.family(family)
        assert won == tests[1].id
        assert [t.verdict for t in ended] == [Verdict.REJECT, Verdict.PROMOTE, Verdict.REJECT]
        assert {t.status for t in ended} == {ExperimentStatus.COMPLETED}
        assert f"two ({won})" in (ended[0].reason or "")
        assert all(not r.lanes for r in await loop.app.routing.all())
        begun = await loop.app.rollouts.deploy(model=TWO, ab_test_id=won, strategy="immediate")
        await loop.app.engine.result(begun.id)
        assert {r.baseline.model_id for r in await loop.app.routing.all()} == {"two"}


async def test_each_candidate_is_compared_with_the_baseline_of_all_lanes(
    tmp_path: Path, database_url: str
) -> None:
    async with family_of(tmp_path, database_url, {"one": 0.0, "two": 0.0}) as (loop, tests):
        await loop.app.engine.result(tests[0].family)
        both = zip(*[await loop.app.experiments.looks(t.id) for t in tests], strict=False)
        looks = list(both)[-1]
        assert looks[0].baseline == looks[1].baseline
        before = looks[0].matured_before
        own = [await loop.app.store.events.evidence(t.id, before=before) for t in tests]
        alone = [e.arm(Arm.BASELINE).sample_size for e in own]
        assert min(alone) > 0
        assert looks[0].baseline.sample_size == sum(alone)
        assert all(look.inputs["control"] == [t.id for t in tests] for look in looks)
        for test, look in zip(tests, looks, strict=True):
            assert look.alpha == pytest.approx(test.promotion_alpha)
        assert tests[0].promotion_alpha == pytest.approx(0.0219, abs=1e-4)


async def test_look_at_one_is_a_look_at_all(tmp_path: Path, database_url: str) -> None:
    async with family_of(tmp_path, database_url, {"one": 0.0, "two": 0.0}) as (loop, tests):
        evaluator = ModelEvaluator(store=loop.app.store, clock=loop.app.clock)
        await loop.app.experiments.end(tests[1].id, reason="typo", actor="cli")
        found = await evaluator.evaluate_performance(tests[0].id)
        assert found.look.experiment_id == tests[0].id
        assert found.recommendation is Verdict.CONTINUE
        with pytest.raises(StateError, match="ended before its first look"):
            await evaluator.evaluate_performance(tests[1].id)
        await loop.app.experiments.end(tests[0].family, reason="enough", actor="cli")


async def test_harmful_candidate_ends_alone_and_all_lanes_begin_a_phase_together(
    tmp_path: Path, database_url: str
) -> None:
    async with family_of(tmp_path, database_url, {"one": -0.6, "two": 0.0}) as (loop, tests):
        await loop.app.engine.result(tests[0].family)
        phases = [await loop.app.store.experiments.phases(t.id) for t in tests]
        assert [[p.share for p in of] for of in phases] == [[1 / 3, 0.0], [1 / 3, 1 / 3]]
        assert phases[0][1].at == phases[1][1].at
        looks = await loop.app.experiments.looks(tests[1].id)
        assert {cell["phase"] for cell in looks[-1].inputs["cells"]} == {1, 2}
        harmed = await loop.app.experiments.looks(tests[0].id)
        assert harmed[-1].reason.startswith("The candidate is worse")
        assert len(harmed) < len(looks)
        stopped = await loop.app.store.events.evidence(tests[0].id)
        assert [c.arm for c in stopped.cells if c.phase == 2] == [Arm.BASELINE]


async def test_one_candidate_can_be_ended_by_hand_and_then_all(
    tmp_path: Path, database_url: str
) -> None:
    async with family_of(tmp_path, database_url, {"one": 0.0, "two": 0.0, "three": 0.0}) as (
        loop,
        tests,
    ):
        [ended] = await loop.app.experiments.end(tests[1].id, reason="typo", actor="cli")
        assert ended.status is ExperimentStatus.ABORTED
        [routing, _] = await loop.app.routing.all()
        assert [lane.candidate for lane in routing.lanes] == [ONE, None, THREE]
        assert routing.phase == 2
        with pytest.raises(StateError, match="aborted already"):
            await loop.app.experiments.end(tests[1].id, reason="again", actor="cli")
        await loop.app.experiments.end(tests[0].family, reason="enough", actor="cli")
        assert all(not r.subjects for r in await loop.app.routing.all())
        await loop.app.engine.result(tests[0].family)
        with pytest.raises(StateError, match="have ended"):
            await loop.app.experiments.end(tests[0].family, reason="again", actor="cli")


async def test_raw_events_of_an_ended_candidate_stay_while_its_family_runs(
    tmp_path: Path, database_url: str
) -> None:
    async with family_of(tmp_path, database_url, {"one": 0.0, "two": 0.0}) as (loop, tests):
        retention = loop.app.store.retention
        await loop.app.experiments.end(tests[0].id, reason="typo", actor="cli")
        later = tests[0].end_at + timedelta(days=1)
        assert await retention.due("default", later) == []
        await loop.app.experiments.end(tests[0].family, reason="enough", actor="cli")
        assert await retention.due("default", later) == [t.id for t in tests]


async def test_family_is_refused_where_it_cannot_be_tested(
    tmp_path: Path, database_url: str
) -> None:
    async with family_of(tmp_path, database_url, {"one": 0.0, "two": 0.0}) as (loop, _):
        create = loop.app.experiments.create
        with pytest.raises(InputError, match="no candidate"):
            await create(baseline=BASE, candidates=[])
        with pytest.raises(InputError, match="one is named twice"):
            await create(baseline=BASE, candidates=[ONE, ONE])
        with pytest.raises(InputError, match="outside"):
            await create(baseline=BASE, candidates=[ONE, TWO], traffic_split=0.4)
        with pytest.raises(InputError, match="shares stay"):
            await create(baseline=BASE, candidates=[ONE, TWO], allocation="thompson")
        with pytest.raises(ConflictError, match="busy with ab-test"):
            await create(baseline=BASE, candidates=[ONE, TWO])


async def test_lane_with_a_broken_split_leaves_the_shared_baseline(
    tmp_path: Path, database_url: str
) -> None:
    none = {"one": 0.0, "two": 0.0}
    async with family_of(tmp_path, database_url, none, planned_units=3000) as (loop, tests):
        loop.traffic.lost = {"one": 0.5}
        await loop.app.engine.result(tests[0].family)
        first, second = await loop.app.store.experiments.family(tests[0].family)
        assert first.verdict is Verdict.INVALID
        assert second.verdict is Verdict.REJECT
        looks = await loop.app.experiments.looks(second.id)
        assert looks[-1].inputs["control"] == [second.id]
        before = looks[-1].matured_before
        own = await loop.app.store.events.evidence(second.id, before=before)
        assert looks[-1].baseline.sample_size == own.arm(Arm.BASELINE).sample_size


# --- a whole run ------------------------------------------------------------------------------

TWO_OF_THREE = {
    "search": {"n_epochs": (1, 2, 4)},
    "search_trials": 3,
    "candidates": 2,
    "traffic_split": 1 / 3,
}


async def test_run_tests_its_best_trials_at_once_and_rolls_the_winner_out(
    tmp_path: Path, database_url: str
) -> None:
    async with open_loop(tmp_path, database_url, changes=TWO_OF_THREE, lift=0.0) as loop:
        run = await loop.app.runs.start()
        models = await _gated(loop, run.id)
        loop.traffic.lifts = {models[1]: 0.8}
        run = await loop.end(run.id)
        assert run.status is RunStatus.SUCCESS, run.reason
        assert run.stages["gate"]["detail"]["candidates"][1]["passed"] is True
        said = run.stages["experiment"]["detail"]["candidates"]
        assert [c["verdict"] for c in said] == ["reject", "promote"]
        assert [c["model_id"] for c in said] == models
        assert run.result["ab_test_id"] == said[1]["ab_test_id"]
        versions = {v.model_id: v for v in await loop.app.store.versions.list()}
        assert versions[models[0]].status is VersionStatus.REJECTED
        assert versions[models[1]].status is VersionStatus.LIVE
        assert sorted(v.version for v in versions.values()) == ["1.0.0", "1.1.0"]
        assert {r.baseline.model_id for r in await loop.app.routing.all()} == {models[1]}


async def _gated(loop: Loop, run_id: str) -> list[str]:
    """The models that are tested, best trial first, once their experiment began."""
    while True:
        await loop.app.runs.wait(run_id, seconds=0.01)
        run = await loop.app.store.runs.get(run_id)
        if "experiment" in run.stages:
            candidates = run.stages["gate"]["detail"]["candidates"]
            return [c["model_id"] for c in candidates]


async def test_run_whose_candidates_are_no_better_is_rejected_with_all_of_them(
    tmp_path: Path, database_url: str
) -> None:
    async with open_loop(tmp_path, database_url, changes=TWO_OF_THREE, lift=0.0) as loop:
        run = await loop.turn()
        assert run.status is RunStatus.REJECTED
        assert (run.reason or "").startswith("None of 2 candidates is promoted.")
        assert {v.status for v in await loop.app.store.versions.list()} == {VersionStatus.REJECTED}
        assert all(not r.subjects for r in await loop.app.routing.all())
        [spent] = await loop.app.store.experiments.spent("default")
        assert (spent.candidates, spent.promoted) == (2, False)
        assert spent.alpha == pytest.approx(0.0219, abs=1e-4)


async def test_aborted_run_takes_all_candidates_back(tmp_path: Path, database_url: str) -> None:
    async with open_loop(tmp_path, database_url, changes=TWO_OF_THREE, lift=0.0) as loop:
        run = await loop.app.runs.start()
        await _gated(loop, run.id)
        await loop.app.runs.abort(run.id, reason="changed my mind", actor="cli")
        assert (await loop.end(run.id)).status is RunStatus.ABORTED
        assert all(not r.subjects for r in await loop.app.routing.all())
        tests = (await loop.app.store.experiments.page()).items
        assert {t.status for t in tests} == {ExperimentStatus.ABORTED}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"candidates": 2}, "needs training.search"),
        ({**TWO_OF_THREE, "candidates": 4, "traffic_split": 0.1}, "there are 3"),
        ({**TWO_OF_THREE, "allocation": "thompson"}, "shares stay as they are"),
        ({**TWO_OF_THREE, "traffic_split": 0.4}, "at most 0.3333"),
    ],
)
def test_settings_that_cannot_make_several_candidates_are_refused(
    changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        PipelineConfig(**changes)  # type: ignore[arg-type]
