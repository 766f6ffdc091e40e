"""The outbox: what MLflow should get, written with the change that it tells of.

Items of one run are handed out in order: one that waits for another try holds back those
behind it. Items of different runs don't wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import exists, func, select, update

from tuneproof.collection import TimeSource
from tuneproof.store.database import Database
from tuneproof.store.rows import to_json_types
from tuneproof.store.tables import outbox
from tuneproof.store.upserts import insert_or_ignore
from tuneproof.workflow import Tx

__all__ = ["OutboxItem", "StoredOutbox"]


@dataclass(frozen=True, kw_only=True)
class OutboxItem:
    """Something to deliver; `attempts` counts the tries that failed."""

    id: int
    key: str
    kind: str
    payload: Mapping[str, Any]
    attempts: int


class StoredOutbox:
    """The outbox table: what `tracking.Outbox` asks for, and `add`."""

    def __init__(self, database: Database, clock: TimeSource) -> None:
        self._database = database
        self._clock = clock

    async def add(
        self,
        key: str,
        kind: str,
        payload: Mapping[str, Any],
        *,
        run: str | None = None,
        tx: Tx | None = None,
    ) -> bool:
        """Add an item; False where one with this key was added before (nothing changes then).

        `run` is whose order it keeps; left out, it is `payload["run_id"]`, else the item is
        alone.
        """
        now = self._clock.now()
        row = {
            "key": key,
            "run": run or str(payload.get("run_id") or key),
            "kind": kind,
            "payload": to_json_types(payload),
            "created_at": now,
            "attempts": 0,
            "due_at": now,
        }
        async with self._database.writing(tx) as own:
            return await insert_or_ignore(own, outbox, row)

    async def due(
        self, now: datetime, limit: int = 100, *, tx: Tx | None = None
    ) -> Sequence[OutboxItem]:
        """What can be delivered at `now`, in the order in which it was added."""
        earlier = outbox.alias("earlier")
        held = exists().where(
            earlier.c.run == outbox.c.run,
            earlier.c.delivered_at.is_(None),
            earlier.c.id < outbox.c.id,
            earlier.c.due_at > now,
        )
        query = (
            select(outbox.c.id, outbox.c.key, outbox.c.kind, outbox.c.payload, outbox.c.attempts)
            .where(outbox.c.delivered_at.is_(None), outbox.c.due_at <= now, ~held)
            .order_by(outbox.c.id)
            .limit(limit)
        )
        async with self._database.reading(tx) as own:
            return [OutboxItem(**row._mapping) for row in await own.execute(query)]

    async def delivered(self, id: int, *, tx: Tx | None = None) -> None:
        """Note that an item arrived."""
        statement = update(outbox).where(outbox.c.id == id, outbox.c.delivered_at.is_(None))
        async with self._database.writing(tx) as own:
            await own.execute(statement.values(delivered_at=self._clock.now()))

    async def failed(
        self, id: int, error: str, retry_at: datetime, *, tx: Tx | None = None
    ) -> None:
        """Note a try that failed; the item is due again at `retry_at`."""
        values = {
            "attempts": outbox.c.attempts + 1,
            "last_error": str(error)[:2000],
            "due_at": retry_at,
        }
        async with self._database.writing(tx) as own:
            await own.execute(update(outbox).where(outbox.c.id == id).values(values))

    async def backlog(self, *, tx: Tx | None = None) -> tuple[int, datetime | None]:
        """How many items have not arrived, and when the oldest of them was added."""
        query = select(func.count(), func.min(outbox.c.created_at))
        async with self._database.reading(tx) as own:
            row = (await own.execute(query.where(outbox.c.delivered_at.is_(None)))).one()
        return int(row[0]), row[1]

    async def pending(self, *, tx: Tx | None = None) -> int:
        """How many items have not arrived."""
        query = select(func.count()).select_from(outbox).where(outbox.c.delivered_at.is_(None))
        async with self._database.reading(tx) as own:
            return int((await own.execute(query)).scalar_one())
