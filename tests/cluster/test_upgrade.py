"""From the first version that promised it: workers of 0.2.0 replaced by ours, side by side.

As a Deployment does it: one of ours is added, brings the database to our schema while both old ones
serve, and takes its share; then an old one is taken out and ended, and so on.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx2
import pytest
from tests.cluster.balancer import Balancer, balancing
from tests.cluster.conftest import Place
from tests.cluster.load import asked
from tests.cluster.test_rolling import RATE, in_turn, more_looks, steady
from tests.cluster.versions import RELEASE_0_2_0, installed
from tests.cluster.workers import RESUMED_S, START_S, Worker, query
from tests.waiting import eventually

from tuneproof.store import SCHEMA

pytestmark = [pytest.mark.cluster, pytest.mark.postgres, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return installed(RELEASE_0_2_0, tmp_path_factory.mktemp("versions") / "0.2.0")


async def leave(balancer: Balancer, worker: Worker) -> None:
    """End a worker as a pod is ended: no new connection first, then SIGTERM."""
    out = balancer.take_out(worker.port)
    await eventually(lambda: out.open == 0)
    await asyncio.to_thread(worker.end)


async def test_workers_of_0_2_0_are_replaced_without_a_failed_request(
    place: Place, old_python: str
) -> None:
    old = [place.worker(name, python=old_python) for name in ("old-one", "old-two")]
    new = [place.worker(name, drain_s=2.0) for name in ("new-one", "new-two")]
    try:
        for worker in old:
            await asyncio.to_thread(worker.start)
        await asyncio.to_thread(place.begin_run, old[0])
        before = schema(place)
        async with balancing(*(worker.port for worker in old)) as balancer:
            for worker in old:
                await in_turn(balancer, worker)
            async with asked(balancer.url, rate=RATE, kept=False) as load:
                await steady(load)
                for leaving, coming in zip(old, new, strict=True):
                    took = await asyncio.to_thread(coming.start)
                    print(f"ours started in {took:.1f} s; schema {before} -> {schema(place)}")
                    assert took <= START_S
                    assert schema(place) == SCHEMA
                    balancer.add(coming.port)
                    await in_turn(balancer, coming)
                    await steady(load)  # both versions serve
                    await leave(balancer, leaving)
                    went_on = await more_looks(place, within_s=RESUMED_S)
                    print(f"the run was looked at {went_on:.1f} s after an old one had ended")
                    await steady(load)
            print(load.said(), dict(load.answers))
            assert load.failures == []
            assert min(one.connections for one in balancer.backends) > 100
        assert await asyncio.to_thread(place.kept) == load.exposures
        await run_can_be_ended(place, new[0])
    finally:
        for worker in (*old, *new):
            worker.kill()


def schema(place: Place) -> str:
    [(found,)] = query(place.database, "SELECT version_num FROM tuneproof_migration")
    return str(found)


async def run_can_be_ended(place: Place, worker: Worker) -> None:
    """The run that 0.2.0 began is one of ours: it goes on, and hears a person."""
    [run] = httpx2.get(f"{worker.url}/fine-tuning/runs", timeout=60).json()["items"]
    assert run["state"] == "running", run
    answer = httpx2.post(f"{worker.url}/fine-tuning/abort/{run['pipeline_id']}", timeout=60)
    assert answer.status_code < 300, answer.text
    began = time.monotonic()

    def ended() -> bool:
        [found] = httpx2.get(f"{worker.url}/fine-tuning/runs", timeout=60).json()["items"]
        return bool(found["state"] == "aborted")

    await eventually(lambda: asyncio.to_thread(ended), 60)
    print(f"aborted in {time.monotonic() - began:.1f} s")


def test_the_folder_of_a_version_has_that_version(old_python: str) -> None:
    root = Path(old_python).parents[2]
    assert 'version = "0.2.0"' in (root / "pyproject.toml").read_text()
