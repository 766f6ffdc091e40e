"""One look at 20 million events: from the rollups, and by one GROUP BY over the raw rows.

The rollups are made by the store from a sample of real events and then scaled, so that they have
the rows and the histograms that 20 million events leave; the raw rows are made by PostgreSQL
itself. `python benchmarks/looks.py --events 2000000`, or TUNEPROOF_BENCH_EVENTS in the
environment, does it on fewer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from tests.integration.store.records import experiment
from tests.servers import postgres_server

from tuneproof.experiments import Arm, Exposure, Outcome, judge
from tuneproof.store import Store, open_store

EVENTS = int(os.environ.get("TUNEPROOF_BENCH_EVENTS", 20_000_000))
SAMPLE = 40_000
HOURS = 168
ROUNDS = 7
T0 = datetime(2025, 1, 20, tzinfo=UTC)
GOAL = 235.0
"""Times the scan's speed: 5 ms against 1,178 ms, where the goal was set."""

MAKE = """
CREATE UNLOGGED TABLE raw_events AS
SELECT 1::int8 AS subject, ('unit-' || i / 2) AS unit, (i % 20 = 0)::int::int2 AS arm,
    ((i * 604800 / {events}) * 1000000 + 1737331200000000)::int8 AS at,
    (random() / 5)::float8 AS y, (random() < 0.01) AS error, (random() * 900)::float8 AS latency
FROM generate_series(1, {events}::int8) AS i
"""
GROUP_BY = """
SELECT arm, at / 3600000000 AS hour, count(*), sum(y), sum(y * y), count(*) FILTER (WHERE error),
    sum(latency)
FROM raw_events WHERE subject = 1 GROUP BY 1, 2
"""
SCALE = """
UPDATE cells SET exposed = exposed * {k}, exposed_tokens = exposed_tokens * {k},
    exposed_cost = exposed_cost * {k}, n = n * {k}, n_q = n_q * {k}, y = y * {k}, yy = yy * {k},
    c = c * {k}, cc = cc * {k}, cy = cy * {k}, t = t * {k}, tt = tt * {k}, yt = yt * {k},
    ct = ct * {k}, q = q * {k}, qq = qq * {k};
UPDATE engagement SET n = n * {k};
UPDATE requests SET n = n * {k}, errors = errors * {k}, latency_us = latency_us * {k};
ANALYZE
"""


class Clock:
    """A clock that stands still."""

    def now(self) -> datetime:
        return T0


def records(events: int = EVENTS) -> list[dict[str, Any]]:
    """Both ways, in the same server."""
    with postgres_server() as server:
        url = server.create_database()
        return asyncio.run(_measured(url, events))


async def _measured(url: str, events: int) -> list[dict[str, Any]]:
    store = await open_store(url, clock=Clock())
    try:
        test = experiment(start_at=T0, end_at=T0 + timedelta(hours=HOURS), maturation_hours=0)
        await store.experiments.add(test)
        await store.experiments.open_phase(test.id, 1, 0.1, T0)
        await _fill(store, url, test.id, events)
        at = T0 + timedelta(hours=HOURS - 13.5)

        async def look() -> None:
            halfway = T0 + (at - T0) / 2
            evidence = await store.events.evidence(test.id, before=at, halfway=halfway)
            found = judge(test, evidence, at=at)
            assert found.baseline.sample_size + found.candidate.sample_size > events / 3

        async def scan() -> None:
            with psycopg.connect(_plain(url)) as connection:
                connection.execute(GROUP_BY).fetchall()

        ours, fastest = await _median(look, ROUNDS * 3)
        theirs, _ = await _median(scan, 3)
    finally:
        await store.close()
    said = f"{events / 1e6:g} million events"
    return [
        {
            "name": f"one look at {said}",
            "ours": round(ours * 1e3, 2),
            "unit": "ms",
            "peer": "GROUP BY over the raw rows",
            "peer_value": round(theirs * 1e3, 1),
            "ratio": round(theirs / ours, 1),
            "goal": f"≥ {GOAL:g} ×",
            "met": theirs / ours >= GOAL,
            "fastest_ms": round(fastest * 1e3, 2),
        }
    ]


async def _fill(store: Store, url: str, subject: str, events: int) -> None:
    order = random.Random(7)
    shown, told = [], []
    for i in range(SAMPLE):
        at = T0 + timedelta(hours=HOURS * i / SAMPLE)
        arm = Arm.CANDIDATE if order.random() < 0.1 else Arm.BASELINE
        shown.append(
            Exposure(
                id=f"e{i}", subject=subject, phase=1, arm=arm, unit=f"u{i}", at=at, task="hook",
                latency_ms=order.random() * 1500, error=order.random() < 0.01, tokens=50,
                cost_usd=0.0005,
            )
        )  # fmt: skip
        value = order.betavariate(1.4, 18)
        told.append(Outcome(id=f"o{i}", subject=subject, unit=f"u{i}", at=at, value=value))
    for start in range(0, SAMPLE, 10_000):
        part = slice(start, start + 10_000)
        await store.events.ingest(shown[part], told[part])
    with psycopg.connect(_plain(url), autocommit=True) as connection:
        connection.execute(SCALE.format(k=max(events // (2 * SAMPLE), 1)).encode())
        connection.execute(MAKE.format(events=events).encode())
        connection.execute("VACUUM ANALYZE")


def _plain(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://")


async def _median(work: Callable[[], Awaitable[None]], rounds: int) -> tuple[float, float]:
    """The median and the fastest, in seconds."""
    await work()
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        await work()
        took.append(time.perf_counter() - began)
    return statistics.median(took), min(took)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One look at many events.")
    parser.add_argument("--events", type=int, default=EVENTS)
    for record in records(parser.parse_args().events):
        print(record)
