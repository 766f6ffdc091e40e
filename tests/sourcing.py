"""Sources of every kind that hold the rows of a test, and what is asked of them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url
from tests.posts import UNTIL, csv_file, parquet_file

from tuneproof.collection import Post, PostQuery, Source, Window
from tuneproof.settings import SourceConfig
from tuneproof.sources import open_source
from tuneproof.sources.generic import GenericSource

WEEK = Window(since=UNTIL - timedelta(days=7), until=UNTIL)

Make = Callable[..., Source]
Row = dict[str, Any]

FILES = ("parquet", "csv", "jsonl")
TABLES = ("sqlite", "postgres", "postgres without asyncpg", "any other database")

_TYPES = {
    "id": "bigint",
    "engagement_rate": "double precision",
    "ts": "timestamptz",
    "tokens_used": "int",
    "impressions": "int",
    "clicks": "int",
}


def query(**changes: Any) -> PostQuery:
    values: dict[str, Any] = {"window": WEEK, "threshold": 0.06, "max_records": None, **changes}
    return PostQuery(**values)


async def collected(source: Source, wanted: PostQuery) -> list[Post]:
    found = [post async for chunk in source.posts(wanted) for post in chunk]
    await source.close()
    return found


def hold(
    kind: str,
    rows: Sequence[Row],
    folder: Path,
    postgres: Callable[[], str],
    types: Mapping[str, str] | None = None,
    **config: Any,
) -> Source:
    """A source of a kind that holds the rows; `types` are of the columns of a table."""
    table = config.get("table", "posts")
    if kind == "sqlite":
        return open_source(SourceConfig(url=fill_sqlite(folder / "p.db", rows, types), **config))
    if kind in FILES:
        config.pop("table", None)
        write = {"parquet": parquet_file, "csv": csv_file, "jsonl": jsonl_file}[kind]
        return open_source(SourceConfig(url=str(write(folder / f"p.{kind}", rows)), **config))
    url = postgres()
    fill_postgres(url, rows, table=table, **(types or {}))
    described = SourceConfig(url=url, **config)
    if kind == "any other database":
        address = make_url(url).set(drivername="postgresql+psycopg")
        return GenericSource(described, address)
    return open_source(described)


def fill_postgres(url: str, rows: Sequence[Row], *, table: str = "posts", **types: str) -> None:
    """A table of PostgreSQL with the rows."""
    kinds = {**_TYPES, **({} if isinstance(rows[0].get("id"), int) else {"id": "text"}), **types}
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        name = sql.Identifier(*table.replace('"', "").split("."))
        described = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(kinds.get(column, "text")))
            for column in rows[0]
        )
        connection.execute(sql.SQL("CREATE TABLE {} ({})").format(name, described))
        marks = sql.SQL(", ").join(sql.Placeholder() for _ in rows[0])
        with connection.cursor() as cursor:
            cursor.executemany(
                sql.SQL("INSERT INTO {} VALUES ({})").format(name, marks),
                [list(row.values()) for row in rows],
            )


def fill_sqlite(path: Path, rows: Sequence[Row], types: Mapping[str, str] | None = None) -> str:
    """A table of SQLite with the rows, times as text; its address."""
    kinds = {**_TYPES, "ts": "TEXT", **(types or {})}
    if not isinstance(rows[0].get("id"), int):
        kinds["id"] = "TEXT"
    described = ", ".join(f'"{column}" {kinds.get(column, "TEXT")}' for column in rows[0])
    with sqlite3.connect(path) as connection:
        connection.execute(f"CREATE TABLE posts ({described})")
        marks = ", ".join("?" for _ in rows[0])
        values = [[_plain(value) for value in row.values()] for row in rows]
        connection.executemany(f"INSERT INTO posts VALUES ({marks})", values)
    connection.close()
    return f"sqlite:///{path}"


def jsonl_file(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A file of JSON lines with the rows; what is absent has no key in every other row."""
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            values = {k: v for k, v in row.items() if v is not None or number % 2 == 0}
            file.write(json.dumps(values, ensure_ascii=False, default=str) + "\n")
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return (
            value.astimezone(UTC).replace(tzinfo=None).isoformat(" ")
            if value.tzinfo
            else str(value)
        )
    return value if isinstance(value, str | int | float | bytes | None) else str(value)
