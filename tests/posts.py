"""Posts for tests, and the files and tables that hold them."""

from __future__ import annotations

import asyncio
import csv
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tuneproof.collection import Post, PostQuery, SourceCheck

UNTIL = datetime(2025, 1, 20, tzinfo=UTC)

COLUMNS = {
    "id": "INTEGER PRIMARY KEY",
    "persona_id": "TEXT",
    "original_input": "TEXT",
    "hook": "TEXT",
    "body": "TEXT",
    "engagement_rate": "DOUBLE PRECISION",
    "ts": "TIMESTAMP",
    "tokens_used": "INTEGER",
}


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A good post: hour `number` before the end of the window, rate rising with its number."""
    return {
        "id": number,
        "persona_id": "ana",
        "original_input": f"about topic {number}",
        "hook": f"You will not believe topic {number}",
        "body": f"Here is all there is to say on topic {number}.",
        "engagement_rate": 0.06 + number / 10_000,
        "ts": UNTIL - timedelta(hours=number % 100 + 1),
        "tokens_used": 100,
        **changes,
    }


def post(number: int, **changes: Any) -> Post:
    """`row` as a post."""
    values = row(number, **changes)
    values["id"] = str(values["id"])
    return Post(**values)


class ListSource:
    """Posts in memory as a source, given out as they are."""

    def __init__(self, posts: Sequence[Post], check: SourceCheck | None = None) -> None:
        self.rows = list(posts)
        self.closed = False
        self._check = check or SourceCheck(found=())

    def __str__(self) -> str:
        return "a list"

    async def check(self, query: PostQuery) -> SourceCheck:
        return self._check

    async def posts(self, query: PostQuery) -> AsyncIterator[list[Post]]:
        for start in range(0, len(self.rows), query.chunk_size):
            await asyncio.sleep(0)
            yield self.rows[start : start + query.chunk_size]

    async def close(self) -> None:
        self.closed = True


def sqlite_file(path: Path, rows: Sequence[Mapping[str, Any]], **columns: str) -> str:
    """A SQLite file with a table `posts` of the rows' columns; its address."""
    names = list(rows[0]) if rows else list(COLUMNS)
    kinds = {name: columns.get(name, COLUMNS.get(name, "TEXT")) for name in names}
    if rows and isinstance(rows[0]["id"], str):
        kinds["id"] = "TEXT PRIMARY KEY"
    described = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
    marks = ", ".join("?" for _ in kinds)
    with sqlite3.connect(path) as connection:
        connection.execute(f"CREATE TABLE posts ({described})")
        connection.executemany(
            f"INSERT INTO posts VALUES ({marks})",
            [[_for_sqlite(r.get(name)) for name in kinds] for r in rows],
        )
    connection.close()
    return f"sqlite:///{path}"


def csv_file(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A CSV file of the rows."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def parquet_file(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A Parquet file of the rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([dict(r) for r in rows]), path)
    return path


def _for_sqlite(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ")
    return value
