"""Small JSON values by key, such as what time the virtual clock shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from tuneproof.store.tables import meta
from tuneproof.store.upserts import upsert

if TYPE_CHECKING:
    from tuneproof.store.store import Store

__all__ = ["Meta"]


class Meta:
    """The table of values by key."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, key: str, *, tx: AsyncConnection | None = None) -> Any:
        """The value under a key, or None."""
        async with self._store.reading(tx) as own:
            query = select(meta.c.value).where(meta.c.key == key)
            return (await own.execute(query)).scalar_one_or_none()

    async def set(self, key: str, value: Any, *, tx: AsyncConnection | None = None) -> None:
        """Keep a JSON value under a key."""
        async with self._store.writing(tx) as own:
            await upsert(own, meta, {"key": key, "value": value})
