"""The real service: an App on SQLite behind uvicorn on a free loopback port."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.chat import Chat, chat_server
from tests.waiting import eventually

from tuneproof.app import App
from tuneproof.cli.serve import serving
from tuneproof.collection import Post
from tuneproof.settings import Settings
from tuneproof.testing import MemoryProvider, MemorySource

OURS = ("base", "cand", "better", "one", "two", "three")
DOCUMENTED = ("gpt-3.5-turbo-0125", "ft:gpt-3.5-turbo:threads:1234")
MODELS = OURS + DOCUMENTED
"""Models that answer."""

PLAIN = httpx2.create_ssl_context(verify=False)
"""For what asks loopback: a client that is given none reads all authorities, which takes longer
than a test's requests."""


@dataclass
class Service:
    """The App, its address, and a client that speaks to it."""

    app: App
    address: str
    http: httpx2.AsyncClient

    async def until(self, path: str, good: Callable[[Any], bool], *, seconds: float = 60) -> Any:
        """What `path` answers, once it is good."""
        found: Any = None

        async def answered() -> bool:
            nonlocal found
            found = (await self.http.get(path)).json()
            return good(found)

        await eventually(answered, seconds, otherwise=lambda: f"{path} answers {found}")
        return found

    async def post(self, path: str, body: Any = None, **headers: str) -> httpx2.Response:
        """Write, with headers such as Idempotency_Key="k"."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post(path, json={} if body is None else body, headers=named)


def posts(count: int = 120) -> list[Post]:
    """Posts of the last days that all did well."""
    now = datetime.now(UTC)
    return [
        Post(
            id=f"post-{i}",
            persona_id=f"persona-{i % 7}",
            original_input=f"topic number {i}",
            hook=f"A hook about topic {i}",
            body=f"The body of post {i}, which is long enough",
            engagement_rate=0.06 + i * 1e-4,
            ts=now - timedelta(hours=i % 100 + 1),
            tokens_used=50,
        )
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def chat_provider() -> Iterator[Chat]:
    with chat_server() as chat:
        yield chat


@pytest.fixture
def chat(chat_provider: Chat) -> Chat:
    """A provider that answers chat requests; healthy at the start of each test."""
    for forget in (chat_provider.bodies, chat_provider.headers):
        forget.clear()
    chat_provider.failing.clear()
    chat_provider.cutting.clear()
    chat_provider.refusing = lambda body: False
    return chat_provider


@pytest.fixture
def settings(tmp_path: Path, data_template: Path, chat: Chat) -> Settings:
    shutil.copytree(data_template, tmp_path / "data")
    return Settings.load(
        dir=tmp_path / "data",
        env={},
        port=0,
        base_url=chat.url,
        api_key="provider-key",
        base_model="base",
        training_data_threshold=10,
        poll_seconds=0.02,
        **{
            "server.metrics_enabled": False,
            "providers.default.prices": {"base": [1.0, 2.0], "cand": [10.0, 20.0]},
        },
    )


@asynccontextmanager
async def open_service(
    settings: Settings,
    provider: MemoryProvider | None = None,
    seen: Sequence[Post] | None = None,
) -> AsyncIterator[Service]:
    """A service on loopback, which needs no token; `seen` are the posts of its source."""
    made = provider or MemoryProvider(base_models=MODELS)
    async with (
        App.open(settings, source=MemorySource(seen or posts()), provider=made, poll_s=0.02) as app,
        serving(app, settings) as (address, _),
        httpx2.AsyncClient(base_url=address, timeout=30, trust_env=False, verify=PLAIN) as http,
    ):
        yield Service(app, address, http)


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    """A service with the settings of this folder."""
    async with open_service(settings) as opened:
        yield opened


@pytest.fixture
async def on_either(settings: Settings, database_url: str) -> AsyncIterator[Service]:
    """The same on SQLite and on PostgreSQL."""
    stored = replace(settings, store=replace(settings.store, url=database_url))
    async with open_service(stored) as opened:
        yield opened


@pytest.fixture
async def test_id(service: Service) -> str:
    """A test of `cand` against `base` with half of the traffic."""
    answer = await service.post(
        "/evaluation/create-ab-test",
        {
            "baseline_model": {"model_id": "base"},
            "candidate_model": {"model_id": "cand"},
            "traffic_split": 0.5,
            "duration_hours": 24,
        },
    )
    assert answer.status_code == 201, answer.text
    return answer.json()["ab_test_id"]
