"""Two workers whose database restarts and who are killed: all goes on, one leads, nothing twice.

`TUNEPROOF_OUTAGES` says how many restarts and how many kills; two of each unless it says more.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from openai import AsyncOpenAI
from tests.servers import PostgresServer, postgres_server
from tests.waiting import eventually

from tuneproof.errors import StoreUnavailableError
from tuneproof.rollout import DeploymentState
from tuneproof.store import Store, open_store
from tuneproof.workflow.ownership import LOCK_SPACE
from tuneproof_trainer.embedded import serve

pytestmark = [pytest.mark.slow, pytest.mark.postgres]

OUTAGES = int(os.environ.get("TUNEPROOF_OUTAGES", "2"))

WATCHES = 3
"""The test of a run, a test and a rollout that no run drives."""

WITHIN_S = 30.0
"""Until each task runs again."""

LEADERS = """
    SELECT objid::bigint, count(DISTINCT pid) FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND classid = %s GROUP BY objid
"""


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of this test's own: it restarts, and keeps each commit that it acknowledged."""
    with postgres_server(synchronous_commit="on") as made:
        yield made


@pytest.fixture
async def trainer(tmp_path: Path) -> AsyncIterator[str]:
    async with serve(tmp_path / "trainer") as made:
        yield made.base_url


@pytest.fixture
async def shared(server: PostgresServer) -> AsyncIterator[Store]:
    store = await open_store(server.create_database())
    yield store
    await store.close()


class Worker:
    """A process with an App, which writes how its tasks do into a file every half second."""

    def __init__(self, directory: Path, **plan: Any) -> None:
        directory.mkdir()
        self._tasks = directory / "tasks.json"
        path = directory / "plan.json"
        data = {"dir": str(directory / "data"), "tasks": str(self._tasks), **plan}
        path.write_text(json.dumps(data))
        command = [sys.executable, "-m", "tests.acceptance.worker_child", str(path)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    async def ready(self) -> Worker:
        assert self._process.stdout is not None
        assert await asyncio.to_thread(self._process.stdout.readline) == "ready\n"
        return self

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def tasks(self) -> dict[str, dict[str, Any]]:
        return {task["name"]: task for task in json.loads(self._tasks.read_text())}


def done(task: dict[str, Any], since: datetime) -> bool:
    """Whether a task did its work, or asked in vain whether it leads, since then."""
    at = task["last_success"]
    return task["state"] == "standby" or (at is not None and datetime.fromisoformat(at) > since)


async def watched(store: Store) -> dict[str, datetime | None]:
    """When each test and rollout under way was last looked at."""
    try:
        return {one.subject: one.looked_at for one in await store.watches.under_way()}
    except StoreUnavailableError:
        return {}


@asynccontextmanager
async def one_leader(store: Store) -> AsyncIterator[Counter[int]]:
    """Ask the database all the time how many sessions hold each lock: never more than one."""
    seen: Counter[int] = Counter()
    url = store.database.url.set(drivername="postgresql").render_as_string(hide_password=False)

    async def count(connection: psycopg.AsyncConnection[Any]) -> bool:
        for key, holders in await (await connection.execute(LEADERS, [LOCK_SPACE])).fetchall():
            assert holders == 1, f"{holders} sessions hold {key}"
            seen[key] += 1
        return False

    async def connected() -> bool:
        try:
            async with await psycopg.AsyncConnection.connect(url, autocommit=True) as own:
                return await eventually(lambda: count(own), math.inf, every_s=0.05)
        except psycopg.OperationalError:
            return False  # the database is away: try again

    asking = asyncio.create_task(eventually(connected, math.inf, every_s=0.05))
    try:
        yield seen
        assert not asking.done(), asking.exception()
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def all_run_again(workers: list[Worker], store: Store, since: datetime) -> None:
    async def again() -> bool:
        # Those that are due within the bound: rarer ones are asked about by their state.
        return all(
            done(task, since) if (task["every_s"] or 99) <= 20 else task["state"] != "failing"
            for worker in workers
            for task in worker.tasks().values()
        )

    async def looked() -> bool:
        found = await watched(store)
        return len(found) == WATCHES and all(at and at > since for at in found.values())

    def how() -> str:
        return str([worker.tasks() for worker in workers])

    await eventually(again, WITHIN_S, every_s=0.2, otherwise=how)
    await eventually(looked, WITHIN_S, every_s=0.2, otherwise=how)


async def test_database_restarts_and_workers_die_and_all_goes_on_once(
    tmp_path: Path, server: PostgresServer, shared: Store, trainer: str
) -> None:
    plan = {
        "database": shared.database.url.render_as_string(hide_password=False),
        "trainer": trainer,
    }
    workers = [await Worker(tmp_path / "0", **plan, start=True, alone=True).ready()]
    workers.append(await Worker(tmp_path / "1", **plan).ready())
    started = 2
    try:
        async with one_leader(shared) as seen:

            async def all_looked_at() -> bool:
                found = await watched(shared)
                return len(found) == WATCHES and all(found.values())

            await eventually(all_looked_at, 180, every_s=0.2)
            for number in range(OUTAGES):
                # Fast and immediate in turns, as `pg_ctl restart -m`.
                how = (signal.SIGINT, signal.SIGQUIT)[number % 2]
                await asyncio.to_thread(partial(server.stop, by=how))
                await asyncio.to_thread(server.start)
                await all_run_again(workers, shared, datetime.now(UTC))

                workers.pop(0).kill()
                died = datetime.now(UTC)
                workers.append(await Worker(tmp_path / str(started), **plan).ready())
                started += 1
                await all_run_again(workers, shared, died)
            assert seen
        await nothing_twice(shared, trainer)
    finally:
        for worker in workers:
            worker.kill()


async def nothing_twice(store: Store, trainer: str) -> None:
    [run] = await store.runs.active()
    assert run.current_stage == "experiment"
    tests = (await store.experiments.page()).items
    assert sorted(test.pipeline for test in tests) == ["default", "manual"]
    for test in tests:
        numbers = [look.number for look in await store.experiments.looks(test.id)]
        assert numbers == list(range(1, len(numbers) + 1))
    [rollout] = (await store.deployments.page()).items
    assert (rollout.pipeline, rollout.state) == ("release", DeploymentState.STEPPING)
    client = AsyncOpenAI(base_url=trainer, api_key="any")
    assert len([job async for job in client.fine_tuning.jobs.list()]) == 1
    files = [file.filename async for file in client.files.list(purpose="fine-tune")]
    assert len(files) == len(set(files)) > 0
