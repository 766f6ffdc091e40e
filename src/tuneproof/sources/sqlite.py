"""Posts from SQLite: a connection that cannot write, read in a worker thread.

Any column of SQLite may hold anything, and there is no type for times: so the values are looked at
first. Where all rates are numbers, and all times ISO text or numbers of one unit, SQLite itself
compares them; else they are compared here. Text that is no UTF-8 is stored as lone
surrogates, by which curation finds it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import pysqlite
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from tuneproof.collection import Window
from tuneproof.errors import DataError, StoreUnavailableError
from tuneproof.resilience import damage
from tuneproof.resilience.threads import InTurn
from tuneproof.sources.rows import as_text, micros_per
from tuneproof.sources.sql import Plan, SqlSource, Times, rated_by

__all__ = ["SqliteSource"]

_DIALECT = pysqlite.dialect(paramstyle="named")
_BUSY_S = 30.0
_DATE = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*"


class SqliteSource(SqlSource):
    """A table or view of a SQLite file."""

    def engine(self) -> Engine:
        """An engine whose connections cannot write."""
        return sa.create_engine("sqlite://", creator=self._connect, poolclass=NullPool)

    async def read(
        self, statement: sa.Select[Any], chunk_size: int
    ) -> AsyncIterator[Sequence[Any]]:
        """Step through the result in a thread, a chunk at a time."""
        in_turn = InTurn()
        connection = await in_turn(self._connect)
        try:
            compiled = statement.compile(dialect=_DIALECT)
            cursor = await in_turn(connection.execute, str(compiled), dict(compiled.params))
            while rows := await in_turn(cursor.fetchmany, chunk_size):
                yield rows
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

    async def plan(self, plan: Plan) -> Plan:
        """By what the columns hold, since any of SQLite's may hold anything."""
        source = plan.table.selectable()
        kinds = [_kind(source.c[name]) for name in rated_by(plan)]
        ts = sa.type_coerce(source.c[plan.found["ts"]], sa.types.NullType())
        number, text = _kind(ts).in_(("integer", "real")), _kind(ts) == "text"
        readable = sa.and_(ts.op("GLOB")(_DATE), sa.func.strftime("%s", ts).is_not(None))
        size = sa.case((number, sa.func.abs(ts)))
        asked = sa.select(
            _any(sa.or_(*(kind.in_(("text", "blob")) for kind in kinds))),
            _any(sa.or_(_kind(ts) == "blob", sa.and_(text, sa.not_(readable)))),
            _any(text),
            sa.func.min(size),
            sa.func.max(size),
        ).select_from(source)
        if self.config.where:
            asked = asked.where(self.narrowed())
        (found,) = await self.ask(plan, asked)
        strays, unread, texts, least, most = tuple(found)
        times, unit = self._compared(unread, texts, least, most)
        return replace(plan, numbers=not strays, times=times, unit=unit)

    def _compared(
        self, unread: int, texts: int, least: float | None, most: float | None
    ) -> tuple[Times, float | None]:
        """Who compares the times, and their unit where all are numbers."""
        formatted = self.config.time_format is not None and texts
        if unread or formatted or (texts and least is not None):
            return Times.HERE, None
        if least is None or most is None:
            naive_utc = self.config.time_zone == "UTC"
            return (Times.DATABASE if naive_utc else Times.BOTH), None
        if micros_per(least) != micros_per(most):
            return Times.HERE, None
        return Times.DATABASE, micros_per(least)

    def within(
        self, ts: sa.ColumnElement[Any], window: Window, plan: Plan
    ) -> Sequence[sa.ColumnElement[bool]]:
        """Conditions for the unit that the column uses.

        ISO text comes in spellings that do not compare as text, so SQLite parses it; a coarse
        condition by day beside it lets an index help.
        """
        since, until = window.since, window.until
        if plan.unit is not None:
            number = sa.type_coerce(ts, sa.Numeric(asdecimal=False))
            factor = 1e6 / plan.unit
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

    def tie(self, id: sa.ColumnElement[Any]) -> Sequence[sa.ColumnElement[Any]]:
        """Whole numbers by their size, also those kept as text; then others by code point."""
        if isinstance(id.type, sa.Integer):
            return (id,)
        written = sa.cast(sa.type_coerce(id, sa.types.NullType()), sa.Text())
        whole = sa.and_(written.op("GLOB")("[0-9]*"), written.op("NOT GLOB")("*[^0-9]*"))
        digits = sa.case((whole, sa.func.ltrim(written, "0")), else_=None)
        return (sa.func.length(digits).nulls_last(), digits, written.collate("BINARY"))

    def adds_up(self, types: Sequence[Any]) -> bool:
        """SQLite's columns hold anything: the values tell."""
        return True

    def strays(self, columns: Sequence[sa.ColumnElement[Any]]) -> sa.ColumnElement[bool]:
        """Texts and bytes, wherever they are."""
        kinds = (sa.func.typeof(sa.type_coerce(c, sa.types.NullType())) for c in columns)
        return sa.or_(*(kind.in_(("text", "blob")) for kind in kinds))

    def earliest(self, ts: sa.ColumnElement[Any], plan: Plan) -> Sequence[sa.ColumnElement[Any]]:
        """The earliest time as it is stored: SQLite takes it from the row that has the minimum."""
        stored = sa.type_coerce(ts, sa.types.NullType())
        if plan.unit is not None:
            return (sa.func.min(stored).label("first"),)
        return (sa.func.min(sa.func.strftime("%Y-%m-%d %H:%M:%f", stored)), stored.label("first"))

    def hour(self, ts: sa.ColumnElement[Any], plan: Plan) -> Sequence[sa.ColumnElement[Any]]:
        """The hour, as texts are written or as numbers count."""
        stored = sa.type_coerce(ts, sa.types.NullType())
        if plan.unit is None:
            return (sa.func.substr(stored, 1, 13),)
        seconds = sa.type_coerce(ts, sa.Numeric(asdecimal=False)) * (plan.unit / 1e6)
        return (sa.cast(seconds / 3600, sa.Integer()),)

    def outage(self, error: BaseException) -> StoreUnavailableError:
        """A file that is there and does not answer is locked; else the query was wrong."""
        if isinstance(error, OperationalError) and "locked" not in str(error.orig):
            raise self.failure(error) from error
        return super().outage(error)

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


def _kind(column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    kind: sa.ColumnElement[str] = sa.func.typeof(sa.type_coerce(column, sa.types.NullType()))
    return kind


def _any(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[Any]:
    return sa.func.coalesce(sa.func.max(sa.case((condition, 1), else_=0)), 0)
