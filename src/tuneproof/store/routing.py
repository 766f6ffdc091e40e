"""Routing: which model serves a task, the one state that client, gateway and targets read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from tuneproof.collection import TimeSource
from tuneproof.errors import ConflictError
from tuneproof.experiments import Variant
from tuneproof.rollout import Lane, Routing
from tuneproof.store.database import Database
from tuneproof.store.experiments import stored_variant
from tuneproof.store.rows import to_row
from tuneproof.store.tables import routing
from tuneproof.workflow import Tx

__all__ = ["Routings"]

CHANNEL = "tuneproof_routing"
"""Where PostgreSQL tells all workers of a write, at its commit."""


class Routings:
    """The table of routings, one row a task."""

    def __init__(self, database: Database, clock: TimeSource) -> None:
        self._database = database
        self._clock = clock

    async def get(self, task: str, *, lock: bool = False, tx: Tx | None = None) -> Routing | None:
        """The routing of a task, or None where nothing was ever set.

        `lock`: whoever else would write it waits until this transaction is over.
        """
        async with self._database.reading(tx) as own:
            return await _load(own, task, lock=lock)

    async def all(self, *, tx: Tx | None = None) -> list[Routing]:
        """The routings of all tasks, by task."""
        async with self._database.reading(tx) as own:
            rows = await own.execute(select(routing).order_by(routing.c.task))
            return [_routing(row) for row in rows]

    async def version(self, *, tx: Tx | None = None) -> int:
        """A number that grows with each write of any task's routing: poll this, then `all`."""
        async with self._database.reading(tx) as own:
            found = await own.execute(select(func.coalesce(func.sum(routing.c.version), 0)))
            return int(found.scalar_one())

    async def set(
        self,
        wanted: Routing,
        expected_version: int | None = None,
        *,
        taken_back: bool = False,
        tx: Tx | None = None,
    ) -> Routing:
        """Write a task's routing at the next version and return it as written.

        `wanted.version` is not read; `updated_at` None becomes now. `expected_version` is the
        version that the caller read, 0 for "none yet": `ConflictError` where it is another.
        `previous` is kept here: the baseline that another takes the place of, unless it is
        `taken_back`.
        """
        async with self._database.writing(tx) as own:
            old = await _load(own, wanted.task, lock=True)
            found = 0 if old is None else old.version
            if expected_version is not None and found != expected_version:
                raise _changed(wanted.task, expected_version, found)
            at = wanted.updated_at or self._clock.now()
            new = replace(
                wanted,
                version=found + 1,
                updated_at=at,
                previous=None if old is None else _previous(old, wanted, taken_back),
            )
            if old is not None:
                statement = update(routing).where(routing.c.task == wanted.task)
                await own.execute(statement.values(to_row(new)))
            else:
                try:
                    await own.execute(insert(routing), to_row(new))
                except IntegrityError as error:  # another worker wrote the first one meanwhile
                    raise _changed(wanted.task, 0, 1) from error
            await self._notify(new.task, own)
        return new

    async def _notify(self, task: str, tx: Tx) -> None:
        if self.notifies:
            notify = text("SELECT pg_notify(:channel, :task)")
            await tx.execute(notify, {"channel": CHANNEL, "task": task})

    async def renew(self, task: str, above: int, *, tx: Tx | None = None) -> None:
        """Give a task's routing, as it is, a version above this one, if it has none."""
        async with self._database.writing(tx) as own:
            old = await _load(own, task, lock=True)
            if old is not None and old.version <= above:
                newer = update(routing).where(routing.c.task == task).values(version=above + 1)
                await own.execute(newer)
                await self._notify(task, own)

    @property
    def notifies(self) -> bool:
        """Whether `notices` tells of writes: on SQLite one process writes, and knows."""
        return self._database.dialect == "postgresql"

    def notices(self) -> AsyncIterator[str]:
        """The task of each write by any worker, as it is committed; "" once listening has begun.

        Raises `StoreUnavailableError` where the connection breaks.
        """
        return self._database.listen(CHANNEL)


def _previous(old: Routing, new: Routing, taken_back: bool) -> Variant | None:
    if old.baseline.same_as(new.baseline):
        return old.previous
    return None if taken_back else old.baseline


def _changed(task: str, expected: int, found: int) -> ConflictError:
    return ConflictError(
        f"The routing of {task} is at version {found}, not {expected}.",
        mend="Read it again, then decide.",
        version=found,
    )


async def _load(tx: Tx, task: str, *, lock: bool = False) -> Routing | None:
    query = select(routing).where(routing.c.task == task)
    row = (await tx.execute(query.with_for_update() if lock else query)).one_or_none()
    return None if row is None else _routing(row)


def _routing(row: Any) -> Routing:
    values = dict(row._mapping)
    return Routing(
        **{
            **values,
            "baseline": stored_variant(values["baseline"]),
            "previous": _model(values["previous"]),
            "lanes": tuple(
                Lane(**{**lane, "candidate": _model(lane["candidate"])}) for lane in values["lanes"]
            ),
        }
    )


def _model(data: Mapping[str, Any] | None) -> Variant | None:
    return None if data is None else stored_variant(data)
