"""Activity: who did what to which object and why, appended for ever."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select

from tuneproof.store.database import Database
from tuneproof.store.paging import Page, check_limit, no_cursor
from tuneproof.store.rows import to_json_types
from tuneproof.store.tables import activity
from tuneproof.workflow import Tx

__all__ = ["Activity", "ActivityLog"]


@dataclass(frozen=True, kw_only=True)
class Activity:
    """One deed: `actor` is a token's name, `cli`, `schedule`, or `loop` for the loop itself."""

    seq: int
    at: datetime
    actor: str
    action: str
    object_id: str
    reason: str
    detail: Mapping[str, Any]


class ActivityLog:
    """The audit table; nothing in it is ever changed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(
        self,
        at: datetime,
        actor: str,
        action: str,
        object_id: str,
        reason: str = "",
        detail: Mapping[str, Any] | None = None,
        *,
        tx: Tx | None = None,
    ) -> None:
        """Note a deed."""
        row = {
            "at": at,
            "actor": actor,
            "action": action,
            "object_id": object_id,
            "reason": reason,
            "detail": to_json_types(detail or {}),
        }
        async with self._database.writing(tx) as own:
            await own.execute(insert(activity), row)

    async def page(
        self,
        object_id: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
        *,
        tx: Tx | None = None,
    ) -> Page[Activity]:
        """Deeds, newest first, on one object or on all. Raises `InputError` for a bad cursor."""
        check_limit(limit)
        query = select(activity)
        if object_id is not None:
            query = query.where(activity.c.object_id == object_id)
        if cursor is not None:
            if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
                raise no_cursor(cursor)
            query = query.where(activity.c.seq < int(cursor))
        async with self._database.reading(tx) as own:
            rows = await own.execute(query.order_by(activity.c.seq.desc()).limit(limit + 1))
            found = [Activity(**row._mapping) for row in rows]
        after = str(found[limit - 1].seq) if len(found) > limit else None
        return Page(items=tuple(found[:limit]), next_cursor=after)
