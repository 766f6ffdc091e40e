"""Live events: that something changed, not what; readers fetch it anew."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

RECENT = 1000
"""How many events a reader that comes back can be replayed."""


@dataclass(frozen=True, kw_only=True)
class LiveEvent:
    """Object `id` of this kind is at `version` now. `seq` rises by one each time."""

    seq: int
    kind: str
    id: str
    version: int


class Live:
    """Tells each subscriber of every change, with replay after a lost connection."""

    def __init__(self) -> None:
        self._seq = 0
        self._recent: deque[LiveEvent] = deque(maxlen=RECENT)
        self._queues: set[asyncio.Queue[LiveEvent | None]] = set()

    def publish(self, kind: str, id: str, version: int = 0) -> None:
        """Tell everybody."""
        self._seq += 1
        event = LiveEvent(seq=self._seq, kind=kind, id=id, version=version)
        self._recent.append(event)
        for queue in self._queues:
            queue.put_nowait(event)

    @contextmanager
    def listen(self, *, after: int | None = None) -> Iterator[asyncio.Queue[LiveEvent | None]]:
        """A queue of events from now on, or after `after`; None in it is the end."""
        queue: asyncio.Queue[LiveEvent | None] = asyncio.Queue()
        for event in self._recent if after is not None else ():
            if after is not None and event.seq > after:
                queue.put_nowait(event)
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)

    async def subscribe(self, *, after: int | None = None) -> AsyncGenerator[LiveEvent, None]:
        """Events from now on, or after `after`; ends when the App closes."""
        with self.listen(after=after) as queue:
            while (event := await queue.get()) is not None:
                yield event

    def close(self) -> None:
        """End all subscriptions."""
        for queue in self._queues:
            queue.put_nowait(None)
