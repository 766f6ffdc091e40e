"""Opening a store: addresses, migrations, outages."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.conftest import HandClock
from tests.servers import PostgresServer, free_port, postgres_server

from tuneproof.errors import ConfigError, StateError, StoreUnavailableError
from tuneproof.store import Store, database_url, make_engine, metadata, open_store
from tuneproof.store.database import Database
from tuneproof.store.migrate import HEAD

VERSIONS = "tuneproof_migration"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/empty.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgres://u@h/d", "postgresql+psycopg://u@h/d"),
        ("postgresql://u@h/d?sslmode=require", "postgresql+psycopg://u@h/d?sslmode=require"),
        ("postgresql+asyncpg://u@h/d", "postgresql+psycopg://u@h/d"),
        ("sqlite:///a.db", "sqlite+aiosqlite:///a.db"),
    ],
)
def test_addresses_get_our_drivers(given: str, used: str) -> None:
    assert database_url(given).render_as_string(hide_password=False) == used


@pytest.mark.parametrize(
    "address", ["nonsense", "mysql://h/d", "sqlite://", "sqlite:///:memory:", ""]
)
def test_unusable_address_is_refused_with_a_mend(address: str) -> None:
    with pytest.raises(ConfigError, match="sqlite:///FILE"):
        database_url(address)


async def test_migrated_schema_is_the_one_that_queries_use(store: Store) -> None:
    async with store.database.begin() as tx:
        differences = await tx.run_sync(
            lambda connection: compare_metadata(
                MigrationContext.configure(
                    connection,
                    opts={
                        "version_table": VERSIONS,
                        "compare_type": True,
                        "compare_server_default": True,
                        "include_name": lambda name, kind, _: kind != "table" or not _is_day(name),
                    },
                ),
                metadata,
            )
        )
    assert differences == []


async def test_migrated_keys_are_those_that_queries_use(store: Store) -> None:
    divided = ["at"] if store.database.dialect == "postgresql" else []
    wanted = {
        name: [column.name for column in table.primary_key]
        + (divided if name in ("exposures", "outcomes") else [])
        for name, table in metadata.tables.items()
    }
    async with store.database.begin() as tx:
        found = await tx.run_sync(
            lambda connection: {
                name: inspect(connection).get_pk_constraint(name)["constrained_columns"]
                for name in inspect(connection).get_table_names()
                if name != VERSIONS and not _is_day(name)
            }
        )
    assert found == wanted


async def test_sqlite_s_tables_are_laid_out_as_the_queries_expect(tmp_path: Path) -> None:
    """Row by row: without row ids where a key is the order of reading, the columns' order too."""
    made = await open_store(f"sqlite:///{tmp_path}/migrated.db", clock=HandClock())
    engine = make_engine(f"sqlite:///{tmp_path}/tables.db")
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    found = [await _statements(each) for each in (made.database.engine, engine)]
    await made.close()
    await engine.dispose()
    found[0].pop(VERSIONS)
    assert found[0] == found[1]


async def _statements(engine: AsyncEngine) -> dict[str, str]:
    query = text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    async with engine.begin() as connection:
        return {name: " ".join(sql.split()) for name, sql in await connection.execute(query)}


def _is_day(table: str | None) -> bool:
    return str(table).startswith(("exposures_", "outcomes_"))


async def test_opening_again_changes_nothing(database_url: str, clock: HandClock) -> None:
    for _ in range(2):
        store = await open_store(database_url, clock=clock)
        await store.meta.set("key", "value")
        await store.close()
    store = await open_store(database_url, clock=clock)
    assert await store.meta.get("key") == "value"
    await store.close()


async def test_schema_newer_than_this_code_is_refused(store: Store, database_url: str) -> None:
    async with store.database.begin() as tx:
        await tx.execute(text("UPDATE tuneproof_migration SET version_num = '9999'"))
    with pytest.raises(StateError, match="schema 9999"):
        await open_store(database_url, clock=store.clock)


@pytest.mark.parametrize(
    ("table", "said"),
    [("tuneproof_schema", "made by TuneProof 0.1.0"), ("runs", "not TuneProof's: runs")],
)
async def test_tables_of_another_maker_are_refused_and_left_alone(
    empty_url: str, table: str, said: str
) -> None:
    engine = make_engine(empty_url)
    async with engine.begin() as connection:
        await connection.execute(text(f"CREATE TABLE {table} (version_num TEXT)"))
        await connection.execute(text("CREATE TABLE posts (id TEXT)"))
    with pytest.raises(StateError, match=said) as caught:
        await open_store(empty_url, clock=HandClock())
    assert caught.value.mend
    async with engine.begin() as connection:
        names = await connection.run_sync(lambda c: inspect(c).get_table_names())
    await engine.dispose()
    assert sorted(names) == sorted([table, "posts"])


async def test_store_opens_beside_the_posts(empty_url: str) -> None:
    engine = make_engine(empty_url)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE posts (id TEXT)"))
    await engine.dispose()
    store = await open_store(empty_url, clock=HandClock())
    assert await schemas(store) == [HEAD]
    await store.close()


def test_newest_migration_is_the_last_file() -> None:
    import tuneproof.store

    folder = Path(tuneproof.store.__file__).parent / "migrations" / "versions"
    assert max(folder.glob("0*.py")).name.startswith(HEAD)


async def schemas(store: Store) -> list[str]:
    """The schemas that the database says it has."""
    async with store.database.read() as tx:
        found = await tx.execute(text("SELECT version_num FROM tuneproof_migration"))
        return list(found.scalars())


@pytest.mark.postgres
async def test_workers_that_start_at_once_migrate_once(postgres_url: str) -> None:
    clock = HandClock()
    stores = await asyncio.gather(*(open_store(postgres_url, clock=clock) for _ in range(5)))
    for store in stores:
        assert await schemas(store) == [HEAD]
        await store.close()


async def test_processes_that_open_a_new_file_at_once_migrate_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/deep/er/store.db"
    stores = await asyncio.gather(*(open_store(url, clock=HandClock()) for _ in range(5)))
    for store in stores:
        assert await schemas(store) == [HEAD]
        await store.close()


async def test_opening_waits_for_another_s_first_write(sqlite_store_url: str) -> None:
    engine = make_engine(sqlite_store_url)
    path = Path(str(engine.url.database))
    path.parent.mkdir(parents=True, exist_ok=True)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # SQLite lets nobody set WAL now, nor wait for it
    try:
        opening = asyncio.create_task(scalar(engine, "PRAGMA journal_mode"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(opening), 0.2)
        other.execute("COMMIT")
        assert await opening == "wal"
    finally:
        other.close()
        await engine.dispose()


async def scalar(engine: AsyncEngine, statement: str) -> object:
    async with engine.connect() as connection:
        return (await connection.execute(text(statement))).scalar_one()


async def test_unreachable_database_is_an_outage_without_its_password() -> None:
    url = f"postgresql://ada:secret@127.0.0.1:{free_port()}/db"
    with pytest.raises(StoreUnavailableError, match="did not answer") as caught:
        await open_store(url, clock=HandClock())
    assert "secret" not in str(caught.value)


async def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"not a database, but long enough to look at" * 50)
    with pytest.raises(Exception, match="not a database"):
        await open_store(f"sqlite:///{tmp_path}/store.db", clock=HandClock())


async def test_sqlite_is_opened_for_durable_work(sqlite_store_url: str) -> None:
    store = await open_store(sqlite_store_url, clock=HandClock())
    async with store.database.read() as tx:
        values = [
            (await tx.execute(text(f"PRAGMA {name}"))).scalar_one()
            for name in ("journal_mode", "busy_timeout", "foreign_keys")
        ]
    await store.close()
    assert values == ["wal", 30_000, 1]


async def test_writing_transaction_takes_the_lock_at_its_start(sqlite_store_url: str) -> None:
    store = await open_store(sqlite_store_url, clock=HandClock())
    async with store.database.begin():
        other = sqlite3.connect(store.database.path or "", timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()
    await store.close()


async def test_dropped_connection_gives_its_lock_back(sqlite_store_url: str) -> None:
    engine = make_engine(sqlite_store_url)
    try:
        async with engine.connect() as cancelled:
            driver = (await cancelled.get_raw_connection()).driver_connection
            assert driver is not None
            await cancelled.execute(text("CREATE TABLE written (number INTEGER)"))
            unread = await driver.execute("VALUES (1), (2)")  # as a cancelled task leaves it
            await cancelled.invalidate()
            async with asyncio.timeout(5), engine.begin() as tx:
                await tx.execute(text("CREATE TABLE written (number INTEGER)"))
        assert unread is not None
    finally:
        await engine.dispose()


@pytest.mark.postgres
async def test_settings_that_lose_commits_are_named(postgres_url: str) -> None:
    store = await open_store(postgres_url, clock=HandClock())
    lost = ["fsync", "full_page_writes", "synchronous_commit"]  # the tests' server is quick
    assert await store.database.unsafe_settings() == lost
    await store.close()
    careful = make_engine(f"{postgres_url}?options=-csynchronous_commit%3Don")
    assert await Database(careful).unsafe_settings() == lost[:2]
    await careful.dispose()


@pytest.mark.postgres
async def test_store_works_again_after_an_outage(postgres: PostgresServer) -> None:
    with postgres_server() as server:
        store = await open_store(server.create_database(), clock=HandClock())
        await store.meta.set("key", 1)
        await asyncio.to_thread(server.stop)
        with pytest.raises(StoreUnavailableError):
            await store.meta.get("key")
        await asyncio.to_thread(server.start)
        assert await store.meta.get("key") == 1
        await store.close()
