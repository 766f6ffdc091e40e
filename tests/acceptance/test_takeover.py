"""A worker that dies loses its runs to another one within 15 s, on PostgreSQL."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from tests.servers import PostgresServer
from tests.waiting import eventually

from tuneproof.store import Store, open_store
from tuneproof_trainer.embedded import serve

pytestmark = [pytest.mark.slow, pytest.mark.postgres]

WITHIN_S = 15.0


@pytest.fixture
async def trainer(tmp_path: Path) -> AsyncIterator[str]:
    async with serve(tmp_path / "trainer") as server:
        yield server.base_url


@pytest.fixture
async def shared(postgres: PostgresServer) -> AsyncIterator[Store]:
    url = postgres.create_database()
    store = await open_store(url)
    yield store
    await store.close()
    postgres.drop_database(url)


def worker(directory: Path, **plan: Any) -> subprocess.Popen[str]:
    directory.mkdir()
    path = directory / "plan.json"
    path.write_text(json.dumps({"dir": str(directory / "data"), **plan}))
    command = [sys.executable, "-m", "tests.acceptance.worker_child", str(path)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


async def looks(store: Store) -> int:
    found = [test.id for test in (await store.experiments.page()).items]
    return (await store.experiments.numbers_of_looks(found))[found[0]] if found else 0


async def until_looks(store: Store, more_than: int, *, seconds: float) -> float:
    began = time.monotonic()

    async def taken() -> bool:
        return await looks(store) > more_than

    await eventually(taken, seconds, every_s=0.1, otherwise=lambda: "no look was taken")
    return time.monotonic() - began


async def test_killed_workers_run_goes_on_elsewhere_within_15_seconds(
    tmp_path: Path, shared: Store, trainer: str
) -> None:
    database = shared.database.url.render_as_string(hide_password=False)
    plan = {"database": database, "trainer": trainer}
    first = worker(tmp_path / "one", **plan, start=True)
    second = worker(tmp_path / "two", **plan)
    try:
        await until_looks(shared, 1, seconds=60)
        first.send_signal(signal.SIGKILL)
        first.wait()
        seen = await looks(shared)
        took = await until_looks(shared, seen, seconds=WITHIN_S)
        await until_looks(shared, seen + 2, seconds=WITHIN_S)
        assert took < WITHIN_S
        [run] = await shared.runs.active()
        assert run.current_stage == "experiment"
        client = AsyncOpenAI(base_url=trainer, api_key="any")
        assert len([job async for job in client.fine_tuning.jobs.list()]) == 1
    finally:
        first.kill()
        second.kill()
        second.wait()
