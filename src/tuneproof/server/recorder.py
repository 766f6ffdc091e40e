"""Events of the gateway on their way to the store: answered first, written in batches soon after.

A store that does not answer is waited for, so an outage loses nothing that fits the buffer; what
still waits is written when the service stops. The buffer is bounded: past it the oldest events
go. Each event that is lost, for want of room or because it is refused, is counted and logged.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from tuneproof.errors import RetryableError, TuneProofError
from tuneproof.experiments import Exposure, Ingested, Outcome
from tuneproof.resilience import Supervisor

log = logging.getLogger(__name__)

BATCH = 2_000
LARGEST = 100_000
GATHER_S = 0.02
LONGEST_PAUSE_S = 5.0

TASK = "recorder"
"""The name of the background task."""

Event = Exposure | Outcome


class EventWriter(Protocol):
    """Keeps events, each once however often it is given."""

    async def __call__(
        self, *, exposures: Sequence[Exposure], outcomes: Sequence[Outcome]
    ) -> Ingested:
        """Keep them all or none; raises `RetryableError` where trying again may help."""


class Recorder:
    """Takes events at once and writes them in the background; `lost` is told how many were."""

    def __init__(
        self,
        write: EventWriter,
        supervisor: Supervisor,
        *,
        lost: Callable[[int], None] = lambda _events: None,
        largest: int = LARGEST,
    ) -> None:
        self._write_events = write
        self._supervisor = supervisor
        self._lost = lost
        self._largest = largest
        self._waiting: deque[Event] = deque()
        self._something = asyncio.Event()
        self._under_way: list[Event] = []
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """How many events are not yet written."""
        return len(self._waiting) + len(self._under_way)

    def add(self, event: Event) -> None:
        """Take an event; never blocks, never raises."""
        self._waiting.append(event)
        self._something.set()
        self._bound()

    def _bound(self) -> None:
        """Drop the oldest that are too many; those being written may be kept yet."""
        while self.waiting > self._largest and self._waiting:
            self._waiting.popleft()
            self._drop(1, "the buffer is full")

    def start(self) -> None:
        """Begin to write in the background."""
        self._supervisor.keep(TASK, self._run, longest_pause_s=LONGEST_PAUSE_S)

    async def stop(self) -> None:
        """Write what waits, then end."""
        await self._supervisor.stop(TASK)
        try:
            while self._waiting:
                await self._write()
        except Exception as error:
            self._drop(self.waiting, f"the service stops, and they cannot be written ({error})")
            self._waiting.clear()

    async def _run(self) -> None:
        while True:
            await self._something.wait()
            await asyncio.sleep(GATHER_S)
            await self._write()
            self._supervisor.succeeded(TASK)
            if not self._waiting:
                self._something.clear()

    async def _write(self) -> None:
        """Write a batch; it waits again where that fails. Raises `RetryableError`."""
        self._under_way = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        try:
            await self._keep(self._under_way)
        except BaseException:
            self._waiting.extendleft(reversed(self._under_way))
            raise
        finally:
            self._under_way = []
            self._bound()

    async def _keep(self, batch: list[Event]) -> None:
        """Keep these; of a batch that is refused, those that are not at fault."""
        try:
            taken = await self._write_events(
                exposures=[event for event in batch if isinstance(event, Exposure)],
                outcomes=[event for event in batch if isinstance(event, Outcome)],
            )
        except RetryableError:
            raise
        except TuneProofError as error:
            if len(batch) == 1:
                self._drop(1, f"it was refused: {error}")
                return
            middle = len(batch) // 2
            await self._keep(batch[:middle])
            await self._keep(batch[middle:])
            return
        if taken.rejected:
            first = taken.rejected[0]
            log.warning(
                "%d events of the gateway were refused, such as %s: %s.",
                len(taken.rejected),
                first.id,
                first.reason,
            )

    def _drop(self, events: int, why: str) -> None:
        before, self.dropped = self.dropped, self.dropped + events
        self._lost(events)
        if before // 1000 != self.dropped // 1000 or not before:
            log.error("%d events of the gateway were lost so far: %s.", self.dropped, why)
