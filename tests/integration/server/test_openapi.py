"""The OpenAPI document against the service: no 5xx, and nothing that it does not say.

A test and a rollout run meanwhile, and are begun anew once a request has ended them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.chat import Chat
from tests.fuzzing.running import REQUESTS, schemathesis
from tests.integration.server.conftest import Service, open_service
from tests.waiting import eventually

from tuneproof.errors import TuneProofError
from tuneproof.experiments import Variant
from tuneproof.settings import Settings

UNCHECKED = ("positive_data_acceptance",)
"""What has the right shape may still be refused: it names what is not there, or has ended."""

ENDLESS = "/stream"
BASE = Variant(model_id="base")


class World:
    """A service with something to work on, and the ids of that."""

    def __init__(self, service: Service, ids: Path) -> None:
        self.service = service
        self._ids = ids
        self._found: dict[str, list[str]] = {
            "task": ["hook", "body"],
            "pipeline": ["default"],
            "model": ["tuneproof/hook", "tuneproof/body"],
            "arm": ["baseline", "candidate"],
            "slug": ["not-found", "input", "http"],
        }

    async def keep_busy(self) -> None:
        """See to it that a test and a rollout run, whatever becomes of them."""
        while True:
            await self._begin()
            self._ids.write_text(json.dumps(self._found))
            await eventually(self._idle, 3600, every_s=0.2)

    async def _idle(self) -> bool:
        rows = self.service.app.routing.board.snapshot.routing
        return not {"hook", "body"} <= {row.task for row in rows if row.subject}

    async def _begin(self) -> None:
        busy = {r.task for r in self.service.app.routing.board.snapshot.routing if r.subject}
        if "hook" not in busy:
            await self._test()
        if "body" not in busy:
            await self._rollout()

    async def _test(self) -> None:
        try:
            [test] = await self.service.app.experiments.create(
                baseline=BASE, candidates=[Variant(model_id="cand")], tasks=["hook"]
            )
        except TuneProofError:
            return
        self._know("ab_test_id", test.id, "subject", "family")
        answer = await self.service.post(
            "/v1/chat/completions", {"model": "tuneproof/hook", "messages": [], "user": "u"}
        )
        self._know("response_id", answer.headers["x-tuneproof-response"])
        self._know("unit", "u")

    async def _rollout(self) -> None:
        app = self.service.app
        manager = app.managers.of(replace(app.pipelines.get("default"), tasks=("body",)))
        async with app.store.database.begin() as tx:
            declared = await manager.declare(
                Variant(model_id="better"),
                BASE,
                ab_test_id=None,
                salt="salt",
                at=app.clock.now(),
                tx=tx,
            )
            begun = await manager.begin(declared.id, at=app.clock.now(), tx=tx)
        await manager.apply(begun.tasks)
        await app.routing.board.refresh()
        self._know("deployment_id", begun.id, "subject")

    async def run(self) -> None:
        """Have a run that has ended, and one id of it."""
        started = (await self.service.post("/fine-tuning/start", {})).json()
        self._know("pipeline_id", started["pipeline_id"], "run_id")

    def _know(self, name: str, id: str, *more: str) -> None:
        for one in (name, *more):
            self._found.setdefault(one, []).append(id)


@asynccontextmanager
async def world(settings: Settings, folder: Path) -> AsyncIterator[World]:
    """A service that is kept busy until the block ends."""
    used = replace(settings, server=replace(settings.server, require_token=True))
    async with open_service(used) as service:
        token = await service.app.tokens.create("fuzz", scopes=["admin"])
        service.http.headers["authorization"] = f"Bearer {token}"
        made = World(service, folder / "ids.json")
        await made.run()
        busy = asyncio.create_task(made.keep_busy())
        await eventually((folder / "ids.json").exists)
        try:
            yield made
        finally:
            busy.cancel()
            await asyncio.gather(busy, return_exceptions=True)


@pytest.mark.slow
async def test_generated_requests_find_nothing_undocumented(
    settings: Settings, chat: Chat, tmp_path: Path
) -> None:
    """Seen: `/v1` told none of its errors, `/events?since=0.5` was the year 1970, a long
    `If-None-Match` and `"duration_hours": true` were taken, `POST /deployment/status/ID` was a 422,
    and `Allow` named one of two methods."""
    async with world(settings, tmp_path) as made:
        found = await schemathesis(
            f"{made.service.address}/openapi.json",
            folder=tmp_path,
            without_checks=UNCHECKED,
            without_paths=[ENDLESS],
            ids=tmp_path / "ids.json",
            token=made.service.http.headers["authorization"],
        )
    assert not found.failed, found.told[-8000:]
    assert found.requests > REQUESTS // 2
