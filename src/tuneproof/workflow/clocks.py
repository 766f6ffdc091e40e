"""Time: the machine's clock, and what a virtual one must be told."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What time it is. `waiting` and `awake` tell a virtual clock who sleeps."""

    def now(self) -> datetime:
        """The present instant, aware, UTC."""

    async def sleep_until(self, at: datetime) -> None:
        """Return once `now()` is at or after `at`."""

    def waiting(self, run_id: str, until: datetime) -> None:
        """A durable run begins to wait."""

    def awake(self, run_id: str) -> None:
        """A durable run is at work."""

    def ended(self, run_id: str) -> None:
        """A durable run is over."""


class SystemClock:
    """The machine's wall clock."""

    def now(self) -> datetime:
        """The present instant, aware, UTC."""
        return datetime.now(UTC)

    async def sleep_until(self, at: datetime) -> None:
        """Return once the wall clock shows `at`, also after the machine slept."""
        while (left := (at - self.now()).total_seconds()) > 0:  # noqa: ASYNC110 - time itself
            await asyncio.sleep(min(left, 60.0))

    def waiting(self, run_id: str, until: datetime) -> None:
        """Nothing to do: real time passes by itself."""

    def awake(self, run_id: str) -> None:
        """Nothing to do: real time passes by itself."""

    def ended(self, run_id: str) -> None:
        """Nothing to do: real time passes by itself."""
