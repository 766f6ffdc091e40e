"""Candidates that nobody trained: a model as its provider has it, gated, tested, rolled out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.integration.loop import QUICK, Loop, open_loop, posts, settings
from tests.integration.providing import Provider, open_providers

from tuneproof.app import App
from tuneproof.errors import ConfigError, NotFoundError
from tuneproof.settings import PipelineConfig, ScorerConfig
from tuneproof.store import Run, RunStatus
from tuneproof.testing import MemoryProvider, MemorySource
from tuneproof.training import VersionStatus

NEWER = {"make": "as_is", "model": "newer"}
TRAIN = {"make": "train"}


def recipes(*made: dict[str, str], split: float = 0.3) -> dict[str, Any]:
    return {"recipes": made, "traffic_split": split, "base_model": "base"}


def provider() -> MemoryProvider:
    return MemoryProvider(base_models=("base", "newer", "other"))


async def versions(loop: Loop, run: Run) -> list[tuple[str | None, VersionStatus]]:
    found = await loop.app.store.versions.list(pipeline="default")
    of_run = sorted((v for v in found if v.run_id == run.id), key=lambda v: v.version)
    return [(v.model_id, v.status) for v in of_run]


async def test_a_newer_base_is_tested_and_promoted_without_any_training(
    tmp_path: Path, database_url: str
) -> None:
    given = recipes(NEWER, split=0.5)
    async with open_loop(tmp_path, database_url, provider=provider(), changes=given) as loop:
        run = await loop.turn()
        assert run.status is RunStatus.SUCCESS, run.reason
        assert not {"create_job", "upload"} & set(loop.provider.calls)
        assert run.stages["train"]["status"] == "completed"
        assert "as its provider has it" in run.stages["gate"]["detail"]["reason"]
        assert run.stages["gate"]["detail"]["heldout_loss"] is None
        assert await versions(loop, run) == [("newer", VersionStatus.LIVE)]
        [test] = await loop.app.store.experiments.family(run.result["ab_test_id"])
        assert (test.baseline.model_id, test.candidate.model_id) == ("base", "newer")
        assert {r.baseline.model_id for r in await loop.app.routing.all()} == {"newer"}
        again = await loop.turn()
        assert again.status is RunStatus.SKIPPED
        assert "in use" in (again.reason or "")
        assert await versions(loop, again) == []


@pytest.mark.parametrize("better", ["newer", "trained"])
async def test_a_newer_base_and_a_fine_tune_are_tested_as_one_family(
    tmp_path: Path, database_url: str, better: str
) -> None:
    async with open_loop(
        tmp_path, database_url, provider=provider(), changes=recipes(TRAIN, NEWER)
    ) as loop:
        loop.traffic.lift = 0.8 if better == "trained" else 0.0
        loop.traffic.lifts = {"newer": 0.8 if better == "newer" else 0.0}
        run = await loop.turn()
        assert run.status is RunStatus.SUCCESS, run.reason
        (tuned, first), (taken, second) = await versions(loop, run)
        assert tuned is not None
        assert tuned.startswith("ft:")
        assert taken == "newer"
        won = taken if better == "newer" else tuned
        assert {r.baseline.model_id for r in await loop.app.routing.all()} == {won}
        assert {first, second} == {VersionStatus.LIVE, VersionStatus.REJECTED}
        tests = await loop.app.store.experiments.family(run.result["family"])
        assert [t.candidate.model_id for t in tests] == [tuned, "newer"]
        numbers = {v.version for v in await loop.app.store.versions.list(pipeline="default")}
        assert numbers == {"1.0.0", "1.1.0"}


async def test_a_model_that_answers_unfit_is_refused_and_the_others_go_on(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    def answer(model: str, messages: Any, number: int) -> str:
        return "" if model == "newer" else f"An answer {number} that is fit to be read."

    trainer = MemoryProvider(base_models=("base", "newer", "other"), answer=answer)
    given = recipes(NEWER, {"make": "as_is", "model": "other"})
    async with open_loop(tmp_path, sqlite_store_url, provider=trainer, changes=given) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.SUCCESS, run.reason
        assert await versions(loop, run) == [
            ("newer", VersionStatus.REJECTED),
            ("other", VersionStatus.CANDIDATE),
        ]


async def test_a_model_that_its_provider_does_not_have_fails_the_run_by_name(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    trainer = provider()
    given = recipes(NEWER, split=0.5)
    async with open_loop(tmp_path, sqlite_store_url, provider=trainer, changes=given) as loop:
        trainer.raises["complete"] = NotFoundError("There is no newer here.", mend="Deploy it.")
        run = await loop.turn()
        assert run.status is RunStatus.FAILED
        assert run.error is not None
        assert (run.error["stage"], run.error["message"]) == ("gate", "There is no newer here.")
        del trainer.raises["complete"]  # somebody deployed it
        await loop.app.runs.retry(run.id, stage="train")
        again = await loop.end(run.id)
        assert again.status is RunStatus.SUCCESS, again.reason
        assert {r.baseline.model_id for r in await loop.app.routing.all()} == {"newer"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("train", "list of tables"),
        (["train"], "must be a table"),
        ([{"make": "as_is"}], "model"),
        ([{"make": "bake"}], "make"),
        ([{"make": "train", "provider": "p"}], "needs model beside it"),
        ([{"make": "train", "prompt": "p"}], "keeps that of its examples"),
        ([TRAIN, TRAIN], "each candidate once"),
        ([NEWER, NEWER], "each candidate once"),
        ([{**NEWER, "prompt": "p"}], "prompt"),
        ([{**NEWER, "model": ""}], "model"),
        ([{"make": "as_is", "model": f"m{i}"} for i in range(21)], "20 at most"),
    ],
)
def test_recipes_that_cannot_be_are_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(QUICK, recipes=given)


def test_each_candidate_has_its_share_beside_the_baseline() -> None:
    with pytest.raises(ConfigError, match=r"at most 0\.3333"):
        replace(QUICK, recipes=(TRAIN, NEWER), traffic_split=0.5)
    with pytest.raises(ConfigError, match="fixed"):
        replace(QUICK, recipes=(TRAIN, NEWER), traffic_split=0.3, allocation="adaptive")
    made = replace(QUICK, recipes=(TRAIN, NEWER), traffic_split=0.3)
    assert (made.lanes, made.trains) == (2, True)
    assert PipelineConfig.from_dict(made.to_dict()) == made


async def test_a_run_is_told_its_recipes_and_their_providers_are_known(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    async with open_loop(
        tmp_path, sqlite_store_url, provider=provider(), changes={"base_model": "base"}
    ) as loop:
        with pytest.raises(ConfigError, match="'elsewhere', which is not set"):
            await loop.app.runs.start(recipes=[{**NEWER, "provider": "elsewhere"}])
        run = await loop.turn(recipes=[NEWER], last_stage="gate")
        assert run.status is RunStatus.SUCCESS, run.reason
        assert run.config["recipes"] == [NEWER]
        assert await versions(loop, run) == [("newer", VersionStatus.CANDIDATE)]


async def test_another_houses_model_replaces_one_that_is_no_worse_and_dearer(
    tmp_path: Path, database_url: str
) -> None:
    """The way of docs/how-to/migrate.md: no training, another provider, shown to be no worse."""
    own = Provider(name="own", base_models=("base",))
    other = Provider(name="openai", base_models=("newer",))
    changes = {
        "recipes": ({**NEWER, "provider": "openai"},),
        "criteria": ("engagement non_inferior 0.1",),
        "base_model": "base",
        "traffic_split": 0.5,
        "holdback": 0.0,
        "a_b_test_duration_hours": 168.0,
    }
    async with open_providers(
        tmp_path, database_url, own, other, changes=changes, lift=0.0
    ) as loop:
        loop.traffic.per_hour = 120
        run = await loop.turn()
        assert run.status is RunStatus.SUCCESS, run.reason
        assert other.calls["complete"] > 0
        assert "create_job" not in own.calls
        routing = {r.task: r.baseline for r in await loop.app.routing.all()}
        assert {model.model_id for model in routing.values()} == {"newer"}
        [version] = [v for v in await loop.app.store.versions.list() if v.run_id == run.id]
        assert (version.provider, version.training_job_id) == ("openai", None)
        endpoint = await loop.app.routing.endpoints.of(routing["hook"])
        assert endpoint.provider == "openai"
        assert (await loop.turn()).status is RunStatus.SKIPPED


async def test_a_run_may_not_be_told_that_one_measure_chooses_and_decides(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    judge = ScorerConfig(name="judge", model="newer")
    config = replace(QUICK, quality_scorer="judge")
    made = settings(tmp_path, sqlite_store_url, config, scorers={"judge": judge})
    async with App.open(
        made, source=MemorySource([]), provider=MemoryProvider(), background=False
    ) as app:
        with pytest.raises(ConfigError, match="it would decide on its own answers"):
            await app.runs.start(
                config_overrides={"criteria": ["quality superior 0.1"]},
                recipes=[{"make": "as_is", "model": "newer"}],
            )
        assert not await app.store.runs.active()


async def test_a_plan_prices_each_candidate_and_leaves_out_what_is_in_use(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    own = Provider(name="own", base_models=("base",))
    other = Provider(name="openai", base_models=("newer",))
    changes = {"recipes": ({**NEWER, "provider": "openai"}, TRAIN), "traffic_split": 0.3}
    source = [post._replace(tokens_used=100) for post in posts()]
    more = {"prices": {"base": (0.0, 2.0), "newer": (0.0, 10.0)}}
    async with open_providers(
        tmp_path, sqlite_store_url, own, other, changes=changes, source=source, more=more
    ) as loop:
        plan = await loop.app.experiments.plan()
        tokens = (plan.units_per_hour or 0) * plan.hours * 0.3 * 100
        assert plan.candidates == 2
        assert plan.answers_cost_usd == pytest.approx(tokens * (2 + 10) / 1e6)
        run = await loop.turn(recipes=[{**NEWER, "provider": "openai"}])
        assert run.status is RunStatus.SUCCESS, run.reason
        assert run.result["plan"]["answers_cost_usd"] == pytest.approx(
            run.result["plan"]["units_per_hour"] * plan.hours * 0.3 * 100 * 10 / 1e6
        )
        later = await loop.app.experiments.plan(days_back=60)
        assert later.candidates == 1, "the newer model is in use"
        tokens = (later.units_per_hour or 0) * later.hours * 0.3 * 100
        assert later.answers_cost_usd == pytest.approx(tokens * 2 / 1e6)
