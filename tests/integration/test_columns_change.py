"""A source whose columns change between two runs: told, or a stop by name."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.integration.loop import T0, Loop, open_loop
from tests.posts import row
from tests.sourcing import fill_sqlite

from tuneproof.collection import TrainingDataBatch, Window
from tuneproof.pipeline.drifted_columns import column_changes, kind_of
from tuneproof.store import Run, RunStatus

TYPES = {"id": "integer", "hook": "text", "rate": "double precision", "ts": "timestamptz"}
USED = {"id": "id", "hook": "hook", "engagement_rate": "rate", "ts": "ts"}


def now(types: dict[str, str], used: dict[str, str] | None = None) -> TrainingDataBatch:
    return TrainingDataBatch(
        pipeline="default",
        window=Window(since=T0, until=T0),
        hash="h",
        posts=1,
        total_records=1,
        examples={},
        datasets={},
        train_path="",
        validation_path="",
        manifest_path="",
        columns=types,
        used=used or USED,
    )


@pytest.mark.parametrize(
    ("changes", "told", "stopping"),
    [
        ({}, (), ()),
        ({"id": "bigint", "hook": "varchar(20)", "rate": "numeric(5, 4)"}, (), ()),
        ({"note": "text"}, ("note is new",), ()),
        ({"rate": "text"}, (), ("rate was double precision and is text",)),
        ({"ts": "timestamp"}, (), ("ts was timestamptz and is timestamp",)),
        ({"hook": None}, (), ("hook, which was read as hook, is gone",)),
    ],
)
def test_changes_of_columns_are_told_or_stop_a_run(
    changes: dict[str, Any], told: tuple[str, ...], stopping: tuple[str, ...]
) -> None:
    types = {name: kind for name, kind in {**TYPES, **changes}.items() if kind is not None}
    found = column_changes(TYPES, USED, now(types))
    assert (found.told, found.stopping) == (told, stopping)


def test_what_is_only_of_use_may_go_and_is_told() -> None:
    types, used = {**TYPES, "seen": "int", "note": "text"}, {**USED, "impressions": "seen"}
    found = column_changes(types, used, now(TYPES))
    assert found.told == ("seen, which was read as impressions, is gone", "note is gone")
    assert found.stopping == ()
    other = column_changes(
        TYPES, USED, now({**TYPES, "better": "real"}, {**USED, "engagement_rate": "better"})
    )
    assert other.told == (
        "engagement_rate is read from better, no longer from rate",
        "better is new",
    )


@pytest.mark.parametrize(
    ("declared", "kind"),
    [
        ("timestamp with time zone", "time with zone"),
        ("timestamp[us, tz=UTC]", "time with zone"),
        ("datetime", "time"),
        ("TIMESTAMP", "time"),
        ("int64", "number"),
        ("integer", "number"),
        ("interval", "interval"),
        ("decimal128(10, 2)", "number"),
        ("DOUBLE_PRECISION", "number"),
        ("number", "number"),
        ("number or text", "number or text"),
        ("large_string", "text"),
        ("jsonb", "jsonb"),
    ],
)
def test_kinds_of_types(declared: str, kind: str) -> None:
    assert kind_of(declared) == kind


def table(path: Path, **types: str) -> str:
    rows = [row(i, ts=T0 - timedelta(minutes=i)) for i in range(1, 220)]
    return fill_sqlite(path, rows, types)


async def test_a_needed_column_that_is_retyped_stops_the_next_run(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    url = table(tmp_path / "p.db")
    async with open_loop(tmp_path, sqlite_store_url) as loop:
        first = await collected(loop, url)
        assert first.status is not RunStatus.FAILED, first.error
        assert first.stages["collect"]["detail"]["columns"]["hook"] == "text"
        with sqlite3.connect(tmp_path / "p.db") as connection:
            connection.execute("ALTER TABLE posts ADD note TEXT")
        second = await collected(loop, url)
        assert second.stages["collect"]["detail"]["changes"] == ["note is new"]
        with sqlite3.connect(tmp_path / "p.db") as connection:
            connection.execute("ALTER TABLE posts DROP COLUMN original_input")
        third = await collected(loop, url)
        assert third.status is RunStatus.FAILED
        assert "original_input, which was read as original_input, is gone" in str(third.error)
        forced = await collected(loop, url, force=True)
        assert "original_input" in str(forced.stages["collect"]["detail"]["changes"])
        assert (await collected(loop, url)).stages["collect"]["detail"]["changes"] == []
    connection.close()


async def collected(loop: Loop, url: str, *, force: bool = False) -> Run:
    """A run that only collects, and trains up to the gate."""
    return await loop.turn(posts=url, as_of=T0, force=force, last_stage="gate")
