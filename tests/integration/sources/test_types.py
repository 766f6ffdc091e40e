"""Types that are neither text nor number: the same text whichever driver or format gives them."""

from __future__ import annotations

import sys
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
from tests.integration.sources.test_every_source import BEST, TEN, shown, ten
from tests.posts import UNTIL, row
from tests.sourcing import collected, fill_postgres, query

from tuneproof.errors import DataError
from tuneproof.sources import import_posts, open_source

KINDS_OF_TEXT = {
    "text": ("'plain'", "plain"),
    "varchar(20)": ("'plain'", "plain"),
    "char(6)": ("'plain'", "plain "),
    "jsonb": ("""'{"b": [1, 2], "a": "ü"}'""", '{"a": "ü", "b": [1, 2]}'),
    "json": ("""'{"b":1}'""", '{"b":1}'),
    "text[]": ("ARRAY['a', 'ü', NULL]", '["a", "ü", null]'),
    "int[]": ("ARRAY[1, 2]", "[1, 2]"),
    "numeric": ("1.50", "1.50"),
    "real": ("0.1", "0.1"),
    "double precision": ("0.25", "0.25"),
    "bigint": ("9007199254740993", "9007199254740993"),
    "boolean": ("true", "true"),
    "uuid": (
        "'0a7f3b52-8d1c-4a63-9f5e-2b7c6d8e9f01'",
        "0a7f3b52-8d1c-4a63-9f5e-2b7c6d8e9f01",
    ),
    "mood": ("'glad'", "glad"),
    "short_text": ("'plain'", "plain"),
    "pair": ("ROW(1, 'a')::pair", "(1,a)"),
    "bytea": ("convert_to('café', 'UTF8')", "café"),
    "date": ("'2025-01-19'", "2025-01-19"),
    "timestamptz": ("'2025-01-19 02:00+02'", "2025-01-19 00:00:00+00:00"),
    "timestamp": ("'2025-01-19 02:00'", "2025-01-19 02:00:00"),
    "time": ("'02:00'", "02:00:00"),
    "interval": ("'1 day 2 hours'", "1 day 02:00:00"),
    "inet": ("'10.0.0.1'", "10.0.0.1/32"),
    "int4range": ("'[1,5)'", "[1,5)"),
    "tsvector": ("'a b'::tsvector", "'a' 'b'"),
    "xml": ("'<a/>'::xml", "<a/>"),
    "bit(3)": ("B'101'", "101"),
}
"""A type of PostgreSQL: a value of it in SQL, and the text that it is."""


@pytest.mark.postgres
async def test_both_drivers_of_postgres_give_every_type_alike(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One gave `jsonb` as text, the other as an object that was trained on as Python writes it."""
    fill_postgres(postgres_url, [row(1, engagement_rate=0.1)])
    with psycopg.connect(postgres_url.replace("+psycopg", "")) as connection:
        connection.execute("CREATE TYPE mood AS ENUM ('glad', 'sad')")
        connection.execute("CREATE DOMAIN short_text AS text CHECK (length(VALUE) < 9)")
        connection.execute("CREATE TYPE pair AS (a int, b text)")
        for number, (declared, (value, _)) in enumerate(KINDS_OF_TEXT.items()):
            connection.execute(f"ALTER TABLE posts ADD c{number} {declared}")
            connection.execute(f"UPDATE posts SET c{number} = {value}")
    names = tuple(f"c{number}" for number in range(len(KINDS_OF_TEXT)))
    (fast,) = await collected(open_source(postgres_url), query(columns=names))
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    (slow,) = await collected(open_source(postgres_url), query(columns=names))
    assert fast == slow
    found = [fast.text(name) for name in names]
    assert dict(zip(KINDS_OF_TEXT, found, strict=True)) == {
        declared: text for declared, (_, text) in KINDS_OF_TEXT.items()
    }


async def test_parquet_types_are_text_as_json(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "lists": (pa.array([["a", None]]), '["a", null]'),
        "parts": (pa.array([{"a": 1, "b": ["ü"]}]), '{"a": 1, "b": ["ü"]}'),
        "mapped": (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), '[["k", 1]]'),
        "coded": (pa.array(["x"]).dictionary_encode(), "x"),
        "large": (pa.array(["x"], pa.large_string()), "x"),
        "viewed": (pa.array(["x"], pa.string_view()), "x"),
        "exact": (pa.array([Decimal("1.50")]), "1.50"),
        "raw": (pa.array(["ü".encode()]), "ü"),
        "true": (pa.array([True]), "true"),
        "day": (pa.array([UNTIL.date()]), "2025-01-20"),
        "whole": (pa.array([2**62]), str(2**62)),
        "half": (pa.array([0.5], pa.float16()), "0.5"),
        "uuids": (pa.array([b"\0" * 16], pa.uuid()), "00000000-0000-0000-0000-000000000000"),
        "nothing": (pa.nulls(1), ""),
    }
    table = pa.Table.from_pylist([row(1, engagement_rate=0.1)])
    for name, (column, _) in columns.items():
        table = table.append_column(name, column)
    pq.write_table(table, tmp_path / "p.parquet")
    source = open_source(tmp_path / "p.parquet")
    (post,) = await collected(source, query(columns=tuple(columns)))
    assert {name: post.text(name) for name in columns} == {n: t for n, (_, t) in columns.items()}


@pytest.mark.parametrize("declared", ["dictionary", "large_string", "string_view", "decimal"])
async def test_rates_times_and_ids_of_parquet_in_other_types(tmp_path: Path, declared: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([{**r, "id": str(r["id"]), "ts": str(r["ts"])} for r in ten()])
    for name in ("id", "ts", "hook", "engagement_rate"):
        column = table.column(name)
        if name == "engagement_rate":
            column = pa.array([Decimal(str(rate)) for rate in TEN])
        elif declared == "dictionary":
            column = column.dictionary_encode()
        elif declared != "decimal":
            column = column.cast(getattr(pa, declared)())
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, tmp_path / "p.parquet")
    assert shown(await collected(open_source(tmp_path / "p.parquet"), query())) == BEST


async def test_json_lines_that_are_none_are_refused_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    good = '{"id": 1, "ts": "2025-01-19", "engagement_rate": 0.1, "hook": "h", "body": "b"}'
    for bad, why in (("{", "line 2 is not JSON"), ("[1]", "line 2 is no object"), ("\0", "UTF-16")):
        path.write_text(f"{good}\n{bad}\n", "utf-8")
        with pytest.raises(DataError, match=why):
            await collected(open_source(path), query())
    path.write_text(f"\ufeff{good}\n\n", "utf-8")
    assert len(await collected(open_source(path), query())) == 1
    path.write_text("\n", "utf-8")
    with pytest.raises(DataError, match="is empty"):
        await collected(open_source(path), query())


# --- CSV --------------------------------------------------------------------------------

HEAD = "id,hook,body,engagement_rate,ts\n"
LINE = "1,a hook,a body,0.07,2025-01-19T00:00:00Z\n"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("2,a, comma,a body,0.07,2025-01-19T00:00:00Z\n", "6 fields, and the header has 5"),
        ("2,a hook,a body,0.07\n", "4 fields, and the header has 5"),
    ],
)
async def test_row_of_another_length_than_the_header_is_refused(
    tmp_path: Path, sqlite_store_url: str, line: str, why: str
) -> None:
    """It was cut, or filled up, silently, and trained on."""
    path = tmp_path / "p.csv"
    path.write_text(HEAD + LINE + line, "utf-8")
    for attempt in (collected(open_source(path), query()), import_posts(path, sqlite_store_url)):
        with pytest.raises(DataError, match=rf"row 2 \(line 3\) has {why}"):
            await attempt


async def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("id,hook,hook,engagement_rate,ts\n", "utf-8")
    with pytest.raises(DataError, match="share their name: 'hook'"):
        await collected(open_source(path), query())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
async def test_marks_and_separators_of_spreadsheets_are_understood(
    tmp_path: Path, encoding: str, separator: str
) -> None:
    path = tmp_path / "p.csv"
    said = "" if separator == "," else f"sep={separator}\n"
    path.write_text(said + (HEAD + LINE).replace(",", separator), encoding)
    (post,) = await collected(open_source(path), query())
    assert (post.hook, post.engagement_rate) == ("a hook", 0.07)
