"""Cancellations that something swallows on their way."""

from __future__ import annotations

import asyncio

import pytest

from tuneproof.resilience import Supervisor, cancellation, cancellation_first, end_tasks


class Swallowing:
    """Work that takes each cancellation, but the last, for an error that it can live with."""

    def __init__(self, swallowed: int) -> None:
        self.swallowed = swallowed
        self.begun = asyncio.Event()

    async def __call__(self) -> None:
        while True:
            self.begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if not self.swallowed:
                    raise
                self.swallowed -= 1


async def broken_off() -> None:
    """A driver's roll-back that fails as it is cancelled: its error takes the cancellation's
    place."""
    try:
        await asyncio.Event().wait()
    finally:
        raise OSError("the connection is closed")


async def test_task_that_loses_its_cancellation_is_cancelled_again(monkeypatch):
    monkeypatch.setattr(cancellation, "AGAIN_S", 0.01)
    work = Swallowing(2)
    task = asyncio.create_task(work())
    await work.begun.wait()
    await asyncio.wait_for(end_tasks([task]), 10)
    assert task.cancelled()
    assert work.swallowed == 0


async def test_tasks_that_ended_before_are_left_alone():
    async def fail() -> None:
        raise ValueError("long ago")

    failed = asyncio.create_task(fail())
    await asyncio.wait({failed})
    await end_tasks([failed])
    assert isinstance(failed.exception(), ValueError)


async def test_error_that_took_the_place_of_a_cancellation_is_its_cause():
    async def work() -> None:
        with cancellation_first():
            await broken_off()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await task
    assert isinstance(cancelled.value.__cause__, OSError)


async def test_error_of_a_task_that_nobody_cancelled_stays_what_it_is():
    with pytest.raises(OSError, match="no answer"), cancellation_first():
        raise OSError("no answer")


async def test_supervised_task_whose_cancellation_became_an_error_is_not_begun_again():
    begun = 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        await broken_off()

    supervisor = Supervisor()
    supervisor.keep("clock", work)
    await asyncio.sleep(0)
    await asyncio.wait_for(supervisor.close(), cancellation.AGAIN_S / 2)
    assert begun == 1
