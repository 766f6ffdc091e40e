"""A cancellation that a library loses is raised again.

In Python 3.11 `asyncio.wait_for` drops a cancellation that arrives just as what it waits for is
done (fixed in 3.12), and redis-py writes every command through it: a caller that is cancelled,
or whose time is up, would go on as if nothing had been. A driver drops one that breaks its
connection off: the error of the roll-back takes its place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["cancellation_first", "end_tasks", "heeding_cancellation"]

log = logging.getLogger(__name__)

T = TypeVar("T")

AGAIN_S = 5.0
"""How long a task may take to end before it is cancelled once more."""


async def heeding_cancellation(awaitable: Awaitable[T]) -> T:
    """What `awaitable` returns; raises `CancelledError` where it lost a cancellation of ours."""
    before = _cancellations()
    result = await awaitable
    if _cancellations() > before:
        raise asyncio.CancelledError
    return result


@contextmanager
def cancellation_first() -> Iterator[None]:
    """Raise `CancelledError` in the place of an error by which a cancellation was lost."""
    before = _cancellations()
    try:
        yield
    except Exception as error:
        if _cancellations() > before:
            raise asyncio.CancelledError from error
        raise


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their ends; one that loses its cancellation is cancelled again."""
    waiting = {task for task in tasks if not task.done()}
    for task in waiting:
        task.cancel()
    while waiting:
        done, waiting = await asyncio.wait(waiting, timeout=AGAIN_S)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.debug("%s ended by %r", task.get_name(), error)
        for task in waiting:
            log.info("%s was cancelled and goes on: it is cancelled again", task.get_name())
            task.cancel()


def _cancellations() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0
