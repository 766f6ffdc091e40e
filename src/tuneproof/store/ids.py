"""Ids that sort by time: numbered by day for people, UUIDv7 for versions."""

from __future__ import annotations

import secrets
from datetime import date, datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text

from tuneproof.errors import DataError
from tuneproof.store.database import Database
from tuneproof.store.types import to_micros
from tuneproof.workflow import Tx

__all__ = ["KINDS", "Ids", "uuid7"]

KINDS: Final = ("ft-pipeline", "ab-test", "family", "deploy")
"""Runs, experiments, families of experiments and rollouts, as their ids begin."""

_NEXT = text(
    "INSERT INTO counters (kind, day, last) VALUES (:kind, :day, 1) "
    "ON CONFLICT (kind, day) DO UPDATE SET last = counters.last + 1 RETURNING last"
)


def uuid7(at: datetime, entropy: int | None = None) -> UUID:
    """A UUID of version 7: sorts by `at` to the millisecond, then at random.

    `entropy` (74 bits) makes it reproducible.
    """
    bits = secrets.randbits(74) if entropy is None else entropy & ((1 << 74) - 1)
    stamp = (to_micros(at) // 1000) & ((1 << 48) - 1)
    return UUID(int=stamp << 80 | 7 << 76 | bits >> 62 << 64 | 2 << 62 | bits & ((1 << 62) - 1))


class Ids:
    """The counters behind the ids."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def next(self, kind: str, day: date | datetime, *, tx: Tx | None = None) -> str:
        """The next id of a kind on a UTC day, such as `ft-pipeline-20250120-001`.

        Never given twice, also by several workers; the number grows past 999. An id taken in a
        transaction that is rolled back is free again. Raises `DataError` for an unknown kind.
        """
        if kind not in KINDS:
            raise DataError(f"There are no ids of kind {kind!r}.", mend=f"Use one of {KINDS}.")
        stamp = f"{day:%Y%m%d}"
        async with self._database.writing(tx) as own:
            number = (await own.execute(_NEXT, {"kind": kind, "day": stamp})).scalar_one()
        return f"{kind}-{stamp}-{number:03d}"
