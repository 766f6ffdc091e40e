"""Waiting in tests: for a condition, until a deadline; never for a time.

    until(lambda: engine.talking == 1)                        # from a thread
    await eventually(lambda: deliver.done)                    # from a coroutine
    job = await eventually(lambda: ended(client, job_id))     # what an async condition found

Both return the first truthy thing that the condition gives, and fail with what was waited for.
The deadline is generous, for it is reached only where something is broken: a busy machine makes
a wait longer, not red. A condition that takes long to find out, as a request does, is asked less
often, where `every_s` does not say how often: what is waited for needs the processor, too.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["eventually", "stays", "until"]

T = TypeVar("T")

WITHIN_S = 60.0
EVERY_S = 0.01
LOOKING_SHARE = 0.2
LONGEST_PAUSE_S = 0.25
"""Looking takes this share of the time that is waited, unless pauses would be longer than that."""


def until(
    condition: Callable[[], T],
    within_s: float = WITHIN_S,
    *,
    every_s: float | None = None,
    otherwise: Callable[[], str] | None = None,
) -> T:
    """Wait in this thread; `otherwise` says more where the deadline passes."""
    deadline = time.monotonic() + within_s
    while True:
        began = time.monotonic()
        if found := condition():
            return found
        if time.monotonic() > deadline:
            raise AssertionError(_missed(condition, within_s, otherwise))
        time.sleep(_pause_s(every_s, time.monotonic() - began))


async def eventually(
    condition: Callable[[], T | Awaitable[T]],
    within_s: float = WITHIN_S,
    *,
    every_s: float | None = None,
    otherwise: Callable[[], str] | None = None,
) -> T:
    """Wait while the loop goes on; the condition may be asynchronous."""
    deadline = time.monotonic() + within_s
    while True:
        began = time.monotonic()
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(_missed(condition, within_s, otherwise))
        await asyncio.sleep(_pause_s(every_s, time.monotonic() - began))


async def stays(condition: Callable[[], object], turns: int = 200) -> None:
    """The condition holds over so many turns of the loop: nothing in line ends it."""
    for _ in range(turns):
        assert condition(), f"it did not stay so: {_source(condition)}"
        await asyncio.sleep(0)


def _pause_s(every_s: float | None, looked_s: float) -> float:
    """How long to wait after a look that took so long."""
    if every_s is not None:
        return every_s
    return max(EVERY_S, min(looked_s * (1 / LOOKING_SHARE - 1), LONGEST_PAUSE_S))


def _missed(
    condition: Callable[[], object], within_s: float, otherwise: Callable[[], str] | None
) -> str:
    more = f"\n{otherwise()}" if otherwise is not None else ""
    return f"not within {within_s:g} s: {_source(condition)}{more}"


def _source(condition: Callable[[], object]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):
        return repr(condition)
