"""Events of the gateway on their way to the store: answered first, written in batches soon after.

A store that does not answer is waited for, so a short outage loses nothing; what still waits
is written when the service stops. The buffer is bounded: past it the oldest events go, counted
and logged.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

from tuneproof.errors import RetryableError, TuneProofError
from tuneproof.experiments import Exposure, Outcome

if TYPE_CHECKING:
    from tuneproof.app import App

log = logging.getLogger(__name__)

BATCH = 2_000
LARGEST = 100_000
GATHER_S = 0.02
LONGEST_PAUSE_S = 5.0


class Recorder:
    """Takes events at once and writes them through the App in the background."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._waiting: deque[Exposure | Outcome] = deque()
        self._something = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """How many events are not yet written."""
        return len(self._waiting)

    def add(self, event: Exposure | Outcome) -> None:
        """Take an event; never blocks, never raises."""
        if len(self._waiting) >= LARGEST:
            self._waiting.popleft()
            self.dropped += 1
            if self.dropped % 1000 == 1:
                log.error("The event buffer is full: %d events were dropped.", self.dropped)
        self._waiting.append(event)
        self._something.set()

    def start(self) -> None:
        """Begin to write in the background."""
        self._task = asyncio.create_task(self._run(), name="recorder")

    async def stop(self) -> None:
        """Write what waits, then end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        while self._waiting:
            if not await self._write():
                log.error("%d events of the gateway could not be written.", self.waiting)
                return

    async def _run(self) -> None:
        pause = GATHER_S
        while True:
            await self._something.wait()
            await asyncio.sleep(pause)
            written = await self._write()
            pause = GATHER_S if written else min(2 * pause, LONGEST_PAUSE_S)
            if not self._waiting:
                self._something.clear()

    async def _write(self) -> bool:
        """Write a batch; False when the store did not answer, and the batch waits again."""
        batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        try:
            await self._store(batch)
        except RetryableError as error:
            log.warning("The store does not take events now: %s", error)
            self._waiting.extendleft(reversed(batch))
            return False
        except asyncio.CancelledError:
            self._waiting.extendleft(reversed(batch))
            raise
        except TuneProofError as error:
            self.dropped += len(batch)
            log.error("%d events were refused: %s", len(batch), error)
        return True

    async def _store(self, batch: list[Exposure | Outcome]) -> None:
        taken = await self._app.record_events(
            exposures=[event for event in batch if isinstance(event, Exposure)],
            outcomes=[event for event in batch if isinstance(event, Outcome)],
        )
        if taken.unknown:
            log.warning("Events of unknown subjects were refused: %s", list(taken.unknown)[:10])
