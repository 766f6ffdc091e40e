"""The last tick of each pipeline's schedule that was acted on."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select

from tuneproof.store.database import Database
from tuneproof.store.tables import schedule
from tuneproof.store.upserts import upsert
from tuneproof.workflow import Tx

__all__ = ["Ticks"]


class Ticks:
    """The table of ticks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def last_tick(self, pipeline: str, *, tx: Tx | None = None) -> datetime | None:
        """When the schedule last ticked, or None."""
        async with self._database.reading(tx) as own:
            query = select(schedule.c.last_tick).where(schedule.c.pipeline == pipeline)
            return (await own.execute(query)).scalar_one_or_none()

    async def set_tick(self, pipeline: str, at: datetime, *, tx: Tx | None = None) -> None:
        """Note that the tick of `at` was acted on."""
        async with self._database.writing(tx) as own:
            await upsert(own, schedule, {"pipeline": pipeline, "last_tick": at})
