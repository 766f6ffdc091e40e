"""Events over HTTP into the real service on PostgreSQL, one worker, against the store alone.

Batches of 10,000 events in JSON, each event once for ever, units and rollups kept up before the
answer, over four kept-alive connections. The same kind of batches go straight into the store in
this process: what is left is reading and checking JSON, and sharing two cores with the sender. And
into a bare table by PostgreSQL's binary COPY: the limit.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from http.client import HTTPConnection
from itertools import count, islice
from typing import Any

import psycopg
from tests.integration.store.records import experiment

from ingest import Clock, bare_tables, copy_rows, durable_server, events
from service import EXPERIMENT, running
from tuneproof.store import open_store

PART = 10_000
SENT = 50_000
CONNECTIONS = 4
ROUNDS = 4
GOAL = 0.23
"""Of the store's own rate in the same run: 30 k events/s of 132 k, where the goal was set."""


def records() -> list[dict[str, Any]]:
    """Measure HTTP and the store in turn."""
    with durable_server() as server:
        url, other = server.create_database(), server.create_database()
        with running(url) as service:
            found = asyncio.run(_rounds(service.port, other))
    rates = {way: statistics.median(values[1:]) for way, values in found.items()}
    return [
        _record(rates["http"], "the store alone, the same batches", rates["store"], GOAL),
        _record(rates["http"], "binary COPY alone", rates["copy"], None),
    ]


async def _rounds(port: int, database: str) -> dict[str, list[float]]:
    store = await open_store(database, clock=Clock())
    declared = experiment(EXPERIMENT)
    await store.experiments.add(declared)
    await store.experiments.open_phase(EXPERIMENT, 1, 0.1, declared.start_at)
    found: dict[str, list[float]] = {"http": [], "store": [], "copy": []}
    bare = await psycopg.AsyncConnection.connect(database.replace("+psycopg", ""), autocommit=True)
    seeds = count(100)
    for _ in range(ROUNDS):
        bodies = [json.dumps(_body(part)).encode() for part in _parts(next(seeds))]
        found["http"].append(await asyncio.to_thread(_send, port, bodies))
        parts = list(_parts(next(seeds)))
        began = time.perf_counter()
        for part in parts:
            await store.events.ingest(*part)
        found["store"].append(_events(parts) / (time.perf_counter() - began))
        await bare_tables(bare)
        began = time.perf_counter()
        for part in parts:
            await copy_rows(bare, part)
        found["copy"].append(_events(parts) / (time.perf_counter() - began))
    await bare.close()
    await store.close()
    return found


def _parts(seed: int) -> Iterator[tuple[list[Any], list[Any]]]:
    """SENT events in batches of PART, half of them exposures."""
    half = PART // 2
    parts = (
        (shown[start : start + half], told[start : start + half])
        for shown, told in events(EXPERIMENT, seed)
        for start in range(0, len(shown), half)
    )
    return islice(parts, SENT // PART)


def _events(parts: list[tuple[list[Any], list[Any]]]) -> int:
    return sum(len(shown) + len(told) for shown, told in parts)


def _body(part: tuple[list[Any], list[Any]]) -> dict[str, Any]:
    shown, told = ([{**asdict(e), "at": e.at.isoformat()} for e in kind] for kind in part)
    return {"exposures": shown, "outcomes": told}


def _send(port: int, bodies: list[bytes]) -> float:
    """Events a second."""
    rest = iter(bodies)
    lock = threading.Lock()

    def sender() -> None:
        line = HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            with lock:
                body = next(rest, None)
            if body is None:
                line.close()
                return
            line.request("POST", "/events", body, {"Content-Type": "application/json"})
            answer = line.getresponse()
            found = json.loads(answer.read())
            if answer.status != 200 or found["accepted"] != PART:
                raise SystemExit(f"the service answered {answer.status} {found}")

    threads = [threading.Thread(target=sender) for _ in range(CONNECTIONS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(bodies) * PART / (time.perf_counter() - began)


def _record(ours: float, peer: str, theirs: float, goal: float | None) -> dict[str, Any]:
    return {
        "name": f"ingest: events over HTTP, one worker, {CONNECTIONS} connections",
        "ours": round(ours / 1000, 1),
        "unit": "k events/s",
        "peer": peer,
        "peer_value": round(theirs / 1000, 1),
        "ratio": round(ours / theirs, 3),
        "goal": None if goal is None else f"≥ {goal:g} ×",
        "met": None if goal is None else ours >= goal * theirs,
    }


if __name__ == "__main__":
    for record in records():
        print(record)
