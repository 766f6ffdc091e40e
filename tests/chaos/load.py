"""Two applications that ask for answers: one the gateways, one the client in its own process."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp

from tuneproof.client import Client
from tuneproof.server.tickets import Ticket

TICK_S = 0.02
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Answered:
    """What a request came to. `model` is empty where there was no answer."""

    unit: str
    began: float
    ended: float
    status: int
    model: str = ""
    arm: str = ""
    fallback: bool = False
    exposure: str = ""
    error: str = ""


@dataclass
class Books:
    """All that was asked and answered."""

    answered: list[Answered] = field(default_factory=list)
    recorded: list[str] = field(default_factory=list)
    client_arms: dict[str, str] = field(default_factory=dict)
    client_failed: list[str] = field(default_factory=list)
    slowest_choice_s: float = 0.0


class Load:
    """Asks at a steady rate, however long the answers take."""

    def __init__(self, gateway: str, client: Client, *, rate: float, books: Books) -> None:
        self._gateway = gateway
        self._client = client
        self._rate = rate
        self._books = books
        self._number = 0

    async def run(self, until: float) -> None:
        """Ask until that instant, and wait for what was asked."""
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            began = time.monotonic()
            while time.monotonic() < until:
                due = int((time.monotonic() - began) * self._rate)
                while self._number < due:
                    self._number += 1
                    if self._number % 2:
                        group.create_task(self._ask(session, self._number))
                    else:
                        self._choose(self._number)
                await asyncio.sleep(TICK_S)

    async def _ask(self, session: aiohttp.ClientSession, number: int) -> None:
        unit, began = f"post-{number % 4000}", time.monotonic()
        body = {"model": "tuneproof/hook", "messages": [], "user": unit}
        try:
            async with session.post(f"{self._gateway}/v1/chat/completions", json=body) as answer:
                content = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            found = Answered(unit, began, time.monotonic(), 0, error=repr(error))
        else:
            found = self._read(unit, began, answer, content)
        self._books.answered.append(found)

    @staticmethod
    def _read(
        unit: str, began: float, answer: aiohttp.ClientResponse, content: dict[str, dict[str, str]]
    ) -> Answered:
        headers, ended = answer.headers, time.monotonic()
        if answer.status != 200:
            code = str(content.get("error", {}).get("code"))
            return Answered(unit, began, ended, answer.status, error=code)
        ticket = Ticket.decode(headers["x-tuneproof-response"])
        return Answered(
            unit,
            began,
            ended,
            200,
            model=headers["x-tuneproof-model"],
            arm=headers["x-tuneproof-arm"],
            fallback="x-tuneproof-fallback" in headers,
            exposure=ticket.exposure,
        )

    def _choose(self, number: int) -> None:
        unit, began = f"post-{number % 4000}", time.monotonic()
        try:
            choice = self._client.choose("hook", unit)
            recorded = self._client.record(choice, latency_ms=1.0)
        except Exception as error:
            self._books.client_failed.append(repr(error))
            return
        self._books.slowest_choice_s = max(self._books.slowest_choice_s, time.monotonic() - began)
        self._books.client_arms[f"{choice.subject}:{unit}"] = choice.model
        if recorded is not None:
            self._books.recorded.append(recorded)


def quantile(values: list[float], share: float) -> float:
    """A quantile, in the units given; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def statuses(books: Books) -> dict[str, int]:
    """How often each status was answered, with its error's code."""
    return dict(Counter(f"{one.status} {one.error}".strip() for one in books.answered))
