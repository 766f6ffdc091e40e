"""Posts from SQLite: a connection that cannot write, read in a worker thread.

SQLite has no type for times, so the first value tells how the column keeps them: as ISO text,
or as a number of seconds, milli- or microseconds. Text that is no UTF-8 is stored as lone
surrogates, by which curation finds it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import pysqlite
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from tuneproof.collection import Post, PostQuery
from tuneproof.errors import DataError, StoreUnavailableError
from tuneproof.resilience import damage
from tuneproof.resilience.threads import InTurn
from tuneproof.sources.rows import as_text, maker, micros_per
from tuneproof.sources.sql import SqlSource, Table

__all__ = ["SqliteSource"]

_DIALECT = pysqlite.dialect(paramstyle="named")
_BUSY_S = 30.0


class SqliteSource(SqlSource):
    """A table or view of a SQLite file."""

    def engine(self) -> Engine:
        """An engine whose connections cannot write."""
        return sa.create_engine("sqlite://", creator=self._connect, poolclass=NullPool)

    async def read(
        self, table: Table, found: Mapping[str, str], query: PostQuery
    ) -> AsyncIterator[list[Post]]:
        """Step through the result in a thread, a chunk at a time."""
        make, in_turn = maker(list(found)), InTurn()
        connection = await in_turn(self._connect)
        try:
            self._unit = await in_turn(_time_unit, connection, table, found["ts"])
            compiled = self.statement(table, found, query).compile(dialect=_DIALECT)
            asked = str(compiled), dict(compiled.params)
            cursor = await in_turn(connection.execute, *asked)
            while rows := await in_turn(cursor.fetchmany, query.chunk_size):
                yield [make(row) for row in rows]
        except sqlite3.DatabaseError as error:
            broken = damage.damage_of(error, f"The source {self}", damage.OTHER_FILE)
            if broken is not None:
                raise broken from error
            raise DataError(
                f"The source {self} refused the query: {error}.",
                mend=f"Check sources.{self.config.name}: its columns and its where.",
            ) from error
        finally:
            await in_turn.end(connection.close, connection.interrupt)

    def since_until(
        self, ts: sa.ColumnElement[Any], query: PostQuery
    ) -> Sequence[sa.ColumnElement[bool]]:
        """Conditions for the unit that the column uses.

        ISO text comes in spellings that do not compare as text, so SQLite parses it; a coarse
        condition by day beside it lets an index help.
        """
        since, until = query.window.since, query.window.until
        if self._unit is not None:
            number = sa.type_coerce(ts, sa.Numeric(asdecimal=False))
            factor = 1e6 / self._unit
            return (number >= since.timestamp() * factor, number < until.timestamp() * factor)
        text = sa.type_coerce(ts, sa.Text())
        exact = sa.func.strftime("%Y-%m-%d %H:%M:%f", text)
        day = timedelta(days=1)
        return (
            text >= f"{since - day:%Y-%m-%d}",
            text < f"{until + 2 * day:%Y-%m-%d}",
            exact >= since.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3],
            exact < until.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3],
        )

    def adds_up(self, types: Sequence[Any]) -> bool:
        """SQLite's columns hold anything: the values tell."""
        return True

    def strays(self, columns: Sequence[sa.ColumnElement[Any]]) -> sa.ColumnElement[bool]:
        """Texts and bytes, wherever they are."""
        kinds = (sa.func.typeof(sa.type_coerce(c, sa.types.NullType())) for c in columns)
        return sa.or_(*(kind.in_(("text", "blob")) for kind in kinds))

    def ready(self, connection: Connection, table: Table, found: Mapping[str, str]) -> None:
        """Find out how the column keeps times."""
        own = connection.connection.driver_connection
        assert own is not None
        self._unit = _time_unit(own, table, found["ts"])

    def earliest(self, ts: sa.ColumnElement[Any]) -> Sequence[sa.ColumnElement[Any]]:
        """The earliest time as it is stored: SQLite takes it from the row that has the minimum."""
        stored = sa.type_coerce(ts, sa.types.NullType())
        if self._unit is not None:
            return (sa.func.min(stored).label("first"),)
        return (sa.func.min(sa.func.strftime("%Y-%m-%d %H:%M:%f", stored)), stored.label("first"))

    def hour(self, ts: sa.ColumnElement[Any]) -> Sequence[sa.ColumnElement[Any]]:
        """The hour, as texts are written or as numbers count."""
        stored = sa.type_coerce(ts, sa.types.NullType())
        if self._unit is None:
            return (sa.func.substr(stored, 1, 13),)
        seconds = sa.type_coerce(ts, sa.Numeric(asdecimal=False)) * (self._unit / 1e6)
        return (sa.cast(seconds / 3600, sa.Integer()),)

    def outage(self, error: BaseException) -> StoreUnavailableError:
        """A file that is there and does not answer is locked; else the query was wrong."""
        if isinstance(error, OperationalError) and "locked" not in str(error.orig):
            raise self.failure(error) from error
        return super().outage(error)

    _unit: int | None = None

    def _connect(self) -> sqlite3.Connection:
        path = Path(str(self.url.database or "")).expanduser()
        if not path.is_file():
            raise DataError(
                f"The source {self}: there is no such file.",
                mend=f"Check sources.{self.config.name}.url.",
            )
        connection = sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode=ro",
            uri=True,
            timeout=_BUSY_S,
            check_same_thread=False,
        )
        connection.text_factory = as_text
        return connection


def _time_unit(connection: sqlite3.Connection, table: Table, column: str) -> int | None:
    """The microseconds of the unit in which a column keeps times, None where it is text."""
    name = _DIALECT.identifier_preparer.quote(column)
    source = _DIALECT.identifier_preparer.format_table(table.selectable())
    found = connection.execute(f"SELECT {name} FROM {source} WHERE {name} IS NOT NULL LIMIT 1")
    row = found.fetchone()
    return micros_per(row[0]) if row and isinstance(row[0], int | float) else None
