"""Posts from PostgreSQL: a server-side cursor in a read-only transaction.

By asyncpg where it is installed (the extra `[postgres]`, several times as fast), else by psycopg.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import URL, Connection

from tuneproof.collection import Post, PostQuery
from tuneproof.errors import DataError
from tuneproof.settings import SourceConfig
from tuneproof.sources.generic import GenericSource
from tuneproof.sources.rows import maker
from tuneproof.sources.sql import SqlSource, Table

__all__ = ["AsyncpgSource", "PsycopgSource", "open_postgres"]


def open_postgres(config: SourceConfig, url: URL) -> SqlSource:
    """The table, by the driver that is installed; both give the same posts."""
    try:
        import asyncpg  # noqa: F401 - only whether it is there
    except ModuleNotFoundError:
        return PsycopgSource(config, url)
    return AsyncpgSource(config, url)


class PostgresTable(SqlSource):
    """What a table, view or foreign table of PostgreSQL is asked."""

    def tie(self, id: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """By code point, as files and SQLite do, whatever the database's collation."""
        return id.collate("C") if isinstance(id.type, sa.String) else id

    def since_until(
        self, ts: sa.ColumnElement[Any], query: PostQuery
    ) -> Sequence[sa.ColumnElement[bool]]:
        """Times kept as text or as a number become instants in the query."""
        return super().since_until(self._instant(ts), query)

    def _instant(self, ts: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        aware = sa.DateTime(timezone=True)
        if isinstance(ts.type, sa.String):
            return sa.cast(ts, aware)
        if isinstance(ts.type, sa.Integer | sa.Numeric | sa.Float):
            size = sa.func.abs(ts)
            factor = sa.case((size >= 1e14, 1e6), (size >= 1e11, 1e3), else_=1.0)
            return sa.func.to_timestamp(ts / factor, type_=aware)
        return ts

    def ready(self, connection: Connection, table: Table, found: Mapping[str, str]) -> None:
        """Nothing is written."""
        connection.execute(sa.text("SET TRANSACTION READ ONLY"))

    def earliest(self, ts: sa.ColumnElement[Any]) -> Sequence[sa.ColumnElement[Any]]:
        """The earliest instant, of times kept in whatever way."""
        return (sa.func.min(self._instant(ts)).label("first"),)

    def hour(self, ts: sa.ColumnElement[Any]) -> Sequence[sa.ColumnElement[Any]]:
        """The hour in the session's time zone: any will do."""
        return (sa.func.date_trunc("hour", self._instant(ts)),)


class PsycopgSource(PostgresTable, GenericSource):
    """Read by psycopg."""


class AsyncpgSource(PostgresTable):
    """Read by asyncpg."""

    async def read(
        self, table: Table, found: Mapping[str, str], query: PostQuery
    ) -> AsyncIterator[list[Post]]:
        """Fetch `chunk_size` rows a time; the server keeps the rest."""
        import asyncpg
        from sqlalchemy.dialects.postgresql import asyncpg as dialect

        made: Any = dialect.dialect
        compiled = self.statement(table, found, query).compile(dialect=made())
        values = [compiled.params[name] for name in compiled.positiontup or ()]
        make = maker(list(found))
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
                while rows := await cursor.fetch(query.chunk_size):
                    yield [make(row) for row in rows]
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
