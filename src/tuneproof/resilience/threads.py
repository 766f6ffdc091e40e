"""Calls that block: in threads that nobody waits for when a process ends, and one at a time.

asyncio's own threads (`asyncio.to_thread`) are waited for then: one that hangs in a library's
call would keep the process. What is called by `in_daemon_thread` must bear being broken off
anywhere.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar, TypeVarTuple, Unpack

__all__ = ["InTurn", "in_daemon_thread"]

BREAK_OFF_EVERY_S = 0.1
"""A call that was not at its query yet when it was broken off is once it is."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class InTurn:
    """Calls in threads that use one thing, such as a connection: never two of them at once.

    A call that is cancelled goes on in its thread all the same, and a connection that is closed
    while it works takes the process with it: so it is closed by `end`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    async def __call__(self, fn: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """What a function returns or raises, once those before it are done."""
        return await asyncio.to_thread(self._locked, partial(fn, *args))

    async def end(self, close: Callable[[], object], break_off: Callable[[], object]) -> None:
        """Close the thing once nothing uses it: what still does is broken off, time and again."""

        def last() -> None:
            while not self._lock.acquire(timeout=BREAK_OFF_EVERY_S):
                break_off()
            try:
                close()
            finally:
                self._lock.release()

        await asyncio.to_thread(last)

    def _locked(self, call: Callable[[], T]) -> T:
        with self._lock:
            return call()


async def in_daemon_thread(
    fn: Callable[[Unpack[Ts]], T], *args: *Ts, timeout_s: float | None = None
) -> T:
    """What a function returns or raises that blocks.

    Raises `TimeoutError` after `timeout_s`. Then, and where this is cancelled, the function goes on
    by itself, and nobody hears of it.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = fn(*args)
        except BaseException as error:
            tell(partial(future.set_exception, error))
        else:
            tell(partial(future.set_result, result))

    def tell(how: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(lambda: None if future.done() else how())

    threading.Thread(target=run, name=getattr(fn, "__name__", "call"), daemon=True).start()
    async with asyncio.timeout(timeout_s):
        return await future
