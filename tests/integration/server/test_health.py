"""Probes and health: what they ask, and that asking changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from tests.chat import Chat
from tests.integration.server.conftest import Service, posts
from tests.wire import Wire, wire_server

from tuneproof.app import App
from tuneproof.cli.serve import serving
from tuneproof.experiments import Variant
from tuneproof.resilience import State
from tuneproof.settings import Settings, TrackingConfig, Url
from tuneproof.testing import MemorySource


@asynccontextmanager
async def silent_server() -> AsyncIterator[str]:
    """An address that takes connections and never answers."""
    open_ones: list[asyncio.StreamWriter] = []

    async def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.append(writer)

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for writer in open_ones:
            writer.close()
        server.close()


@asynccontextmanager
async def real_provider(settings: Settings) -> AsyncIterator[Service]:
    """A service whose provider is the one of its settings, by HTTP."""
    async with (
        App.open(settings, source=MemorySource(posts()), poll_s=0.05) as app,
        serving(app, settings) as (address, _),
        httpx2.AsyncClient(base_url=address, timeout=30, trust_env=False) as http,
    ):
        yield Service(app, address, http)


async def test_ready_asks_nobody_while_mlflow_hangs(settings: Settings) -> None:
    """Seen: each of 58 probes took 5.0 s, and Kubernetes would have taken every pod out."""
    async with silent_server() as silent:
        tracked = replace(settings, tracking=TrackingConfig(uri=Url(silent)))
        async with real_provider(tracked) as service:
            await service.http.get("/health")  # MLflow's client takes seconds to load
            asking = [asyncio.create_task(service.http.get("/health")) for _ in range(8)]
            took_s = []
            for _ in range(20):
                began = time.perf_counter()
                answer = await service.http.get("/ready")
                took_s.append(time.perf_counter() - began)
                assert (answer.status_code, answer.json()) == (200, {"ready": True, "reasons": []})
            assert min(took_s) < 1  # on a busy machine some take longer; who asks MLflow takes 5
            for health in await asyncio.gather(*asking):
                mlflow = health.json()["checks"]["mlflow"]
                assert (mlflow["status"], mlflow["detail"]) == ("degraded", "No answer within 5 s.")


@pytest.fixture
def provided(settings: Settings) -> Any:
    """A provider that fails, and the settings that name it."""
    with wire_server() as wire:
        wire.fail("GET /models", status=503)
        default = replace(settings.providers["default"], base_url=Url(wire.url))
        yield wire, replace(settings, providers={**settings.providers, "default": default})


async def test_health_and_doctor_never_count_against_a_breaker(
    provided: tuple[Wire, Settings],
) -> None:
    """Seen: three looks at /health opened the breaker of a provider that nobody had called."""
    wire, settings = provided
    async with real_provider(settings) as service:
        for _ in range(5):
            health = (await service.http.get("/health")).json()
            assert health["components"]["provider"] == "degraded"
            await service.http.get("/doctor")
        breaker = service.app.providers.breakers["openai"]
        assert (breaker.state, breaker.failures_total) == (State.CLOSED, 0)

        # Nor do they take an open one's probe, or close it; they see the provider itself.
        provider = service.app.providers.get("default")
        for _ in range(3):
            with pytest.raises(Exception, match="503"):
                await provider.models()
        assert breaker.state is State.OPEN
        wire.faults.clear()
        health = (await service.http.get("/health")).json()
        assert health["components"]["provider"] == "healthy"
        assert breaker.state is State.OPEN


async def test_the_gateways_own_breakers_are_shown(settings: Settings, chat: Chat) -> None:
    """Seen: a model in use that was refused for minutes stood in neither /health nor doctor."""
    async with real_provider(settings) as service:
        [test] = await service.app.experiments.create(
            baseline=Variant(model_id="base"),
            candidates=[Variant(model_id="cand")],
            tasks=["hook"],
        )
        name = "chat:default:base_circuit_breaker"
        asked = {"model": "tuneproof/hook", "messages": [{"role": "user", "content": "hi"}]}
        assert name in (await service.http.get("/health")).json()["components"]
        chat.fail("base", status=500)
        for number in range(40):
            await service.post("/v1/chat/completions", {**asked, "user": f"unit-{number}"})
        health = (await service.http.get("/health")).json()
        assert health["components"][name] == "OPEN"
        assert health["status"] == "degraded"
        findings = {f["name"]: f for f in (await service.http.get("/doctor")).json()}
        assert findings[name]["status"] == "warning"
        metrics = (await service.http.get("/metrics")).text
        assert (
            'tuneproof_breaker_events_total{breaker="chat:default:base",kind="opened"}' in metrics
        )

        # A model that nobody is served any more leaves no breaker behind.
        await service.post(f"/evaluation/end/{test.id}", {"reason": "enough"})
        await service.app.routing.board.refresh()
        await service.app.routing.endpoints.renew([Variant(model_id="other")])
        assert name not in (await service.http.get("/health")).json()["components"]
