"""Engines for the two databases, with their differences behind them.

SQLite: WAL, a busy time-out of 30 s, foreign keys on, and `BEGIN IMMEDIATE` for every
transaction that may write, so that a read followed by a write never deadlocks with another.
A connection rolls back before it closes, whatever a cancelled task left unread on it.
PostgreSQL: psycopg 3 through the pool of `resilience`. Errors of the driver that mean "the
database did not answer" become `StoreUnavailableError`; all others pass through.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import URL, AdaptedConnection, make_url
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tuneproof.errors import ConfigError, StoreUnavailableError
from tuneproof.resilience import damage, postgres_engine
from tuneproof.settings import Url

__all__ = [
    "READ_OPTION",
    "database_url",
    "make_engine",
    "mask",
    "refuse_absent",
    "unavailable_as_error",
]

READ_OPTION = "tuneproof_read"
"""Execution option of a connection that only reads: SQLite then begins without a write lock."""

BUSY_TIMEOUT_MS = 30_000

WAL_PAUSE_S = 0.02
"""Before WAL is asked for again in a file that somebody else is just making."""

_POSTGRES = {"postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"}
_POSTGRES |= {"postgresql+psycopg_async", "postgresql+asyncpg"}
_SQLITE = {"sqlite", "sqlite+aiosqlite", "sqlite+pysqlite"}


def database_url(address: str | URL) -> URL:
    """`address` with the driver that the store uses.

    `postgres://`, `postgresql://` and `sqlite:///FILE` are accepted in any dialect's spelling.
    Raises `ConfigError` for what is no address, for another database, and for a SQLite
    database in memory (each of its connections would see another one).
    """
    try:
        url = make_url(address)
    except (ArgumentError, ValueError) as error:  # the latter of a port that is no number
        raise ConfigError(
            f"{Url(str(address))} is not a database address.",
            mend="Write sqlite:///FILE or postgresql://USER@HOST/DATABASE.",
        ) from error
    if url.drivername in _POSTGRES:
        return url.set(drivername="postgresql+psycopg")
    if url.drivername not in _SQLITE:
        raise ConfigError(
            f"The store cannot live in {mask(url)}: it knows SQLite and PostgreSQL.",
            mend="Write sqlite:///FILE or postgresql://USER@HOST/DATABASE.",
        )
    if not url.database or url.database == ":memory:" or "mode=memory" in str(url):
        raise ConfigError(
            "A SQLite store needs a file: a database in memory is lost between connections.",
            mend="Write sqlite:///FILE.",
        )
    return url.set(drivername="sqlite+aiosqlite")


def mask(address: str | URL) -> str:
    """`address` for people: its password replaced by stars."""
    return make_url(address).render_as_string(hide_password=True)


def make_engine(address: str | URL, *, make: bool = True, **pool: Any) -> AsyncEngine:
    """An engine for `address`; `pool` are arguments of `resilience.postgres_engine`.

    A SQLite file and its folder are made where they are absent; without `make` whoever connects
    gets `StoreUnavailableError` then. Nothing is connected yet.
    """
    url = database_url(address)
    if url.drivername.startswith("postgresql"):
        return postgres_engine(url, **pool)
    if make:
        path = Path(str(url.database))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)  # what SQLite puts beside it has the same mode
    engine = create_async_engine(
        url,
        pool_size=pool.get("pool_size", 10),
        max_overflow=pool.get("max_overflow", 0),
        pool_timeout=pool.get("pool_timeout_s", 30.0),
        connect_args={"factory": _SqliteConnection},
    )
    if not make:
        event.listen(engine.sync_engine, "do_connect", lambda *_: refuse_absent(url))
    event.listen(engine.sync_engine, "connect", _on_sqlite_connect)
    event.listen(engine.sync_engine, "begin", _on_sqlite_begin)
    return engine


def refuse_absent(address: str | URL) -> None:
    """Raise `StoreUnavailableError` where a SQLite file is absent: what only reads makes none."""
    url = database_url(address)
    path = Path(str(url.database))
    if url.drivername not in _SQLITE or path.is_file():
        return
    folder = "" if path.parent.is_dir() else f", and no folder {path.parent}"
    raise StoreUnavailableError(
        f"There is no database {path}{folder}: nothing has run here yet.",
        mend="Name another place with --dir or [store], or begin: tuneproof run start.",
        reason="absent",
    )


@contextmanager
def unavailable_as_error(address: str | URL) -> Iterator[None]:
    """Turn driver errors that mean "no answer", or "damaged", into `StoreUnavailableError`."""
    url = make_url(address)
    mend = damage.OWN_FILE if url.drivername in _SQLITE else damage.SERVER
    try:
        with damage.damage_as_error(f"The database {mask(url)}", mend):
            yield
    except PoolTimeoutError as error:
        raise StoreUnavailableError(
            f"No connection to {mask(address)} became free in time.",
            mend="Raise DATABASE_POOL_SIZE, or look for transactions that stay open.",
        ) from error
    except (OperationalError, InterfaceError) as error:
        if not _is_outage(error):
            raise
        raise StoreUnavailableError(
            f"The database {mask(address)} did not answer: {_first_line(error)}.",
            mend="Check that it runs and can be reached, then try again.",
        ) from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise StoreUnavailableError(
            f"The connection to {mask(address)} was lost: {_first_line(error)}.",
            mend="Try again; a transaction that was open has not happened.",
        ) from error
    except OSError as error:
        raise StoreUnavailableError(
            f"The database {mask(address)} did not answer: {error}.",
            mend="Check that it runs and can be reached, then try again.",
        ) from error


class _SqliteConnection(sqlite3.Connection):
    """Ends its transaction when it closes.

    SQLite puts the end off while a statement is unfinished, and the cursor of a cancelled
    task may live on in its traceback: the write lock with it.
    """

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self.rollback()
        super().close()


def _on_sqlite_connect(connection: Any, record: object) -> None:
    # None hands transactions over to `_on_sqlite_begin`.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    _write_ahead(connection, cursor)
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _write_ahead(connection: AdaptedConnection, cursor: DBAPICursor) -> None:
    """Set WAL, which SQLite refuses at once, without its busy time-out, to one of two processes
    that open a new file at the same moment."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        connection.run_async(lambda _: asyncio.sleep(WAL_PAUSE_S))


def _on_sqlite_begin(connection: Connection) -> None:
    reads = connection.get_execution_options().get(READ_OPTION, False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _is_outage(error: DBAPIError) -> bool:
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:  # 08 connection, 53 resources, 57P shutdown, 55P03 lock time-out
        return state[:2] in ("08", "53") or state[:3] == "57P" or state == "55P03"
    text = str(error.orig).lower()
    if "no such" in text or "syntax" in text or "already exists" in text:
        return False
    sqlite = ("locked", "unable to open", "disk i/o", "readonly", "disk is full")
    return any(word in text for word in sqlite) or "psycopg" in type(error.orig).__module__


def _first_line(error: DBAPIError) -> str:
    return (str(error.orig).strip().splitlines() or ["no reason given"])[0].rstrip(".")
