"""Events of the gateway on their way: on disk before their answer ends, kept by the service soon
after.

A service or a database that is away is waited for; what still waits when the process ends, however
it ends, is taken over by the next one that looks into the folder. The folder is bounded: past
`MOST_BYTES` the oldest events go. Each event that is lost, for want of room or because it is
refused, is counted and logged; those that are refused lie in `refused/events.jsonl`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from tuneproof.client.journal import Journal, JournalSegment
from tuneproof.errors import RetryableError
from tuneproof.experiments import Ingested
from tuneproof.resilience import Supervisor
from tuneproof.server.event_lines import Event, id_of, line_of

__all__ = ["FOLDER", "Spool"]

log = logging.getLogger(__name__)

GATHER_S = 0.02
"""How long events wait for others before they are sent."""

LONGEST_PAUSE_S = 5.0
ADOPT_S = 30.0
"""How often is looked for what ended processes left."""

MOST_BYTES = 4 * 1024**3
"""What may wait on disk: about 12 million events."""

LAST_S = 5.0
"""How long what waits may still take when the process ends."""

FOLDER = "spool"
"""The folder of the data directory in which events wait."""

TASK = "spool"
"""The name of the background task."""


class LineWriter(Protocol):
    """Keeps events, each once however often it is given."""

    async def __call__(self, lines: Sequence[str]) -> Ingested:
        """Keep them all or none; raises `RetryableError` where trying again may help."""


class Spool:
    """Takes events at once and brings them on in the background; `lost` is told how many were,
    `waits` how many bytes wait whenever some have been tried to bring on.

    Without a `folder` they are kept in memory.
    """

    def __init__(
        self,
        write: LineWriter,
        supervisor: Supervisor,
        *,
        folder: Path | None,
        lost: Callable[[int], None] = lambda _events: None,
        waits: Callable[[float], None] = lambda _bytes: None,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._write = write
        self._supervisor = supervisor
        self._lost = lost
        self._waits = waits
        self._folder = folder
        self._journal = Journal(folder, most_bytes=most_bytes)
        self._something = asyncio.Event()
        self._told_lost = 0
        self.dropped = 0

    @property
    def waiting_bytes(self) -> int:
        """How much is not yet taken."""
        return self._journal.bytes

    def add(self, event: Event) -> None:
        """Take an event; never raises, and waits for nothing but the disk's cache."""
        self._journal.append([line_of(event)])
        self._something.set()

    def start(self) -> None:
        """Begin to bring events on in the background; first what ended processes left."""
        if self._journal.adopt():
            self._something.set()
        self._supervisor.keep(TASK, self._run, longest_pause_s=LONGEST_PAUSE_S)

    async def stop(self) -> None:
        """Bring on what waits, as far as it is taken within `LAST_S`; the rest stays on disk."""
        await self._supervisor.stop(TASK)
        try:
            async with asyncio.timeout(LAST_S):
                await self._deliver()
        except Exception as error:
            log.info("Not all events were taken at the end: %s", error)
        if self.waiting_bytes and self._folder is None:
            left = sum(len(segment.lines()) for segment in self._journal.closed)
            self._drop(left, "the service stops, and nobody takes them")
        elif self.waiting_bytes:
            log.warning(
                "%d bytes of events wait in %s for the next start.",
                self.waiting_bytes,
                self._folder,
            )
        self._journal.close()

    async def _run(self) -> None:
        adopted_at = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ADOPT_S):
                    await self._something.wait()
            if time.monotonic() - adopted_at >= ADOPT_S:
                self._journal.adopt()
                adopted_at = time.monotonic()
            await asyncio.sleep(GATHER_S)
            await self._deliver()
            self._supervisor.succeeded(TASK)

    async def _deliver(self) -> None:
        """Bring on what is there, the oldest first. Raises `RetryableError`."""
        self._something.clear()
        unread: list[JournalSegment] = []
        try:
            while segment := self._next(unread):
                lines = self._read(segment)
                if lines is None:
                    unread.append(segment)
                    continue
                if lines:
                    await self._keep(lines)
                self._journal.done(segment)
            if unread:
                raise RetryableError(f"{len(unread)} files of events cannot be read now.")
        except BaseException:
            self._something.set()
            raise
        finally:
            self._waits(self.waiting_bytes)

    def _next(self, unread: Sequence[JournalSegment]) -> JournalSegment | None:
        """The oldest events but for these. A file that fills is closed once others are gone, so an
        outage leaves a few full ones."""
        if len(self._journal.closed) <= len(unread):
            self._journal.cut()
        self._tell_given_up()
        return next((one for one in self._journal.closed if one not in unread), None)

    @staticmethod
    def _read(segment: JournalSegment) -> Sequence[str] | None:
        """Its events; none where its file is gone, None where it cannot be read now."""
        try:
            return segment.lines()
        except FileNotFoundError as error:
            log.error("The events in %s are lost: %s", segment.path, error)
            return ()
        except OSError as error:  # such as too many open files
            log.warning("Events in %s cannot be read now: %s", segment.path, error)
            return None

    async def _keep(self, lines: Sequence[str]) -> None:
        """Keep these; of those that are refused together, the ones that are not at fault."""
        try:
            taken = await self._write(lines)
        except RetryableError:
            raise
        except Exception as error:
            if len(lines) == 1:
                await self._write([])  # raises where nothing is taken: then it is not the event
                self._journal.refuse(lines[0])
                self._drop(1, f"it was refused: {error}")
                return
            middle = len(lines) // 2
            await self._keep(lines[:middle])
            await self._keep(lines[middle:])
            return
        if taken.rejected:
            self._put_aside(lines, taken)

    def _put_aside(self, lines: Sequence[str], taken: Ingested) -> None:
        refused = {event.id for event in taken.rejected}
        for line in lines:
            if id_of(line) in refused:
                self._journal.refuse(line)
        log.warning(
            "%d events of the gateway were refused, such as %s: %s.",
            len(taken.rejected),
            taken.rejected[0].id,
            taken.rejected[0].reason,
        )

    def _tell_given_up(self) -> None:
        given_up = self._journal.lost - self._told_lost
        if given_up:
            self._told_lost = self._journal.lost
            self._drop(given_up, "there is no room for more that wait")

    def _drop(self, events: int, why: str) -> None:
        before, self.dropped = self.dropped, self.dropped + events
        self._lost(events)
        if before // 1000 != self.dropped // 1000 or not before:
            log.error("%d events of the gateway were lost so far: %s.", self.dropped, why)
