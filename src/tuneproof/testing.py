"""What tests of loops need, shipped: a virtual clock and in-memory twins of the adapters."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

from tuneproof import workflow


class Participant(Protocol):
    """Somebody whose work fills virtual time: the audience, the trainer, the store."""

    async def advance(self, since: datetime, until: datetime) -> None:
        """Finish all that comes before `until`; may be asked again for a stretch after a kill."""


class VirtualClock:
    """Time that jumps to the next deadline once everybody has finished what comes before it.

    It moves only while every durable run it knows is waiting; then it asks each participant,
    in order, to fill the stretch up to the nearest deadline (at most `stride` at once), makes
    the new instant durable by `save`, and wakes who waited for it by `wake`. The same seed
    therefore gives the same figures on any machine, also after a kill: a stretch that was
    cut off is asked for again from the last saved instant.
    """

    def __init__(
        self,
        start: datetime,
        *,
        participants: Sequence[Participant] = (),
        save: Callable[[datetime], Awaitable[None]] | None = None,
        wake: Callable[[str], Awaitable[None]] | None = None,
        stride: timedelta = timedelta(hours=1),
    ) -> None:
        self._now = start.astimezone(UTC)
        self.participants = list(participants)
        self.save = save
        self.wake = wake
        self._stride = stride
        self._sleepers: dict[str, datetime] = {}
        self._busy: set[str] = set()
        self._naps: dict[int, tuple[datetime, asyncio.Event]] = {}
        self._nap = 0
        self._changed = asyncio.Event()

    def now(self) -> datetime:
        """The virtual instant."""
        return self._now

    async def sleep_until(self, at: datetime) -> None:
        """Return once virtual time is at or after `at`; such a sleep is a deadline too."""
        if at <= self._now:
            return
        self._nap += 1
        key, event = self._nap, asyncio.Event()
        self._naps[key] = (at, event)
        self._changed.set()
        try:
            await event.wait()
        finally:
            self._naps.pop(key, None)

    def waiting(self, run_id: str, until: datetime) -> None:
        """A durable run begins to wait."""
        self._busy.discard(run_id)
        self._sleepers[run_id] = until
        self._changed.set()

    def awake(self, run_id: str) -> None:
        """A durable run is at work: time stands still."""
        self._sleepers.pop(run_id, None)
        self._busy.add(run_id)

    def ended(self, run_id: str) -> None:
        """A durable run is over."""
        self._sleepers.pop(run_id, None)
        self._busy.discard(run_id)
        self._changed.set()

    @property
    def idle(self) -> bool:
        """Whether nobody works and nobody waits."""
        return not (self._sleepers or self._busy or self._naps)

    async def drive(self) -> None:
        """Let time pass for as long as this task lives."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while (target := self._next_deadline()) is not None:
                await self._advance_to(target)

    def _next_deadline(self) -> datetime | None:
        if self._busy:
            return None
        deadlines = [*self._sleepers.values(), *(at for at, _ in self._naps.values())]
        return min(deadlines, default=None)

    async def _advance_to(self, target: datetime) -> None:
        while self._now < target:
            until = min(target, _floor(self._now, self._stride) + self._stride)
            for participant in self.participants:
                await participant.advance(self._now, until)
            if self._busy or (self._next_deadline() or target) < target:
                return  # a signal woke somebody meanwhile; the stretch is asked for again
            if self.save is not None:
                await self.save(until)
            self._now = until
        await self._wake_due()

    async def _wake_due(self) -> None:
        for at, event in list(self._naps.values()):
            if at <= self._now:
                event.set()
        self._naps = {k: v for k, v in self._naps.items() if v[0] > self._now}
        for run_id in sorted(r for r, until in self._sleepers.items() if until <= self._now):
            self.awake(run_id)
            if self.wake is not None:
                await self.wake(run_id)
        await asyncio.sleep(0)


def _floor(at: datetime, stride: timedelta) -> datetime:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return epoch + (at - epoch) // stride * stride


async def tick(engine: workflow.Engine, run_id: str) -> None:
    """Wake a waiting run so that it looks at the clock; what `VirtualClock.wake` calls."""
    await engine.send(run_id, workflow.TICK)
