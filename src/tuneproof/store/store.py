"""The store: one engine, its transactions, and a small class for each noun.

Every method of a noun takes `tx`: inside a transaction of the caller's it takes part in it
(so a durable step writes all or nothing), without one it opens its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from tuneproof.store.activity import ActivityLog
from tuneproof.store.deployments import Deployments
from tuneproof.store.engine import (
    READ_OPTION,
    database_url,
    make_engine,
    mask,
    unavailable_as_error,
)
from tuneproof.store.events import Events
from tuneproof.store.experiments import Experiments
from tuneproof.store.idempotency import Idempotency
from tuneproof.store.ids import Ids
from tuneproof.store.loop import Loop
from tuneproof.store.meta import Meta
from tuneproof.store.migrate import migrate
from tuneproof.store.outbox import StoredOutbox
from tuneproof.store.retention import Retention
from tuneproof.store.routing import Routings
from tuneproof.store.runs import Runs
from tuneproof.store.schedule import Ticks
from tuneproof.store.scores import Scores
from tuneproof.store.subjects import Subjects
from tuneproof.store.tokens import Tokens
from tuneproof.store.versions import Versions
from tuneproof.store.watches import Watches

__all__ = ["Clock", "Store", "open_store"]


class Clock(Protocol):
    """What time it is."""

    def now(self) -> datetime:
        """The present instant, aware, UTC."""


class Store:
    """Everything that TuneProof remembers, in SQLite or PostgreSQL."""

    def __init__(self, engine: AsyncEngine, *, clock: Clock) -> None:
        self.engine = engine
        self.clock = clock
        self.activity = ActivityLog(self)
        self.deployments = Deployments(self)
        self.events = Events(self)
        self.experiments = Experiments(self)
        self.idempotency = Idempotency(self)
        self.ids = Ids(self)
        self.loop = Loop(self)
        self.meta = Meta(self)
        self.outbox = StoredOutbox(self)
        self.routing = Routings(self)
        self.runs = Runs(self)
        self.retention = Retention(self)
        self.schedule = Ticks(self)
        self.scores = Scores(self)
        self.subjects = Subjects(self)
        self.tokens = Tokens(self)
        self.versions = Versions(self)
        self.watches = Watches(self)
        self._reader = engine.execution_options(**{READ_OPTION: True})

    def __repr__(self) -> str:
        return f"<Store {mask(self.url)}>"

    @property
    def url(self) -> URL:
        """The database's address, with its password; `str()` of it hides that."""
        return self.engine.url

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.engine.dialect.name

    @property
    def path(self) -> Path | None:
        """The file of a SQLite store."""
        return Path(str(self.url.database)) if self.dialect == "sqlite" else None

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that may write: committed at the end, rolled back by an error.

        Raises `StoreUnavailableError` where the database does not answer.
        """
        with unavailable_as_error(self.url):
            async with self.engine.begin() as tx:
                yield tx

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads; it never waits for a writer.

        Raises `StoreUnavailableError` where the database does not answer.
        """
        with unavailable_as_error(self.url):
            async with self._reader.connect() as tx:
                yield tx

    @asynccontextmanager
    async def writing(self, tx: AsyncConnection | None) -> AsyncIterator[AsyncConnection]:
        """`tx` itself, or a new writing transaction where it is None."""
        if tx is not None:
            yield tx
            return
        async with self.begin() as own:
            yield own

    @asynccontextmanager
    async def reading(self, tx: AsyncConnection | None) -> AsyncIterator[AsyncConnection]:
        """`tx` itself, or a new reading transaction where it is None."""
        if tx is not None:
            yield tx
            return
        async with self.read() as own:
            yield own

    async def ping(self) -> None:
        """Return when the database answered; raise `StoreUnavailableError` when not."""
        async with self.read() as tx:
            await tx.execute(text("SELECT 1"))

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()


def unopened_store(url: str | URL, *, clock: Clock) -> Store:
    """A store at an address that does not answer: each use raises `StoreUnavailableError`."""
    return Store(make_engine(database_url(url)), clock=clock)


async def open_store(
    url: str | URL | None = None,
    *,
    pool: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
    engine: AsyncEngine | None = None,
) -> Store:
    """Open the store at `url` and bring its schema up to date.

    `pool` are arguments of `resilience.postgres_engine` (`pool_size`, `max_overflow`,
    `pool_timeout_s`, ...); an `engine` made by `make_engine` may be given in place of `url`.
    Raises `ConfigError` for an address that the store cannot use, `StoreUnavailableError`
    where the database does not answer, `StateError` where its tables were made by another version
    of TuneProof.
    """
    if engine is None:
        engine = make_engine(database_url(url or "sqlite:///tuneproof.db"), **(pool or {}))
    if clock is None:
        from tuneproof.workflow import SystemClock  # pulls in the durable engine

        clock = SystemClock()
    try:
        with unavailable_as_error(engine.url):
            await migrate(engine)
    except BaseException:
        await engine.dispose()
        raise
    return Store(engine, clock=clock)
