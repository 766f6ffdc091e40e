"""What no schema foresees: it is counted and named, ends in no traceback, leaves nothing half."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.posts import UNTIL, ListSource, post, row
from tests.sourcing import TABLES, Make, Row, collected, fill_postgres, jsonl_file, query

from tuneproof.collection import DataCollector, Post, PostQuery, TrainingDataBatch
from tuneproof.errors import DataError, StoreUnavailableError
from tuneproof.sources import open_source

MEGABYTE = "long text " * 100_000

ODD_TEXTS = {
    "right to left": "שלום עולם، مرحبا \u202e",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈 e\u0301",
    "markup": "<b>bold</b> &amp; <script>alert(1)</script>",
    "quotes": 'a "quoted", \\ back\\slash\ttab',
    "lines": "one\ntwo\u2028three\u0085four",
    "sql": "'); DROP TABLE posts; --",
    "template": "{hook} {0} %s ${x}",
}


def odd() -> list[Row]:
    """Posts with texts of all sorts, and among them some that cannot be used."""
    rows = [row(i, engagement_rate=0.1, hook=text) for i, text in enumerate(ODD_TEXTS.values(), 1)]
    rows += [row(i, engagement_rate=0.1) for i in range(20, 40)]
    rows += [
        {**dict.fromkeys(row(1)), "id": 50},
        {**dict.fromkeys(row(1)), "id": 51, "engagement_rate": 0.2, "ts": row(1)["ts"]},
        row(52, engagement_rate=0.2, ts=UNTIL + timedelta(days=3650)),
        row(53, engagement_rate=0.2, body=MEGABYTE),
        row(58, engagement_rate=0.2, body=MEGABYTE),
        row(54, engagement_rate=-0.5),
        row(55, engagement_rate=7.0),
        row(56, engagement_rate=0.2, hook="<|fim_suffix|> is refused"),
        row(57, engagement_rate=0.2, hook=" \t\n "),
    ]
    return rows


async def built(source: Any, folder: Path) -> TrainingDataBatch:
    return await DataCollector(source=source, dir=folder).collect_training_data(until=UNTIL)


def lines_of(batch: TrainingDataBatch) -> list[Any]:
    paths = (batch.train_path, batch.validation_path)
    return [json.loads(text) for path in paths for text in Path(path).read_bytes().splitlines()]


def nothing_half(folder: Path) -> bool:
    """Whether no dataset is there, nor what was to become one."""
    return not [*(folder / "datasets").glob("*")] and not [*(folder / "datasets").glob(".*")]


async def test_odd_texts_come_through_and_bad_posts_are_counted(make: Make, tmp_path: Path) -> None:
    batch = await built(make(odd()), tmp_path)
    dropped = batch.dropped
    assert dropped["invalid_rate"] == 1
    assert dropped["too_long"] >= 1
    assert dropped["empty"] >= 3
    assert dropped["special_token"] == 2
    chats = lines_of(batch)
    assert all(m["content"].strip() for chat in chats for m in chat["messages"])
    answers = {chat["messages"][-1]["content"] for chat in chats}
    found = [name for name, text in ODD_TEXTS.items() if text in answers]
    assert len(found) >= len(ODD_TEXTS) - 2  # some posts are kept back by the split
    samples = json.loads(Path(batch.manifest_path).read_text("utf-8"))["dropped"]
    assert samples["invalid_rate"]["samples"] == [{"post": "55", "value": "7.0"}]


@pytest.mark.parametrize("kind", ["sqlite", "jsonl", "parquet"], indirect=True)
async def test_texts_that_are_no_text_are_dropped_by_name(
    make: Make, kind: str, tmp_path: Path
) -> None:
    """A character 0, and bytes that are no UTF-8, where the source can hold them."""
    rows = [row(i, engagement_rate=0.1) for i in range(1, 30)]
    rows.append(row(99, engagement_rate=0.2, hook="nothing \0 here"))
    source = make(rows)
    if kind == "sqlite":
        with sqlite3.connect(tmp_path / "p.db") as connection:
            connection.execute("UPDATE posts SET hook = CAST(x'636166e9' AS TEXT) WHERE id = 1")
        connection.close()
    if kind == "jsonl":
        path = tmp_path / "p.jsonl"
        bad = json.dumps(row(98, engagement_rate=0.2, hook="lone \ud800"), default=str)
        path.write_text(path.read_text("utf-8") + bad + "\n", "utf-8")
    batch = await built(source, tmp_path)
    assert batch.dropped["nul_character"] == 2
    assert batch.dropped.get("not_utf8", 0) == (0 if kind == "parquet" else 2)
    assert "\0" not in Path(batch.train_path).read_text("utf-8")


async def test_a_source_that_hands_over_others_than_were_asked_for_is_not_believed(
    tmp_path: Path,
) -> None:
    posts = [post(i, engagement_rate=0.1) for i in range(1, 20)]
    posts += [post(90, engagement_rate=0.01), post(91, engagement_rate=0.1, ts=UNTIL)]
    batch = await built(ListSource(posts), tmp_path)
    assert batch.dropped["not_asked_for"] == 2


class Broken(ListSource):
    """A source that breaks off half way."""

    async def posts(self, query: PostQuery) -> AsyncIterator[list[Post]]:
        yield self.rows
        raise StoreUnavailableError("The line is dead.")


async def test_a_source_that_breaks_off_leaves_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError):
        await built(Broken([post(i, engagement_rate=0.1) for i in range(1, 20)]), tmp_path)
    assert nothing_half(tmp_path)


@pytest.mark.postgres
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_connection_that_is_cut_half_way_is_an_outage(
    postgres_url: str, tmp_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if driver == "psycopg":
        monkeypatch.setitem(sys.modules, "asyncpg", None)
    rows = [row(i, engagement_rate=0.1, body="text " * 2000) for i in range(1, 2000)]
    fill_postgres(postgres_url, rows)
    source = open_source(postgres_url)
    chunks = source.posts(query(chunk_size=10))
    assert len(await anext(chunks)) == 10
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    with pytest.raises(StoreUnavailableError, match="did not answer"):
        async for _ in chunks:
            pass


async def test_a_table_that_changes_while_it_is_read_is_read_as_it_was(
    make: Make, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind not in TABLES:
        return  # a file is replaced, not changed
    rows = [row(i, engagement_rate=0.1) for i in range(1, 400)]
    source = make(rows)
    if kind == "sqlite":
        with sqlite3.connect(tmp_path / "p.db") as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    chunks = source.posts(query(chunk_size=10))
    found = await anext(chunks)
    change = "UPDATE posts SET hook = 'changed', engagement_rate = 0.9"
    if kind == "sqlite":
        with sqlite3.connect(tmp_path / "p.db") as connection:
            connection.execute(change)
    else:
        url = request.getfixturevalue("postgres_url").replace("+psycopg", "")
        with psycopg.connect(url) as postgres:
            postgres.execute(change)
    found += [one async for chunk in chunks for one in chunk]
    assert len(found) == 399
    assert {one.engagement_rate for one in found} == {0.1}


FULL = """
import asyncio, resource, signal, sys
from pathlib import Path
from tests.posts import UNTIL
from tuneproof.collection import DataCollector
from tuneproof.errors import FilesUnavailableError
from tuneproof.sources import open_source

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
folder = Path(sys.argv[2])
collector = DataCollector(source=open_source(sys.argv[1]), dir=folder)
try:
    asyncio.run(collector.collect_training_data(until=UNTIL))
except FilesUnavailableError as error:
    print(error.message)
"""


def test_a_full_disk_is_told_and_leaves_no_dataset(tmp_path: Path) -> None:
    rows = [row(i, engagement_rate=0.1, body=f"{i} text " * 500) for i in range(1, 500)]
    path = jsonl_file(tmp_path / "p.jsonl", rows)
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[3],
    )
    assert "The dataset cannot be written to" in done.stdout, done.stderr
    assert done.stderr == ""
    assert nothing_half(tmp_path / "out")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
async def test_files_that_cannot_be_read_are_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"p.{kind}"
    path.mkdir()
    for attempt in (open_source(path).check(query()), collected(open_source(path), query())):
        with pytest.raises(DataError, match="cannot be read"):
            await attempt
