"""Copies of SQLite databases that belong together, as they all were at one instant.

Each database has its own write-ahead log, so copies made one after the other would show a step of a
run in one and not in the other. Here all are kept from writing for the moment in which a view of
each is opened; the views are then copied while everybody writes on.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from tuneproof.errors import DataError, StoreUnavailableError

__all__ = ["SqliteViews", "schema_of"]

WITHIN_S = 60.0
"""How long is waited until nobody writes to any of them."""

FIRST_S = 5.0
"""How long the first lock is waited for, before those held are given back."""

NEXT_S = 0.25
"""How long another lock is waited for while some are held: everybody waits for us meanwhile."""

_NO_DAMAGE = "NULL value in "
"""SQLite 3.40 says this of sound tables without rowid whose key has another order of columns."""

_MIGRATION = "SELECT version_num FROM tuneproof_migration"


class SqliteViews:
    """Views of databases at one instant; `copy` writes each into a file of its own.

    `still` is called at that instant: nobody can write to any of them until it returns.
    Raises `StoreUnavailableError` where one stays locked by somebody else.
    """

    def __init__(self, paths: Sequence[Path], still: Callable[[], None]) -> None:
        self._open = ExitStack()
        self._views: dict[Path, sqlite3.Connection] = {}
        with contextlib.ExitStack() as locked:
            _lock(paths, locked)
            for path in paths:
                self._views[path] = self._view(path)
            still()

    def close(self) -> None:
        """Let go of the views."""
        self._open.close()

    def copy(self, path: Path, to: Path) -> None:
        """Write one database into a new file, and look through what was written.

        Raises `DataError` where it is damaged.
        """
        with contextlib.closing(sqlite3.connect(to, isolation_level=None)) as target:
            self._views[path].backup(target)
            target.execute("PRAGMA journal_mode = DELETE")
            found = [row[0] for row in target.execute("PRAGMA quick_check")]
        wrong = [said for said in found if said != "ok" and not said.startswith(_NO_DAMAGE)]
        if wrong:
            raise DataError(
                f"The database {path} is damaged: {wrong[0]}.",
                mend="Restore an older backup; keep this file for what can be read of it.",
            )

    def _view(self, path: Path) -> sqlite3.Connection:
        connection = _connect(path, NEXT_S)
        self._open.callback(connection.close)
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the view
        return connection


def schema_of(path: Path) -> str | None:
    """The newest migration of the store in this file; None where it is no store."""
    with contextlib.closing(_connect(path, FIRST_S)) as connection:
        try:
            row = connection.execute(_MIGRATION).fetchone()
        except sqlite3.OperationalError:
            return None
    return None if row is None else str(row[0])


def _connect(path: Path, timeout_s: float) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=timeout_s
    )


def _lock(paths: Sequence[Path], held: ExitStack) -> None:
    """Keep everybody from writing to any of them, until `held` is closed.

    Whoever holds one lock while it waits for another must not wait for us: those held are given
    back before it is tried again.
    """
    deadline = time.monotonic() + WITHIN_S
    while True:
        trying = ExitStack()
        try:
            for number, path in enumerate(paths):
                connection = _connect(path, NEXT_S if number else FIRST_S)
                trying.callback(connection.close)
                connection.execute("BEGIN IMMEDIATE")
            held.push(trying.pop_all())
            return
        except sqlite3.OperationalError as error:
            trying.close()
            busy = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not busy or time.monotonic() > deadline:
                raise StoreUnavailableError(
                    f"The databases {', '.join(map(str, paths))} cannot be held still: {error}.",
                    mend="Look for what writes to them for so long, then try again.",
                ) from error
