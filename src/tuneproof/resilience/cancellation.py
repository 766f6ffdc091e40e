"""A cancellation that a library loses is raised again.

In Python 3.11 `asyncio.wait_for` drops a cancellation that arrives just as what it waits for is
done (fixed in 3.12), and redis-py writes every command through it: a caller that is cancelled,
or whose time is up, would go on as if nothing had been.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

__all__ = ["heeding_cancellation"]

T = TypeVar("T")


async def heeding_cancellation(awaitable: Awaitable[T]) -> T:
    """What `awaitable` returns; raises `CancelledError` where it lost a cancellation of ours."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    result = await awaitable
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
    return result
