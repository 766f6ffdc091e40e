"""Items and covariates through the real evaluator, the users' own table, and rollouts."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text
from tests.conftest import HandClock

from tuneproof.app import App
from tuneproof.errors import NotFoundError
from tuneproof.experiments import ABTest, Arm, Exposure, Look, ModelEvaluator, Outcome
from tuneproof.rollout import DeploymentManager
from tuneproof.settings import OutcomeSourceConfig, PipelineConfig, Settings, StoreConfig
from tuneproof.store import Store, open_store
from tuneproof.testing import MemoryProvider, MemorySource

HOUR = timedelta(hours=1)
RUNS, AUTHORS, POSTS = 40, 80, 20
ICC, MEAN, KAPPA = 0.1, 0.068, 20.0
DECLARED: dict[str, Any] = {"maturation_hours": 0.0, "min_units": 30, "min_units_phase": 30}


async def declared(store: Store, clock: HandClock, name: str, **fields: Any) -> ABTest:
    config = PipelineConfig(name=name, tasks=(name,), loop_ledger=False)
    evaluator = ModelEvaluator(store=store, clock=clock, config=config)
    return await evaluator.create_a_b_test("base", "cand", 0.5, 24, **{**DECLARED, **fields})


def posts_of(rng: np.random.Generator) -> Iterator[tuple[str, Arm, str, float]]:
    """Author, arm, post and rate: posts of one author are alike, and no arm is better."""
    total = (KAPPA + 1) / ICC - 1
    level = rng.beta(MEAN * total, (1 - MEAN) * total, AUTHORS)
    own = (KAPPA + 1) / (1 - ICC) - 1
    for author in range(AUTHORS):
        arm = Arm.CANDIDATE if rng.random() < 0.5 else Arm.BASELINE
        rates = rng.beta(level[author] * own, (1 - level[author]) * own, POSTS)
        for post, rate in enumerate(rates):
            yield f"author-{author}", arm, f"post-{author}-{post}", float(rate)


async def test_clustered_authors_fool_the_test_that_takes_posts_for_units(
    tmp_path: Path, clock: HandClock
) -> None:
    """The same posts go to two tests of no difference; all that differs is the declaration."""
    store = await open_store(f"sqlite:///{tmp_path}/store.db", clock=clock)
    called = {"item": 0, "unit": 0}
    for run in range(RUNS):
        by_item = await declared(store, clock, f"items-{run}", analysis_unit="item")
        careless = await declared(store, clock, f"posts-{run}")
        exposures, outcomes = [], []
        for author, arm, post, rate in posts_of(np.random.default_rng([20261120, run])):
            for test, unit in ((by_item, author), (careless, post)):
                seen = {"subject": test.id, "unit": unit, "at": clock.now()}
                exposures.append(Exposure(id=post, phase=1, arm=arm, **seen))
                outcomes.append(Outcome(id=post, item=post, value=rate, **seen))
        await store.events.ingest(exposures, outcomes)
        for test in (by_item, careless):
            called[test.declaration.analysis_unit] += significant(await looked(store, clock, test))
    await store.close()
    assert called["item"] / RUNS <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / RUNS), called
    assert 0.1 < called["unit"] / RUNS < 0.45, called


async def looked(store: Store, clock: HandClock, test: ABTest) -> Look:
    evaluator = ModelEvaluator(store=store, clock=clock)
    [look] = await evaluator.look(test.family, at=clock.now() + 24 * HOUR)
    return look


def significant(look: Look) -> bool:
    """Whether this one look, at the end, is outside of 1.96 standard errors."""
    assert look.lift is not None
    assert look.standard_error is not None
    return abs(math.log1p(look.lift)) > 1.96 * look.standard_error


async def test_covariate_of_the_exposures_narrows_the_interval(
    store: Store, clock: HandClock
) -> None:
    rng = np.random.default_rng(5)
    plain = await declared(store, clock, "plain")
    cuped = await declared(store, clock, "cuped", cuped=True)
    exposures, outcomes = [], []
    shared = 0.7 / (0.7 + math.sqrt(1 - 0.49))
    for number in range(1500):
        x, own = rng.beta(MEAN * KAPPA, (1 - MEAN) * KAPPA, 2)
        arm = Arm.CANDIDATE if rng.random() < 0.5 else Arm.BASELINE
        for test in (plain, cuped):
            seen = {"subject": test.id, "unit": f"u{number}", "at": clock.now()}
            exposures.append(Exposure(id=f"e{number}", phase=1, arm=arm, covariate=x, **seen))
            value = float(shared * x + (1 - shared) * own)
            outcomes.append(Outcome(id=f"o{number}", value=value, **seen))
    await store.events.ingest(exposures, outcomes)
    wide, narrow = [await looked(store, clock, test) for test in (plain, cuped)]
    assert wide.standard_error is not None
    assert narrow.standard_error is not None
    ratio = narrow.standard_error / wide.standard_error
    assert ratio == pytest.approx(math.sqrt(1 - 0.49), abs=0.03)
    assert "CUPED" in narrow.method
    assert "CUPED" not in wide.method


@pytest.fixture
async def app(database_url: str, tmp_path: Path, clock: HandClock) -> AsyncIterator[App]:
    query = (
        "SELECT author AS unit, post AS item, rate AS value, changed AS at FROM results "
        "WHERE changed >= :since AND changed < :until"
    )
    settings = Settings(
        dir=tmp_path / "data",
        pipelines={
            "default": PipelineConfig(
                outcome_source="results", tasks=("hook",), analysis_unit="item"
            )
        },
        outcome_sources={"results": OutcomeSourceConfig(name="results", query=query)},
        store=StoreConfig(url=database_url),
    )
    async with App.open(
        settings, engine=False, clock=clock, provider=MemoryProvider(), source=MemorySource([])
    ) as app:
        kind = "text" if app.store.database.dialect == "sqlite" else "timestamptz"
        async with app.store.database.begin() as tx:
            await tx.execute(
                text(f"CREATE TABLE results (author text, post text, rate float, changed {kind})")
            )
        yield app


async def test_rows_of_the_users_table_name_their_items(app: App, clock: HandClock) -> None:
    evaluator = ModelEvaluator(store=app.store, clock=clock, config=app.pipelines.get("default"))
    test = await evaluator.create_a_b_test("base", "cand", 0.5)
    seen = {"subject": test.id, "phase": 1, "arm": Arm.BASELINE, "at": test.start_at}
    await app.events.record(exposures=[Exposure(id="e", unit="ann", **seen)])  # type: ignore[arg-type]
    changed = clock.now() + HOUR
    at: Any = (
        f"{changed:%Y-%m-%d %H:%M:%S.%f}" if app.store.database.dialect == "sqlite" else changed
    )
    async with app.store.database.begin() as tx:
        for post, rate in (("p1", 0.1), ("p2", 0.3)):
            await tx.execute(
                text("INSERT INTO results VALUES ('ann', :post, :rate, :at)"),
                {"post": post, "rate": rate, "at": at},
            )
    clock.move(hours=2)
    assert await app.outcomes.poll() == 2
    assert await app.outcomes.poll() == 0
    (stratum,) = await app.store.events.strata(test.id)
    assert (stratum.units.n, stratum.units.sum_y, stratum.units.sum_m) == (1, 0.4, 2)


async def test_rollout_counts_what_its_test_counted(app: App, clock: HandClock) -> None:
    adjusted = PipelineConfig(tasks=("body",), cuped=True)
    evaluator = ModelEvaluator(store=app.store, clock=clock, config=adjusted)
    test = await evaluator.create_a_b_test("base", "cand")
    manager = DeploymentManager(
        store=app.store, provider=MemoryProvider(), clock=clock,
        config=app.pipelines.get("default"),
    )  # fmt: skip
    models = test.candidate, test.baseline
    inherited = await manager.declare(*models, ab_test_id=test.id)
    alone = await manager.declare(*models)
    kept = [await app.store.deployments.get(d.id) for d in (inherited, alone)]
    told = [(d.declaration.analysis_unit, d.declaration.cuped) for d in kept]
    assert told == [("unit", True), ("item", False)]
    with pytest.raises(NotFoundError):
        await manager.declare(*models, ab_test_id="ab-test-20200101-001")
