"""Workers that come and go behind a balancer, under a hundred requests a second."""

from __future__ import annotations

import asyncio
import os
import time

import httpx2
import pytest
from tests.cluster.balancer import Balancer, balancing
from tests.cluster.conftest import Place
from tests.cluster.load import Load, asked
from tests.cluster.workers import RESUMED_S, START_S, Worker, looks
from tests.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.postgres, pytest.mark.timeout(600)]

RATE = float(os.environ.get("TUNEPROOF_RATE", "100"))
"""Requests a second; fewer on a machine that is busy with something else."""
DRAIN_S = 2.0
"""Longer than the balancer needs to see that a worker is not ready."""
STEADY = 500
"""Requests while nothing happens, before, between and after."""


async def steady(load: Load) -> None:
    """Return after so many more requests."""
    until = load.asked + STEADY
    await eventually(lambda: load.asked >= until, 300)


async def in_turn(balancer: Balancer, worker: Worker) -> None:
    """Return once the balancer leads to this worker."""
    await eventually(lambda: balancer.backend(worker.port).ready, otherwise=lambda: worker.log)


async def more_looks(place: Place, *, within_s: float) -> float:
    """How long it takes until the run's test is looked at again."""
    seen, began = await asyncio.to_thread(looks, place.database), time.monotonic()

    async def looked() -> bool:
        return await asyncio.to_thread(looks, place.database) > seen

    await eventually(looked, within_s, every_s=0.1, otherwise=lambda: "no look was taken")
    return time.monotonic() - began


async def both(place: Place) -> tuple[Worker, Worker]:
    """Two workers that are up; the first owns a run."""
    one = place.worker("one", drain_s=DRAIN_S)
    two = place.worker("two", drain_s=DRAIN_S)
    await asyncio.to_thread(one.start)
    await asyncio.to_thread(two.start)
    await asyncio.to_thread(place.begin_run, one)
    return one, two


async def test_workers_restart_one_after_another_without_a_failed_request(place: Place) -> None:
    one, two = await both(place)
    try:
        async with balancing(one.port, two.port) as balancer:
            for worker in (one, two):
                await in_turn(balancer, worker)
            async with asked(balancer.url, rate=RATE) as load:
                await steady(load)
                for worker in (one, two):
                    ended = await asyncio.to_thread(worker.end)
                    taken = await more_looks(place, within_s=RESUMED_S)
                    started = await asyncio.to_thread(worker.start)
                    await in_turn(balancer, worker)
                    print(f"ended in {ended:.1f} s, its runs went on after {taken:.1f} s more,")
                    print(f"started in {started:.1f} s")
                    assert started <= START_S
                    await steady(load)
            print(load.said(), dict(load.answers), "slowest")
            assert load.failures == []
            assert all(one.connections > STEADY / 10 for one in balancer.backends)
        assert await asyncio.to_thread(place.kept) == load.exposures
        await more_looks(place, within_s=RESUMED_S)
    finally:
        one.kill()
        two.kill()


async def test_a_killed_worker_loses_no_run_and_only_what_it_was_answering(place: Place) -> None:
    one, two = await both(place)
    try:
        async with balancing(one.port, two.port) as balancer:
            for worker in (one, two):
                await in_turn(balancer, worker)
            async with asked(balancer.url, rate=RATE) as load:
                await steady(load)
                killed_at = time.monotonic() - load.began
                await asyncio.to_thread(one.kill)
                taken = await more_looks(place, within_s=RESUMED_S)
                await steady(load)
            print(f"its run went on after {taken:.1f} s; {load.said()}")
            assert taken <= RESUMED_S
            late = [line for line in load.failures if float(line.split()[0]) < killed_at - 0.01]
            assert late == [], "failed before anybody was killed"
            assert len(load.failures) <= RATE, load.failures
        assert load.exposures <= await asyncio.to_thread(place.kept)
        answer = httpx2.get(f"{two.url}/fine-tuning/runs", timeout=60).json()
        assert [run["state"] for run in answer["items"]] == ["running"], answer
    finally:
        one.kill()
        two.kill()
