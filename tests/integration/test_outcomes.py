"""Outcomes that lie in the user's own table: read in, each change once, late rows too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from tests.conftest import HandClock

from tuneproof.app import App
from tuneproof.errors import ConfigError, DataError, NotFoundError, StoreUnavailableError
from tuneproof.experiments import Arm, Exposure, ModelEvaluator
from tuneproof.settings import OutcomeSourceConfig, PipelineConfig, Settings, StoreConfig
from tuneproof.sources.outcomes import OutcomeTable
from tuneproof.testing import MemoryProvider, MemorySource

QUERY = (
    "SELECT id AS unit, rate AS value, changed AS at FROM results "
    "WHERE changed >= :since AND changed < :until AND rate IS NOT NULL ORDER BY changed"
)
HOUR = timedelta(hours=1)


@pytest.fixture
async def app(database_url: str, tmp_path: Path, clock: HandClock) -> AsyncIterator[App]:
    source = OutcomeSourceConfig(name="results", query=QUERY, overlap_hours=6)
    settings = Settings(
        dir=tmp_path / "data",
        pipelines={
            "default": PipelineConfig(outcome_source="results", tasks=("hook",)),
            "bare": PipelineConfig(name="bare", tasks=("body",)),
        },
        outcome_sources={"results": source},
        store=StoreConfig(url=database_url),
    )
    async with App.open(
        settings, engine=False, clock=clock, provider=MemoryProvider(), source=MemorySource([])
    ) as app:
        kind = "text" if app.store.database.dialect == "sqlite" else "timestamptz"
        async with app.store.database.begin() as tx:
            await tx.execute(text(f"CREATE TABLE results (id text, rate float, changed {kind})"))
        yield app


async def put(app: App, unit: str, rate: float | None, at: datetime) -> None:
    """A row of the user's table."""
    stamp: Any = f"{at:%Y-%m-%d %H:%M:%S.%f}" if app.store.database.dialect == "sqlite" else at
    async with app.store.database.begin() as tx:
        await tx.execute(
            text("INSERT INTO results VALUES (:unit, :rate, :at)"),
            {"unit": unit, "rate": rate, "at": stamp},
        )


async def experiment(app: App, units: int = 4) -> str:
    """A running test whose units 0.. were exposed at once."""
    config = app.pipelines.get("default")
    evaluator = ModelEvaluator(store=app.store, clock=app.clock, config=config)
    test = await evaluator.create_a_b_test("base", "cand", 0.5)
    await app.events.record(exposures=[exposure(test.id, i, test.start_at) for i in range(units)])
    return test.id


def exposure(subject: str, i: int, at: datetime) -> Exposure:
    return Exposure(
        id=f"e{i}", subject=subject, phase=1, arm=(Arm.BASELINE, Arm.CANDIDATE)[i % 2],
        unit=f"u{i}", at=at,
    )  # fmt: skip


async def outcomes(app: App, subject: str) -> tuple[int, float]:
    """How many units have an outcome, and their sum."""
    strata = await app.store.events.strata(subject)
    return sum(s.units.n for s in strata), round(sum(s.units.sum_y for s in strata), 9)


async def test_rows_of_exposed_units_become_outcomes_once(app: App, clock: HandClock) -> None:
    subject = await experiment(app)
    for unit, rate in (("u0", 0.1), ("u1", 0.2), ("stranger", 0.9), ("u2", None)):
        await put(app, unit, rate, clock.now() + HOUR)
    clock.move(hours=2)
    assert await app.outcomes.poll() == 2
    assert await app.outcomes.poll() == 0
    assert await outcomes(app, subject) == (2, 0.3)


async def test_a_changed_row_replaces_what_it_said_before(app: App, clock: HandClock) -> None:
    subject = await experiment(app)
    await put(app, "u0", 0.1, clock.now() + HOUR)
    clock.move(hours=2)
    await app.outcomes.poll()
    await put(app, "u0", 0.4, clock.now())
    clock.move(hours=1)
    assert await app.outcomes.poll() == 1
    assert await outcomes(app, subject) == (1, 0.4)


async def test_rows_and_exposures_that_come_late_are_found_within_the_overlap(
    app: App, clock: HandClock
) -> None:
    subject = await experiment(app)
    began = clock.now()
    await put(app, "u9", 0.2, began + HOUR)
    clock.move(hours=3)
    assert await app.outcomes.poll() == 0
    await put(app, "u0", 0.1, began + HOUR)
    await app.events.record(exposures=[exposure(subject, 9, began)])
    clock.move(hours=1)
    assert await app.outcomes.poll() == 2
    clock.move(hours=30)
    await app.outcomes.poll()
    await put(app, "u1", 0.1, began + HOUR)
    clock.move(hours=1)
    assert await app.outcomes.poll() == 0, "beyond the overlap a late row is not seen"


async def test_nothing_runs_nothing_is_read(app: App) -> None:
    assert await app.outcomes.poll() == 0


async def test_a_pipeline_without_a_source_is_told_so(app: App) -> None:
    with pytest.raises(NotFoundError, match="no outcome_source"):
        await app.outcomes.poll("bare")


async def read(query: str, url: str, clock: HandClock) -> list[Any]:
    table = OutcomeTable(OutcomeSourceConfig(name="results", query=query), url)
    return [row async for rows in table.rows(clock.now(), clock.now()) for row in rows]


async def test_a_query_that_is_not_as_described_says_how_to_mend_it(
    app: App, database_url: str, clock: HandClock
) -> None:
    columns = "SELECT id, rate AS value, changed AS at FROM results WHERE changed >= :since"
    with pytest.raises(DataError, match="no column unit") as refused:
        await read(f"{columns} AND changed < :until", database_url, clock)
    assert "id AS unit" in refused.value.mend
    with pytest.raises((DataError, StoreUnavailableError)):
        await read("SELECT nonsense WHERE :since < :until", database_url, clock)


async def test_the_query_cannot_write(app: App, database_url: str, clock: HandClock) -> None:
    write = "DELETE FROM results WHERE changed >= :since AND changed < :until RETURNING id"
    with pytest.raises((DataError, StoreUnavailableError)):
        await read(write, database_url, clock)


def test_settings_name_the_parameters_that_a_query_needs() -> None:
    with pytest.raises(ConfigError, match=":until"):
        OutcomeSourceConfig(name="x", query="SELECT 1 WHERE a >= :since")
    with pytest.raises(ConfigError, match="outcome_source"):
        Settings(pipelines={"default": PipelineConfig(outcome_source="absent")})


def test_settings_file_describes_a_source(tmp_path: Path) -> None:
    (tmp_path / "tuneproof.toml").write_text(
        f'[outcome_sources.results]\nquery = "{QUERY}"\npoll_seconds = 60\n'
        '[pipelines.default.evaluation]\noutcome_source = "results"\n'
    )
    settings = Settings.load(file=tmp_path / "tuneproof.toml", env={})
    assert settings.outcome_sources["results"].poll_seconds == 60
    assert settings.pipelines["default"].outcome_source == "results"
