"""What is away, and since when: heard from the breakers, kept for all workers, told if it lasts.

Breakers are each worker's own, and only who calls a service finds out; so what one has found is
kept in the store, where the others read it, and is believed only while it is renewed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tuneproof.app.alerting import Alerting
from tuneproof.resilience import BreakerEvent, CircuitBreaker, State
from tuneproof.store import Store

__all__ = ["LOOK_EVERY_S", "Outage", "Outages"]

LOOK_EVERY_S = 20.0

SHOWN_AFTER = timedelta(minutes=2)
"""What is away for less is not shown as needing a person: most of it comes back by itself."""

LONG = timedelta(minutes=15)
"""What is away for longer is an alert of its own."""

_FRESH = timedelta(minutes=3)
_FORGOTTEN = timedelta(days=1)
_KEY = "away:"


@dataclass(frozen=True, kw_only=True)
class Outage:
    """A service that is away, by the name of the breaker that opened."""

    breaker: str
    since: datetime
    cause: str
    seen_at: datetime

    def sentence(self) -> str:
        """How it stands, in words."""
        return f"{self.breaker} has been away since {self.since:%Y-%m-%d %H:%M} UTC: {self.cause}"


class Outages:
    """Remembers them. `breakers` are all of this process, by name."""

    def __init__(
        self,
        *,
        breakers: Callable[[], Mapping[str, CircuitBreaker]],
        store: Store,
        now: Callable[[], datetime],
        alert: Alerting,
    ) -> None:
        self._breakers = breakers
        self._store = store
        self._now = now
        self._alert = alert
        self._open: dict[str, Outage] = {}
        self._over: set[str] = set()
        self._until: dict[str, datetime] = {}  # of those that are open, also elsewhere

    def heard(self, event: BreakerEvent) -> None:
        """Learn of a breaker that opens or closes; an opening is told, at most once an hour."""
        name, now = event.breaker, self._now()
        if event.kind == "opened":
            self._forget_unheard(name, now)
            self._until[name] = now + timedelta(seconds=event.retry_after_s)
        if event.kind == "opened" and name not in self._open:
            self._open[name] = Outage(breaker=name, since=now, cause=event.cause, seen_at=now)
            said = f"{event.cause}. Calls are refused until it answers again."
            self._alert("breaker_open", name, said, once=f"{now:%Y-%m-%dT%H}")
        elif event.kind == "closed":
            self._open.pop(name, None)
            self._until.pop(name, None)
            self._over.add(name)

    def _forget_unheard(self, name: str, now: datetime) -> None:
        """A gateway that ended while its breaker was open never says that it closed."""
        mine = self._breakers().get(name)
        here = mine is not None and mine.state is not State.CLOSED
        if name in self._open and not here and now - self._until[name] > _FRESH:
            del self._open[name]

    async def look(self) -> None:
        """Keep what is away for the others to see, and tell what has been so for long."""
        now, kept = self._now(), await self._store.meta.under(_KEY)
        known = {outage.breaker: outage for outage in _read(kept.values())}
        for name in self._gone(known, now):
            await self._store.meta.drop(_KEY + name)
        breakers = self._breakers()
        for name, mine in list(self._open.items()):
            if name not in breakers:
                del self._open[name]  # nobody is served by it any more
            elif (
                breakers[name].retry_after_s > 0 or self._until[name] > now
            ):  # else nobody has asked it for a while
                await self._renew(mine, known.get(name), now)

    def _gone(self, known: Mapping[str, Outage], now: datetime) -> set[str]:
        over, self._over = self._over - self._open.keys(), set()
        old = {name for name, outage in known.items() if now - outage.seen_at > _FORGOTTEN}
        return (over & known.keys()) | old

    async def _renew(self, mine: Outage, known: Outage | None, now: datetime) -> None:
        since = mine.since
        if known is not None and now - known.seen_at <= _FRESH:
            since = min(since, known.since)
        seen = Outage(breaker=mine.breaker, since=since, cause=mine.cause, seen_at=now)
        await self._store.meta.set(_KEY + seen.breaker, _row(seen))
        if now - since >= LONG:
            said = seen.sentence()
            self._alert("provider_away", seen.breaker, said, once=since.isoformat())

    async def lasting(self) -> Sequence[Outage]:
        """What has been away for minutes, as any worker has found; the longest first."""
        now = self._now()
        known = _read((await self._store.meta.under(_KEY)).values())
        found = [o for o in known if now - o.seen_at <= _FRESH and now - o.since >= SHOWN_AFTER]
        return sorted(found, key=lambda outage: outage.since)


def _row(outage: Outage) -> dict[str, str]:
    return {
        "breaker": outage.breaker,
        "since": outage.since.isoformat(),
        "cause": outage.cause.replace("\0", ""),
        "seen_at": outage.seen_at.isoformat(),
    }


def _read(rows: Iterable[Mapping[str, str]]) -> list[Outage]:
    return [
        Outage(
            breaker=row["breaker"],
            since=datetime.fromisoformat(row["since"]),
            cause=row["cause"],
            seen_at=datetime.fromisoformat(row["seen_at"]),
        )
        for row in rows
    ]
