"""Idempotency keys: each is taken before its request is done, and keeps the answer for a while.

A key that is taken names who took it. What the request makes is noted under the key in the very
transaction that makes it, and only while the key is still the taker's: so a taker that died
leaves either nothing or the id of what there is, and one that was only slow makes nothing more
once another has taken its key over.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, select, update

from tuneproof.collection import TimeSource
from tuneproof.errors import ConflictError
from tuneproof.store.database import Database
from tuneproof.store.tables import idempotency
from tuneproof.store.upserts import insert_or_ignore
from tuneproof.workflow import Tx

__all__ = ["HELD", "KEPT", "Claim", "Idempotency", "KeptAnswer"]

KEPT = timedelta(days=7)
"""For how long a request that is sent again gets its first answer."""

HELD = timedelta(seconds=60)
"""After so long a key whose taker made nothing may be taken over: it has died, or waits."""

AT_WORK = 409
"""Kept in place of an answer's status until there is one; answers that are kept are successes."""


@dataclass(frozen=True, kw_only=True)
class KeptAnswer:
    """What is known of a request; `request_hash` tells another request with the same key.

    While it is at work `body` says who took the key, and the id of what it made, if it has.
    """

    key: str
    request_hash: str
    status: int
    body: Any
    created_at: datetime

    @property
    def at_work(self) -> bool:
        """Whether the request was taken and has no answer yet."""
        return self.status == AT_WORK

    @property
    def made(self) -> str | None:
        """The id of what a request at work has made."""
        return self.body["made"] if self.at_work else None


class Claim:
    """A key that was taken for one request, which nobody else does meanwhile."""

    def __init__(self, database: Database, key: str, taker: str) -> None:
        self._database = database
        self._key = key
        self._taker = taker

    async def made(self, id: str, *, tx: Tx) -> None:
        """Note, in the transaction that makes it, what the request made.

        Raises `ConflictError` where another has taken the key over: nothing may be made then.
        """
        row = await _locked(tx, self._key)
        if row is None or not self._holds(row):
            raise ConflictError(
                "The request took so long that it was begun again elsewhere under its key.",
                mend="Send it again with the same key to get that answer.",
            )
        body = {**row.body, "made": id}
        await tx.execute(_where(self._key).values(body=body))

    async def answered(self, status: int, body: Any) -> None:
        """Keep the answer; nothing changes where another has taken the key over."""
        async with self._database.begin() as tx:
            row = await _locked(tx, self._key)
            if row is not None and self._holds(row):
                await tx.execute(_where(self._key).values(status=status, body=body))

    async def release(self) -> None:
        """Let go of the key of a request that failed, unless it has made something."""
        async with self._database.begin() as tx:
            row = await _locked(tx, self._key)
            if row is not None and self._holds(row) and row.body["made"] is None:
                await tx.execute(delete(idempotency).where(idempotency.c.key == self._key))

    def _holds(self, row: Row[Any]) -> bool:
        return bool(row.status == AT_WORK and row.body["taker"] == self._taker)


class Idempotency:
    """The table of keys and kept answers."""

    def __init__(self, database: Database, clock: TimeSource) -> None:
        self._database = database
        self._clock = clock

    async def get(self, key: str, *, tx: Tx | None = None) -> KeptAnswer | None:
        """What is known of the request under a key, or None."""
        async with self._database.reading(tx) as own:
            query = select(idempotency).where(idempotency.c.key == key)
            row = (await own.execute(query)).one_or_none()
        return None if row is None else KeptAnswer(**row._mapping)

    async def take(self, key: str, request_hash: str) -> Claim | KeptAnswer:
        """Take a key; what is known of its request where another holds or has used it."""
        known = await self.get(key)
        if known is not None and not self._is_free(known, request_hash):
            return known
        taker = uuid.uuid4().hex
        row = {
            "key": key,
            "request_hash": request_hash,
            "status": AT_WORK,
            "body": {"taker": taker, "made": None},
            "created_at": self._clock.now(),
        }
        async with self._database.begin() as tx:
            if await insert_or_ignore(tx, idempotency, row):
                return Claim(self._database, key, taker)
            held = await _locked(tx, key)
            if held is not None:
                known = KeptAnswer(**held._mapping)
                if not self._is_free(known, request_hash):
                    return known
                await tx.execute(_where(key).values(row))
                return Claim(self._database, key, taker)
        return await self.take(key, request_hash)  # it was let go of in between

    def given_up(self, known: KeptAnswer) -> bool:
        """Whether a request has been at work for so long that its taker has died, or waits."""
        return known.at_work and self._clock.now() - known.created_at > HELD

    def _is_free(self, known: KeptAnswer, request_hash: str) -> bool:
        """Whether the key may be taken over: for the same request, if it has made nothing."""
        same = known.request_hash == request_hash
        return same and known.made is None and self.given_up(known)

    async def answer_for(self, known: KeptAnswer, status: int, body: Any) -> None:
        """Keep the answer of a request at work whose taker died after it had made something."""
        async with self._database.begin() as tx:
            row = await _locked(tx, known.key)
            if row is not None and row.status == AT_WORK and row.body == known.body:
                await tx.execute(_where(known.key).values(status=status, body=body))

    async def forget(self, *, tx: Tx | None = None) -> int:
        """Drop the keys that are older than `KEPT`; how many there were."""
        before = self._clock.now() - KEPT
        async with self._database.writing(tx) as own:
            done = await own.execute(delete(idempotency).where(idempotency.c.created_at < before))
            return int(done.rowcount)


async def _locked(tx: Tx, key: str) -> Row[Any] | None:
    query = select(idempotency).where(idempotency.c.key == key).with_for_update()
    return (await tx.execute(query)).one_or_none()


def _where(key: str) -> Any:
    return update(idempotency).where(idempotency.c.key == key)
