"""What callers spend by the relay, and copies of requests: counted in memory, shared by the store.

A request asks no database. What each process counted is kept under a key of its own for the day,
and those of the others are read, so a budget holds over restarts and among all workers but for the
last seconds: `SETTLE_EVERY_S`, and as long as the database is away. Gateway processes have no
database: they tell the service what they counted (`told`), as a sum, so that twice is once.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from datetime import date

from tuneproof.store import Store
from tuneproof.workflow import Clock

__all__ = ["SETTLE_EVERY_S", "Spending"]

SETTLE_EVERY_S = 5.0
"""How often it is kept what was spent here, and read what was spent elsewhere."""

KEPT = "relay_spent/"
"""How the keys begin under which the store keeps it; then come the day and the process."""


class Spending:
    """What each caller spent today (UTC), in USD."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._own = uuid.uuid4().hex
        self._day = clock.now().date()
        self._here: dict[str, dict[str, float]] = {}  # by process: ours, and those that tell us
        self._kept: dict[str, dict[str, float]] = {}
        self._elsewhere: dict[str, dict[str, float]] = {}

    def spent_usd(self, caller: str) -> float:
        """What this caller spent today, as far as it is known here."""
        self._turn()
        return sum(spent.get(caller, 0.0) for spent in self._all())

    def spend(self, caller: str, usd: float) -> None:
        """Count what a request of this caller cost."""
        self._turn()
        _add(self._here.setdefault(self._own, {}), {caller: usd})

    def told(self, process: str, day: str, spent: Mapping[str, float]) -> Mapping[str, float]:
        """What callers spent today, now that a process says what it counted itself this day."""
        self._turn()
        if day == str(self._day) and spent:
            self._here[process] = dict(spent)
            self._elsewhere.pop(process, None)
        return self.today()

    def today(self) -> Mapping[str, float]:
        """What each caller spent today, as far as it is known here."""
        self._turn()
        found: dict[str, float] = {}
        for counted in self._all():
            _add(found, counted)
        return found

    def _all(self) -> Iterable[Mapping[str, float]]:
        return (*self._here.values(), *self._elsewhere.values())

    async def settle(self) -> None:
        """Keep what was spent here, read what was elsewhere, and forget days that are over."""
        self._turn()
        day = self._day
        for process, spent in list(self._here.items()):
            if spent != self._kept.get(process):
                now = dict(spent)
                await self._store.meta.set(f"{KEPT}{day}/{process}", now)
                self._kept[process] = now
        elsewhere: dict[str, dict[str, float]] = {}
        for key, spent in (await self._store.meta.under(KEPT)).items():
            of, _, process = key.partition("/")
            if of < str(day):
                await self._store.meta.drop(f"{KEPT}{key}")
            elif of == str(day) and process not in self._here:
                elsewhere[process] = spent
        if day == self._day:
            self._elsewhere = elsewhere

    def _turn(self) -> None:
        """Begin anew with a new day."""
        today: date = self._clock.now().date()
        if today != self._day:
            self._day = today
            self._here, self._kept, self._elsewhere = {}, {}, {}


def _add(sums: dict[str, float], more: Mapping[str, float]) -> None:
    for caller, usd in more.items():
        sums[caller] = sums.get(caller, 0.0) + usd
