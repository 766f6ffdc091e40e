"""Moving to another model before the one in use is shut down: planned, tested, rolled out."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.integration.loop import QUICK, STRIDE, T0, Loop, Traffic, posts, settings
from tests.integration.providing import Provider, open_providers

from tuneproof.app import App
from tuneproof.errors import ConfigError, InputError, StateError
from tuneproof.settings import ProviderConfig
from tuneproof.store import RunStatus
from tuneproof.testing import MemorySource, VirtualClock
from tuneproof_trainer.embedded import serve

NEWER = {"make": "as_is", "model": "newer", "provider": "openai"}
OPEN = {"make": "train", "model": "open", "provider": "lab"}
PRICES = {"prices": {"base": [9.0, 9.0], "newer": [1.0, 1.0], "open": [1.0, 1.0]}}


def opened(
    folder: Path, database: str, *, shutdown_days: float | None = 40, **more: Any
) -> AbstractAsyncContextManager[Loop]:
    """A loop on a model of `old`, which shuts it down; `openai` has a successor, `lab` trains."""
    old = Provider(name="old", base_models=("base",))
    if shutdown_days is not None:
        old.shutdowns = {"base": T0 + timedelta(days=shutdown_days)}
    successor = Provider(name="openai", base_models=("newer",))
    lab = Provider(name="lab", base_models=("open",))
    changes = {"base_model": "base", "a_b_test_duration_hours": 168.0}
    return open_providers(
        folder, database, old, successor, lab, changes=changes, lift=0.0, more={**PRICES, **more}
    )


async def test_the_best_of_what_is_no_worse_and_cheaper_takes_over(
    tmp_path: Path, database_url: str
) -> None:
    """A successor as it is and an open fine-tune, each elsewhere, against the doomed one."""
    async with opened(tmp_path, database_url) as loop:
        loop.traffic.per_hour = 240
        loop.traffic.lifts = {"newer": -0.5}
        loop.traffic.costs = {"base": 0.002}
        plan = await loop.app.migration.plan([NEWER, OPEN], margin=0.1)
        assert plan.in_use == (("base", "old"),)
        assert plan.candidates == ("newer at openai", "a fine-tune of open at lab")
        assert plan.share == pytest.approx(1 / 3)
        assert plan.takes.all == timedelta(days=7, hours=1 + 6)
        assert plan.shutdown_at == T0 + timedelta(days=40)
        assert plan.start_by == plan.shutdown_at - plan.takes.all
        said = " ".join(plan.sentences(loop.app.clock.now()))
        assert "base stops answering on 2025-02-15: from then on requests to it fail" in said
        assert "engagement non_inferior 0.1 and cost superior 0.1" in said
        run = await loop.app.migration.start([NEWER, OPEN], margin=0.1, actor="token:ops")
        run = await loop.end(run.id)
        assert run.status is RunStatus.SUCCESS, run.reason
        tests = await loop.app.store.experiments.family(run.result["family"])
        assert [t.candidate.model_id[:3] for t in tests] == ["ft:", "new"]
        won = await loop.app.store.versions.get(str(tests[0].candidate.version))
        assert (won.provider, won.base_model) == ("lab", "open")
        routing = {r.task: r.baseline for r in await loop.app.routing.all()}
        assert routing["hook"].version == won.id
        assert (await loop.app.routing.endpoints.of(routing["hook"])).provider == "lab"


async def test_where_there_is_no_time_a_person_chooses(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    """It is said before anything is spent, and never answered by a weaker test."""
    async with opened(tmp_path, sqlite_store_url, shutdown_days=5) as loop:
        with pytest.raises(StateError, match=r"stops answering on 2025-01-11, and the move takes"):
            await loop.app.migration.start([NEWER])
        assert not (await loop.app.store.runs.page(limit=1)).items
        late = await loop.app.migration.start([NEWER], late=True)
        assert late.config["criteria"] == ["engagement non_inferior 0.05", "cost superior 0.1"]
        assert late.config["a_b_test_duration_hours"] == 168.0
        assert late.config["holdback"] == 0.0


async def test_what_cannot_be_shown_is_not_asked_for(tmp_path: Path, sqlite_store_url: str) -> None:
    """A price that nobody knows, a place that is not there, nowhere to go."""
    prices = {"prices": {"newer": [1.0, 1.0]}}
    async with opened(tmp_path, sqlite_store_url, shutdown_days=None, **prices) as loop:
        move = loop.app.migration
        plan = await move.plan([NEWER])
        assert (plan.shutdown_at, plan.start_by) == (None, None)
        said = " ".join(plan.sentences(loop.app.clock.now()))
        assert "No date is announced on which base at old would be shut down." in said
        assert "training" not in said
        trained = (await move.plan([NEWER, OPEN])).sentences(loop.app.clock.now())
        assert trained[1].endswith("a training comes before.")
        assert any("base at old: no price is known" in one for one in plan.warnings)
        with pytest.raises(InputError, match="base at old: no price of answers is known"):
            await move.start([NEWER])
        assert (await move.plan([NEWER], cheaper=0)).criteria == ("engagement non_inferior 0.05",)
        for recipes, said in (
            ([], "somewhere to go"),
            ([{**NEWER, "provider": "nobody"}], "nobody"),
            ([{**OPEN, "provider": "nobody"}], "nobody"),
            ([{"make": "prompt", "hash": "a" * 16}], "prompt variants own"),
        ):
            with pytest.raises(ConfigError, match=said):
                await move.start(recipes, cheaper=0)
        with pytest.raises(ConfigError, match="margin of 0"):
            await move.plan([NEWER], margin=0)


async def test_a_move_from_a_model_that_nobody_names_is_refused(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    places = Provider(name="old"), Provider(name="openai", base_models=("newer",))
    async with open_providers(
        tmp_path, sqlite_store_url, *places, changes={"base_model": None}
    ) as loop:
        with pytest.raises(ConfigError, match="Nobody says which model hook has in use"):
            await loop.app.migration.plan([NEWER], cheaper=0)


async def test_a_dearer_successor_is_named(tmp_path: Path, sqlite_store_url: str) -> None:
    """Where it must be cheaper; the price alone decides nothing, so it may be tested."""
    prices = {"prices": {"base": [1.0, 1.0], "newer": [1.0, 2.0], "open": [1.0, 0.5]}}
    async with opened(tmp_path, sqlite_store_url, **prices) as loop:
        [said] = [
            w for w in (await loop.app.migration.plan([NEWER, OPEN])).warnings if "token" in w
        ]
        assert said.startswith(
            "newer at openai: a token of an answer costs no less than one of base"
        )
        free = await loop.app.migration.plan([NEWER, OPEN], cheaper=0)
        assert not any("token" in one for one in free.warnings)


async def test_a_move_between_two_trainers_whose_models_are_called_alike(tmp_path: Path) -> None:
    """Two real servers; both offer a base of one name, and what is trained is on the new one."""
    async with AsyncExitStack() as stack:
        trainers = [
            await stack.enter_async_context(serve(tmp_path / name)) for name in ("old", "new")
        ]
        providers = {
            name: ProviderConfig(
                name=name, kind="compatible", base_url=str(one.base_url), api_key="any"
            )
            for name, one in zip(("old", "new"), trainers, strict=True)
        }
        config = replace(
            QUICK, base_model="tuneproof-ngram-1", provider="old", a_b_test_duration_hours=168.0
        )
        app = await stack.enter_async_context(
            App.open(
                settings(
                    tmp_path / "data",
                    f"sqlite:///{tmp_path}/store.db",
                    config,
                    providers=providers,
                ),
                clock=VirtualClock(T0, stride=STRIDE),
                source=MemorySource(posts()),
                poll_s=0.005,
                background=False,
            )
        )
        traffic = Traffic(app, lift=0.0, per_hour=240)
        app.let_time_pass(traffic)
        place = {"model": "tuneproof-ngram-1", "provider": "new"}
        run = await app.migration.start(
            [{"make": "as_is", **place}, {"make": "train", **place}], margin=0.1, cheaper=0
        )
        done = await app.runs.wait(run.id, seconds=240)
        assert done.status is RunStatus.SUCCESS, done.reason
        baseline = app.routing.board.snapshot.by_task["hook"].baseline
        assert (await app.routing.endpoints.of(baseline)).provider == "new"
        assert done.stages["train"]["detail"]["provider"] == "new"
