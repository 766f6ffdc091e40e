"""Small JSON values by key, such as what time the virtual clock shows."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, select

from tuneproof.store.database import Database
from tuneproof.store.tables import meta
from tuneproof.store.upserts import insert_or_ignore, upsert
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

    async def first(self, key: str, value: Any, *, tx: Tx | None = None) -> Any:
        """Keep a JSON value unless one is there; the one that is there now."""
        async with self._database.writing(tx) as own:
            await insert_or_ignore(own, meta, {"key": key, "value": value})
            return await self.get(key, tx=own)

    async def under(self, prefix: str, *, tx: Tx | None = None) -> dict[str, Any]:
        """All values whose keys begin so, by the rest of the key."""
        query = select(meta.c.key, meta.c.value)
        async with self._database.reading(tx) as own:
            rows = await own.execute(query.where(meta.c.key.startswith(prefix, autoescape=True)))
            return {row.key.removeprefix(prefix): row.value for row in rows}

    async def drop(self, key: str, *, tx: Tx | None = None) -> None:
        """Keep nothing under a key."""
        async with self._database.writing(tx) as own:
            await own.execute(delete(meta).where(meta.c.key == key))
