"""Measures one circuit breaker and prints JSON: run by the interpreter that has it installed.

python measure.py NAME      NAME: tuneproof, purgatory, pybreaker, aiobreaker
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from datetime import timedelta
from importlib.metadata import version
from typing import Any

Call = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]

CALLS = 30_000
CALLERS = 50
REJECTIONS = 1_000
THRESHOLD = 3
SHORT_S, LONG_S = 0.05, 3600.0


def tuneproof(timeout_s: float) -> Call:
    from tuneproof.resilience import CircuitBreaker

    return CircuitBreaker(THRESHOLD, timeout_s).call


def purgatory(timeout_s: float) -> Call:
    from purgatory import AsyncCircuitBreakerFactory

    factory = AsyncCircuitBreakerFactory(default_threshold=THRESHOLD, default_ttl=timeout_s)

    async def call(fn: Callable[[], Awaitable[Any]]) -> Any:
        async with await factory.get_breaker("service"):
            return await fn()

    return call


def pybreaker(timeout_s: float) -> Call:
    from pybreaker import CircuitBreaker

    return CircuitBreaker(fail_max=THRESHOLD, reset_timeout=timeout_s).call_async


def aiobreaker(timeout_s: float) -> Call:
    from aiobreaker import CircuitBreaker

    breaker = CircuitBreaker(fail_max=THRESHOLD, timeout_duration=timedelta(seconds=timeout_s))
    return breaker.call_async


async def answer() -> int:
    return 1


async def fail() -> None:
    raise OSError("down")


async def overhead_ns(call: Call) -> float:
    """Nanoseconds that a closed breaker adds to a call, beside the bare call."""
    started = time.perf_counter()
    for _ in range(CALLS):
        await answer()
    bare = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(CALLS):
        await call(answer)
    return (time.perf_counter() - started - bare) / CALLS * 1e9


async def open_it(call: Call) -> None:
    for _ in range(THRESHOLD):
        with contextlib.suppress(Exception):
            await call(fail)


async def let_through(call: Call) -> int:
    """How many of 50 concurrent callers reach a service that is trying to get up."""
    await open_it(call)
    await asyncio.sleep(SHORT_S * 1.5)
    reached = 0

    async def slow_answer() -> None:
        nonlocal reached
        reached += 1
        await asyncio.sleep(0.02)

    await asyncio.gather(*(call(slow_answer) for _ in range(CALLERS)), return_exceptions=True)
    return reached


async def bytes_per_rejection(call: Call) -> float:
    """Memory that stays behind after each refused call."""
    await open_it(call)

    async def reject(times: int) -> None:
        for _ in range(times):
            try:
                await call(answer)
            except Exception:
                continue

    await reject(10)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    await reject(REJECTIONS)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return max(0.0, (after - before) / REJECTIONS)


async def measure(make: Callable[[float], Call]) -> dict[str, float]:
    closed = make(LONG_S)
    await overhead_ns(closed)  # warm
    return {
        "overhead_ns": min([await overhead_ns(closed) for _ in range(3)]),
        "let_through": await let_through(make(SHORT_S)),
        "bytes_per_rejection": await bytes_per_rejection(make(LONG_S)),
    }


if __name__ == "__main__":
    name = sys.argv[1]
    made = {f.__name__: f for f in (tuneproof, purgatory, pybreaker, aiobreaker)}[name]
    print(json.dumps({**asyncio.run(measure(made)), "version": version(name)}))
