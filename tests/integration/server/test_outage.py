"""What goes on while PostgreSQL is away, and what a request asks of it: nothing."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from sqlalchemy import event
from tests.integration.server.conftest import MODELS, Service
from tests.servers import PostgresServer, postgres_server
from tests.waiting import eventually

from tuneproof.app import App, Board, Live
from tuneproof.cli.serve import serving
from tuneproof.experiments import Variant
from tuneproof.resilience import Supervisor
from tuneproof.server import create_app
from tuneproof.server.auth import Callers
from tuneproof.settings import Settings
from tuneproof.store import open_store
from tuneproof.testing import MemoryProvider

SECONDS = 30.0


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A server of these tests alone: they kill it, and what it acknowledged is to be there."""
    with postgres_server(synchronous_commit="on") as server:
        yield server


@pytest.fixture
def stored(settings: Settings, own_postgres: PostgresServer) -> Settings:
    url = own_postgres.create_database()
    return replace(settings, store=replace(settings.store, url=url))


@asynccontextmanager
async def worker(settings: Settings) -> AsyncIterator[Service]:
    async with (
        App.open(settings, provider=MemoryProvider(base_models=MODELS), poll_s=0.05) as app,
        serving(app, settings) as (address, _),
        httpx2.AsyncClient(base_url=address, timeout=30, trust_env=False) as http,
    ):
        yield Service(app, address, http)


async def declared_test(app: App) -> str:
    [made] = await app.experiments.create(
        baseline=Variant(model_id="base"),
        candidates=[Variant(model_id="cand")],
        traffic_split=0.5,
        tasks=["hook"],
    )
    return made.id


def ask(unit: str) -> dict[str, Any]:
    return {
        "model": "tuneproof/hook",
        "messages": [{"role": "user", "content": "a topic"}],
        "user": unit,
    }


async def chat(http: httpx2.AsyncClient, unit: str) -> httpx2.Response:
    return await http.post("/v1/chat/completions", json=ask(unit))


@pytest.mark.postgres
async def test_gateway_and_decisions_go_on_without_the_database(
    stored: Settings, own_postgres: PostgresServer
) -> None:
    locked = replace(stored, server=replace(stored.server, require_token=True))
    async with worker(locked) as service:
        app, http = service.app, service.http
        token = await app.store.tokens.create("application", ["write"])
        http.headers["Authorization"] = f"Bearer {token}"
        test_id = await declared_test(app)
        assert (await chat(http, "before")).status_code == 200
        own_postgres.stop(kill=True)
        try:
            for number in range(5):
                answer = await chat(http, f"unit-{number}")
                assert answer.status_code == 200, answer.text
                asked = {"task": "hook", "unit": f"unit-{number}"}
                decided = await http.get("/decide", params=asked)
                assert decided.status_code == 200, decided.text
                assert decided.json()["arm"] == answer.headers["x-tuneproof-arm"]
            table = (await http.get("/routing")).json()
            assert [row["subject"] for row in table["routing"]] == [test_id]
            assert (await http.get("/v1/models")).json()["data"][0]["id"] == "tuneproof/hook"
            began = time.perf_counter()
            ready = await http.get("/ready")
            assert (ready.status_code, ready.json()["ready"]) == (200, True)
            assert time.perf_counter() - began < 1
            stranger = {"Authorization": "Bearer nobody"}
            assert (await http.get("/routing", headers=stranger)).status_code == 503
            age = app.routing.board.age_s
            assert age is not None
            await eventually(lambda: (app.routing.board.age_s or 0.0) > age + 0.5)
        finally:
            own_postgres.start()
        await eventually(lambda: (app.routing.board.age_s or 0.0) < 0.5)
        found = await service.until(
            f"/events?subject={test_id}",
            lambda events: isinstance(events, list) and len(events) == 6,
            seconds=SECONDS,
        )
        units = {one["unit"] for one in found}
        assert units == {"before", *(f"unit-{number}" for number in range(5))}
        health = (await http.get("/health")).json()
        assert health["routing_age_s"] < 30


@pytest.mark.postgres
async def test_another_worker_hears_of_a_change_without_asking(stored: Settings) -> None:
    async with worker(stored) as one:
        store, supervisor = await open_store(stored.store.url.reveal()), Supervisor()
        board = Board(store.routing, Live(), prepare=nothing, watch_s=3600.0)  # notices alone
        try:
            await board.refresh()
            assert board.snapshot.routing == ()
            board.watch(supervisor)
            test_id = await declared_test(one.app)
            await eventually(lambda: board.snapshot.routing)
            assert board.snapshot.by_task["hook"].subjects == (test_id,)
            await one.app.experiments.end(test_id, reason="enough")
            await eventually(lambda: not board.snapshot.by_task["hook"].subjects)
        finally:
            await supervisor.close()
            await store.close()


async def nothing(_models: Iterable[Variant]) -> None:
    """Nothing to prepare."""


ASKING: ContextVar[bool] = ContextVar("ASKING", default=False)
"""Set while a request is made in this process: what it starts inherits it."""


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_of_the_gateway_makes_no_statement(
    settings: Settings, stream: bool
) -> None:
    locked = replace(settings, server=replace(settings.server, require_token=True))
    async with App.open(locked, provider=MemoryProvider(base_models=MODELS)) as app:
        statements: list[str] = []

        @event.listens_for(app.store.database.engine.sync_engine, "before_cursor_execute")
        def count(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if ASKING.get():
                statements.append(statement)

        service = create_app(app, callers=Callers(trust_s=3600.0))
        transport = httpx2.ASGITransport(app=service)
        async with (
            service.router.lifespan_context(service),
            httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http,
        ):
            await declared_test(app)
            token = await app.store.tokens.create("application", ["write"])
            http.headers["Authorization"] = f"Bearer {token}"
            ASKING.set(True)
            assert (await http.get("/v1/models")).status_code == 200
            assert any("FROM tokens" in one for one in statements)  # a new one is looked up
            statements.clear()
            for number in range(10):
                asked = {**ask(f"unit-{number}"), "stream": stream}
                answer = await http.post("/v1/chat/completions", json=asked)
                assert answer.status_code == 200, answer.text
                asked = {"task": "hook", "unit": f"unit-{number}"}
                assert (await http.get("/decide", params=asked)).status_code == 200
            assert (await http.get("/routing")).status_code == 200
            assert statements == []
            ASKING.set(False)
