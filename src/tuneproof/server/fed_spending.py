"""What callers of a gateway process spend by the relay: counted here, told to its service."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import date, datetime
from typing import Any

__all__ = ["TELL_EVERY_S", "FedSpending"]

TELL_EVERY_S = 1.0
"""How often the service is told, and tells what was spent at the other processes."""


class FedSpending:
    """What each caller spent today (UTC), in USD. `told` has the service hear of it.

    While the service is away each process knows its own, and what it heard last.
    """

    def __init__(
        self,
        tell: Callable[[Mapping[str, Any]], Awaitable[Mapping[str, float]]],
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._tell = tell
        self._now = now
        self._process = uuid.uuid4().hex
        self._day: date = now().date()
        self._here: dict[str, float] = {}
        self._elsewhere: dict[str, float] = {}

    def spent_usd(self, caller: str) -> float:
        """What this caller spent today, as far as it is known here."""
        self._turn()
        return self._here.get(caller, 0.0) + self._elsewhere.get(caller, 0.0)

    def spend(self, caller: str, usd: float) -> None:
        """Count what a request of this caller cost."""
        self._turn()
        self._here[caller] = self._here.get(caller, 0.0) + usd

    async def told(self) -> None:
        """Tell the service, and hear of the others. Raises `StoreUnavailableError`."""
        self._turn()
        day, here = self._day, dict(self._here)
        body = {"process": self._process, "day": str(day), "spent": here}
        found = await self._tell(body)
        if day == self._day:
            self._elsewhere = {
                caller: max(0.0, usd - here.get(caller, 0.0)) for caller, usd in found.items()
            }

    def _turn(self) -> None:
        """Begin anew with a new day."""
        today = self._now().date()
        if today != self._day:
            self._day, self._here, self._elsewhere = today, {}, {}
