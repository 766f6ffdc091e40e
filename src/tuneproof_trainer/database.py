"""The one SQLite file behind a trainer: its tables, connections and transactions.

Writers wait for each other on a lock and commit with a full sync, so what was acknowledged
survives a kill and a power cut. Readers have a connection for each thread and never wait.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tuneproof_trainer.errors import ServerError, is_disk_full

__all__ = ["Row", "TrainerDatabase"]

T = TypeVar("T")
Row = sqlite3.Row

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, org TEXT NOT NULL,
    filename TEXT NOT NULL, purpose TEXT NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL,
    created_at INTEGER NOT NULL, expires_at INTEGER, status TEXT NOT NULL,
    status_details TEXT, deleted_at INTEGER);
CREATE INDEX IF NOT EXISTS files_by_org ON files (org, deleted_at, seq);
CREATE TABLE IF NOT EXISTS uploads (
    id TEXT PRIMARY KEY, org TEXT NOT NULL, filename TEXT NOT NULL, purpose TEXT NOT NULL,
    mime_type TEXT NOT NULL, bytes INTEGER NOT NULL, created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL, file_lifetime_s INTEGER, status TEXT NOT NULL, file_id TEXT);
CREATE TABLE IF NOT EXISTS parts (
    id TEXT PRIMARY KEY, upload_id TEXT NOT NULL, bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS parts_by_upload ON parts (upload_id);
CREATE TABLE IF NOT EXISTS jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, org TEXT NOT NULL,
    status TEXT NOT NULL, model TEXT NOT NULL, training_file TEXT NOT NULL,
    validation_file TEXT, suffix TEXT, tag TEXT NOT NULL, seed INTEGER NOT NULL,
    method TEXT NOT NULL, requested TEXT NOT NULL, effective TEXT NOT NULL, metadata TEXT,
    created_at INTEGER NOT NULL, started_at REAL, finished_at INTEGER, estimated_finish INTEGER,
    fine_tuned_model TEXT, trained_tokens INTEGER, result_files TEXT NOT NULL, error TEXT,
    charged_tokens INTEGER);
CREATE INDEX IF NOT EXISTS jobs_by_org ON jobs (org, seq);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status);
CREATE TABLE IF NOT EXISTS job_metadata (
    job_id TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (key, value, job_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, job_id TEXT NOT NULL,
    created_at INTEGER NOT NULL, level TEXT NOT NULL, type TEXT NOT NULL,
    message TEXT NOT NULL, data TEXT, step INTEGER);
CREATE INDEX IF NOT EXISTS events_by_job ON events (job_id, seq);
CREATE UNIQUE INDEX IF NOT EXISTS metrics_by_step ON events (job_id, step)
    WHERE step IS NOT NULL;
CREATE TABLE IF NOT EXISTS checkpoints (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, job_id TEXT NOT NULL,
    created_at INTEGER NOT NULL, step INTEGER NOT NULL, model TEXT NOT NULL,
    metrics TEXT NOT NULL, UNIQUE (job_id, step));
CREATE TABLE IF NOT EXISTS models (
    id TEXT PRIMARY KEY, org TEXT NOT NULL, job_id TEXT NOT NULL, root TEXT NOT NULL,
    path TEXT NOT NULL, created_at INTEGER NOT NULL, final INTEGER NOT NULL,
    deleted_at INTEGER);
CREATE TABLE IF NOT EXISTS completions (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, org TEXT NOT NULL,
    model TEXT NOT NULL, created_at INTEGER NOT NULL, metadata TEXT NOT NULL,
    completion TEXT NOT NULL, messages TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS completions_by_org ON completions (org, seq);
CREATE TABLE IF NOT EXISTS idempotency (
    org TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, job_id TEXT NOT NULL,
    created_at INTEGER NOT NULL, PRIMARY KEY (org, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, hash TEXT NOT NULL UNIQUE, hint TEXT NOT NULL,
    org TEXT NOT NULL, may_train INTEGER NOT NULL, created_at INTEGER NOT NULL,
    revoked_at INTEGER);
"""

_ADDED = (("jobs", "charged_tokens", "INTEGER"),)
"""Columns that databases of earlier versions lack."""

_BALLAST_BYTES = 1024 * 1024


class TrainerDatabase:
    """Connections to one SQLite file. Raises ServerError where it is damaged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self.version = 0
        """Grows with each transaction of this process, once it can be read."""

        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trainer-db")
        path.touch(mode=0o600)  # what SQLite puts beside it has the same mode
        with _readable(path):
            connection = self._connection()
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(_SCHEMA)
            _complete(connection)
        self._ballast = path.with_name("ballast")
        self.take_ballast()

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False, timeout=30.0
            )
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA synchronous = FULL")
            self._local.connection = connection
            with self._lock:
                self._all.append(connection)
        return connection

    def rows(self, sql: str, *values: Any) -> list[Row]:
        """All rows of a query."""
        return self._connection().execute(sql, values).fetchall()

    def row(self, sql: str, *values: Any) -> Row | None:
        """The first row of a query, or None."""
        found: Row | None = self._connection().execute(sql, values).fetchone()
        return found

    def take_ballast(self) -> None:
        """Hold some room on the disk, where there is any, for what makes room."""
        if self._ballast.exists():
            return
        try:
            with self._ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, _BALLAST_BYTES)
        except OSError:
            self._ballast.unlink(missing_ok=True)

    def write(self, work: Callable[[sqlite3.Connection], T], *, frees: bool = False) -> T:
        """Run `work` in one transaction: all of it is kept, or none.

        Raises OSError ENOSPC where the disk is full; work that frees room there, or ends what
        takes it, is done all the same.
        """
        try:
            return self._write(work)
        except OSError as error:
            if not frees or not is_disk_full(error) or not self._ballast.exists():
                raise
        self._ballast.unlink(missing_ok=True)
        return self._write(work)

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._writing:
            connection = self._connection()
            with _disk_errors():
                connection.execute("BEGIN IMMEDIATE")
                try:
                    result = work(connection)
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
            self.version += 1
            return result

    async def awrite(self, work: Callable[[sqlite3.Connection], T], *, frees: bool = False) -> T:
        """`write` without holding up the event loop."""
        write = partial(self.write, work, frees=frees)
        return await asyncio.get_running_loop().run_in_executor(self._pool, write)

    def close(self) -> None:
        """Close every connection; nothing may use the database afterwards."""
        self._pool.shutdown(wait=True)
        with self._lock:
            for connection in self._all:
                connection.close()
            self._all.clear()


def _complete(connection: sqlite3.Connection) -> None:
    """Add the columns that an earlier version did not have."""
    for table, column, kind in _ADDED:
        known = {row["name"] for row in connection.execute(f"PRAGMA table_info({table})")}
        if column not in known:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """SQLite's word for a damaged file in a sentence, with what to restore."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise
        raise ServerError(
            f"The trainer's database {path} is damaged: {error}. Restore its folder from a backup, "
            "or move the folder away to begin anew, without the files, jobs and models in it."
        ) from error


@contextmanager
def _disk_errors() -> Iterator[None]:
    """SQLite's word for a full disk as everyone else's."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def insert(connection: sqlite3.Connection, table: str, **values: Any) -> None:
    """Add one row; the names are ours, never a client's."""
    names = ", ".join(values)
    marks = ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(values.values()))
