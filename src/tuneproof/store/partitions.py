"""Raw events by day on PostgreSQL: a partition for each day that has events.

Made before an event needs it, in a transaction of its own: the days of a batch, and the day after
the newest, so that nobody waits for it at midnight. Late events get theirs the same way. What is
from before 2000 or after 2099 (a sender's clock that was never set) shares one partition each, made
by the first migration. A new partition is attached, which stops neither readers nor writers; whole
partitions are dropped by `retention`. SQLite knows none of this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date, timedelta
from typing import Final

from sqlalchemy import Connection, text

from tuneproof.store.database import Database
from tuneproof.workflow import Tx

__all__ = ["DAY_US", "TABLES", "DayMissingError", "Partitions", "forget_days"]

TABLES: Final = ("exposures", "outcomes")

DAY_US: Final = 86_400_000_000

_EPOCH: Final = date(1970, 1, 1)
_AT_ONCE: Final = 50
"""Days made in one transaction: each takes a dozen locks, and PostgreSQL has 64 a connection."""

_LOCK: Final = 0x64617973  # "days": the advisory lock that makers of partitions queue on

_BOUNDS: Final = """
SELECT child.relname, pg_get_expr(child.relpartbound, child.oid)
FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid
WHERE inhparent = to_regclass('{table}') ORDER BY 1
"""
_BOUND: Final = re.compile(r"FROM \((?:MINVALUE|'(-?\d+)')\) TO \((?:MAXVALUE|'(-?\d+)')\)")
_PARTITION: Final = """
CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS);
ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ({low}) TO ({high});
"""
_SPAN: Final = "SELECT min(first_at), max(last_at) FROM units WHERE subject = :subject"
_OTHERS: Final = """
SELECT EXISTS (
    SELECT FROM subjects s
    WHERE s.purged_at IS NULL AND EXISTS (SELECT FROM {name} e WHERE e.subject = s.key)
)
"""

Bounds = tuple[int | None, int | None]
"""The days of a partition: from, and before; None where it is open."""


class DayMissingError(Exception):
    """Events of days that have no partition, as far as this process knows.

    `days` are counted from 1970-01-01; `dropped` says that PostgreSQL found it out, which ends
    the transaction.
    """

    def __init__(self, days: Iterable[int], *, dropped: bool = False) -> None:
        super().__init__(f"There is no partition for {sorted(days)}.")
        self.days = frozenset(days)
        self.dropped = dropped


class Partitions:
    """Knows the days that have partitions, and makes those that are missing."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.days: set[int] = set()

    def check(self, instants: Iterable[int], made: frozenset[int] = frozenset()) -> None:
        """Return where all these instants (in microseconds) have a partition, as far as known.

        `made` are days that this transaction has made itself.

        Raises `DayMissingError`: then `make` them, and begin again.
        """
        missing = {at // DAY_US for at in instants} - self.days - made
        if missing:
            raise DayMissingError(missing)

    async def make(self, days: Iterable[int], *, tx: Tx | None = None) -> frozenset[int]:
        """Make the partitions of these days that are missing, and of the day after the last.

        In transactions of their own, so that others see them at once; in `tx` where it is given,
        since its holder may have the last connection of the pool.
        """
        wanted = sorted(set(days))
        wanted.append(wanted[-1] + 1)
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            async with self._database.writing(tx) as own:
                await own.run_sync(_make, part)
            if tx is None:
                self.days.update(part)
        return frozenset(wanted)


async def forget_days(tx: Tx, subject: int) -> int:
    """Take away a subject's raw events; how many there were.

    `subjects` must say already that they are gone. Days that no other open subject has events of
    are dropped whole. Writers wait for that, until `tx` ends; readers are waited for.
    """
    return await tx.run_sync(_forget, subject)


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


def _forget(connection: Connection, subject: int) -> int:
    span = connection.execute(text(_SPAN), {"subject": subject}).one()
    if span[0] is None:
        return 0
    gone = 0
    alone: dict[str, list[str]] = {table: [] for table in TABLES}
    for table in TABLES:
        for name, bounds in _bounds(connection, table).items():
            if not _meets(bounds, span[0] // DAY_US, span[1] // DAY_US):
                continue
            if None in bounds or _is_shared(connection, name):
                gone += _delete(connection, name, subject)
            else:
                alone[table].append(name)
    if any(alone.values()):
        connection.exec_driver_sql("SET LOCAL lock_timeout = '10s'")
        for table in TABLES:
            gone += _drop(connection, table, alone[table], subject)
        connection.exec_driver_sql("SET LOCAL lock_timeout TO DEFAULT")
    return gone


def _drop(connection: Connection, table: str, names: Iterable[str], subject: int) -> int:
    """Drop partitions; those that others have come to need in the meantime lose the rows only."""
    # The parent first: writers lock it before its partitions.
    connection.exec_driver_sql(f"LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE")
    gone = 0
    for name in names:
        if _is_shared(connection, name):
            gone += _delete(connection, name, subject)
        else:
            gone += connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one()
            connection.exec_driver_sql(f"DROP TABLE {name}")
    return gone


def _is_shared(connection: Connection, name: str) -> bool:
    return bool(connection.execute(text(_OTHERS.format(name=name))).scalar_one())


def _delete(connection: Connection, name: str, subject: int) -> int:
    query = text(f"DELETE FROM {name} WHERE subject = :subject")
    return connection.execute(query, {"subject": subject}).rowcount


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


def _meets(bounds: Bounds, first: int, last: int) -> bool:
    low, high = bounds
    return (low is None or low <= last) and (high is None or first < high)


def _run(connection: Connection, statements: str) -> None:
    for statement in statements.split(";"):
        if statement.strip():
            connection.exec_driver_sql(statement)
