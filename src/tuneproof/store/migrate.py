"""Bring a database to the newest schema; safe when several workers start at once."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from tuneproof.errors import StateError, StoreUnavailableError
from tuneproof.store.engine import READ_OPTION
from tuneproof.store.tables import metadata

__all__ = ["HEAD", "migrate"]

HEAD = "0005"
"""The newest migration; a test compares it with the files."""

_FOLDER = Path(__file__).parent / "migrations"
_TABLE = "tuneproof_migration"
_TABLE_OF_0_1_0 = "tuneproof_schema"
_LOCK = 0x74756E65  # "tune": the advisory lock that migrating workers queue on


async def migrate(engine: AsyncEngine, *, make: bool = True) -> None:
    """Run the migrations that this database lacks, all in one transaction.

    Without `make` none is run, and a database that lacks one raises `StoreUnavailableError`.

    Raises `StateError` where another version of TuneProof made the tables that are there: a
    newer one, or 0.1.0, whose data none can read; also where tables of the store's names are
    there that no TuneProof made.
    """
    async with engine.execution_options(**{READ_OPTION: True}).connect() as connection:
        found = await connection.run_sync(_current)
    if found == HEAD:
        return
    if not make and (found is None or found < HEAD):
        raise _behind(engine, found)
    async with engine.begin() as connection:
        await connection.run_sync(_upgrade)


def _behind(engine: AsyncEngine, found: str | None) -> StoreUnavailableError:
    has = "no tables of TuneProof yet" if found is None else f"schema {found}, before {HEAD}"
    return StoreUnavailableError(
        f"The database {engine.url.render_as_string(hide_password=True)} has {has}.",
        mend="Start the service, which makes what is lacking: tuneproof serve",
        reason="absent",
    )


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
    if found is None:
        _refuse_other_tables(connection)
    elif found > HEAD:
        raise StateError(
            f"The database has schema {found}; this TuneProof knows up to {HEAD}.",
            mend="Upgrade TuneProof, or restore the backup from before the upgrade.",
        )
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["version_table"] = _TABLE
    command.upgrade(config, "head")


def _refuse_other_tables(connection: Connection) -> None:
    names = set(inspect(connection).get_table_names())
    if _TABLE_OF_0_1_0 in names:
        raise StateError(
            "The database was made by TuneProof 0.1.0, whose data this version cannot read.",
            mend="Start with a new database, or delete the old one (SQLite: its directory).",
        )
    taken = sorted(names & set(metadata.tables))
    if taken:
        raise StateError(
            f"The database has tables that are not TuneProof's: {', '.join(taken)}.",
            mend="Give TuneProof a database, or a schema (search_path), of its own.",
        )
