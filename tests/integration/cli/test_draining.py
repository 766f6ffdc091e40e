"""A service that is told to end behind a load balancer: it says so, and finishes what it began."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx2
from tests.raw_provider import ANSWER, raw_provider, whole
from tests.waiting import eventually

from tuneproof.app import App
from tuneproof.cli.serve import RunningServer, _stopping, serving
from tuneproof.settings import BODY, HOOK, ProviderConfig, Secret, ServerConfig, Settings, Url

DRAIN_S = 1.0


@asynccontextmanager
async def served(
    directory: Path, provider: str, drain_s: float
) -> AsyncIterator[tuple[httpx2.AsyncClient, RunningServer]]:
    settings = Settings(
        dir=directory,
        providers={
            "default": ProviderConfig(
                name="default", kind="openai", base_url=Url(provider), api_key=Secret("k")
            )
        },
        tasks={"hook": replace(HOOK, model="base"), "body": BODY},
        server=ServerConfig(port=0, metrics_enabled=False, drain_seconds=drain_s),
    )
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(App.open(settings, background=False))
        address, server = await stack.enter_async_context(serving(app, settings))
        stack.enter_context(_stopping(server, None))
        client = httpx2.AsyncClient(base_url=address, timeout=30, trust_env=False)
        yield await stack.enter_async_context(client), server


async def test_a_drained_service_answers_on_and_finishes_what_is_under_way(tmp_path: Path) -> None:
    """A model's answer takes seconds; it was cut after two."""
    body = {"model": "tuneproof/hook", "messages": [{"role": "user", "content": "x"}]}
    async with (
        raw_provider() as provider,
        served(tmp_path, provider.url, DRAIN_S) as (http, server),
    ):
        said = asyncio.Event()
        provider.pieces("base", [said, whole(ANSWER)])
        asking = asyncio.create_task(http.post("/v1/chat/completions", json=body))
        await eventually(lambda: provider.bodies)
        async with http.stream("GET", "/stream") as stream:
            os.kill(os.getpid(), signal.SIGTERM)
            await eventually(lambda: http_says(http, 503))
            found = await http.get("/routing")
            assert (found.status_code, found.headers["connection"]) == (200, "close")
            async for _ in stream.aiter_lines():
                pass  # to its end, which comes although nobody leaves
        await eventually(lambda: refused(http))
        assert not server.task.done()
        said.set()
        answer = await asking
        assert answer.status_code == 200
        assert json.loads(answer.content)["choices"]
        async with asyncio.timeout(10):
            await server.ended()


async def test_who_is_not_drained_ends_at_once(tmp_path: Path) -> None:
    async with raw_provider() as provider, served(tmp_path, provider.url, 0) as (http, server):
        assert (await http.get("/ready")).status_code == 200
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(10):
            await server.ended()


async def http_says(http: httpx2.AsyncClient, status: int) -> bool:
    return (await http.get("/ready")).status_code == status


async def refused(http: httpx2.AsyncClient) -> bool:
    try:
        await http.get("/live")
    except httpx2.ConnectError:
        return True
    return False
