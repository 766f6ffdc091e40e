"""Redis by Sentinels fails over while a service answers from it: no request fails."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx2
import pytest
from tests.deployed.sentinels import WatchedRedis, encrypted_redis, watched_redis
from tests.integration.watched.middle import Watched, in_the_middle_of_a_test
from tests.waiting import eventually

from tuneproof.cache import Cache
from tuneproof.errors import StoreUnavailableError
from tuneproof.settings import CacheConfig, Url

pytestmark = pytest.mark.cluster

CALLERS = 10


class Load:
    """Callers who ask for a test's figures all the time, and what they were answered."""

    def __init__(self, http: httpx2.AsyncClient, path: str) -> None:
        self._http, self._path = http, path
        self.answers: Counter[int] = Counter()
        self.longest_s = 0.0

    async def call(self) -> None:
        while True:
            began = time.monotonic()
            self.answers[(await self._http.get(self._path)).status_code] += 1
            self.longest_s = max(self.longest_s, time.monotonic() - began)

    @asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        callers = [asyncio.create_task(self.call()) for _ in range(CALLERS)]
        try:
            yield
        finally:
            for caller in callers:
                caller.cancel()
            ended = await asyncio.gather(*callers, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended

    async def more(self, count: int) -> None:
        """Wait for so many more answers."""
        wanted = self.answers.total() + count
        await eventually(lambda: self.answers.total() >= wanted)


@pytest.mark.parametrize("how", ["killed", "handed over"])
async def test_a_failover_under_load_fails_no_request(
    tmp_path: Path, sqlite_store_url: str, how: str, measured: Callable[[str], None]
) -> None:
    with watched_redis() as redis:
        config = CacheConfig(enabled=True, url=Url(redis.url))
        async with (
            in_the_middle_of_a_test(tmp_path, sqlite_store_url, cache=config) as watched,
            httpx2.AsyncClient(base_url=watched.address, timeout=60, trust_env=False) as http,
        ):
            [test, *_] = (await http.get("/evaluation/tests")).json()["items"]
            load = Load(http, f"/evaluation/metrics/{test['ab_test_id']}")
            async with load.going():
                await load.more(200)
                assert await keeps(watched, redis, "before")
                began = time.monotonic()
                if how == "killed":
                    redis.primary.stop(kill=True)
                else:
                    redis.hand_over()
                await eventually(lambda: redis.port == redis.replica.port, every_s=0.1)
                elected = time.monotonic() - began
                await eventually(lambda: keeps(watched, redis, "after"), every_s=0.1)
                back = time.monotonic() - began
                await load.more(200)
                if how == "killed":
                    await asyncio.to_thread(redis.primary.start)
                    await load.more(200)
            assert set(load.answers) == {200}
            assert back < 30
            health = (await http.get("/health")).json()["checks"]["redis"]
            assert health["status"] == "healthy"
            misses = watched.loop.app.cache.misses
            await http.get(load._path)
            assert watched.loop.app.cache.misses == misses, "it is answered from the new primary"
    measured(
        f"Redis's primary {how}: another after {elected:.1f} s, used after {back:.1f} s; "
        f"{load.answers.total()} answers, the slowest {load.longest_s:.2f} s, none failed"
    )


async def keeps(watched: Watched, redis: WatchedRedis, key: str) -> bool:
    """Whether what the service keeps is then at the primary that the Sentinels name."""
    if not await watched.loop.app.cache.set(key, "kept", 60):
        return False
    found = await asyncio.to_thread(redis.client().keys, f"*{key}*")
    return bool(found)


async def test_sentinels_and_redis_are_spoken_to_by_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with encrypted_redis(tmp_path) as url:
        with monkeypatch.context() as trusted:
            trusted.setenv("SSL_CERT_FILE", str(tmp_path / "tls.crt"))
            cache = Cache(url)
            assert await eventually(partial(cache.set, "key", "kept", 60))
            assert await cache.get("key") == "kept"
            await cache.close()
        cache = Cache(url)  # nobody vouches for that certificate any more
        with pytest.raises(StoreUnavailableError, match=r"no Sentinel of .* names a primary"):
            await cache.ping()
        await cache.close()
