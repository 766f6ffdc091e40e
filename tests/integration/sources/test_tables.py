"""Tables that are no plain table of the first schema: views, parts, other schemas, odd names."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.integration.sources.test_every_source import BEST, shown, ten
from tests.sourcing import collected, fill_postgres, fill_sqlite, query

from tuneproof.errors import DataError
from tuneproof.settings import SourceConfig
from tuneproof.sources import open_source

NAMED = '''"My App"."Posts: all"'''


def of_postgres(url: str, *statements: str) -> None:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.mark.postgres
async def test_schema_and_name_may_be_quoted_and_the_index_that_is_advised_can_be_made(
    postgres_url: str,
) -> None:
    of_postgres(postgres_url, 'CREATE SCHEMA "My App"')
    columns = {"engagement_rate": "Rate", "ts": "From"}
    rows = [{columns.get(name, name): value for name, value in r.items()} for r in ten()]
    types = {"Rate": "double precision", "From": "timestamptz"}
    fill_postgres(postgres_url, rows, table="My App.Posts: all", **types)
    config: dict[str, Any] = {"url": postgres_url, "table": NAMED, "columns": columns}
    source = open_source(SourceConfig(**config))
    assert shown(await collected(source, query())) == BEST
    (advice,) = (await source.check(query())).advice
    of_postgres(postgres_url, advice)
    assert (await source.check(query())).advice == ()


@pytest.mark.postgres
async def test_partitioned_tables_and_views_are_read_and_views_get_no_advice(
    postgres_url: str,
) -> None:
    """A view was told to have an index, which it cannot."""
    fill_postgres(postgres_url, ten())
    of_postgres(
        postgres_url,
        "CREATE VIEW seen AS SELECT * FROM posts",
        "CREATE MATERIALIZED VIEW kept AS SELECT * FROM posts",
        "CREATE TABLE parts (LIKE posts) PARTITION BY RANGE (ts)",
        "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2025-01-01') TO ('2025-01-17')",
        "CREATE TABLE parts_2 PARTITION OF parts DEFAULT",
        "INSERT INTO parts SELECT * FROM posts",
    )
    advised = {}
    for table in ("seen", "kept", "parts", "parts_2"):
        source = open_source(SourceConfig(url=postgres_url, table=table))
        check = await source.check(query())
        advised[table] = check.advice
        if table != "parts_2":
            assert shown(await collected(source, query())) == BEST
    assert advised["seen"] == ()
    for table in ("kept", "parts", "parts_2"):
        of_postgres(postgres_url, *advised[table])
        source = open_source(SourceConfig(url=postgres_url, table=table))
        assert (await source.check(query())).advice == ()


async def test_sqlite_view_gets_no_advice(tmp_path: Path) -> None:
    url = fill_sqlite(tmp_path / "p.db", ten())
    with sqlite3.connect(tmp_path / "p.db") as connection:
        connection.execute('CREATE VIEW "select" AS SELECT * FROM posts')
    connection.close()
    source = open_source(SourceConfig(url=url, table="select"))
    assert (await source.check(query())).advice == ()
    assert shown(await collected(source, query())) == BEST


async def test_rates_that_are_worked_out_get_an_index_on_the_time_alone(tmp_path: Path) -> None:
    url = fill_sqlite(tmp_path / "p.db", ten())
    columns = {"engagement_rate": "engagement_rate * 1"}
    source = open_source(SourceConfig(url=url, columns=columns))
    assert (await source.check(query())).advice == ("CREATE INDEX posts_ts ON posts (ts);",)


@pytest.mark.postgres
async def test_a_join_that_doubles_posts_is_told(postgres_url: str) -> None:
    fill_postgres(postgres_url, ten())
    of_postgres(
        postgres_url,
        "CREATE VIEW doubled AS SELECT p.* FROM posts p, (VALUES (1), (2)) v(n) WHERE p.id > 8",
        "CREATE VIEW nameless AS SELECT NULL::int id, hook, body, engagement_rate, ts FROM posts",
    )
    for table, why in (("doubled", "2 posts .* have the id '"), ("nameless", "7 posts .* no id")):
        source = open_source(SourceConfig(url=postgres_url, table=table))
        with pytest.raises(DataError, match=why):
            await collected(source, query(columns=("hook", "body")))


async def test_rates_as_text_are_told_with_what_it_costs(tmp_path: Path) -> None:
    url = fill_sqlite(tmp_path / "p.db", ten(str), {"engagement_rate": "TEXT"})
    check = await open_source(url).check(query())
    assert any("engagement_rate is no number" in advice for advice in check.advice)
