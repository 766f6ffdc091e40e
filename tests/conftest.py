"""Fixtures that more than one folder of tests uses: databases and a clock set by hand."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.servers import PostgresServer, memory, postgres_server

from tuneproof.store import Store, make_engine, open_store
from tuneproof.store.migrate import migrate

START = datetime(2025, 1, 20, 2, 0, tzinfo=UTC)


class HandClock:
    """A clock that stands still until it is moved."""

    def __init__(self, at: datetime = START) -> None:
        self.at = at

    def now(self) -> datetime:
        return self.at

    async def sleep_until(self, at: datetime) -> None:
        self.at = max(self.at, at)

    def move(self, **delta: float) -> datetime:
        self.at += timedelta(**delta)
        return self.at


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the whole session."""
    with postgres_server(inside=memory()) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres: PostgresServer) -> str:
    """The name of a database with the newest schema, store's and engine's, to copy from."""
    url = postgres.create_database("template_store")
    asyncio.run(_migrate(url, engine_url=url))
    return "template_store"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the newest schema, to copy; beside it `engine.db`, the engine's."""
    path = tmp_path_factory.mktemp("template") / "store.db"
    asyncio.run(_migrate(f"sqlite:///{path}", engine_url=f"sqlite:///{path.parent / 'engine.db'}"))
    return path


@pytest.fixture(scope="session")
def data_template(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory as a service leaves it that was stopped before anything happened."""
    folder = tmp_path_factory.mktemp("template") / "data"
    folder.mkdir(mode=0o700)
    shutil.copy(sqlite_template, folder / "tuneproof.db")
    shutil.copy(sqlite_template.parent / "engine.db", folder)
    return folder


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """An empty PostgreSQL database."""
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)


@pytest.fixture
def sqlite_store_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A SQLite file with the newest schema; that of an engine beside it has it, too."""
    path = tmp_path / "store.db"
    shutil.copy(sqlite_template, path)
    shutil.copy(sqlite_template.parent / "engine.db", tmp_path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_store_url(postgres: PostgresServer, postgres_template: str) -> Iterator[str]:
    """A PostgreSQL database with the newest schema."""
    url = postgres.create_database(template=postgres_template)
    yield url
    postgres.drop_database(url)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    """A database with the newest schema: each test runs on SQLite and on PostgreSQL."""
    url: str = request.getfixturevalue(f"{request.param}_store_url")
    return url


@pytest.fixture
async def store(database_url: str, clock: HandClock) -> AsyncIterator[Store]:
    """An open store; each test runs on SQLite and on PostgreSQL."""
    store = await open_store(database_url, clock=clock)
    yield store
    await store.close()


async def _migrate(url: str, *, engine_url: str) -> None:
    """What an App does where it finds no tables, which takes longer than most tests."""
    from dbos import DBOS  # most tests need no database

    engine = make_engine(url)
    await migrate(engine)
    await engine.dispose()
    await asyncio.to_thread(DBOS.migrate, engine_url)
