"""Killed at random while it takes answers in and scores them: each gets one score in the end.

No text that was accepted is lost, none counts twice, and the calls that are made again are those
that a kill cut off: at most as many as are asked at once, for each kill.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import select
from tests.chat import chat_server
from tests.integration.store.records import experiment
from tests.servers import free_port
from tests.waiting import eventually, until

from tuneproof.experiments import Arm
from tuneproof.store import open_store
from tuneproof.store.tables import exposures, scores, scoring_days

pytestmark = pytest.mark.slow

KILLS = 20
UNITS = 1000
BATCH = 10
MOST_A_LIFE = 40
"""Answers asked of the judge before a kill, at most: less than all of them over all kills."""
CONCURRENCY = 4
LONGEST_S = 240.0
NOW = datetime.now(UTC)
SUBJECT = "ab-test-20250120-001"


class Nursery:
    """The process that forks services; one lives at a time."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.acceptance.scoring_child", *arguments],
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
        self._process.wait(timeout=30)


def send(address: str, ended: threading.Event) -> None:
    """Send every unit's answer, each batch until it is accepted."""
    with httpx2.Client(base_url=address, timeout=10, trust_env=False) as client:
        for start in range(0, UNITS, BATCH):
            body = {"exposures": [_exposure(i) for i in range(start, start + BATCH)]}
            until(partial(_accepted, client, body), LONGEST_S)
    ended.set()


def _accepted(client: httpx2.Client, body: object) -> bool:
    try:
        return client.post("/events", json=body).status_code == 200
    except httpx2.HTTPError:
        return False


def _exposure(i: int) -> dict[str, object]:
    return {
        "id": f"e{i}",
        "subject": SUBJECT,
        "phase": 1,
        "arm": ("baseline", "candidate")[i % 2],
        "unit": f"u{i}",
        "at": NOW.isoformat(),
        "task": "hook",
        "text": f"A hook about topic {i}",
        "messages": [{"role": "user", "content": f"topic {i}"}],
    }


async def declare(database: str) -> None:
    store = await open_store(database)
    test = experiment(id=SUBJECT, traffic_split=0.5, start_at=NOW, end_at=NOW + timedelta(days=7))
    await store.experiments.add(test)
    await store.experiments.open_phase(SUBJECT, 1, 0.5, NOW)
    await store.close()


async def waiting(database: str) -> int:
    store = await open_store(database)
    async with store.database.read() as tx:
        found = (await tx.execute(select(scores.c.state))).scalars().all()
    await store.close()
    return UNITS - sum(state == "scored" for state in found)


async def test_every_accepted_answer_is_scored_once(database_url: str, tmp_path: Path) -> None:
    await declare(database_url)
    order, port, sent = random.Random(7), free_port(), threading.Event()
    with chat_server() as chat:
        chat.answer("judge", lambda asked: '{"score": 4}')
        nursery = Nursery(str(tmp_path), database_url, str(port), chat.url)
        try:
            nursery.start()
            address = f"http://127.0.0.1:{port}"
            sender = threading.Thread(target=send, args=(address, sent), daemon=True)
            sender.start()
            for _ in range(KILLS):
                enough = len(chat.bodies) + order.randrange(1, MOST_A_LIFE)
                await eventually(lambda enough=enough: len(chat.bodies) >= enough, every_s=0.001)
                nursery.kill()
                nursery.start()

            async def done() -> bool:
                return sent.is_set() and not await waiting(database_url)

            await eventually(done, LONGEST_S, every_s=0.2)
        finally:
            nursery.close()
        calls = sum(body["model"] == "judge" for body in chat.bodies)
    store = await open_store(database_url)
    async with store.database.read() as tx:
        rows = (await tx.execute(select(scores))).all()
        shown = (await tx.execute(select(exposures.c.unit))).scalars().all()
        days = (await tx.execute(select(scoring_days))).all()  # two, where midnight was within
    counted = sum(day.calls for day in days)
    cells = (await store.events.evidence(SUBJECT)).cells
    await store.close()
    assert {row.unit for row in rows} == set(shown) == {f"u{i}" for i in range(UNITS)}
    assert {(row.state, row.score, row.text) for row in rows} == {("scored", 0.75, None)}
    assert {c.arm: c.qualities.n for c in cells} == dict.fromkeys(Arm, UNITS // 2)
    assert UNITS <= calls <= UNITS + KILLS * CONCURRENCY, "only what a kill cut off is asked again"
    assert calls <= counted <= UNITS + KILLS * CONCURRENCY, "no call is made outside the budget"
    print(f"{KILLS} kills, {UNITS} answers, {calls} calls, {counted} in the budget")
