"""Every source has the meaning of the one query: window, threshold, order, limit, chunks."""

from __future__ import annotations

import asyncio
import csv
import random
import sqlite3
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.first_users import NO_INPUT, POSTS
from tests.posts import UNTIL, csv_file, parquet_file, row, sqlite_file
from tests.servers import PostgresServer, free_port
from tests.sourcing import WEEK, Make, collected, fill_postgres, jsonl_file, query

from tuneproof.collection import DataCollector, Post, Source, Totalling
from tuneproof.errors import DataError, StoreUnavailableError
from tuneproof.experiments.planning import History, read_history
from tuneproof.settings import SourceConfig
from tuneproof.sources import import_posts, open_source
from tuneproof.sources.sql import OWN_MARK, OWN_TABLES
from tuneproof.stats.design import coefficient_of_variation
from tuneproof.store.tables import metadata


async def test_threshold_is_inclusive_and_window_half_open(make: Make) -> None:
    rows = [
        row(1, engagement_rate=0.06),
        row(2, engagement_rate=0.0599),
        row(3, engagement_rate=None),
        row(4, ts=UNTIL),
        row(5, ts=UNTIL - timedelta(days=7)),
        row(6, ts=UNTIL - timedelta(days=7, microseconds=1000)),
        row(7, ts=UNTIL - timedelta(microseconds=1000)),
    ]
    assert {p.id for p in await collected(make(rows), query())} == {"1", "5", "7"}


async def chosen(source: Source, share: float, **arguments: Any) -> tuple[list[Post], Any]:
    """The posts that a collector with this share learns from, and what its manifest says."""
    collecting = DataCollector(source=source, top_share=share, max_records=None, **arguments)
    wanted = await collecting.chosen(source, collecting.query(7, UNTIL))
    return await collected(source, wanted), wanted


async def test_a_share_takes_the_best_of_the_rated_posts_with_all_that_tie(make: Make) -> None:
    """A threshold of 0.06 in a week of rates below 0.05 chose nothing at all."""
    rows = [row(i, engagement_rate=i / 4000) for i in range(1, 41)]
    rows += [row(41, engagement_rate=None), row(42, engagement_rate=0.9, ts=UNTIL)]
    random.Random(2).shuffle(rows)
    source = make(rows)
    found, wanted = await chosen(source, 0.1)
    assert [p.id for p in found] == ["40", "39", "38", "37"]
    assert (wanted.rated, wanted.threshold) == (40, 37 / 4000)
    assert wanted.described()["top_share"] == 0.1
    assert wanted.described()["rated"] == 40
    assert wanted.selects() == (
        "the best 10 % of 40 rated posts: those with a rate of 0.00925 or more"
    )
    assert len((await chosen(source, 1.0))[0]) == 40


async def test_posts_as_good_as_the_last_of_the_share_come_too(make: Make) -> None:
    source = make([row(i, engagement_rate=0.02 if i > 3 else 0.05) for i in range(1, 11)])
    assert len((await chosen(source, 0.3))[0]) == 3
    assert len((await chosen(source, 0.31))[0]) == 10


async def test_a_share_of_posts_without_rates_is_none_of_them(make: Make) -> None:
    _, wanted = await chosen(make([row(1, engagement_rate=None)]), 0.5)
    assert wanted.selects() == "the best 50 % of the posts; none of the window has a rate"


async def test_best_come_first_and_ties_by_id(make: Make) -> None:
    rows = [row(i, engagement_rate=0.06 + (i % 5) / 100) for i in range(1, 41)]
    random.Random(1).shuffle(rows)
    source = make(rows)
    found = await collected(source, query(chunk_size=7))
    assert found == sorted(found, key=lambda p: (-(p.engagement_rate or 0), int(p.id)))
    assert len(found) == 40
    assert await collected(source, query(max_records=9)) == found[:9]


async def test_text_ids_are_in_order_of_code_points(make: Make) -> None:
    rows = [row(1, id=id, engagement_rate=0.1) for id in ("b", "B", "a", "_", "é", "Z")]
    found = [p.id for p in await collected(make(rows), query())]
    assert found == ["B", "Z", "_", "a", "b", "é"]


async def test_posts_come_back_as_they_are(make: Make) -> None:
    given = row(1, hook='Ünïcode "quoted", comma\nline 🐎', persona_id=None)
    (found,) = await collected(make([given]), query())
    assert (found.hook, found.body) == (given["hook"], given["body"])
    assert not found.persona_id
    assert found.ts == given["ts"]
    assert found.ts.tzinfo is UTC
    assert (found.engagement_rate, found.tokens_used) == (given["engagement_rate"], 100)


async def test_chunks_have_the_size_asked_for(make: Make) -> None:
    source = make([row(i) for i in range(1, 26)])
    sizes = [len(chunk) async for chunk in source.posts(query(chunk_size=10))]
    assert sizes == [10, 10, 5]


async def test_columns_are_found_by_their_other_names(make: Make) -> None:
    given = row(1)
    given["created_at"] = given.pop("ts")
    given["headline"] = given.pop("hook")
    source = make([given], columns={"hook": "headline"})
    (found,) = await collected(source, query())
    assert found.hook == given["headline"]


async def test_further_columns_reach_the_templates(make: Make) -> None:
    given = {**row(1), "audience": "cats"}
    (found,) = await collected(make([given]), query(columns=("audience",)))
    assert found.text("audience") == "cats"


async def test_absent_column_is_named_before_anything_is_read(make: Make) -> None:
    source = make([row(1)])
    check = await source.check(query(columns=("audience", "hook")))
    assert check.missing == ("audience",)
    with pytest.raises(DataError, match="audience"):
        await collected(source, query(columns=("audience",)))


async def test_the_documented_table_of_posts_is_read_without_a_setting(
    make: Make, tmp_path: Path
) -> None:
    """It has no `original_input`: "has no column for original_input", and the run stopped."""
    source = make([{name: row(i)[name] for name in POSTS} for i in range(1, 40)])
    batch = await DataCollector(source=source, dir=tmp_path).collect_training_data(until=UNTIL)
    assert batch.examples["hook"] > 30
    assert {one["messages"][0]["content"] for one in batch.hook_examples} == {NO_INPUT}


async def test_an_input_whose_column_is_named_must_be_there(make: Make) -> None:
    rows = [{name: row(1)[name] for name in POSTS}]
    source = make(rows, columns={"original_input": "brief"})
    check = await source.check(query(columns=("original_input",)))
    assert check.missing == ("original_input",)


async def test_rates_that_are_no_shares_are_left_to_curation(make: Make, tmp_path: Path) -> None:
    rows = [row(i) for i in range(1, 9)]
    rows += [row(11, engagement_rate=1.5), row(12, engagement_rate=-0.5)]
    collector = DataCollector(source=make(rows), dir=tmp_path)
    batch = await collector.collect_training_data(until=UNTIL)
    assert (batch.posts, batch.dropped["invalid_rate"]) == (9, 1)


@pytest.mark.parametrize(
    "kind", ["parquet", "csv", pytest.param("postgres", marks=pytest.mark.postgres)]
)
async def test_nan_rates_are_counted(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    rows = [row(i) for i in range(1, 9)] + [row(9, engagement_rate=float("nan"))]
    if kind == "postgres":
        url = request.getfixturevalue("postgres_url")
        fill_postgres(url, rows)
    else:
        path = tmp_path / f"p.{kind}"
        url = str(parquet_file(path, rows) if kind == "parquet" else csv_file(path, rows))
    batch = await DataCollector(source=open_source(url), dir=tmp_path).collect_training_data(
        until=UNTIL
    )
    assert batch.dropped["invalid_rate"] == 1


async def test_empty_table_gives_an_empty_batch_that_says_so(tmp_path: Path) -> None:
    source = open_source(sqlite_file(tmp_path / "p.db", []))
    batch = await DataCollector(source=source, dir=tmp_path).collect_training_data(until=UNTIL)
    assert batch.posts == 0
    assert "no posts at all" in batch.note


# --- SQLite -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("TEXT", lambda t: t.isoformat()),
        ("TEXT", lambda t: t.isoformat(" ")),
        ("TEXT", lambda t: t.replace(tzinfo=None).isoformat()),
        ("TEXT", lambda t: f"{t:%Y-%m-%dT%H:%M:%SZ}"),
        ("TEXT", lambda t: t.astimezone().isoformat()),
        ("INTEGER", lambda t: int(t.timestamp())),
        ("INTEGER", lambda t: int(t.timestamp() * 1000)),
        ("REAL", lambda t: t.timestamp()),
    ],
)
async def test_sqlite_times_in_any_spelling(
    tmp_path: Path, kind: str, write: Callable[[datetime], Any]
) -> None:
    times = [UNTIL - timedelta(days=7, seconds=1), UNTIL - timedelta(days=7), UNTIL]
    times += [UNTIL - timedelta(hours=1)]
    rows = [{**row(i), "ts": write(t)} for i, t in enumerate(times)]
    source = open_source(sqlite_file(tmp_path / "p.db", rows, ts=kind))
    found = await collected(source, query())
    assert sorted((p.id, p.ts) for p in found) == [("1", times[1]), ("3", times[3])]


async def test_sqlite_text_that_is_no_utf8_is_dropped_by_curation(tmp_path: Path) -> None:
    url = sqlite_file(tmp_path / "p.db", [row(1), row(2)])
    with sqlite3.connect(tmp_path / "p.db") as connection:
        connection.execute("UPDATE posts SET hook = CAST(x'636166e9' AS TEXT) WHERE id = 2")
    connection.close()
    collector = DataCollector(source=open_source(url), dir=tmp_path / "out")
    batch = await collector.collect_training_data(until=UNTIL)
    assert batch.posts == 2
    assert batch.dropped["not_utf8"] == 2  # the hook, and the body that is asked for by it


async def test_sqlite_source_cannot_write(tmp_path: Path) -> None:
    url = sqlite_file(tmp_path / "p.db", [row(1)])
    source = open_source(SourceConfig(url=url, where="1); DELETE FROM posts; --"))
    with pytest.raises((DataError, sqlite3.Error)):
        await collected(source, query())
    assert len(await collected(open_source(url), query())) == 1


async def test_where_narrows_the_posts(tmp_path: Path) -> None:
    url = sqlite_file(tmp_path / "p.db", [row(1), row(2, persona_id="ben")])
    source = open_source(SourceConfig(url=url, where="persona_id = 'ben'"))
    assert [p.id for p in await collected(source, query())] == ["2"]


async def test_missing_index_is_advised_and_used_when_there(tmp_path: Path) -> None:
    url = sqlite_file(tmp_path / "p.db", [row(1)])
    check = await open_source(url).check(query())
    assert check.advice == (
        "CREATE INDEX posts_ts_engagement_rate ON posts (ts, engagement_rate);",
    )
    with sqlite3.connect(tmp_path / "p.db") as connection:
        connection.execute(check.advice[0])
    connection.close()
    check = await open_source(url).check(query())
    assert (check.advice, check.newest) == ((), row(1)["ts"])


# --- Totals -----------------------------------------------------------------------------


class Reading:
    """A source that can only hand its posts over."""

    def __init__(self, source: Source) -> None:
        self.check, self.posts, self.close = source.check, source.posts, source.close


def mixed(count: int) -> list[dict[str, Any]]:
    chance = random.Random(5)
    rates = [None, 1.5, -0.1, *[chance.betavariate(2, 60) for _ in range(12)]]
    return [
        row(
            i,
            engagement_rate=chance.choice(rates),
            ts=UNTIL - timedelta(days=8) * chance.random(),
            tokens_used=chance.choice([None, 0, 80, 250]),
        )
        for i in range(1, count + 1)
    ]


async def same_history(source: Source) -> History:
    """The history as the source adds it up, which must be that of its posts read one by one."""
    added, read = await read_history(source, WEEK), await read_history(Reading(source), WEEK)
    assert added.units.n == read.units.n
    assert added.negative
    for figure in (
        lambda h: h.units.sum_y,
        lambda h: h.units.sum_yy,
        lambda h: h.hours,
        lambda h: h.tokens,
        lambda h: h.negative,
        lambda h: h.negative_rates,
        lambda h: coefficient_of_variation(h.units),
    ):
        assert figure(added) == pytest.approx(figure(read), rel=1e-12)
    return added


async def test_history_is_the_same_whether_it_is_added_up_or_read(make: Make) -> None:
    found = await same_history(make(mixed(3000)))
    assert 1500 < found.units.n < 2500


async def test_history_of_a_window_without_posts_is_empty(make: Make) -> None:
    found = await read_history(make([row(1, ts=UNTIL)]), WEEK)
    assert (found.units.n, found.tokens, found.hours) == (0, None, 168.0)


async def test_history_does_without_tokens_and_keeps_to_where(tmp_path: Path) -> None:
    rows = [{k: v for k, v in r.items() if k != "tokens_used"} for r in mixed(50)]
    url = sqlite_file(tmp_path / "p.db", [*rows, {**rows[0], "id": 99, "persona_id": "ben"}])
    source = open_source(SourceConfig(url=url, where="persona_id = 'ana'"))
    found = await read_history(source, WEEK)
    assert found.tokens is None
    assert found.units.n == (await read_history(Reading(source), WEEK)).units.n


@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("TEXT", lambda t: t.isoformat()),
        ("TEXT", lambda t: f"{t:%Y-%m-%dT%H:%M:%SZ}"),
        ("INTEGER", lambda t: int(t.timestamp() * 1000)),
        ("REAL", lambda t: t.timestamp()),
    ],
)
async def test_sqlite_history_with_times_in_any_spelling(
    tmp_path: Path, kind: str, write: Callable[[datetime], Any]
) -> None:
    rows = [{**r, "ts": write(r["ts"])} for r in mixed(300)]
    await same_history(open_source(sqlite_file(tmp_path / "p.db", rows, ts=kind)))


async def test_sqlite_numbers_kept_as_text_are_read_instead(tmp_path: Path) -> None:
    rows = [{**r, "engagement_rate": str(r["engagement_rate"] or 0.5)} for r in mixed(40)]
    source = open_source(sqlite_file(tmp_path / "p.db", rows, engagement_rate="TEXT"))
    assert isinstance(source, Totalling)
    assert await source.totals(WEEK) is None
    assert (await read_history(source, WEEK)).units.n > 20


async def test_sqlite_where_that_is_wrong_is_told_as_such(tmp_path: Path) -> None:
    url = sqlite_file(tmp_path / "p.db", [row(1)])
    with pytest.raises(DataError, match="refused the query"):
        await read_history(open_source(SourceConfig(url=url, where="nowhere = 1")), WEEK)


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("timestamp", lambda t: t.replace(tzinfo=None)),
        ("text", lambda t: t.isoformat()),
        ("bigint", lambda t: int(t.timestamp() * 1000)),
        ("double precision", lambda t: t.timestamp()),
    ],
)
async def test_postgres_history_with_times_in_other_types(
    postgres_url: str, kind: str, write: Callable[[datetime], Any]
) -> None:
    fill_postgres(postgres_url, [{**r, "ts": write(r["ts"])} for r in mixed(300)], ts=kind)
    await same_history(open_source(postgres_url))


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["real", "numeric", "text"])
async def test_postgres_history_with_rates_in_other_types(postgres_url: str, kind: str) -> None:
    fill_postgres(postgres_url, mixed(300))
    with psycopg.connect(postgres_url.replace("+psycopg", "")) as connection:
        change = f"ALTER TABLE posts ALTER engagement_rate TYPE {kind}"
        connection.execute(change)
    source = open_source(postgres_url)
    assert isinstance(source, Totalling)
    if kind == "text":
        assert await source.totals(WEEK) is None
    else:
        await same_history(source)


# --- PostgreSQL -------------------------------------------------------------------------


@pytest.mark.postgres
async def test_postgres_naive_times_are_utc(postgres_url: str) -> None:
    rows = [{**row(1), "ts": (UNTIL - timedelta(hours=1)).replace(tzinfo=None)}]
    fill_postgres(postgres_url, rows, ts="timestamp")
    (found,) = await collected(open_source(postgres_url), query())
    assert found.ts == UNTIL - timedelta(hours=1)


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("text", lambda t: t.isoformat()),
        ("bigint", lambda t: int(t.timestamp())),
        ("bigint", lambda t: int(t.timestamp() * 1000)),
        ("double precision", lambda t: t.timestamp()),
    ],
)
async def test_postgres_times_in_other_types(
    postgres_url: str, kind: str, write: Callable[[datetime], Any]
) -> None:
    times = [UNTIL - timedelta(days=7, seconds=1), UNTIL - timedelta(days=7), UNTIL]
    rows = [{**row(i), "ts": write(t)} for i, t in enumerate(times)]
    fill_postgres(postgres_url, rows, ts=kind)
    found = await collected(open_source(postgres_url), query())
    assert [(p.id, p.ts) for p in found] == [("1", times[1])]


@pytest.mark.postgres
async def test_postgres_views_and_schemas_can_be_read(postgres_url: str) -> None:
    fill_postgres(postgres_url, [row(1)])
    with psycopg.connect(postgres_url.replace("+psycopg", "")) as connection:
        connection.execute("CREATE SCHEMA app")
        connection.execute("CREATE VIEW app.best AS SELECT * FROM posts")
    source = open_source(SourceConfig(url=postgres_url, table="app.best"))
    assert len(await collected(source, query())) == 1


@pytest.mark.postgres
async def test_postgres_is_asked_one_query_in_a_transaction_that_cannot_write(
    postgres: PostgresServer, postgres_url: str
) -> None:
    fill_postgres(postgres_url, [row(1)])
    source = open_source(
        SourceConfig(url=postgres_url, where="set_config('x.y', '1', false) <> ''")
    )
    assert len(await collected(source, query())) == 1
    source = open_source(SourceConfig(url=postgres_url, where="nextval('s') > 0"))
    with psycopg.connect(postgres_url.replace("+psycopg", "")) as connection:
        connection.execute("CREATE SEQUENCE s")
    with pytest.raises(DataError, match="read-only"):
        await collected(source, query())


@pytest.mark.postgres
async def test_absent_table_names_those_that_exist(postgres_url: str) -> None:
    fill_postgres(postgres_url, [row(1)])
    source = open_source(SourceConfig(url=postgres_url, table="articles"))
    with pytest.raises(DataError, match=r"no such table; there are posts"):
        await source.check(query())


async def test_unreachable_database_is_an_outage_without_its_password() -> None:
    source = open_source(f"postgresql://ada:secret@127.0.0.1:{free_port()}/db")
    for attempt in (source.check(query()), collected(source, query())):
        with pytest.raises(StoreUnavailableError, match="did not answer") as caught:
            await attempt
        assert "secret" not in str(caught.value)


async def test_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_source(tmp_path / "none.parquet")
    with pytest.raises(DataError, match="no such file"):
        await open_source(f"sqlite:///{tmp_path}/none.db").check(query())
    with pytest.raises(DataError, match="neither a database address nor a file"):
        open_source("posts.xlsx")


async def test_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    path.write_text("id,hook")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        await open_source(path).check(query())


async def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet_file(tmp_path / "p.parquet", [row(1)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install tuneproof\[parquet\]"):
        await open_source(path).check(query())


# --- loading ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
async def test_loading_twice_adds_nothing(database_url: str, tmp_path: Path, kind: str) -> None:
    rows = [row(i) for i in range(1, 2501)]
    write = {"parquet": parquet_file, "csv": csv_file, "jsonl": jsonl_file}[kind]
    path = write(tmp_path / f"p.{kind}", rows)
    told: list[int] = []
    assert await import_posts(path, database_url, progress=told.append) == 2500
    assert told == [1000, 2000, 2500]
    assert await import_posts(path, database_url) == 0


async def test_file_and_table_give_the_same_dataset(database_url: str, tmp_path: Path) -> None:
    rows = [row(i, original_input=f"in {i % 40}") for i in range(1, 401)]
    path = parquet_file(tmp_path / "p.parquet", rows)
    await import_posts(path, database_url)
    hashes = set()
    for address in (path, csv_file(tmp_path / "p.csv", rows), database_url):
        collector = DataCollector(source=open_source(str(address)), dir=tmp_path, max_records=300)
        hashes.add((await collector.collect_training_data(until=UNTIL)).hash)
    assert len(hashes) == 1


UPWORTHY = Path(__file__).parents[4] / "shared" / "data" / "upworthy_posts.parquet"


@pytest.mark.skipif(not UPWORTHY.exists(), reason=f"{UPWORTHY} is absent")
async def test_real_posts_from_file_and_table_give_the_same_dataset(
    database_url: str, tmp_path: Path
) -> None:
    assert await import_posts(UPWORTHY, database_url) == 11_571
    batches = []
    for address in (str(UPWORTHY), database_url):
        collector = DataCollector(0.03, source=open_source(address), dir=tmp_path, days_back=365)
        batches.append(await collector.collect_training_data(until=datetime(2014, 12, 1)))  # noqa: DTZ001
    assert batches[0].hash == batches[1].hash
    assert batches[0].posts == 515
    assert sum(batches[0].examples.values()) > 400
    assert min(d.validation_examples for d in batches[0].datasets.values()) > 5


HEADER = "id,hook,body,engagement_rate,ts,clicks\n"
GOOD = "{},a hook,a body,0.07,2025-01-19T00:00:00Z,3\n"


def written(path: Path, *rows: str, head: str = HEADER) -> Path:
    path.write_text(head + "".join(rows), "utf-8")
    return path


async def test_text_above_128_kib_is_collected_and_loaded(
    database_url: str, tmp_path: Path
) -> None:
    body = "long " * 40_000
    path = written(tmp_path / "p.csv", GOOD.format(1).replace("a body", body))
    (post,) = await collected(open_source(path), query())
    assert post.body == body
    assert await import_posts(path, database_url) == 1


async def test_what_is_no_csv_is_refused_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sqlite_store_url: str
) -> None:
    monkeypatch.setattr("tuneproof.sources.delimited.LONGEST", 1000)
    limit = csv.field_size_limit(1000)
    path = written(tmp_path / "p.csv", GOOD.format(1), '2,"never closed' + "x" * 2000)
    try:
        with pytest.raises(DataError, match=r"p\.csv' cannot be read as CSV after row 1"):
            await collected(open_source(path), query())
        with pytest.raises(DataError, match="after row 1"):
            await import_posts(path, sqlite_store_url)
    finally:
        csv.field_size_limit(limit)


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("engagement_rate", "12%", "'12%', no number"),
        ("engagement_rate", "abc", "'abc', no number"),
        ("clicks", "many", "no whole number"),
        ("clicks", "1e30", "no whole number"),
        ("ts", "yesterday", "'yesterday', no time"),
        ("id", "", "empty"),
    ],
)
async def test_value_that_cannot_be_used_is_named_and_nothing_is_loaded(
    database_url: str, tmp_path: Path, column: str, value: str, rule: str
) -> None:
    values = dict(zip(HEADER.strip().split(","), GOOD.strip().split(","), strict=True))
    bad = ",".join({**values, "id": "2900", column: value}.values()) + "\n"
    path = written(tmp_path / "p.csv", *[GOOD.format(i) for i in range(1, 2900)], bad)
    with pytest.raises(DataError, match=rf"p\.csv', row 2900 \(line 2901\).*{column}.*{rule}"):
        await import_posts(path, database_url)
    with pytest.raises(DataError, match="no such table"):
        await open_source(database_url).check(query())
    good = written(tmp_path / "good.csv", GOOD.format(1))
    assert await import_posts(good, database_url) == 1
    with pytest.raises(DataError, match=rule):
        await import_posts(path, database_url)
    assert len(await collected(open_source(database_url), query())) == 1


@pytest.mark.parametrize("where", ["header", "row"])
async def test_file_that_is_not_utf8_is_refused(
    database_url: str, tmp_path: Path, where: str
) -> None:
    path = tmp_path / "p.csv"
    head = HEADER.replace("hook", "höök") if where == "header" else HEADER
    path.write_bytes((head + GOOD.format(1).replace("body", "bödy")).encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        await import_posts(path, database_url)


@pytest.mark.parametrize(
    ("text", "rule"),
    [("", "is empty"), ("id;ts;body\n1;2025-01-19;b\n", "semicolons"), ("id\tts\n", "tabs")],
)
async def test_csv_that_is_empty_or_separated_otherwise_says_so(
    sqlite_store_url: str, tmp_path: Path, text: str, rule: str
) -> None:
    path = written(tmp_path / "p.csv", head=text)
    with pytest.raises(DataError, match=rule):
        await import_posts(path, sqlite_store_url)
    with pytest.raises(DataError, match=rule):
        await open_source(path).check(query())


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("bad", [None, "yesterday"])
async def test_posts_of_a_file_without_a_time_are_left_out_and_counted(
    tmp_path: Path, kind: str, bad: str | None
) -> None:
    rows = [row(i) for i in range(1, 30)]
    if bad is not None:
        rows = [{**r, "ts": r["ts"].isoformat()} for r in rows]
    rows.append(row(99, ts=bad, engagement_rate=0.9))
    path = tmp_path / f"p.{kind}"
    (parquet_file if kind == "parquet" else csv_file)(path, rows)
    batch = await DataCollector(source=open_source(path), dir=tmp_path).collect_training_data(
        until=UNTIL
    )
    assert (batch.posts, batch.dropped["invalid_time"]) == (30, 1)
    best = await collected(open_source(path), query(max_records=3))
    assert [post.id for post in best] == ["29", "28", "27"]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["same"] * 30, "30 posts of file .* have the id 'same'"),
        (["a", "a", "a", "b", "b"], "3 posts .* 'a', and 1 other ids are not of one post alone"),
        (["a", None, "b"], "1 of 3 posts of file .* have no id|the column id is empty"),
    ],
)
async def test_posts_of_a_file_have_an_id_each(
    tmp_path: Path, kind: str, ids: list[str | None], said: str
) -> None:
    """Thirty rows with one id made thirty examples that no one could tell apart."""
    path = tmp_path / f"p.{kind}"
    rows = [row(i, id=id) for i, id in enumerate(ids, 1)]
    (parquet_file if kind == "parquet" else csv_file)(path, rows)
    with pytest.raises(DataError, match=said) as caught:
        await collected(open_source(path), query())
    assert "give each one of its own" in caught.value.mend


@pytest.mark.parametrize("kind", ["parquet", "csv"])
async def test_file_whose_times_are_all_none_is_refused(tmp_path: Path, kind: str) -> None:
    rows = [row(i, ts=f"{i}/20/2025") for i in range(1, 9)]
    path = tmp_path / f"p.{kind}"
    (parquet_file if kind == "parquet" else csv_file)(path, rows)
    with pytest.raises(DataError, match=r"8 of 8 values of ts .* the first is '1/20/2025'"):
        await collected(open_source(path), query())


async def test_absent_table_is_told_without_the_tables_of_a_store(
    database_url: str, tmp_path: Path
) -> None:
    assert set(metadata.tables) == OWN_TABLES - {OWN_MARK}
    with pytest.raises(DataError, match="there are none"):
        await open_source(database_url).check(query())
    await import_posts(written(tmp_path / "p.csv", GOOD.format(1)), database_url, table="articles")
    with pytest.raises(DataError, match=r"there are articles\."):
        await open_source(database_url).check(query())


async def test_broken_parquet_is_told_with_one_full_stop(
    sqlite_store_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "p.parquet"
    path.write_text("id,hook")
    for attempt in (open_source(path).check(query()), import_posts(path, sqlite_store_url)):
        with pytest.raises(DataError, match="cannot be read as Parquet") as caught:
            await attempt
        assert ".." not in str(caught.value)


async def test_a_reading_that_is_broken_off_takes_nobody_along(tmp_path: Path) -> None:
    """Seen: one in seventeen commands that ended while posts were being read died of a
    segmentation fault: the connection was closed under the thread that read from it."""
    url = sqlite_file(tmp_path / "p.db", [row(number) for number in range(1, 60)])
    with sqlite3.connect(tmp_path / "p.db") as database:
        database.execute(
            "CREATE VIEW slow AS SELECT posts.* FROM posts, (WITH RECURSIVE c(x) AS (SELECT 1 "
            "UNION ALL SELECT x + 1 FROM c WHERE x < 30000000) SELECT max(x) AS n FROM c) "
            "WHERE n > 0"
        )
    for tenth in range(12):
        source = open_source(SourceConfig(url=url, table="slow"))
        reading = asyncio.create_task(collected(source, query()))
        ended, _ = await asyncio.wait([reading], timeout=0.02 * tenth)
        assert not ended
        reading.cancel()
        began = time.perf_counter()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert time.perf_counter() - began < 5  # the whole query takes longer
