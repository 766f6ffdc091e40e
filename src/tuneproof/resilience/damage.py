"""Databases whose files cannot be read any more: told in one sentence, with what to restore.

Nothing can be waited for or retried then, yet what stood open goes on as where the database is
away: routing is answered from memory, and runs stay as they are until it is restored.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError

from tuneproof.errors import StoreUnavailableError

__all__ = ["damage_as_error", "damage_of"]

OWN_FILE = (
    "Stop TuneProof and restore the data directory from a backup: tuneproof.db and engine.db "
    "together, without a -wal or -shm beside them. Without a backup, move them away to begin anew."
)
SERVER = "Restore the database from a backup."
OTHER_FILE = "Restore the file from a backup, or name another one."


@contextmanager
def damage_as_error(where: str, mend: str) -> Iterator[None]:
    """Raise `StoreUnavailableError` for a driver's error that says that what is stored is broken.

    `where` is told as it is: it must hold no password.
    """
    try:
        yield
    except (DBAPIError, sqlite3.DatabaseError) as error:
        told = damage_of(error, where, mend)
        if told is None:
            raise
        raise told from error


def damage_of(error: Exception, where: str, mend: str) -> StoreUnavailableError | None:
    """What a driver's error is told as where it says that what is stored is broken, else None."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if cause is None or not _damaged(cause):
        return None
    reason = str(cause).strip().splitlines()[0].rstrip(".")
    return StoreUnavailableError(f"{where} is damaged: {reason}.", mend=mend)


def _damaged(error: BaseException) -> bool:
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None) or 0
        return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return getattr(error, "sqlstate", None) in ("XX001", "XX002")
