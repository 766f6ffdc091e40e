"""How many connections a worker opens, against what a real server lets in."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from tests.integration.loop import open_loop
from tests.servers import PostgresServer

from tuneproof.app import App
from tuneproof.app.connections import Need, connections_of_worker
from tuneproof.settings import Settings, StoreConfig
from tuneproof.store import ServerConnections, server_connections

ROOMY = ServerConnections(
    most=100, reserved=3, of_database=-1, of_user=-1, in_use=20, ours=17, workers=1
)


def need(config: StoreConfig | None = None, **server: Any) -> Need:
    return Need(config=config or StoreConfig(), server=replace(ROOMY, **server))


@pytest.mark.parametrize(
    ("found", "status", "said"),
    [
        (need(), "ok", "1 worker of up to 18 each: 18; the server lets 97 in"),
        (need(workers=6), "failed", "6 workers of up to 18 each: 108; the server lets 97 in"),
        (need(workers=5), "warning", "a rolling restart adds a worker"),
        (need(StoreConfig(workers=5)), "ok", "5 workers of up to 18 each: 90"),
        (need(StoreConfig(workers=5), in_use=60), "warning", "in use are 60, 17 of them by this"),
        (need(StoreConfig(workers=6)), "failed", "6 workers"),
        (need(StoreConfig(max_overflow=75)), "warning", "1 worker of up to 93 each: 93"),
        (need(of_user=17), "failed", "17 for this user"),
        (need(of_database=17), "failed", "17 for this database"),
        (need(ours=19), "warning", "somebody else comes as this user"),
        (need(workers=0), "ok", "1 worker"),
    ],
)
def test_what_workers_may_open_is_compared_with_what_is_let_in(
    found: Need, status: str, said: str
) -> None:
    assert (found.status, said in found.sentence()) == (status, True), found.sentence()
    assert bool(found.mend()) is (status != "ok")


def test_the_mend_names_the_narrowest_limit() -> None:
    assert "CONNECTION LIMIT of the user" in need(of_user=17, of_database=30).mend()
    assert "max_connections of the server" in need(workers=6).mend()


@pytest.mark.postgres
async def test_a_worker_opens_no_more_than_it_is_counted_with(
    tmp_path: Path, postgres_url: str
) -> None:
    """A whole service, with its pool exhausted and its engine busy."""
    store = StoreConfig(url=postgres_url, pool_size=3, max_overflow=1)
    settings = Settings(dir=tmp_path, store=store)
    async with App.open(settings) as app, AsyncExitStack() as held:
        for _ in range(3):  # of four
            await held.enter_async_context(app.store.database.read())
        await asyncio.gather(*(app.engine.exists("none") for _ in range(40)))
        found = await server_connections(app.store.database)
        assert found is not None
        assert (found.most, found.reserved, found.workers) == (200, 3, 1)
        assert 4 + 2 < found.ours <= connections_of_worker(store) == 4 + 8


@pytest.mark.postgres
async def test_the_doctor_asks_the_server(
    tmp_path: Path, postgres: PostgresServer, postgres_url: str
) -> None:
    async with open_loop(tmp_path, postgres_url) as loop:
        found = {f.name: f for f in await loop.app.doctor.examine()}["connections"]
        assert found.status == "ok", found
        assert "1 worker of up to 18 each: 18; the server lets 197 in" in found.detail
        name = (await _asked(loop.app, "SELECT current_database()"))[0]
        await asyncio.to_thread(_limited, postgres_url, name, 9)
        found = {f.name: f for f in await loop.app.doctor.examine()}["connections"]
        assert found.status == "failed"
        assert "9 for this database" in found.detail
        assert "raise CONNECTION LIMIT of the database" in found.mend


async def _asked(app: App, statement: str) -> list[Any]:
    async with app.store.database.read() as tx:
        return list((await tx.execute(text(statement))).scalars())


def _limited(url: str, database: str, limit: int) -> None:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{database}" CONNECTION LIMIT {limit}'.encode())


async def test_sqlite_has_no_server_to_ask(tmp_path: Path) -> None:
    async with open_loop(tmp_path, "") as loop:
        assert await server_connections(loop.app.store.database) is None
        assert "connections" not in {f.name for f in await loop.app.doctor.examine()}
