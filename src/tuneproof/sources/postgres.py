"""Posts from PostgreSQL: a server-side cursor in a read-only transaction.

By asyncpg where it is installed (the extra `[postgres]`, several times as fast), else by psycopg.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import URL, Connection

from tuneproof.collection import Window
from tuneproof.errors import DataError
from tuneproof.settings import SourceConfig
from tuneproof.sources.columns import RATE
from tuneproof.sources.generic import GenericSource
from tuneproof.sources.sql import Plan, SqlSource, Times, is_single

__all__ = ["AsyncpgSource", "PsycopgSource", "open_postgres"]

_PLAIN: Final = (
    *(sa.String, sa.Integer, sa.Numeric, sa.Boolean, sa.LargeBinary),
    *(sa.DateTime, sa.Date, sa.Time, sa.Uuid),
)
"""Types that both drivers give alike."""


def open_postgres(config: SourceConfig, url: URL) -> SqlSource:
    """The table, by the driver that is installed; both give the same posts."""
    try:
        import asyncpg  # noqa: F401 - only whether it is there
    except ModuleNotFoundError:
        return PsycopgSource(config, url)
    return AsyncpgSource(config, url)


class PostgresTable(SqlSource):
    """What a table, view or foreign table of PostgreSQL is asked."""

    def tie(self, id: sa.ColumnElement[Any]) -> Sequence[sa.ColumnElement[Any]]:
        """By code point, whatever the database's collation; whole numbers by their size."""
        if not isinstance(id.type, sa.String) or isinstance(id.type, sa.Enum):
            return (id,)
        ordered = id.collate("C")
        digits = sa.case((id.regexp_match("^[0-9]+$"), sa.func.ltrim(id, "0")), else_=None)
        return (sa.func.length(digits).nulls_last(), digits.collate("C"), ordered)

    async def plan(self, plan: Plan) -> Plan:
        """PostgreSQL itself tells what numbers of 32 bits stand for."""
        return replace(await super().plan(plan), single=False)

    def compares(self, kind: Any) -> Times:
        """Numbers become instants in the query."""
        return Times.DATABASE if _is_number(kind) else super().compares(kind)

    def rated(self, plan: Plan) -> sa.ColumnElement[Any]:
        """A double: of 32 bits the shortest number that has the same."""
        source = plan.table.selectable()
        if plan.rate is None:
            return _double(source.c[plan.found[RATE]])
        return plan.rate.sql(lambda name: _double(source.c[name]))

    def ranked(self, rate: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """NaN, which PostgreSQL holds for the greatest number, comes last."""
        return sa.func.nullif(rate, sa.cast(sa.literal("NaN", sa.Text()), sa.Double()))

    def shown(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Arrays as JSON; what is neither text nor number nor time as PostgreSQL writes it."""
        kind = column.type
        if isinstance(kind, sa.ARRAY):
            opaque = sa.type_coerce(column, sa.types.NullType())
            return sa.cast(sa.func.to_jsonb(opaque, type_=sa.types.NullType()), sa.Text())
        plain = isinstance(kind, _PLAIN) and not isinstance(kind, sa.Enum | sa.REAL)
        opaque = sa.type_coerce(column, sa.types.NullType())
        return column if plain else sa.cast(opaque, sa.Text())

    def within(
        self, ts: sa.ColumnElement[Any], window: Window, plan: Plan
    ) -> Sequence[sa.ColumnElement[bool]]:
        """Times kept as a number become instants in the query."""
        return super().within(self._instant(ts), window, plan)

    def _instant(self, ts: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        if not _is_number(ts.type):
            return ts
        size = sa.func.abs(ts)
        factor = sa.case((size >= 1e17, 1e9), (size >= 1e14, 1e6), (size >= 1e11, 1e3), else_=1.0)
        return sa.func.to_timestamp(ts / factor, type_=sa.DateTime(timezone=True))

    def ready(self, connection: Connection, plan: Plan) -> None:
        """Nothing is written."""
        connection.execute(sa.text("SET TRANSACTION READ ONLY"))

    def earliest(self, ts: sa.ColumnElement[Any], plan: Plan) -> Sequence[sa.ColumnElement[Any]]:
        """The earliest instant, of times kept in whatever way."""
        return (sa.func.min(self._instant(ts)).label("first"),)

    def hour(self, ts: sa.ColumnElement[Any], plan: Plan) -> Sequence[sa.ColumnElement[Any]]:
        """The hour in the session's time zone: any will do."""
        return (sa.func.date_trunc("hour", self._instant(ts)),)


def _is_number(kind: Any) -> bool:
    return isinstance(kind, sa.Integer | sa.Numeric | sa.Float)


def _double(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    if is_single(column.type):
        column = sa.cast(column, sa.Text())
    return sa.cast(column, sa.Double())


class PsycopgSource(PostgresTable, GenericSource):
    """Read by psycopg."""


class AsyncpgSource(PostgresTable):
    """Read by asyncpg."""

    async def read(
        self, statement: sa.Select[Any], chunk_size: int
    ) -> AsyncIterator[Sequence[Any]]:
        """Fetch `chunk_size` rows a time; the server keeps the rest."""
        import asyncpg
        from sqlalchemy.dialects.postgresql import asyncpg as dialect

        made: Any = dialect.dialect
        compiled = statement.compile(dialect=made())
        values = [compiled.params[name] for name in compiled.positiontup or ()]
        try:
            connection = await asyncpg.connect(self._dsn(), command_timeout=None)
        except (OSError, asyncpg.PostgresConnectionError, asyncpg.InvalidCatalogNameError) as error:
            raise self.outage(error) from error
        except asyncpg.InvalidAuthorizationSpecificationError as error:
            raise self._refused(error) from error
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                # The whole result will be read: plan for that, not for a fast first row.
                await connection.execute("SET LOCAL cursor_tuple_fraction = 1")
                cursor = await connection.cursor(str(compiled), *values)
                while rows := await cursor.fetch(chunk_size):
                    yield rows
        except (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError) as error:
            raise self.outage(error) from error
        except asyncpg.PostgresError as error:
            raise self._refused(error) from error
        finally:
            await connection.close()

    def _dsn(self) -> str:
        return self.url.set(drivername="postgresql").render_as_string(hide_password=False)

    def _refused(self, error: Exception) -> DataError:
        return DataError(
            f"The source {self} refused the query: {str(error).rstrip('.')}.",
            mend=f"Check sources.{self.config.name}: address, columns and where.",
        )
