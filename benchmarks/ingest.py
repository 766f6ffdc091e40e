"""Taking in events: how fast, against COPY alone and against an upsert of the same events.

The same events go, in batches, into the store (each event once for ever, units and hourly
rollups kept up), into a bare table by PostgreSQL's binary COPY (the limit: nothing is
checked, nothing kept up; by psycopg with `set_types`, and by psql from a file that has been
written), and by `INSERT … ON CONFLICT` from staging (each once, but no sums). Then the outcomes
come in batches of their own, of units that are known, and again, when all are duplicates; and two
senders share a test. Ways take turns for several rounds; figures are medians. Then a look is timed.
The server has 1 GB of shared buffers and is durable: fsync, synchronous_commit, full_page_writes.
"""

from __future__ import annotations

import asyncio
import gc
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from tests.integration.store.records import experiment
from tests.servers import PostgresServer, postgres_server

from tuneproof.experiments import Arm, Exposure, Outcome
from tuneproof.store import Store, open_store

EVENTS = 100_000
BATCH = 20_000
ROUNDS = 3
T0 = datetime(2025, 1, 20, tzinfo=UTC)
Batches = list[tuple[list[Exposure], list[Outcome]]]
TYPES = ("text", "text", "int4", "text", "timestamptz", "float8", "bool", "int8")


# What 150 k events/s are of each peer on the machine that the goal was set on.
OF_UPSERT, OF_COPY = 150 / 202, 150 / 1431
LOOKS = {"PostgreSQL": 0.15, "SQLite": 0.1}
"""What a look of 5 ms is of a query that reads nothing: a handful of round trips, not more."""


class Clock:
    """A clock that stands still."""

    def now(self) -> datetime:
        return T0


def events(subject: str, seed: int) -> Batches:
    """Batches of exposures of new units, each with its outcome, in the order of a week."""
    order = random.Random(seed)
    batches: Batches = []
    for start in range(0, EVENTS, BATCH):
        units = range(start // 2, (start + BATCH) // 2)
        shown = [_exposure(subject, seed, unit, order) for unit in units]
        told = [
            Outcome(
                id=f"o-{e.unit}", subject=subject, unit=e.unit, at=e.at, value=order.random() / 5
            )
            for e in shown
        ]
        batches.append((shown, told))
    return batches


def _exposure(subject: str, seed: int, number: int, order: random.Random) -> Exposure:
    unit = f"post-{seed}-{number}"
    week = 7 * 86_400 * number / (EVENTS / 2)
    return Exposure(
        id=f"e-{unit}",
        subject=subject,
        phase=1,
        arm=Arm.CANDIDATE if order.random() < 0.1 else Arm.BASELINE,
        unit=unit,
        at=T0 + timedelta(seconds=week + order.randrange(3600)),
        task="hook",
        latency_ms=order.random() * 1000,
        tokens=order.randrange(10, 60),
        cost_usd=order.random() / 1e4,
    )


def records() -> list[dict[str, Any]]:
    """Measure all ways on both databases."""
    with durable_server() as server:
        url, bare = server.create_database(), server.create_database()
        rates = asyncio.run(_postgres(url, bare.replace("+psycopg", "")))
    with tempfile.TemporaryDirectory() as folder:
        sqlite = asyncio.run(_sqlite(f"sqlite:///{Path(folder)}/store.db"))
    ours = rates["store"]
    copy, upsert = ("binary COPY alone", "copy"), ("COPY and ON CONFLICT, no sums", "upsert")
    return [
        _record("PostgreSQL", ours, *_peer(copy, rates), OF_COPY),
        _record("PostgreSQL", ours, "psql COPY from a file", rates["psql"]),
        _record("PostgreSQL", ours, *_peer(upsert, rates), OF_UPSERT),
        _record("PostgreSQL, two senders", rates["two"], *_peer(copy, rates)),
        _record("PostgreSQL, outcomes of known units", rates["late"], *_peer(copy, rates)),
        _record("PostgreSQL, duplicates", rates["again"], *_peer(copy, rates)),
        _record("SQLite", sqlite["store"], "executemany, nothing kept up", sqlite["bare"]),
        _look("PostgreSQL", rates),
        _look("SQLite", sqlite),
    ]


def durable_server() -> AbstractContextManager[PostgresServer]:
    """PostgreSQL as a service has it."""
    return postgres_server(
        fsync="on", synchronous_commit="on", full_page_writes="on", shared_buffers="1GB"
    )


def _peer(named: tuple[str, str], rates: dict[str, float]) -> tuple[str, float]:
    name, way = named
    return name, rates[way]


def _record(
    where: str, ours: float, peer: str, theirs: float, goal: float | None = None
) -> dict[str, Any]:
    return {
        "name": f"ingest: events into {where}, each once, units and rollups kept up",
        "ours": round(ours / 1000, 1),
        "unit": "k events/s",
        "peer": peer,
        "peer_value": round(theirs / 1000, 1),
        "ratio": round(ours / theirs, 3),
        "goal": None if goal is None else f"≥ {goal:.3g} ×",
        "met": None if goal is None else ours >= goal * theirs,
    }


def _look(where: str, found: dict[str, float]) -> dict[str, Any]:
    ms, empty = found["look_ms"], found["empty_ms"]
    return {
        "name": f"look: read a week's rollups on {where}",
        "ours": round(ms, 2),
        "unit": "ms",
        "peer": "an empty query through the store",
        "peer_value": round(empty, 2),
        "ratio": round(empty / ms, 3),
        "goal": f"≥ {LOOKS[where]:g} ×",
        "met": empty >= LOOKS[where] * ms,
    }


async def _postgres(url: str, bare: str) -> dict[str, float]:
    store = await open_store(url, clock=Clock())
    found: dict[str, list[float]] = defaultdict(list)
    connection = await psycopg.AsyncConnection.connect(bare, autocommit=True)
    for number in range(ROUNDS + 1):
        for way, rate in (await _round(store, connection, bare, number)).items():
            found[way].append(rate)
    rates = {way: statistics.median(values[1:]) for way, values in found.items()}
    rates |= await _looks(store, "ab-test-0")
    await connection.close()
    await store.close()
    return rates


async def _round(
    store: Store, connection: psycopg.AsyncConnection[Any], bare: str, number: int
) -> dict[str, float]:
    """Each way once, events a second."""
    batches = events(f"ab-test-{number}", number)
    two = events(f"ab-test-{number}-two", number)
    shown = events(f"ab-test-{number}-late", number)
    for subject in (f"ab-test-{number}", f"ab-test-{number}-two", f"ab-test-{number}-late"):
        await store.experiments.add(experiment(subject))
    late: Batches = [([], told) for _, told in shown]
    rates = {"store": await _rate(batches, lambda b: store.events.ingest(*b))}
    await bare_tables(connection)
    rates["copy"] = await _rate(batches, lambda b: copy_rows(connection, b))
    rates["psql"] = await asyncio.to_thread(_psql, bare)
    await bare_tables(connection)
    rates["upsert"] = await _rate(batches, lambda b: _upsert(connection, b))
    rates["two"] = await _rate(two, lambda b: store.events.ingest(*b), senders=2)
    for exposures, _ in shown:
        await store.events.ingest(exposures)
    rates["late"] = await _rate(late, lambda b: store.events.ingest(*b))
    rates["again"] = await _rate(late, lambda b: store.events.ingest(*b))
    return rates


def _psql(bare: str) -> float:
    """The rows of the bare table from a binary file into an empty one."""
    binary = shutil.which("psql") or str(sorted(Path("/usr/lib/postgresql").glob("*/bin/psql"))[-1])
    with psycopg.connect(bare, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS filed")
        connection.execute("CREATE TABLE filed (LIKE bare)")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows"
        for direction in (f"bare TO '{file}'", f"filed FROM '{file}'"):
            start = time.perf_counter()
            subprocess.run(
                [binary, bare, "-c", f"\\copy {direction} (FORMAT BINARY)"],
                check=True,
                capture_output=True,
            )
            took = time.perf_counter() - start
    return EVENTS / took


async def _sqlite(url: str) -> dict[str, float]:
    store = await open_store(url, clock=Clock())
    rates: dict[str, list[float]] = {"store": [], "bare": []}
    for number in range(ROUNDS):
        subject = f"ab-test-{number}"
        await store.experiments.add(experiment(subject))
        batches = events(subject, number)
        rates["store"].append(await _rate(batches, lambda b: store.events.ingest(*b)))
        rates["bare"].append(await _rate(batches, lambda b: _executemany(store, b)))
    found = {way: statistics.median(values) for way, values in rates.items()}
    found |= await _looks(store, "ab-test-0")
    await store.close()
    return found


async def _rate(
    batches: Batches, load: Callable[[Any], Awaitable[Any]], *, senders: int = 1
) -> float:
    """Events a second. What waits to be sent is kept from the garbage collector: it is not ours."""
    waiting = iter(batches)

    async def sender() -> None:
        for batch in waiting:
            await load(batch)

    gc.collect()
    gc.freeze()
    start = time.perf_counter()
    await asyncio.gather(*(sender() for _ in range(senders)))
    took = time.perf_counter() - start
    gc.unfreeze()
    return sum(len(shown) + len(told) for shown, told in batches) / took


async def _looks(store: Store, subject: str) -> dict[str, float]:
    """Milliseconds of a look's reads, and of a query that reads nothing, in turns."""
    looks, empty = [], []
    for _ in range(20):
        start = time.perf_counter()
        await store.events.evidence(subject, before=T0 + timedelta(days=8))
        looks.append((time.perf_counter() - start) * 1000)
        start = time.perf_counter()
        await store.database.ping()
        empty.append((time.perf_counter() - start) * 1000)
    return {"look_ms": statistics.median(looks), "empty_ms": statistics.median(empty)}


def _rows(batch: tuple[Sequence[Exposure], Sequence[Outcome]]) -> list[tuple[Any, ...]]:
    shown, told = batch
    rows: list[tuple[Any, ...]] = [
        (e.id, e.subject, e.phase, e.unit, e.at, e.latency_ms, e.error, e.tokens) for e in shown
    ]
    rows += [(o.id, o.subject, 0, o.unit, o.at, o.value, False, 0) for o in told]
    return rows


_TABLE = (
    "(id text {}, subject text, phase int, unit text, at timestamptz, value float8, "
    "error bool, tokens bigint)"
)


async def bare_tables(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute("DROP TABLE IF EXISTS bare")
    await connection.execute("DROP TABLE IF EXISTS staged")
    await connection.execute("CREATE TABLE bare " + _TABLE.format(""))
    await connection.execute("CREATE TEMP TABLE staged " + _TABLE.format(""))


async def copy_rows(
    connection: psycopg.AsyncConnection[Any], batch: Any, into: str = "bare"
) -> None:
    async with (
        connection.cursor() as cursor,
        cursor.copy(f"COPY {into} FROM STDIN (FORMAT BINARY)") as copy,
    ):
        copy.set_types(TYPES)
        for row in _rows(batch):
            await copy.write_row(row)


async def _upsert(connection: psycopg.AsyncConnection[Any], batch: Any) -> None:
    await connection.execute("CREATE UNIQUE INDEX IF NOT EXISTS once ON bare (id)")
    async with connection.transaction():
        await copy_rows(connection, batch, "staged")
        await connection.execute("INSERT INTO bare SELECT * FROM staged ON CONFLICT DO NOTHING")
        await connection.execute("TRUNCATE staged")


async def _executemany(store: Store, batch: Any) -> None:
    async with store.database.begin() as tx:
        await tx.exec_driver_sql(
            "CREATE TABLE IF NOT EXISTS bare (id, subject, phase, unit, at, value, error, tokens)"
        )
        rows = [(*row[:4], row[4].timestamp(), *row[5:]) for row in _rows(batch)]
        await tx.exec_driver_sql("INSERT INTO bare VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)


if __name__ == "__main__":
    for record in records():
        print(record)
