"""The database: one engine, and the transactions on it that every noun of the store takes part in.

It knows nothing of what is kept. A method of a noun takes `tx`: inside a transaction of the
caller's it takes part in it (so a durable step writes all or nothing), without one it opens
its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from tuneproof.errors import StoreUnavailableError
from tuneproof.resilience import cancellation_first
from tuneproof.store.engine import READ_OPTION, mask, unavailable_as_error
from tuneproof.workflow import Tx

__all__ = ["Database"]

_OFF = """
    SELECT name FROM pg_settings
    WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off'
    ORDER BY name
"""

LISTENER_CONNECTIONS = 1
"""Connections of a worker beside its pool: the one that `listen` holds."""

_DEAD_PEER = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
"""A connection that only listens would not notice by itself that its server is gone."""


class Database:
    """SQLite or PostgreSQL, by transactions."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        one_instant = {"isolation_level": "REPEATABLE READ"} if self.dialect != "sqlite" else {}
        self._reader = engine.execution_options(**{READ_OPTION: True}, **one_instant)

    def __repr__(self) -> str:
        return f"<Database {mask(self.url)}>"

    @property
    def url(self) -> URL:
        """Its address, with its password; `str()` of it hides that."""
        return self.engine.url

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.engine.dialect.name

    @property
    def path(self) -> Path | None:
        """The file of a SQLite database."""
        return Path(str(self.url.database)) if self.dialect == "sqlite" else None

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Tx]:
        """A transaction that may write: committed at the end, rolled back by an error.

        Raises `StoreUnavailableError` where the database does not answer.
        """
        with cancellation_first(), unavailable_as_error(self.url):
            async with self.engine.begin() as tx:
                yield tx

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Tx]:
        """A transaction that only reads, all of it as it was at the first: it never waits for a
        writer, and what is written meanwhile is not there.

        Raises `StoreUnavailableError` where the database does not answer.
        """
        with cancellation_first(), unavailable_as_error(self.url):
            async with self._reader.connect() as tx:
                yield tx

    @asynccontextmanager
    async def writing(self, tx: Tx | None) -> AsyncIterator[Tx]:
        """`tx` itself, or a new writing transaction where it is None."""
        if tx is not None:
            yield tx
            return
        async with self.begin() as own:
            yield own

    @asynccontextmanager
    async def reading(self, tx: Tx | None) -> AsyncIterator[Tx]:
        """`tx` itself, or a new reading transaction where it is None."""
        if tx is not None:
            yield tx
            return
        async with self.read() as own:
            yield own

    async def listen(self, channel: str) -> AsyncIterator[str]:
        """What PostgreSQL is told by NOTIFY on this channel; "" once listening has begun.

        Holds a connection of its own. Raises `StoreUnavailableError` where that breaks.
        """
        from psycopg import AsyncConnection, Error
        from psycopg.conninfo import make_conninfo
        from psycopg.sql import SQL, Identifier

        address = self.url.set(drivername="postgresql").render_as_string(hide_password=False)
        try:
            connection = await AsyncConnection.connect(
                make_conninfo(address, **_DEAD_PEER), autocommit=True
            )
            async with connection:
                await connection.execute(SQL("LISTEN {}").format(Identifier(channel)))
                yield ""
                async for notice in connection.notifies():
                    yield notice.payload
        except (Error, OSError) as error:
            raise StoreUnavailableError(
                f"{mask(self.url)} tells of no changes: {str(error).strip()}",
                mend="Check that it runs and can be reached.",
            ) from error

    async def unsafe_settings(self) -> Sequence[str]:
        """The server's settings by which a crash of it loses commits that it acknowledged."""
        if self.dialect != "postgresql":
            return ()
        async with self.read() as tx:
            return list((await tx.execute(text(_OFF))).scalars())

    async def ping(self) -> None:
        """Return when the database answered; raise `StoreUnavailableError` when not."""
        async with self.read() as tx:
            await tx.execute(text("SELECT 1"))
