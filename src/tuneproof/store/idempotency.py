"""Answers kept by idempotency key, so that a request sent twice is done once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from tuneproof.collection import TimeSource
from tuneproof.errors import ConflictError
from tuneproof.store.database import Database
from tuneproof.store.tables import idempotency
from tuneproof.workflow import Tx

__all__ = ["KEPT", "Idempotency", "KeptAnswer"]

KEPT = timedelta(days=7)
"""For how long a request that is sent again gets its first answer."""


@dataclass(frozen=True, kw_only=True)
class KeptAnswer:
    """What a request was answered; `request_hash` tells another request with the same key."""

    key: str
    request_hash: str
    status: int
    body: Any
    created_at: datetime


class Idempotency:
    """The table of kept answers."""

    def __init__(self, database: Database, clock: TimeSource) -> None:
        self._database = database
        self._clock = clock

    async def get(self, key: str, *, tx: Tx | None = None) -> KeptAnswer | None:
        """The answer kept under a key, or None."""
        async with self._database.reading(tx) as own:
            query = select(idempotency).where(idempotency.c.key == key)
            row = (await own.execute(query)).one_or_none()
        return None if row is None else KeptAnswer(**row._mapping)

    async def put(
        self,
        key: str,
        request_hash: str,
        status: int,
        body: Any,
        now: datetime | None = None,
        *,
        tx: Tx | None = None,
    ) -> None:
        """Keep an answer. Raises `ConflictError` where the key has one already."""
        row = {
            "key": key,
            "request_hash": request_hash,
            "status": status,
            "body": body,
            "created_at": now or self._clock.now(),
        }
        try:
            async with self._database.writing(tx) as own:
                await own.execute(insert(idempotency), row)
        except IntegrityError as error:
            raise ConflictError(
                f"The idempotency key {key!r} was used already.",
                mend="Send the same request to get its answer, or take a new key.",
            ) from error

    async def forget(self, *, tx: Tx | None = None) -> int:
        """Drop the answers that are older than `KEPT`; how many there were."""
        before = self._clock.now() - KEPT
        async with self._database.writing(tx) as own:
            done = await own.execute(delete(idempotency).where(idempotency.c.created_at < before))
            return int(done.rowcount)
