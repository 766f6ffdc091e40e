"""Killed at random while it takes events in, 50 times, with a client that tries again.

Each event must count exactly once in the end: the rollups equal the recount of the raw events,
and the raw events are those that were sent.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select
from tests.integration.store.records import experiment
from tests.servers import free_port
from tests.waiting import eventually, until

from tuneproof.store import Store, open_store
from tuneproof.store.tables import exposures, outcomes

pytestmark = pytest.mark.slow

KILLS = 50
BATCHES_A_LIFE = 40
MOST_A_LIFE = 10
"""Batches taken before a kill, at most: all lives together must leave some of the batches."""
EVENTS_A_BATCH = 60
UNITS = 3000
LONGEST_S = 60.0
T0 = datetime(2025, 1, 20, 10, tzinfo=UTC)
SUBJECTS: dict[str, dict[str, Any]] = {
    "ab-test-20250120-001": {},
    "ab-test-20250120-002": {"analysis_unit": "item"},
    "ab-test-20250120-003": {"cuped": True},
}

Batch = dict[str, list[dict[str, Any]]]


class Nursery:
    """The process that forks services; one lives at a time."""

    def __init__(self, directory: Path, database: str, port: int) -> None:
        command = [sys.executable, "-m", "tests.acceptance.ingestion_child"]
        self._process = subprocess.Popen(
            [*command, str(directory), database, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._child = 0

    def start(self) -> None:
        """Start a service and wait until it listens."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        pid, _, said = self._process.stdout.readline().partition(" ")
        assert said == "ready\n", f"the service did not start: {pid} {said}"
        self._child = int(pid)

    def kill(self) -> None:
        """Kill the service that lives."""
        os.kill(self._child, signal.SIGKILL)

    def close(self) -> None:
        """End all of it."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=LONGEST_S)


class Sender(threading.Thread):
    """A client that sends its batches in order, each until it is answered."""

    def __init__(self, batches: Sequence[Batch], address: str) -> None:
        super().__init__(daemon=True)
        self._waiting = list(batches)
        self._address = address
        self.retries = 0
        self.sent = 0
        self.refused = ""

    def run(self) -> None:
        with httpx2.Client(base_url=self._address, timeout=10, trust_env=False) as client:
            for batch in self._waiting:
                until(partial(self._taken, client, batch), LONGEST_S)
                self.sent += 1

    def _taken(self, client: httpx2.Client, batch: Batch) -> bool:
        taken = self._answered(client, batch)
        self.retries += not taken
        return taken

    def _answered(self, client: httpx2.Client, batch: Batch) -> bool:
        try:
            answer = client.post("/events", json=batch)
        except httpx2.HTTPError:
            return False
        if answer.status_code >= 500:
            return False
        if answer.status_code != 200 or answer.json()["unknown"]:
            self.refused = answer.text
        return True


def events(seed: int) -> tuple[list[Batch], set[str], set[str]]:
    """Batches of a wild order: late, early, twice; and the ids that are in them."""
    order = random.Random(seed)
    batches: list[Batch] = []
    kept: list[dict[str, Any]] = []
    shown, told = set(), set()
    for number in range(KILLS * BATCHES_A_LIFE // 4):
        batch: Batch = {"exposures": [], "outcomes": []}
        for i in range(EVENTS_A_BATCH):
            subject, unit = order.choice(list(SUBJECTS)), f"unit-{order.randrange(UNITS)}"
            at = (T0 + timedelta(minutes=order.randrange(6000))).isoformat()
            id = f"{number}-{i}"
            if order.random() < 0.6:
                arm = order.choices(("baseline", "candidate"), (9, 1))[0]
                batch["exposures"].append(
                    {"id": id, "subject": subject, "phase": 1, "arm": arm, "unit": unit, "at": at,
                     "latency_ms": order.random() * 3000, "error": order.random() < 0.02,
                     "tokens": 40, "cost_usd": 0.0004, "covariate": order.random()}
                )  # fmt: skip
                shown.add(f"{subject} {unit} {id}")
            else:
                value = round(order.random() / 5, 6)
                batch["outcomes"].append(
                    {
                        "id": id,
                        "subject": subject,
                        "unit": unit,
                        "at": at,
                        "value": value,
                        "item": f"item-{order.randrange(4)}",
                    }
                )
                told.add(f"{subject} {unit} {id}")
        again = order.sample(kept, min(len(kept), 5))
        batch["exposures"] += [e for e in again if "arm" in e]
        batch["outcomes"] += [e for e in again if "arm" not in e]
        kept = (kept + batch["exposures"] + batch["outcomes"])[-500:]
        batches.append(batch)
    return batches, shown, told


async def prepared(database: str) -> None:
    """Declare the experiments that the events are of."""
    store = await open_store(database)
    for subject, declared in SUBJECTS.items():
        await store.experiments.add(experiment(subject, **declared))
        await store.experiments.open_phase(subject, 1, 0.1, T0)
    await store.close()


async def test_killed_50_times_while_ingesting_every_event_counts_once(
    tmp_path: Path, database_url: str
) -> None:
    await prepared(database_url)
    seed = 20250120
    batches, shown, told = events(seed)
    port, order = free_port(), random.Random(seed)
    sender = Sender(batches, f"http://127.0.0.1:{port}")
    nursery = Nursery(tmp_path / "data", database_url, port)
    killed = 0
    try:
        await asyncio.to_thread(nursery.start)
        sender.start()
        while killed < KILLS and sender.is_alive():
            enough = sender.sent + order.randrange(MOST_A_LIFE)
            await eventually(
                lambda enough=enough: sender.sent >= enough or not sender.is_alive(),
                every_s=0.001,
            )
            nursery.kill()
            killed += 1
            await asyncio.to_thread(nursery.start)
        await asyncio.to_thread(sender.join, 5 * LONGEST_S)
        assert not sender.is_alive()
    finally:
        nursery.close()
    assert sender.refused == ""
    assert killed == KILLS, f"all was sent after {killed} kills: send more"
    assert sender.retries >= KILLS / 2
    store = await open_store(database_url)
    try:
        for subject in SUBJECTS:
            assert await store.events.stored(subject) == await store.events.recount(subject)
        assert await counted(store) == (len(shown), len(told))
    finally:
        await store.close()


async def counted(store: Store) -> tuple[int, int]:
    """How many raw events there are of each kind."""
    async with store.database.read() as tx:
        found = [
            (await tx.execute(select(func.count()).select_from(table))).scalar_one()
            for table in (exposures, outcomes)
        ]
    return int(found[0]), int(found[1])
