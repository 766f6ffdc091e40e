"""The last tick of each pipeline's schedule that was acted on."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from tuneproof.store.tables import schedule
from tuneproof.store.upserts import upsert

if TYPE_CHECKING:
    from tuneproof.store.store import Store

__all__ = ["Ticks"]


class Ticks:
    """The table of ticks."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def last_tick(
        self, pipeline: str, *, tx: AsyncConnection | None = None
    ) -> datetime | None:
        """When the schedule last ticked, or None."""
        async with self._store.reading(tx) as own:
            query = select(schedule.c.last_tick).where(schedule.c.pipeline == pipeline)
            return (await own.execute(query)).scalar_one_or_none()

    async def set_tick(
        self, pipeline: str, at: datetime, *, tx: AsyncConnection | None = None
    ) -> None:
        """Note that the tick of `at` was acted on."""
        async with self._store.writing(tx) as own:
            await upsert(own, schedule, {"pipeline": pipeline, "last_tick": at})
