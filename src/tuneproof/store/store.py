"""The store: one small class for each noun, gathered over one database.

What touches several nouns is a transaction with a name: `lanes`, `moves`, `withdrawal`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from tuneproof.collection import TimeSource
from tuneproof.errors import StoreUnavailableError
from tuneproof.store.activity import ActivityLog
from tuneproof.store.alerts import KeptAlerts
from tuneproof.store.comments import Comments
from tuneproof.store.database import Database
from tuneproof.store.deployments import Deployments
from tuneproof.store.engine import (
    database_url,
    make_engine,
    mask,
    unavailable_as_error,
)
from tuneproof.store.events import Events
from tuneproof.store.experiments import Experiments
from tuneproof.store.histories import Histories
from tuneproof.store.idempotency import Idempotency
from tuneproof.store.ids import Ids
from tuneproof.store.lanes import Lanes
from tuneproof.store.meta import Meta
from tuneproof.store.migrate import migrate
from tuneproof.store.moves import RolloutMoves
from tuneproof.store.outbox import StoredOutbox
from tuneproof.store.prompts import Prompts
from tuneproof.store.retention import Retention
from tuneproof.store.routing import Routings
from tuneproof.store.runs import Runs
from tuneproof.store.schedule import Ticks
from tuneproof.store.scores import Scores
from tuneproof.store.subjects import Subjects
from tuneproof.store.tokens import Tokens
from tuneproof.store.versions import Versions
from tuneproof.store.watches import Watches
from tuneproof.store.withdrawal import Withdrawal

__all__ = ["Store", "open_store"]


class Store:
    """Everything that TuneProof remembers, in SQLite or PostgreSQL."""

    def __init__(self, database: Database, *, clock: TimeSource) -> None:
        self.database = database
        self.clock = clock
        self.activity = ActivityLog(database)
        self.alerts = KeptAlerts(database)
        self.comments = Comments(database)
        self.deployments = Deployments(database)
        self.events = Events(database)
        self.experiments = Experiments(database)
        self.histories = Histories(database)
        self.idempotency = Idempotency(database, clock)
        self.ids = Ids(database)
        self.meta = Meta(database)
        self.outbox = StoredOutbox(database, clock)
        self.prompts = Prompts(database, clock)
        self.retention = Retention(database)
        self.routing = Routings(database, clock)
        self.runs = Runs(database, clock)
        self.schedule = Ticks(database)
        self.scores = Scores(database)
        self.subjects = Subjects(database)
        self.tokens = Tokens(database, clock)
        self.versions = Versions(database)
        self.watches = Watches(database)
        self.lanes = Lanes(database, self.ids, self.experiments, self.routing)
        self.moves = RolloutMoves(
            database,
            activity=self.activity,
            deployments=self.deployments,
            experiments=self.experiments,
            routing=self.routing,
            versions=self.versions,
        )
        self.withdrawal = Withdrawal(
            database,
            deployments=self.deployments,
            experiments=self.experiments,
            lanes=self.lanes,
            moves=self.moves,
            routing=self.routing,
        )

    def __repr__(self) -> str:
        return f"<Store {mask(self.database.url)}>"

    @property
    def engine(self) -> AsyncEngine:
        """The engine of its database, for tables of one's own beside it."""
        return self.database.engine

    async def close(self) -> None:
        """Close all connections."""
        await self.database.engine.dispose()


def unopened_store(url: str | URL, refused: StoreUnavailableError, *, clock: TimeSource) -> Store:
    """A store that could not be opened: each use raises what it was `refused` for."""
    engine = make_engine(database_url(url), make=False)

    def refuse(*_: object) -> None:
        raise refused

    event.listen(engine.sync_engine, "do_connect", refuse)
    return Store(Database(engine), clock=clock)


async def open_store(
    url: str | URL | None = None,
    *,
    pool: Mapping[str, Any] | None = None,
    clock: TimeSource | None = None,
    engine: AsyncEngine | None = None,
    make: bool = True,
) -> Store:
    """Open the store at `url` and bring its schema up to date.

    Without `make` nothing is written: a database that is not there, or whose schema is not this
    version's, is refused.

    `pool` are arguments of `resilience.postgres_engine` (`pool_size`, `max_overflow`,
    `pool_timeout_s`, ...); an `engine` made by `make_engine` may be given in place of `url`.
    Raises `ConfigError` for an address that the store cannot use, `StoreUnavailableError`
    where the database does not answer, `StateError` where its tables were made by another version
    of TuneProof.
    """
    if engine is None:
        address = database_url(url or "sqlite:///tuneproof.db")
        engine = make_engine(address, make=make, **(pool or {}))
    if clock is None:
        from tuneproof.workflow import SystemClock  # pulls in the durable engine

        clock = SystemClock()
    try:
        with unavailable_as_error(engine.url):
            await migrate(engine, make=make)
    except BaseException:
        await engine.dispose()
        raise
    return Store(Database(engine), clock=clock)
