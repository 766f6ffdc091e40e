"""Databases as text: what stands in them at one instant, and the same databases made anew.

A dump holds the schema too, so that what a later version opens is what this one left, down to
the tables of the engine. It sees what is committed only, as after a kill.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["dump", "restore"]

ENGINE = "engine.db"
"""The engine's file beside a SQLite store."""

Dump = Mapping[str, str]
"""Each database's SQL by its name."""


def dump(url: str, directory: Path) -> Dump:
    """The SQL of the store and, on SQLite, of the engine's own file; the engine's is read first.

    So a transaction may stand in the store that the engine has not recorded, never the reverse.
    """
    if url.startswith("sqlite"):
        return {"engine": _sqlite_dump(directory / ENGINE), "store": _sqlite_dump(_path(url))}
    command = [_binary("pg_dump"), "--no-owner", "--no-privileges", _dsn(url)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"store": _portable(done.stdout)}


def restore(found: Dump, url: str, directory: Path) -> None:
    """Make the databases of a dump anew; they must be empty."""
    if url.startswith("sqlite"):
        directory.mkdir(parents=True, exist_ok=True)
        _sqlite_restore(found["engine"], directory / ENGINE)
        _sqlite_restore(found["store"], _path(url))
        return
    command = [_binary("psql"), "-q", "-v", "ON_ERROR_STOP=1", "-f", "-", _dsn(url)]
    subprocess.run(command, input=found["store"], text=True, check=True, capture_output=True)


def _sqlite_dump(path: Path) -> str:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("BEGIN")
        return "\n".join(connection.iterdump())
    finally:
        connection.close()


def _sqlite_restore(sql: str, path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.executescript(sql)
    finally:
        connection.close()


def _portable(sql: str) -> str:
    """Without what only the version that dumped knows: its psql's commands, newer settings."""
    unknown = ("\\restrict", "\\unrestrict", "SET transaction_timeout")
    return "\n".join(line for line in sql.splitlines() if not line.startswith(unknown)) + "\n"


def _path(url: str) -> Path:
    return Path(url.partition("///")[2])


def _dsn(url: str) -> str:
    parts = urlsplit(url)
    return f"postgresql://{parts.netloc}{parts.path}"


def _binary(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"{name} is not installed: apt-get install -y postgresql-client"
    return found
