"""Bring a database to the newest schema; safe when several workers start at once."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from tuneproof.errors import StateError
from tuneproof.store.engine import READ_OPTION

__all__ = ["HEAD", "migrate"]

HEAD = "0007"
"""The newest migration; a test compares it with the files."""

_FOLDER = Path(__file__).parent / "migrations"
_TABLE = "tuneproof_schema"
_LOCK = 0x74756E65  # "tune": the advisory lock that migrating workers queue on


async def migrate(engine: AsyncEngine) -> None:
    """Run the migrations that this database lacks, all in one transaction.

    Raises `StateError` where a newer TuneProof has already migrated it.
    """
    async with engine.execution_options(**{READ_OPTION: True}).connect() as connection:
        found = await connection.run_sync(_current)
    if found == HEAD:
        return
    async with engine.begin() as connection:
        await connection.run_sync(_upgrade)


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table(_TABLE):
        return None
    row = connection.execute(text(f"SELECT version_num FROM {_TABLE}")).first()
    return None if row is None else str(row[0])


def _upgrade(connection: Connection) -> None:
    from alembic import command  # only where there is something to do: 100 ms to import
    from alembic.config import Config

    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    found = _current(connection)
    if found == HEAD:
        return
    if found is not None and found > HEAD:
        raise StateError(
            f"The database has schema {found}; this TuneProof knows up to {HEAD}.",
            mend="Upgrade TuneProof, or restore the backup from before the upgrade.",
        )
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["version_table"] = _TABLE
    command.upgrade(config, "head")
