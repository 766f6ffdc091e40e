"""What applications ask of a service, at a steady rate: which model, its answer, and events.

    async with asked(balancer.url, rate=100) as load:
        ...
    load.failures, load.sent

Half of the requests come by connections of their own, half by kept ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp

__all__ = ["Load", "asked"]

TICK_S = 0.01
TIMEOUT_S = 60.0

MIX = [
    "decide",
    "chat",
    "decide",
    "routing",
    "decide",
    "events",
    "decide",
    "chat",
    "decide",
    "routing",
]
"""Who sends events sends one by one here; clients send many at once."""


@dataclass
class Load:
    """Asks, and keeps the books."""

    url: str
    rate: float
    kept: bool = True
    """Whether half of it comes by connections that are kept."""
    asked: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    exposures: set[str] = field(default_factory=set)
    """The ids of the exposures that were taken."""
    slowest_s: float = 0.0
    began: float = field(default_factory=time.monotonic)

    async def run(self, ends: asyncio.Event) -> None:
        """Ask until told to end, and wait for what was asked."""
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            sessions = [await stack.enter_async_context(_session(True))]
            sessions.append(
                await stack.enter_async_context(_session(False)) if self.kept else sessions[0]
            )
            self.began = time.monotonic()
            while not ends.is_set():
                while self.asked < (time.monotonic() - self.began) * self.rate:
                    self.asked += 1
                    group.create_task(self._ask(sessions[self.asked % 2], self.asked))
                await asyncio.sleep(TICK_S)

    async def _ask(self, session: aiohttp.ClientSession, number: int) -> None:
        what = MIX[number // 2 % len(MIX)]
        began = time.monotonic()
        try:
            await getattr(self, f"_{what}")(session, number)
            self.answers[what] += 1
        except (aiohttp.ClientError, TimeoutError, AssertionError, OSError) as error:
            when = time.monotonic() - self.began
            kept = "own" if number % 2 == 0 else "kept"
            self.failures.append(f"{when:.2f} s: {what} ({kept}): {error!r}"[:400])
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    async def _decide(self, session: aiohttp.ClientSession, number: int) -> dict[str, Any]:
        query = {"task": "hook", "unit": f"unit-{number}"}
        async with session.get(f"{self.url}/decide", params=query) as answer:
            return await _good(answer)

    async def _routing(self, session: aiohttp.ClientSession, number: int) -> None:
        async with session.get(f"{self.url}/routing") as answer:
            assert (await _good(answer))["routing"]

    async def _chat(self, session: aiohttp.ClientSession, number: int) -> None:
        body = {"model": "tuneproof/hook", "messages": [_said("hello")], "user": f"chat-{number}"}
        async with session.post(f"{self.url}/v1/chat/completions", json=body) as answer:
            assert (await _good(answer))["choices"]

    async def _events(self, session: aiohttp.ClientSession, number: int) -> None:
        decided = await self._decide(session, number)
        exposure = {
            "id": f"load-{number}",
            "at": datetime.now(UTC).isoformat(),
            **{name: decided[name] for name in ("subject", "phase", "arm", "unit", "task")},
        }
        assert decided["subject"], decided
        batch = {"exposures": [exposure], "outcomes": []}
        async with session.post(f"{self.url}/events", json=batch) as answer:
            taken = await _good(answer)
            assert taken["accepted"] + taken["duplicates"] == 1, taken
            self.exposures.add(str(exposure["id"]))

    def said(self) -> str:
        """What came of it, in a line."""
        lasted = time.monotonic() - self.began
        return (
            f"{self.asked} requests in {lasted:.0f} s ({self.asked / lasted:.0f}/s): "
            f"{len(self.failures)} failed, the slowest took {self.slowest_s:.2f} s"
        )


def _said(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def _good(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    text = await answer.text()
    assert 200 <= answer.status < 300, f"{answer.status}: {text[:300]}"
    found: dict[str, Any] = await answer.json()
    return found


def _session(force_close: bool) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=force_close),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
    )


@asynccontextmanager
async def asked(url: str, *, rate: float, kept: bool = True) -> AsyncIterator[Load]:
    """Ask while the block runs."""
    load, ends = Load(url, rate, kept), asyncio.Event()
    running = asyncio.create_task(load.run(ends))
    try:
        yield load
    finally:
        ends.set()
        with contextlib.suppress(asyncio.CancelledError):
            await running
