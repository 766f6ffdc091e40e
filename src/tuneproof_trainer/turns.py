"""How answers are made beside each other: how many at once, who waits, and who has left.

A client that goes away ends its answer at the next token, wherever it is: waiting for its place,
for its model to be loaded, or half said.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from starlette.types import Receive

from tuneproof_trainer.errors import ApiError

__all__ = ["Turns", "taking_turns", "unless_gone"]

T = TypeVar("T")
_TURN = 32
"""Pieces that a quick engine makes before other requests get their turn."""

_DONE: Any = object()


class Turns:
    """Places for answers: `at_once` are made, `waiting` more may wait for a place.

    `free` and `waiting` say how many places are free now, and how many wait for one.
    """

    def __init__(self, at_once: int, waiting: int) -> None:
        self._places = asyncio.Semaphore(at_once)
        self.free = at_once
        self._most_waiting, self.waiting = waiting, 0
        self._threads = ThreadPoolExecutor(max_workers=at_once, thread_name_prefix="trainer-answer")

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place for one answer; raises ApiError 503 where too many wait for one already."""
        if self._places.locked() and self.waiting >= self._most_waiting:
            raise _overloaded()
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.free -= 1
        try:
            yield
        finally:
            self.free += 1
            self._places.release()

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do what blocks in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work, *arguments)

    async def in_threads(
        self, make: Callable[[], Generator[T, None, None]]
    ) -> AsyncGenerator[T, None]:
        """The pieces of a slow engine, each made in a thread.

        Whoever stops taking them closes the engine's generator, as soon as the piece that is
        being made is done.
        """
        loop = asyncio.get_running_loop()
        pieces = await self.run(make)
        step: asyncio.Future[T] | None = None
        try:
            while True:
                step = loop.run_in_executor(self._threads, next, pieces, _DONE)
                piece = await asyncio.shield(step)
                if piece is _DONE:
                    return
                yield piece
        finally:
            if step is None or step.done():
                pieces.close()
            else:
                step.add_done_callback(partial(_close, pieces))

    def close(self) -> None:
        """Start nothing more; what is being made ends with its next piece."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _close(pieces: Generator[T, None, None], last: asyncio.Future[T]) -> None:
    last.exception()  # nobody is there any more who could be told of it
    pieces.close()


async def taking_turns(pieces: Iterator[T]) -> AsyncIterator[T]:
    """The pieces of a quick engine; other requests get a turn now and then."""
    for number, piece in enumerate(pieces, start=1):
        yield piece
        if number % _TURN == 0:
            await asyncio.sleep(0)


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` comes to; it is cancelled and ConnectionError raised if the client leaves.

    The body of the request must have been read.
    """
    answer = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ConnectionError("the client went away before its answer was whole")
        return answer.result()
    finally:
        leaving.cancel()
        if not answer.done():
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _overloaded() -> ApiError:
    return ApiError(
        503,
        "The engine is currently overloaded: too many requests wait for an answer. Please try "
        "again later.",
        type="server_error",
        code="engine_overloaded",
        headers={"retry-after": "1"},
    )
