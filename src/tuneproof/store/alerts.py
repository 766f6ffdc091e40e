"""Alerts that wait until somebody takes them, and which were taken.

Kept as values by key: `alert:KEY` while one waits, `alerted:KEY` from then on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, delete, select

from tuneproof.store.database import Database
from tuneproof.store.rows import to_json_types
from tuneproof.store.tables import meta
from tuneproof.store.upserts import insert_or_ignore, upsert
from tuneproof.workflow import Tx

__all__ = ["KEPT", "TOLD_FOR", "KeptAlert", "KeptAlerts"]

TOLD_FOR = timedelta(days=1)
"""For how long an alert is tried; later it is no news."""

KEPT = timedelta(days=7)
"""For how long one that nobody took is shown."""

_SENDING = timedelta(minutes=1)
"""Who takes one to send it has it to itself for so long."""

_WAITS, _TOLD = "alert:", "alerted:"


@dataclass(frozen=True, kw_only=True)
class KeptAlert:
    """What somebody is to be told; `attempts` counts the tries that failed."""

    key: str
    kind: str
    subject: str
    summary: str
    details: Mapping[str, Any]
    since: datetime
    due_at: datetime
    attempts: int = 0
    error: str = ""

    def given_up(self, now: datetime) -> bool:
        """Whether nobody took it for so long that it is tried no more."""
        return now - self.since > TOLD_FOR


class KeptAlerts:
    """The alerts among the values by key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, alert: KeptAlert) -> bool:
        """Keep an alert until it is told; False where one with this key was, or waits."""
        async with self._database.begin() as tx:
            if not await insert_or_ignore(tx, meta, _row(alert)):
                return False
            told = select(meta.c.key).where(meta.c.key == _TOLD + alert.key)
            if (await tx.execute(told)).first() is None:
                return True
            await _drop(tx, alert.key)
            return False

    async def waiting(self) -> Sequence[KeptAlert]:
        """All that nobody has taken yet, oldest first."""
        async with self._database.read() as tx:
            return _alerts((await tx.execute(_waiting())).scalars())

    async def take_due(self, now: datetime) -> KeptAlert | None:
        """One that is to be tried now; no other worker tries it meanwhile.

        Drops those that are not even shown any more. Writes nothing where nothing waits.
        """
        if not await self.waiting():
            return None
        async with self._database.begin() as tx:
            locked = _waiting().with_for_update(skip_locked=True)
            for alert in _alerts((await tx.execute(locked)).scalars()):
                if now - alert.since > KEPT:
                    await _drop(tx, alert.key)
                elif alert.due_at <= now and not alert.given_up(now):
                    await upsert(tx, meta, _row(replace(alert, due_at=now + _SENDING)))
                    return alert
        return None

    async def told(self, key: str, at: datetime) -> None:
        """Note that somebody took it."""
        async with self._database.begin() as tx:
            await _drop(tx, key)
            await upsert(tx, meta, {"key": _TOLD + key, "value": at.isoformat()})

    async def failed(self, alert: KeptAlert, error: str, retry_at: datetime) -> None:
        """Note a try that failed; it is due again at `retry_at`."""
        attempts = alert.attempts + 1
        again = replace(alert, attempts=attempts, error=error[:500], due_at=retry_at)
        async with self._database.begin() as tx:
            await upsert(tx, meta, _row(again))


def _waiting() -> Select[Any]:
    return select(meta.c.value).where(meta.c.key.startswith(_WAITS, autoescape=True))


def _alerts(values: Any) -> list[KeptAlert]:
    times = ("since", "due_at")
    found = [
        KeptAlert(**{**value, **{name: datetime.fromisoformat(value[name]) for name in times}})
        for value in values
    ]
    return sorted(found, key=lambda alert: alert.since)


def _row(alert: KeptAlert) -> dict[str, Any]:
    times = {"since": alert.since.isoformat(), "due_at": alert.due_at.isoformat()}
    return {"key": _WAITS + alert.key, "value": {**to_json_types(alert), **times}}


async def _drop(tx: Tx, key: str) -> None:
    await tx.execute(delete(meta).where(meta.c.key == _WAITS + key))
