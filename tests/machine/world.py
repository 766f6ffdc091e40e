"""The real service on one database, over its wire, with a clock that a test moves by hand.

Durable functions sleep until the clock is moved; `settle` wakes those whose time has come, and
waits until each test and rollout under way is asleep again: whose watch died, it finds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
from tests.integration.loop import posts
from tests.waiting import eventually

from tuneproof.app import App
from tuneproof.cli.serve import serving
from tuneproof.experiments import ModelEvaluator
from tuneproof.settings import PipelineConfig, ServerConfig, Settings, StoreConfig
from tuneproof.testing import MemoryProvider, MemorySource
from tuneproof.workflow import TICK

T0 = datetime(2025, 1, 6, 2, 0, tzinfo=UTC)
TASKS = ("hook", "body")
MODELS = ("base", "alpha", "beta")
SILENT = "ghost"
"""A model that nobody serves."""

CONFIG = PipelineConfig(
    base_model="base",
    training_data_threshold=50,
    gate_samples=3,
    tasks=TASKS,
    a_b_test_duration_hours=24,
    traffic_split=0.5,
    maturation_hours=1,
    min_units=12,
    min_units_phase=12,
    min_step_units=10,
    criteria=("engagement superior 0.15",),
    initial_traffic=0.25,
    increment_percentage=0.25,
    increment_interval_hours=6,
    holdback_days=1,
    pause_after_hours=24,
    look_interval_hours=1,
    schedule_driver="external",
)

WITHIN_S = 30.0
"""How long the watches may take to look, before one is called dead."""


class HandClock:
    """A clock that stands still until it is moved, and knows who sleeps until when."""

    def __init__(self) -> None:
        self.at = T0
        self.asleep: dict[str, datetime] = {}

    def now(self) -> datetime:
        return self.at

    async def sleep_until(self, at: datetime) -> None:
        await eventually(lambda: self.at >= at)

    def waiting(self, run_id: str, until: datetime) -> None:
        self.asleep[run_id] = until

    def awake(self, run_id: str) -> None:
        self.asleep.pop(run_id, None)

    def ended(self, run_id: str) -> None:
        self.asleep.pop(run_id, None)

    def due(self) -> list[str]:
        return sorted(id for id, until in self.asleep.items() if until <= self.at)


@dataclass(frozen=True)
class Answer:
    """What the service said."""

    status: int
    body: Any
    headers: Mapping[str, str]

    @property
    def ok(self) -> bool:
        return self.status < 300


class World:
    """A service that may be closed and opened anew; the database and the clock go on."""

    def __init__(self, directory: Path, database: str) -> None:
        self.clock = HandClock()
        self._directory = directory
        self._database = database
        self._provider = MemoryProvider(clock=self.clock, base_models=MODELS)
        self._closing = AsyncExitStack()
        self.touched = True
        """Whether anything was done since somebody last looked at everything."""

    def _settings(self, worker: str) -> Settings:
        return Settings(
            dir=self._directory / worker,
            pipelines={"default": CONFIG},
            store=StoreConfig(url=self._database),
            server=ServerConfig(port=0, metrics_enabled=False),
        )

    def _app(self, worker: str, *, engine: bool = True) -> Any:
        return App.open(
            self._settings(worker),
            clock=self.clock,
            provider=self._provider,
            source=MemorySource(posts()),
            poll_s=0.005,
            takeover_s=0.05,
            background=False,
            engine=engine,
        )

    async def open(self) -> None:
        """Open the App, serve it, and take up what was under way."""
        self.clock.asleep.clear()
        settings = self._settings("one")
        self.app: App = await self._closing.enter_async_context(self._app("one"))
        address, _ = await self._closing.enter_async_context(serving(self.app, settings))
        client = httpx2.AsyncClient(base_url=address, timeout=60, trust_env=False)
        self.http = await self._closing.enter_async_context(client)

    async def close(self) -> None:
        await self._closing.aclose()

    async def restart(self) -> None:
        """Another process on the same database."""
        self.touched = True
        await self.close()
        self._closing = AsyncExitStack()
        await self.open()
        await self.settle()

    @asynccontextmanager
    async def second_worker(self) -> AsyncIterator[App]:
        """Another App on the same database, with connections of its own."""
        async with self._app("two", engine=False) as app:
            yield app

    # --- the wire ---------------------------------------------------------------------

    async def get(self, path: str) -> Answer:
        return self._read("GET", path, await self.http.get(path))

    async def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
        self.touched = True
        return self._read("POST", path, await self.http.post(path, json=body, headers=headers))

    def _read(self, method: str, path: str, said: httpx2.Response) -> Answer:
        assert said.status_code < 500, f"{method} {path} -> {said.status_code}: {said.text}"
        is_json = "json" in said.headers.get("content-type", "")
        return Answer(said.status_code, said.json() if is_json else said.text, said.headers)

    async def all(self, path: str) -> list[dict[str, Any]]:
        """A list, newest first."""
        items: list[dict[str, Any]] = (await self.get(f"{path}?limit=1000")).body["items"]
        return items

    async def routing(self) -> dict[str, dict[str, Any]]:
        """Which model serves each task, as a client reads it."""
        await self.app.routing.board.refresh()
        table = (await self.get("/routing")).body["routing"]
        return {routing["task"]: routing for routing in table}

    # --- time -------------------------------------------------------------------------

    async def move(self, by: timedelta) -> None:
        """Let time pass; whoever must look by then does."""
        self.touched = True
        self.clock.at += by
        await self.settle()
        for _ in range(2):
            await self.app.watchdog.look()
        await self.settle()

    async def settle(self) -> None:
        """Until all that is under way sleeps again, and all else has ended."""
        told: set[tuple[str, datetime]] = set()

        async def still() -> bool:
            for id in self.clock.due():
                if (id, self.clock.at) not in told:
                    told.add((id, self.clock.at))
                    await self.app.engine.send(id, TICK)
            watched = {w.workflow for w in await self.app.store.watches.under_way()}
            asleep = {id for id, until in self.clock.asleep.items() if until > self.clock.at}
            return watched <= asleep and set(await self.app.engine.pending()) <= asleep

        await eventually(still, WITHIN_S, otherwise=self._who_is_awake)

    def _who_is_awake(self) -> str:
        return f"It is {self.clock.at}; asleep until: {self.clock.asleep}"

    # --- looks by hand ----------------------------------------------------------------

    async def look(self, family: str, app: App | None = None) -> None:
        """A look at tests by hand, as a notebook takes it."""
        self.touched = True
        one = app or self.app
        evaluator = ModelEvaluator(store=one.store, clock=self.clock, config=CONFIG)
        await evaluator.look(family)

    async def look_at_rollout(self, id: str, app: App | None = None) -> None:
        """A look at a rollout by hand."""
        self.touched = True
        await (app or self.app).managers.of(CONFIG).look(id)
