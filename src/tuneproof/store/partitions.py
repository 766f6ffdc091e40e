"""Raw events by day on PostgreSQL: a partition for each day that has events.

Made before an event needs it, in a transaction of its own: the days of a batch, and the day after
the newest, so that nobody waits for it at midnight. Late events get theirs the same way. What is
from before 2000 or after 2099 (a sender's clock that was never set) shares one partition each.
A new partition is attached, which stops neither readers nor writers; whole partitions are dropped
by `retention`. SQLite knows none of this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date, timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

if TYPE_CHECKING:
    from tuneproof.store.store import Store

__all__ = ["DAY_US", "TABLES", "DayMissingError", "Partitions", "partition_existing", "read_bounds"]

TABLES: Final = ("exposures", "outcomes")

DAY_US: Final = 86_400_000_000

_EPOCH: Final = date(1970, 1, 1)
_FIRST_DAY: Final = (date(2000, 1, 1) - _EPOCH).days
_END_DAY: Final = (date(2100, 1, 1) - _EPOCH).days
_AT_ONCE: Final = 50
"""Days made in one transaction: each takes a dozen locks, and PostgreSQL has 64 a connection."""

_MIGRATED: Final = 300
"""So many days of old events get partitions of their own; those before share one."""

_LOCK: Final = 0x64617973  # "days": the advisory lock that makers of partitions queue on

_BOUNDS: Final = """
SELECT child.relname, pg_get_expr(child.relpartbound, child.oid)
FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid
WHERE inhparent = to_regclass('{table}') ORDER BY 1
"""
_BOUND: Final = re.compile(r"FROM \((?:MINVALUE|'(-?\d+)')\) TO \((?:MAXVALUE|'(-?\d+)')\)")
_INDEXES: Final = {
    "exposures": "CREATE INDEX ix_exposures_subject_at ON exposures (subject, at);",
    "outcomes": "",
}
_PARTITION: Final = """
CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS);
ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ({low}) TO ({high});
"""
_BY_DAY: Final = """
ALTER TABLE {table} RENAME TO {table}_undivided;
ALTER TABLE {table}_undivided DROP CONSTRAINT pk_{table};
DROP INDEX IF EXISTS ix_{table}_subject_at;
CREATE TABLE {table} (LIKE {table}_undivided INCLUDING DEFAULTS) PARTITION BY RANGE (at);
ALTER TABLE {table} ADD CONSTRAINT pk_{table} PRIMARY KEY (subject, unit, id, at);
{index}
"""
_MOVE: Final = """
INSERT INTO {table} SELECT * FROM {table}_undivided;
DROP TABLE {table}_undivided;
"""
_DAYS: Final = """
SELECT DISTINCT at / 86400000000 FROM (
    SELECT at FROM exposures_undivided UNION ALL SELECT at FROM outcomes_undivided
) events
"""

Bounds = tuple[int | None, int | None]
"""The days of a partition: from, and before; None where it is open."""


class DayMissingError(Exception):
    """Events of days that have no partition; `days` are counted from 1970-01-01."""

    def __init__(self, days: Iterable[int]) -> None:
        super().__init__(f"There is no partition for {sorted(days)}.")
        self.days = frozenset(days)


class Partitions:
    """Knows the days that have partitions, and makes those that are missing."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._days: set[int] = set()

    def check(self, instants: Iterable[int]) -> None:
        """Return where all these instants (in microseconds) have a partition, as far as known.

        Raises `DayMissingError` for `make`, in a transaction of its own.
        """
        missing = {at // DAY_US for at in instants} - self._days
        if missing:
            raise DayMissingError(missing)

    async def make(self, days: Iterable[int]) -> None:
        """Make the partitions of these days that are missing, and of the day after the last."""
        wanted = sorted(set(days))
        wanted.append(wanted[-1] + 1)
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            async with self._store.begin() as tx:
                await tx.run_sync(_make, part)
            self._days.update(part)


async def read_bounds(tx: AsyncConnection, table: str) -> dict[str, Bounds]:
    """The partitions of a table by name, with their days."""
    return await tx.run_sync(_bounds, table)


def partition_existing(connection: Connection) -> None:
    """Divide the tables of raw events by day, with the rows that they have: for the migration."""
    for table in TABLES:
        _run(connection, _BY_DAY.format(table=table, index=_INDEXES[table]))
    days = sorted(int(day) for (day,) in connection.execute(text(_DAYS)))
    own = [day for day in days if _FIRST_DAY <= day < _END_DAY][-_MIGRATED:]
    first = own[0] if len(own) == _MIGRATED else _FIRST_DAY
    for table in TABLES:
        _outer(connection, table, first)
    _make(connection, [*own, own[-1] + 1] if own else [])
    for table in TABLES:
        _run(connection, _MOVE.format(table=table))


def _outer(connection: Connection, table: str, first: int) -> None:
    """The partitions of what is long past or far ahead."""
    low, high = first * DAY_US, _END_DAY * DAY_US
    for name, bounds in (("past", ("MINVALUE", low)), ("future", (high, "MAXVALUE"))):
        _run(
            connection,
            _PARTITION.format(name=f"{table}_{name}", table=table, low=bounds[0], high=bounds[1]),
        )


def _make(connection: Connection, days: Iterable[int]) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    for table in TABLES:
        known = list(_bounds(connection, table).values())
        for day in days:
            if not any(_covers(bounds, day) for bounds in known):
                name = f"{table}_{_EPOCH + timedelta(days=day):%Y_%m_%d}"
                low = day * DAY_US
                _run(
                    connection,
                    _PARTITION.format(name=name, table=table, low=low, high=low + DAY_US),
                )


def _bounds(connection: Connection, table: str) -> dict[str, Bounds]:
    found: dict[str, Bounds] = {}
    for name, expression in connection.execute(text(_BOUNDS.format(table=table))):
        match = _BOUND.search(expression)
        assert match is not None, expression
        low, high = (None if edge is None else int(edge) // DAY_US for edge in match.groups())
        found[name] = low, high
    return found


def _covers(bounds: Bounds, day: int) -> bool:
    low, high = bounds
    return (low is None or low <= day) and (high is None or day < high)


def _run(connection: Connection, statements: str) -> None:
    for statement in statements.split(";"):
        if statement.strip():
            connection.exec_driver_sql(statement)
