"""One suite for every source: however a table keeps its posts, the same posts come of it."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from importlib import metadata
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from tests.posts import UNTIL, row
from tests.sourcing import TABLES, Make, Row, collected, query

from tuneproof.collection import DataCollector, Post
from tuneproof.curation.provenance import DETECTORS
from tuneproof.errors import DataError
from tuneproof.sources import open_source

TEN = [round(0.03 + i / 100, 2) for i in range(10)]
GOOD = {"4", "5", "6", "7", "8", "9", "10"}
"""The ids of those of `ten` whose rate is 0.06 or more."""


def ten(write: Callable[[float], Any] = lambda rate: rate, **more: Any) -> list[Row]:
    """Ten posts with rates from 0.03 to 0.12."""
    return [row(i, engagement_rate=write(rate), **more) for i, rate in enumerate(TEN, 1)]


def shown(posts: list[Post]) -> list[tuple[str, float | None]]:
    return [(post.id, post.engagement_rate) for post in posts]


BEST = [(str(i), TEN[i - 1]) for i in range(10, 3, -1)]


# --- rates ------------------------------------------------------------------------------


async def test_rates_kept_as_text_are_numbers(make: Make) -> None:
    """A column declared TEXT compared as text: each post was above any threshold."""
    source = make(ten(str), types={"engagement_rate": "text"})
    assert shown(await collected(source, query())) == BEST
    assert await collected(source, query(max_records=3)) == (await collected(source, query()))[:3]


@pytest.mark.parametrize(
    ("declared", "write"),
    [
        ("real", float),
        ("numeric", lambda rate: Decimal(str(rate))),
        ("numeric(6, 4)", lambda rate: Decimal(str(rate))),
        ("double precision", float),
    ],
)
async def test_a_threshold_is_inclusive_whatever_the_type_of_the_rate(
    make: Make, declared: str, write: Callable[[float], Any]
) -> None:
    """0.06 as `real` is 0.05999999866 to a database that compares it with 0.06."""
    source = make(ten(write), types={"engagement_rate": declared})
    assert shown(await collected(source, query())) == BEST


@pytest.mark.parametrize("bits", [16, 32])
async def test_a_threshold_is_inclusive_for_short_floats_of_parquet(
    tmp_path: Path, bits: int
) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(ten())
    rates = pa.array(np.array(TEN, dtype=f"float{bits}"))
    place = table.column_names.index("engagement_rate")
    pq.write_table(table.set_column(place, "engagement_rate", rates), tmp_path / "p.parquet")
    assert shown(await collected(open_source(tmp_path / "p.parquet"), query())) == BEST


async def test_whole_numbers_are_rates_too(make: Make) -> None:
    rows = [row(1, engagement_rate=1), row(2, engagement_rate=0)]
    source = make(rows, types={"engagement_rate": "int"})
    assert shown(await collected(source, query())) == [("1", 1.0)]


@pytest.mark.parametrize(
    ("write", "mend"),
    [
        (lambda rate: f"{100 * rate:g}%", "divide percents by 100"),
        (lambda rate: str(rate).replace(".", ","), "decimal point"),
        (lambda rate: f"{rate * 100_000:,.0f}", "nothing between thousands"),
        (lambda rate: "high", "numbers, shares between 0 and 1"),
    ],
)
async def test_rates_that_are_no_numbers_stop_a_run_by_name(
    make: Make, write: Callable[[float], str], mend: str
) -> None:
    source = make(ten(write), types={"engagement_rate": "text"})
    with pytest.raises(DataError, match=r"10 of 10 values of engagement_rate") as caught:
        await collected(source, query())
    assert repr(write(0.03)) in caught.value.message
    assert mend in caught.value.mend


async def test_a_few_rates_that_are_no_numbers_are_counted(make: Make, tmp_path: Path) -> None:
    rows = ten(str) + [row(i, engagement_rate="n/a") for i in (11, 12)]
    source = make(rows, types={"engagement_rate": "text"})
    batch = await DataCollector(source=source, dir=tmp_path).collect_training_data(until=UNTIL)
    assert batch.dropped["invalid_rate"] == 2
    assert [p.id for p in await collected(source, query(max_records=8))][:7] == [i for i, _ in BEST]


async def test_rates_that_are_not_true_numbers_are_refused(make: Make, kind: str) -> None:
    source = make(ten(lambda rate: rate > 0.05), types={"engagement_rate": "boolean"})
    if kind == "sqlite":  # which keeps 0 and 1
        assert {rate for _, rate in shown(await collected(source, query()))} == {1.0}
        return
    with pytest.raises(DataError, match="values of engagement_rate"):
        await collected(source, query())


# --- rates worked out -------------------------------------------------------------------


def counted(likes: Any, views: Any, number: int) -> Row:
    unrated = {name: value for name, value in row(number).items() if name != "engagement_rate"}
    return {**unrated, "Likes (all)": likes, "views": views}


COUNTED = [(6, 100), (7, 100), (5, 100), (1, 0), (None, 10), (3, None), (9, 10), (10, 3)]


@pytest.mark.parametrize("declared", ["int", "bigint", "numeric", "text"])
async def test_rates_are_worked_out_of_columns(make: Make, declared: str) -> None:
    write = str if declared == "text" else (lambda value: value)
    rows = [
        counted(*(None if v is None else write(v) for v in pair), number)
        for number, pair in enumerate(COUNTED, 1)
    ]
    source = make(
        rows,
        types={"Likes (all)": declared, "views": declared},
        columns={"engagement_rate": '"Likes (all)" / views'},
    )
    expected = [("8", 10 / 3), ("7", 0.9), ("2", 0.07), ("1", 0.06)]
    assert shown(await collected(source, query())) == expected
    found = {p.id: p.engagement_rate for p in await collected(source, query(threshold=0.0))}
    assert {id for id, rate in found.items() if rate is None} == {"4", "5", "6"}


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("views / 1000", 0.1),
        ("(views - 40) * 2 / 1000", 0.12),
        ("-views / -1000", 0.1),
        ("0.5 - views / 250", 0.1),
        ("views - views", 0.0),
    ],
)
async def test_arithmetic_means_the_same_everywhere(make: Make, text: str, rate: float) -> None:
    source = make(
        [counted(1, 100, 1)],
        types={"Likes (all)": "int", "views": "int"},
        columns={"engagement_rate": text},
    )
    (post,) = await collected(source, query(threshold=0.0))
    assert post.engagement_rate == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("views / (2", "a bracket is not closed"),
        ("views / ", "a column or a number is missing"),
        ("views ; 2 /", "cannot be read"),
        ("views / 2 2", "out of place"),
        ("(" * 60 + "views" + ")" * 60, "nested too deep"),
        ("views / shares", "no column for engagement_rate"),
    ],
)
async def test_what_is_no_arithmetic_is_refused(make: Make, text: str, why: str) -> None:
    source = make([counted(1, 100, 1)], columns={"engagement_rate": text})
    with pytest.raises(DataError, match=why):
        await collected(source, query())


# --- times ------------------------------------------------------------------------------

TIMES = [
    UNTIL - timedelta(days=7, seconds=1),
    UNTIL - timedelta(days=7),
    UNTIL - timedelta(hours=1),
    UNTIL - timedelta(seconds=1),
    UNTIL,
]
INSIDE = [("2", TIMES[1]), ("3", TIMES[2]), ("4", TIMES[3])]


def timed(write: Callable[[datetime], Any]) -> list[Row]:
    return [row(i, engagement_rate=0.1, ts=write(at)) for i, at in enumerate(TIMES, 1)]


async def times_of(source: Any) -> list[tuple[str, datetime]]:
    return [(post.id, post.ts) for post in await collected(source, query())]


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda t: f"{t:%Y-%m-%dT%H:%M:%S}+0000", id="+0000"),
        pytest.param(lambda t: f"{t:%Y-%m-%d %H:%M:%S}+00", id="+00"),
        pytest.param(lambda t: f"{t:%Y-%m-%dT%H:%M:%SZ}", id="Z"),
        pytest.param(lambda t: f"{t:%Y-%m-%d %H:%M:%S} UTC", id="UTC"),
        pytest.param(lambda t: f"{t:%Y-%m-%d %H:%M:%S}", id="naive"),
        pytest.param(lambda t: f"{t:%Y%m%dT%H%M%S}", id="basic"),
        pytest.param(lambda t: t.astimezone(ZoneInfo("Asia/Kolkata")).isoformat(), id="+05:30"),
        pytest.param(lambda t: f"{t:%Y-%m-%dT%H:%M:%S}.000000000Z", id="nanoseconds"),
        pytest.param(lambda t: str(int(t.timestamp())), id="epoch"),
        pytest.param(lambda t: str(int(t.timestamp() * 1000)), id="epoch in ms"),
        pytest.param(lambda t: f"{t.timestamp():.3f}", id="epoch with a point"),
    ],
)
async def test_times_as_text_in_any_spelling(make: Make, write: Callable[[datetime], str]) -> None:
    """`+0000` and epochs gave no post at all, or posts of the year 1737."""
    assert await times_of(make(timed(write), types={"ts": "text"})) == INSIDE


@pytest.mark.parametrize("unit", [1, 1_000, 1_000_000, 1_000_000_000])
async def test_times_as_numbers_of_any_unit(make: Make, unit: int) -> None:
    rows = timed(lambda t: int(t.timestamp()) * unit)
    assert await times_of(make(rows, types={"ts": "bigint"})) == INSIDE


async def test_spellings_may_be_mixed(make: Make) -> None:
    spellings = [
        str,
        datetime.isoformat,
        lambda t: f"{t:%Y-%m-%dT%H:%M:%S}+0000",
        lambda t: str(int(t.timestamp())),
        lambda t: str(int(t.timestamp() * 1000)),
    ]
    rows = [row(i, engagement_rate=0.1, ts=spellings[i - 1](t)) for i, t in enumerate(TIMES, 1)]
    assert await times_of(make(rows, types={"ts": "text"})) == INSIDE


@pytest.mark.parametrize("form", ["%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y %H:%M"])
async def test_order_of_day_and_month_is_asked_for(make: Make, form: str) -> None:
    days = [UNTIL - timedelta(days=n) for n in (8, 7, 1)]
    rows = [row(i, engagement_rate=0.1, ts=f"{t:{form}}") for i, t in enumerate(days, 1)]
    with pytest.raises(DataError, match="3 of 3 values of ts") as caught:
        await collected(make(rows, types={"ts": "text"}), query())
    assert "time_format" in caught.value.mend


@pytest.mark.parametrize("form", ["%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y %H:%M"])
async def test_times_are_read_as_their_format_says(make: Make, form: str) -> None:
    days = [UNTIL - timedelta(days=n) for n in (8, 7, 1)]
    rows = [row(i, engagement_rate=0.1, ts=f"{t:{form}}") for i, t in enumerate(days, 1)]
    found = await times_of(make(rows, types={"ts": "text"}, time_format=form))
    assert found == [("2", days[1]), ("3", days[2])]


async def test_a_few_times_that_are_none_are_counted(make: Make, tmp_path: Path) -> None:
    rows = [{**r, "ts": r["ts"].isoformat()} for r in ten()]
    rows.append(row(99, ts="yesterday", engagement_rate=0.9))
    source = make(rows, types={"ts": "text"})
    batch = await DataCollector(source=source, dir=tmp_path).collect_training_data(until=UNTIL)
    assert (batch.posts, batch.dropped["invalid_time"]) == (8, 1)


async def test_more_than_half_of_the_times_unread_stops_the_run(make: Make) -> None:
    rows = [row(i, ts="yesterday" if i % 3 else r["ts"].isoformat()) for i, r in enumerate(ten())]
    with pytest.raises(DataError, match=r"6 of 10 values of ts .*'yesterday'"):
        await collected(make(rows, types={"ts": "text"}), query())


@pytest.mark.parametrize("declared", ["timestamp", "text"])
async def test_naive_times_are_of_the_zone_of_their_source(make: Make, declared: str) -> None:
    zone = ZoneInfo("America/New_York")
    write = (lambda t: t) if declared == "timestamp" else (lambda t: t.isoformat(" "))
    rows = timed(lambda t: write(t.astimezone(zone).replace(tzinfo=None)))
    source = make(rows, types={"ts": declared}, time_zone="America/New_York")
    assert await times_of(source) == INSIDE


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
async def test_timestamps_of_parquet_in_any_unit(
    tmp_path: Path, unit: str, zone: str | None
) -> None:
    """Nanoseconds ended in a traceback."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(timed(lambda t: t))
    more = 1 if unit == "ns" else 0  # what Python's times cannot hold
    a_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    numbers = [int(t.timestamp()) * a_second + more for t in TIMES]
    column = pa.array(numbers, pa.int64()).cast(pa.timestamp(unit, zone))
    table = table.drop_columns("ts").append_column("ts", column).append_column("written", column)
    pq.write_table(table, tmp_path / "p.parquet")
    found = await collected(open_source(tmp_path / "p.parquet"), query(columns=("written",)))
    assert [(post.id, post.ts) for post in found] == INSIDE
    assert found[0].text("written").startswith("2025-01-13 00:00:00")


async def test_days_are_times_at_their_beginning(make: Make) -> None:
    days = [(UNTIL - timedelta(days=n)).date() for n in (8, 7, 1, 0)]
    rows = [row(i, engagement_rate=0.1, ts=day) for i, day in enumerate(days, 1)]
    found = await times_of(make(rows, types={"ts": "date"}))
    assert found == [("2", UNTIL - timedelta(days=7)), ("3", UNTIL - timedelta(days=1))]


# --- names ------------------------------------------------------------------------------


async def test_names_that_sql_reserves_or_folds_can_be_used(make: Make) -> None:
    columns = {
        "id": "Order",
        "hook": "select",
        "body": "Body Text (%)",
        "engagement_rate": "Click:Rate",
        "ts": "From",
    }
    rows = [{columns.get(name, name): value for name, value in r.items()} for r in ten()]
    types = {"Order": "bigint", "Click:Rate": "double precision", "From": "timestamptz"}
    found = await collected(make(rows, types=types, columns=columns), query())
    assert shown(found) == BEST
    assert (found[0].hook, found[0].body) == (row(10)["hook"], row(10)["body"])


async def test_case_of_a_name_does_not_matter_where_only_one_is_meant(make: Make) -> None:
    names = {"id": "ID", "hook": "Hook", "engagement_rate": "Engagement_Rate", "ts": "Created_At"}
    rows = [{names.get(name, name): value for name, value in r.items()} for r in ten()]
    types = {"ID": "bigint", "Engagement_Rate": "double precision", "Created_At": "timestamptz"}
    assert shown(await collected(make(rows, types=types), query())) == BEST


async def test_a_colon_in_where_is_no_parameter(make: Make, kind: str) -> None:
    rows = ten()
    rows[9]["persona_id"] = "at 12 :noon, 100%"
    if kind not in TABLES:
        with pytest.raises(DataError, match="where is SQL"):
            make(rows, where="persona_id = 'ana'")
        return
    source = make(rows, where="persona_id NOT LIKE '%12 :noon, 100\\%%' ESCAPE '\\'")
    assert shown(await collected(source, query())) == BEST[1:]
    check = await source.check(query())
    assert check.found


# --- ids --------------------------------------------------------------------------------


async def test_ids_that_are_shared_are_told_with_their_number(make: Make) -> None:
    """Thirty rows with one id made thirty examples that no one could tell apart."""
    rows = [row(1, id=id, engagement_rate=0.1) for id in ("a", "b", "b", "c", "b", "c")]
    with pytest.raises(DataError, match=r"3 posts of .* have the id 'b', and 1 other ids"):
        await collected(make(rows), query())


async def test_digits_as_ids_are_in_order_of_their_size(make: Make, kind: str) -> None:
    ids = ["10", "9", "x1", "100000000000000000000000", "08", "7", "7a"]
    rows = [row(1, id=id, engagement_rate=0.1) for id in ids]
    found = [post.id for post in await collected(make(rows), query())]
    if kind == "any other database":
        assert sorted(found) == sorted(ids)  # in that database's order of texts
    else:
        assert found == ["7", "08", "9", "10", "100000000000000000000000", "7a", "x1"]


# --- texts and counts -------------------------------------------------------------------


async def test_counts_that_cannot_be_are_unknown_and_counted(make: Make) -> None:
    rows = [
        row(i, engagement_rate=0.1, impressions=impressions, clicks=clicks)
        for i, (impressions, clicks) in enumerate(
            [(100, 7), (100, 8), (50, 9), (-5, 1), (10, 30), (None, 2), (70, 70)], 1
        )
    ]
    source = make(rows)
    found = {p.id: (p.impressions, p.clicks) for p in await collected(source, query())}
    assert found == {
        "1": (100, 7),
        "2": (100, 8),
        "3": (50, 9),
        "7": (70, 70),
        "4": (None, 1),
        "5": (None, None),
        "6": (None, 2),
    }
    unread: Any = source.unread()
    assert unread["impressions"]["count"] == 1
    assert "30 of 10 impressions" in unread["clicks"]["samples"][0]


async def test_empty_texts_are_absent(make: Make) -> None:
    (found,) = await collected(make([row(1, persona_id="", hook="", version="")]), query())
    assert (found.persona_id, found.hook, found.version) == (None, None, None)


async def test_the_same_input_gives_the_same_hash(make: Make, tmp_path: Path) -> None:
    """Whatever the source, the order of its rows and the size of its chunks."""
    rows = [
        row(i, original_input=f"in {i % 40}", engagement_rate=round(0.05 + i % 7 / 100, 4))
        for i in range(1, 301)
    ]
    random.Random(3).shuffle(rows)
    source = make(rows)
    hashes = set()
    for chunk_size in (7, 1000):
        collecting = DataCollector(
            source=source, dir=tmp_path, max_records=200, chunk_size=chunk_size
        )
        hashes.add((await collecting.collect_training_data(until=UNTIL)).hash)
    assert hashes == {GOLDEN}
    manifest = json.loads((tmp_path / "datasets" / GOLDEN / "manifest.json").read_text("utf-8"))
    assert manifest["used_columns"]["engagement_rate"] == "engagement_rate"
    assert set(manifest["columns"]) == set(rows[0])
    assert manifest["unread"] == {}
    assert manifest["versions"] == {
        "tuneproof": metadata.version("tuneproof"),
        "detectors": DETECTORS,
        "unicode": unicodedata.unidata_version,
    }


GOLDEN = "2d058bfc69c24dbc1947d363bb956c9c"
"""The hash of a dataset that never changes: whoever changes it changes what is trained on."""
