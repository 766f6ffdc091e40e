"""Small JSON values by key, such as what time the virtual clock shows."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from tuneproof.store.database import Database
from tuneproof.store.tables import meta
from tuneproof.store.upserts import upsert
from tuneproof.workflow import Tx

__all__ = ["Meta"]


class Meta:
    """The table of values by key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, key: str, *, tx: Tx | None = None) -> Any:
        """The value under a key, or None."""
        async with self._database.reading(tx) as own:
            query = select(meta.c.value).where(meta.c.key == key)
            return (await own.execute(query)).scalar_one_or_none()

    async def set(self, key: str, value: Any, *, tx: Tx | None = None) -> None:
        """Keep a JSON value under a key."""
        async with self._database.writing(tx) as own:
            await upsert(own, meta, {"key": key, "value": value})
