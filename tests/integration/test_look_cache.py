"""What looks show is read through the cache where it helps, by the endpoints and the gauges."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis
from tests.integration.loop import Loop
from tests.integration.providing import Provider, open_providers
from tests.servers import Server, redis_server

from tuneproof.server import create_app
from tuneproof.settings import CacheConfig, Url
from tuneproof.store import RunStatus

RATE = "fine_tuning_pipeline_cache_hit_rate"


@pytest.fixture(scope="module")
def redis() -> Iterator[Server]:
    with redis_server() as server:
        yield server


@asynccontextmanager
async def after_a_run(directory: Path, database: str, cache: CacheConfig) -> AsyncIterator[Loop]:
    """A loop whose run has tested and rolled out its candidate."""
    provider = Provider(name="p")
    async with open_providers(directory, database, provider, cache=cache) as loop:
        assert (await loop.turn()).status is RunStatus.SUCCESS
        yield loop


@asynccontextmanager
async def speaking(loop: Loop) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=create_app(loop.app))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        yield http


def series(text: str, name: str) -> dict[str, float]:
    """The series of a metric, by their labels."""
    lines = (line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{")))
    found = (line.removeprefix(name).rsplit(" ", 1) for line in lines)
    return {labels: float(value) for labels, value in found}


@pytest.mark.postgres
async def test_metrics_of_a_test_are_read_through_redis_under_the_documented_keys(
    tmp_path: Path, postgres_store_url: str, redis: Server
) -> None:
    """Seen: 20 reads made no read of Redis, whose keys were under a prefix of ours."""
    cache = CacheConfig(url=Url(redis.url))
    async with (
        after_a_run(tmp_path, postgres_store_url, cache) as loop,
        speaking(loop) as http,
        Redis.from_url(redis.url, decode_responses=True) as client,
    ):
        [test] = (await loop.app.store.experiments.page()).items
        path = f"/evaluation/metrics/{test.id}"
        await client.flushall()
        first = (await http.get(path)).json()
        keys = [key async for key in client.scan_iter("model_metrics:*")]
        assert {key.split(":")[2] for key in keys} == {"baseline", "candidate", "look"}
        assert first["metrics"]["candidate"]["sample_size"] > 0
        hits = (await client.info("stats"))["keyspace_hits"]
        for _ in range(20):
            assert (await http.get(path)).json() == first
        assert (await client.info("stats"))["keyspace_hits"] - hits == 60
        await http.get("/health/model-performance")
        assert (await client.info("stats"))["keyspace_hits"] - hits == 63
        shown = (await http.get("/metrics")).text
        assert 0.9 < series(shown, RATE)[""] < 1

        # Another service's test of the same name is none of ours.
        key = next(key for key in keys if ":look:" in key)
        await client.set(key, '{"test_began": "2020-01-01T00:00:00+00:00"}')
        assert (await http.get(path)).json() == first


async def test_a_new_look_is_shown_at_once(
    tmp_path: Path, sqlite_store_url: str, redis: Server
) -> None:
    cache = CacheConfig(url=Url(redis.url), enabled=True)
    async with (
        open_providers(tmp_path, sqlite_store_url, Provider(name="p"), cache=cache) as loop,
        speaking(loop) as http,
    ):
        seen: list[Any] = []

        class Reading:
            async def advance(self, since: object, until: object) -> None:
                for test in (await loop.app.store.experiments.page()).items:
                    found = (await http.get(f"/evaluation/metrics/{test.id}")).json()
                    looks = await loop.app.store.experiments.looks(test.id)
                    seen.append((found["looks"], len(looks)))

        loop.app.let_time_pass(Reading())
        await loop.turn()
        assert [shown for shown, _ in seen] == [kept for _, kept in seen]
        assert max(shown for shown, _ in seen) > 3


async def test_beside_sqlite_there_is_no_cache_and_no_hit_rate(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    """Seen: its rate stood at 0 there, and the documented alert below 0.8 fired."""
    async with (
        after_a_run(tmp_path, sqlite_store_url, CacheConfig()) as loop,
        speaking(loop) as http,
    ):
        [test] = (await loop.app.store.experiments.page()).items
        for _ in range(3):
            assert (await http.get(f"/evaluation/metrics/{test.id}")).status_code == 200
        assert series((await http.get("/metrics")).text, RATE) == {}


async def test_gauges_without_labels_are_of_the_model_in_use_also_after_a_restart(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    """Seen: they were of both arms, and gone when the service was started again."""
    name = "engagement_rate"
    async with after_a_run(tmp_path, sqlite_store_url, CacheConfig()) as loop:
        [test] = (await loop.app.store.experiments.page()).items
        look = await loop.app.store.experiments.last_look(test.id)
        routing = await loop.app.store.routing.get("hook")
        assert look is not None
        assert routing is not None
        assert routing.baseline.model_id == test.candidate.model_id
    async with (
        open_providers(tmp_path, sqlite_store_url, Provider(name="p")) as loop,
        speaking(loop) as http,
    ):
        await loop.app.gauges.refresh()
        shown = (await http.get("/metrics")).text
    assert series(shown, f"fine_tuning_model_{name}") == {"": look.candidate.engagement_rate}
    assert series(shown, f"tuneproof_arm_{name}") == {
        '{arm="baseline",pipeline="default"}': look.baseline.engagement_rate,
        '{arm="candidate",pipeline="default"}': look.candidate.engagement_rate,
    }
