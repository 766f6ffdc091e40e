"""The cache in memory and in a real Redis, and what it does when Redis goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis
from tests.servers import Server, redis_server
from tests.waiting import eventually, stays

from tuneproof.cache import METRICS_TTL_S, Cache, metrics_key
from tuneproof.errors import ConfigError, StateError, StoreUnavailableError
from tuneproof.resilience import RedisPool, redis_pool


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def redis() -> Iterator[Server]:
    with redis_server() as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[Cache]:
    url = "mem://" if request.param == "memory" else request.getfixturevalue("redis").url
    cache = Cache(url)
    yield cache
    await cache._cashews.clear()
    await cache.close()


@pytest.mark.parametrize(
    "value",
    [{"a": [1, 2.5, None, "ü"]}, "text", "12", 12, -3, 0.1, True, False, None, [], {}, ""],
)
async def test_values_come_back_equal_and_of_the_same_type(cache: Cache, value: Any) -> None:
    assert await cache.set("key", value, 60)
    found = await cache.get("key", "absent")
    assert found == value
    assert type(found) is type(value)


async def test_absent_and_deleted_keys_are_misses(cache: Cache) -> None:
    assert await cache.get("key") is None
    await cache.set("key", 1, 60)
    assert await cache.delete("key")
    assert await cache.get("key", "default") == "default"


async def test_values_end_by_their_time(cache: Cache) -> None:
    await cache.set("short", 1, 0.02)
    await cache.set("long", 1, 60)

    async def ended() -> bool:
        return await cache.get("short") is None

    await eventually(ended)
    assert await cache.get("long") == 1


@pytest.mark.parametrize("value", [b"bytes", {"a": b"bytes"}, {1, 2}, object()])
async def test_values_that_are_not_json_are_refused(cache: Cache, value: Any) -> None:
    with pytest.raises(TypeError):
        await cache.set("key", value, 60)
    assert await cache.get("key") is None


async def test_values_are_copies(cache: Cache) -> None:
    value = {"sizes": [1]}
    await cache.set("key", value, 60)
    value["sizes"].append(2)
    (await cache.get("key"))["sizes"].append(3)
    assert await cache.get("key") == {"sizes": [1]}


async def test_hit_rate_is_measured(cache: Cache) -> None:
    assert cache.hit_rate is None
    await cache.get("key")
    await cache.set("key", 1, 60)
    for _ in range(3):
        await cache.get("key")
    assert (cache.hits, cache.misses, cache.errors) == (3, 1, 0)
    assert cache.hit_rate == 0.75


async def test_of_fifty_concurrent_callers_one_computes(cache: Cache) -> None:
    asked = computed = 0

    async def compute() -> dict[str, int]:
        nonlocal computed
        computed += 1
        await eventually(lambda: asked == 50)
        return {"n": computed}

    async def ask() -> dict[str, int]:
        nonlocal asked
        asked += 1
        return await cache.get_or_compute("key", METRICS_TTL_S, compute)

    values = await asyncio.gather(*(ask() for _ in range(50)))
    assert computed == 1
    assert values == [{"n": 1}] * 50
    assert await cache.get_or_compute("key", 60, compute) == {"n": 1}


async def test_failed_computation_reaches_all_callers_and_is_not_kept(cache: Cache) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async def succeed() -> int:
        return 1

    results = await asyncio.gather(
        *(cache.get_or_compute("key", 60, fail) for _ in range(3)), return_exceptions=True
    )
    assert [type(r) for r in results] == [ZeroDivisionError] * 3
    assert await cache.get_or_compute("key", 60, succeed) == 1


async def test_cancelled_caller_leaves_the_computation_to_the_others(cache: Cache) -> None:
    gate, started = asyncio.Event(), asyncio.Event()

    async def compute() -> int:
        started.set()
        await gate.wait()
        return 1

    first = asyncio.create_task(cache.get_or_compute("key", 60, compute))
    await started.wait()
    second = asyncio.create_task(cache.get_or_compute("key", 60, compute))
    await stays(lambda: not second.done())
    first.cancel()
    gate.set()
    assert await second == 1
    assert first.cancelled()


@pytest.mark.parametrize("connected", [True, False])
async def test_cancellation_is_never_lost_on_the_way_to_redis(
    redis: Server, connected: bool
) -> None:
    """At whichever step of the event loop it comes (Python 3.11's wait_for loses some)."""
    for steps in range(1, 25):
        cache = Cache(redis.url)
        if connected:
            await cache.ping()

        async def use(cache: Cache = cache) -> None:
            await cache.get("key")
            await asyncio.Event().wait()

        task = asyncio.create_task(use())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(5):
            await asyncio.wait([task])
        assert task.cancelled()
        await cache.close()


async def test_lock_is_held_by_one_at_a_time(cache: Cache) -> None:
    async with cache.lock("tick", 60):
        with pytest.raises(StateError, match="locked"):
            async with cache.lock("tick", 60):
                pytest.fail("two hold the lock")
    async with cache.lock("tick", 60):
        pass


async def test_lock_whose_time_is_up_can_be_taken_and_is_not_freed_by_its_old_holder(
    cache: Cache,
) -> None:
    async with cache.lock("tick", 0.02):
        second = cache.lock("tick", 60)

        async def taken() -> bool:
            nonlocal second
            try:
                await second.__aenter__()
            except StateError:
                second = cache.lock("tick", 60)
                return False
            return True

        await eventually(taken)
    with pytest.raises(StateError):
        async with cache.lock("tick", 60):
            pytest.fail("two hold the lock")
    await second.__aexit__(None, None, None)


async def test_keys_are_prefixed_and_values_are_json(redis: Server) -> None:
    cache = Cache(redis.url, prefix="mine")
    key = metrics_key("ab-test-20261120-001", "candidate", 4)
    await cache.set(key, {"engagement_rate": 0.07}, METRICS_TTL_S)
    async with Redis.from_url(redis.url) as client:
        raw = await client.get("mine:model_metrics:ab-test-20261120-001:candidate:v4")
        left = await client.ttl(f"mine:{key}")
        await client.set(f"mine:{key}", b"\x80\x04 no json")
    assert raw == b'{"engagement_rate": 0.07}'
    assert METRICS_TTL_S - 2 <= left <= METRICS_TTL_S
    assert await cache.get(key) is None
    assert cache.errors == 1
    await cache.close()


async def test_given_pool_is_the_one_that_is_used(redis: Server) -> None:
    pool = redis_pool(redis.url)
    cache = Cache(redis.url, pool=pool)
    await cache.set("key", 1, 60)
    assert RedisPool(pool).counts().idle == 1
    await cache.close()


async def test_redis_outage_is_a_miss_an_error_and_visible_then_over() -> None:
    clock = Clock()
    with redis_server() as server:
        cache = Cache(server.url, clock=clock)
        await cache.set("key", 1, 60)
        server.stop(kill=True)
        assert await cache.get("key") is None
        assert not await cache.set("key", 2, 60)
        assert not await cache.delete("key")

        async def compute() -> int:
            return 3

        assert await cache.get_or_compute("key", 60, compute) == 3
        assert cache.errors == 5
        with pytest.raises(StoreUnavailableError, match="Redis did not answer"):
            await cache.ping()
        with pytest.raises(StoreUnavailableError):
            async with cache.lock("tick", 60):
                pytest.fail("a lock without Redis")
        server.start()
        clock.now += 1
        await cache.ping()
        assert await cache.get_or_compute("key", 60, compute) == 3
        assert await cache.get("key") == 3
        await cache.close()


async def test_silent_redis_holds_up_one_caller_not_all() -> None:
    connections = 0

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clock = Clock()
    pool = redis_pool(f"redis://127.0.0.1:{port}/0", command_timeout_s=0.05)
    cache = Cache("redis://ignored", pool=pool, clock=clock)
    assert await cache.get("key") is None
    clock.now += 1
    tried = connections
    values = await asyncio.gather(*(cache.get("key") for _ in range(50)))
    assert values == [None] * 50
    assert cache.errors == 51
    assert 0 < connections - tried <= 4  # the probe, tried again after its time-out
    await cache.close()
    server.close()


async def test_values_that_cannot_be_kept_do_not_look_like_an_outage(cache: Cache) -> None:
    with pytest.raises(TypeError):
        await cache.set("key", object(), 60)
    assert await cache.set("key", 1, 60)
    assert await cache.get("key") == 1


async def test_memory_is_bounded() -> None:
    cache = Cache("mem://", size=100)
    for n in range(1000):
        await cache.set(str(n), n, 60)
    assert await cache.get("0") is None
    assert await cache.get("999") == 999
    await cache.ping()
    await cache.close()


@pytest.mark.parametrize("url", ["", "memcached://x", "/tmp/x"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="scheme"):
        Cache(url)


async def test_time_must_be_above_zero(cache: Cache) -> None:
    with pytest.raises(ConfigError):
        await cache.set("key", 1, 0)
