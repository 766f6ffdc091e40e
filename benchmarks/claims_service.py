"""Four claims of the pipeline that TuneProof comes from, about its calls and connections.

It said: five times the throughput of the provider's API by async calls, 95 % cache hits on
repeated reads, connections under 5 ms, and recovery by itself after an outage. Each is measured
against the way that it improves on: a synchronous client in a loop, reading the database each
time, connecting anew for each use, and retrying without a breaker.
"""

from __future__ import annotations

import asyncio
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import psycopg
import redis.asyncio
import stamina
from tests.integration.store.records import experiment, look
from tests.servers import postgres_server, redis_server

from environments import PEERS
from tuneproof.app import App
from tuneproof.errors import CircuitBreakerError, TuneProofError
from tuneproof.providers import open_provider
from tuneproof.resilience import CircuitBreaker, postgres_engine, prewarm, redis_pool, retrying
from tuneproof.server import create_app
from tuneproof.settings import ProviderConfig, Settings
from tuneproof.testing import MemoryProvider

PROVIDER = PEERS / "claims" / "provider.py"
MESSAGES = [{"role": "user", "content": "Create engaging content"}]
CONCURRENT = 32
READ_S = {"dashboard": 10, "Prometheus": 15, "script": 30}
WINDOW_S, LOOKS = 300, 8
CONNECTIONS = 100
OUTAGE_S, CALLERS = 12.0, 20
FAILURES, OPEN_S = 3, 2.0


def records() -> list[dict[str, Any]]:
    """Measure all four."""
    logging.getLogger("tuneproof").setLevel("ERROR")
    stamina.instrumentation.set_on_retry_hooks([])
    with _provider() as port:
        calls = asyncio.run(_throughput(port))
        outage = asyncio.run(_outages(port))
    with redis_server() as cached, postgres_server() as server:
        reads = asyncio.run(_reads(cached.url))
        connections = asyncio.run(_connections(server.url, cached.url))
    return [calls, *reads, *connections, *outage]


def _record(
    name: str, ours: float, unit: str, peer: str, theirs: float, goal: str, met: bool | None
) -> dict[str, Any]:
    return {
        "name": f"claim: {name}",
        "ours": round(ours, 3),
        "unit": unit,
        "peer": peer,
        "peer_value": round(theirs, 3),
        "ratio": None,
        "goal": goal,
        "met": met,
    }


# --- five times the throughput ------------------------------------------------------------


async def _throughput(port: int) -> dict[str, Any]:
    provider = _opened(port)
    asking = asyncio.Semaphore(CONCURRENT)

    async def ask() -> None:
        async with asking:
            await provider.complete("base", MESSAGES)

    ours, theirs = [], []
    for _ in range(3):
        ours.append(await _rate(400, lambda: asyncio.gather(*(ask() for _ in range(400)))))
        theirs.append(await _rate(40, lambda: asyncio.to_thread(_in_a_loop, port, 40)))
    await provider.close()
    rate, loop = statistics.median(ours), statistics.median(theirs)
    made = _record(
        f"5× throughput of a provider that takes 50 ms, {CONCURRENT} calls at a time",
        rate,
        "calls/s",
        f"openai {openai.__version__} synchronous, one after the other",
        loop,
        "≥ 5 ×",
        rate >= 5 * loop,
    )
    return made | {"ratio": round(rate / loop, 1)}


async def _rate(count: int, act: Callable[[], Awaitable[Any]]) -> float:
    began = time.perf_counter()
    await act()
    return count / (time.perf_counter() - began)


def _in_a_loop(port: int, count: int) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="key") as client:
        for _ in range(count):
            client.chat.completions.create(model="base", messages=MESSAGES)


def _opened(port: int, breaker: CircuitBreaker | None = None) -> Any:
    config = ProviderConfig(
        name="fake", kind="compatible", base_url=f"http://127.0.0.1:{port}/v1", api_key="key"
    )
    return open_provider(config, breaker=breaker)


# --- 95 % cache hits ----------------------------------------------------------------------


async def _reads(redis_url: str) -> list[dict[str, Any]]:
    made = []
    async with _app("mem://", cached=False) as app:
        _, direct_us = await _read_windows(app)
    for name, url in (("memory", "mem://"), ("Redis", redis_url)):
        async with _app(url) as app:
            hits, cached_us = await _read_windows(app)
        readers = ", ".join(f"{who} {every} s" for who, every in READ_S.items())
        made += [
            _record(
                f"95 % cache hits of metrics in {name} (each look new; read by {readers})",
                100 * hits,
                "%",
                "no cache",
                0.0,
                "≥ 95 %",
                hits >= 0.95,
            ),
            _record(
                f"GET /evaluation/metrics/{{id}}, cached in {name}",
                cached_us,
                "µs",
                "without a cache, from SQLite",
                direct_us,
                "",
                None,
            )
            | {"ratio": round(direct_us / cached_us, 2)},
        ]
    return made


@asynccontextmanager
async def _app(cache_url: str, *, cached: bool = True) -> AsyncIterator[App]:
    with tempfile.TemporaryDirectory() as folder:
        cache = {"cache.url": cache_url, "cache.enabled": cached}
        settings = Settings.load(dir=Path(folder), env={}, **cache)
        async with App.open(settings, provider=MemoryProvider(), engine=False) as app:
            await app.store.experiments.add(experiment("ab-test-1"))
            yield app


async def _read_windows(app: App) -> tuple[float, float]:
    """Hit rate and µs of the reads of one time to live after each of a few looks."""
    reads = sum(WINDOW_S // every for every in READ_S.values())
    taken = []
    transport = httpx2.ASGITransport(app=create_app(app))
    http = httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1")
    for number in range(1, LOOKS + 1):
        await app.store.experiments.add_look(look("ab-test-1", number))
        for _ in range(reads):
            began = time.perf_counter()
            (await http.get("/evaluation/metrics/ab-test-1")).raise_for_status()
            taken.append(time.perf_counter() - began)
    return app.cache.hit_rate or 0.0, statistics.median(taken) * 1e6


async def _us(count: int, act: Callable[[], Awaitable[Any]]) -> float:
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        await act()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6


# --- connections under 5 ms ---------------------------------------------------------------


async def _connections(database: str, cached: str) -> list[dict[str, Any]]:
    engine, pool = postgres_engine(database), redis_pool(cached)
    await prewarm(engine)
    bare = database.replace("+psycopg", "")

    async def checkout() -> None:
        async with engine.connect():
            pass

    async def connect() -> None:
        await (await psycopg.AsyncConnection.connect(bare)).close()

    async def lease() -> None:
        await pool.release(await pool.get_connection())

    async def dial() -> None:
        line = redis.asyncio.Redis.from_url(cached)
        await line.ping()
        await line.aclose()

    made = []
    for name, ours, theirs in (("PostgreSQL", checkout, connect), ("Redis", lease, dial)):
        await ours()
        pooled, anew = [], []
        for _ in range(CONNECTIONS):
            pooled.append(await _us(1, ours) / 1000)
            anew.append(await _us(1, theirs) / 1000)
        slowest = sorted(pooled)[int(0.99 * CONNECTIONS)]
        middle, new = statistics.median(pooled), statistics.median(anew)
        made.append(
            _record(
                f"a connection to {name} under 5 ms, from the pool, 99th percentile",
                slowest,
                "ms",
                "connecting anew, median",
                new,
                "no slower than anew",
                slowest <= new,
            )
            | {"ratio": round(new / middle, 1), "median_ms": round(middle, 3)}
        )
    await engine.dispose()
    await pool.disconnect()
    return made


# --- recovery after an outage -------------------------------------------------------------


async def _outages(port: int) -> list[dict[str, Any]]:
    breaker = CircuitBreaker(FAILURES, OPEN_S, name="fake")
    ours = await _outage(port, _opened(port, breaker), _patient)
    theirs = await _outage(port, _opened(port), _stubborn)
    what = f"an outage of {OUTAGE_S:g} s, {CALLERS} callers"
    peer = "each caller retries after 1, 2, 4, 4 … s"
    return [
        _record(
            f"calls wasted on a provider that is away ({what})",
            ours["wasted"],
            "calls",
            peer,
            theirs["wasted"],
            "fewer",
            ours["wasted"] < theirs["wasted"],
        )
        | {"ratio": round(theirs["wasted"] / ours["wasted"], 1)},
        _record(
            f"from the provider's return to the first good call ({what}, breaker {OPEN_S:g} s)",
            ours["recovery_s"],
            "s",
            peer,
            theirs["recovery_s"],
            f"≤ {4 * OPEN_S:g} s, the breaker's third wait",
            ours["recovery_s"] <= 4 * OPEN_S + 0.1,
        ),
    ]


async def _outage(
    port: int, provider: Any, caller: Callable[[Any], Awaitable[None]]
) -> dict[str, float]:
    await provider.complete("base", MESSAGES)
    await asyncio.to_thread(_control, port, f"/away?seconds={OUTAGE_S}", "POST")
    async with asyncio.timeout(60):
        await asyncio.gather(*(caller(provider) for _ in range(CALLERS)))
    found = await asyncio.to_thread(_control, port, "/count", "GET")
    await provider.close()
    return {"wasted": found["wasted"], "recovery_s": found["first_at"] - found["back_at"]}


async def _patient(provider: Any) -> None:
    """A caller behind the breaker: asks whether it may every 100 ms."""
    while True:
        try:
            await provider.complete("base", MESSAGES)
            return
        except CircuitBreakerError:
            await asyncio.sleep(0.1)
        except TuneProofError:
            continue


async def _stubborn(provider: Any) -> None:
    await retrying(
        lambda: provider.complete("base", MESSAGES),
        attempts=100,
        timeout=60.0,
        wait_max=4.0,
        wait_jitter=0.0,
    )


def _control(port: int, path: str, method: str) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


@contextmanager
def _provider() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, str(PROVIDER)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["port"]
    finally:
        process.terminate()
        process.wait(20)


if __name__ == "__main__":
    for record in records():
        print(record)
