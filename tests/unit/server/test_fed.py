"""A gateway's knowledge: what its service said, for as long as that may be trusted."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from aiohttp import web
from starlette.types import Message
from tests.liked import learnt
from tests.waiting import eventually, stays

from tuneproof.app import App
from tuneproof.errors import StoreUnavailableError
from tuneproof.evaluation import packed
from tuneproof.experiments import Variant
from tuneproof.resilience import Supervisor
from tuneproof.rollout import Lane, Routing
from tuneproof.server import fed
from tuneproof.server.auth import OUTAGE_S
from tuneproof.server.fed import FedServing
from tuneproof.server.feed import Feed, _row, hashed, is_served, listen_locally
from tuneproof.server.serving import OwnServing
from tuneproof.settings import ProviderConfig, Settings, Url
from tuneproof.telemetry import Metrics

CANDIDATE = Lane(subject="ab-test-1", candidate=Variant(model_id="cand"), share=0.5)


def state(
    baseline: str = "base",
    *,
    lanes: tuple[Lane, ...] = (),
    provider: str | None = None,
    age: timedelta = timedelta(0),
    trust_s: float = 3600.0,
    **more: Any,
) -> dict[str, Any]:
    """What a service says where these serve the task `hook`."""
    model = Variant(model_id=baseline, provider=provider)
    candidates = [lane.candidate for lane in lanes if lane.candidate is not None]
    return {
        "at": (datetime.now(UTC) - age).isoformat(),
        "routing": [_row(Routing(task="hook", baseline=model, lanes=lanes))],
        "trust_s": {"hook": trust_s},
        "endpoints": [
            {
                "model_id": one.model_id,
                "version": None,
                "model_provider": one.provider,
                "provider": one.provider or "fake",
                "base_url": "http://127.0.0.1:9/v1",
                "api_key": "sk-1",
                "organization": None,
                "timeout_s": 1.0,
                "key_header": "",
                "price": [1.0, 2.0],
            }
            for one in (model, *candidates)
        ],
        "scored": [],
        "trainer": None,
        "tokens": {},
        **more,
    }


@dataclass
class Service:
    """What is said at the socket of a data directory."""

    said: list[dict[str, Any]] = field(default_factory=list)
    fails: bool = False
    spoke: asyncio.Event = field(default_factory=asyncio.Event)

    def says(self, told: dict[str, Any]) -> None:
        self.said.append(told)
        self.spoke.set()

    async def feed(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        told = None
        while True:
            newest = self.said[-1] if self.said else None
            line = {} if newest is told else newest
            await answer.write(orjson.dumps(line) + b"\n")
            told = newest
            self.spoke.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await self.spoke.wait()

    async def answer(self, _request: web.Request) -> web.Response:
        return web.Response(status=500, body=b"{}") if self.fails else web.Response(body=b"null")


@asynccontextmanager
async def listening(folder: Path) -> AsyncIterator[Service]:
    service = Service()
    served = web.Application()
    served.router.add_get("/feed", service.feed)
    served.router.add_post("/{door}", service.answer)
    runner = web.AppRunner(served, shutdown_timeout=0)
    await runner.setup()
    await web.SockSite(runner, listen_locally(folder), shutdown_timeout=0).start()
    try:
        yield service
    finally:
        await runner.cleanup()


@asynccontextmanager
async def gateway(folder: Path, settings: Settings | None = None) -> AsyncIterator[FedServing]:
    supervisor = Supervisor()
    serving = FedServing(settings or Settings(dir=folder), supervisor, Metrics())
    await serving.start()
    try:
        yield serving
    finally:
        await supervisor.close()
        await serving.close()


def served(serving: FedServing) -> Routing:
    return serving.routing.by_task["hook"]


async def test_candidates_of_the_disk_end_when_their_time_is_over(tmp_path: Path) -> None:
    """Seen: a gateway that started without its service served a candidate for ever, each quarter
    of a second taking what it had read from disk for news."""
    kept = state(lanes=(CANDIDATE,), age=timedelta(seconds=3600 - 0.5))
    (tmp_path / "gateway.json").write_bytes(orjson.dumps(kept))
    async with gateway(tmp_path) as serving:
        assert served(serving).lanes

        async def is_alone() -> bool:
            await serving.board.doubt()
            return not served(serving).lanes

        await eventually(is_alone)
        assert served(serving).baseline.model_id == "base"


async def test_what_was_told_after_this_clock_is_not_trusted(tmp_path: Path) -> None:
    kept = state(lanes=(CANDIDATE,), age=timedelta(days=-2))
    (tmp_path / "gateway.json").write_bytes(orjson.dumps(kept))
    async with gateway(tmp_path) as serving:
        assert not served(serving).lanes


async def test_a_service_that_lives_keeps_young_what_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: nothing had changed for a week, so a gateway that was begun again while the service
    was away took what had been true a second ago for a week old, and dropped the candidate."""
    monkeypatch.setattr(fed, "SAVE_EVERY_S", 0.0)
    async with listening(tmp_path) as service:
        old = state(lanes=(CANDIDATE,), age=timedelta(days=7))
        service.says(old)
        async with gateway(tmp_path):

            def age() -> timedelta:
                kept = orjson.loads((tmp_path / "gateway.json").read_bytes())
                return datetime.now(UTC) - datetime.fromisoformat(kept["at"])

            await eventually(lambda: age() < timedelta(minutes=1))


async def test_what_cannot_be_read_is_no_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: a service of another version said what its gateway could not read, and each try to
    hear it counted as news, so a candidate that had been taken back was served on and on."""
    monkeypatch.setattr(fed, "SILENT_S", 0.5)
    async with listening(tmp_path) as service:
        service.says(state(lanes=(CANDIDATE,)))
        async with gateway(tmp_path) as serving:
            await eventually(lambda: serving.connected and served(serving).lanes)
            service.says({**state("other"), "routing": [{"task": "hook"}]})
            await eventually(lambda: (serving.board.age_s or 0.0) > 3.0)
            assert (await serving.endpoint(Variant(model_id="base"))).provider == "fake"


async def test_fields_of_a_newer_service_are_left_out(tmp_path: Path) -> None:
    told = state(lanes=(CANDIDATE,), novelty=1)
    row = told["routing"][0]
    row["novelty"] = row["baseline"]["novelty"] = row["lanes"][0]["novelty"] = 1
    told["endpoints"][0]["novelty"] = 1
    async with listening(tmp_path) as service:
        service.says(told)
        async with gateway(tmp_path) as serving:
            await eventually(lambda: serving.connected)
            assert served(serving).lanes == (CANDIDATE,)


async def test_a_model_that_a_provider_is_named_for_is_found(tmp_path: Path) -> None:
    """Seen: a task with `model_provider` was a 404 at every gateway process."""
    async with listening(tmp_path) as service:
        service.says(state(provider="second"))
        async with gateway(tmp_path) as serving:
            await eventually(lambda: serving.connected)
            found = await serving.endpoint(served(serving).baseline)
            assert found.provider == "second"
            cost = serving.cost_usd(
                served(serving).baseline, prompt_tokens=10**6, completion_tokens=0
            )
            assert cost == 1.0


async def test_a_request_under_way_still_finds_the_model_of_before(tmp_path: Path) -> None:
    """Seen: at a promotion, requests that had been decided on a moment before got 404."""
    async with listening(tmp_path) as service:
        service.says(state("before"))
        async with gateway(tmp_path) as serving:
            await eventually(lambda: serving.connected)
            service.says(state("after"))
            await eventually(lambda: served(serving).baseline.model_id == "after")
            for name in ("before", "after"):
                model = Variant(model_id=name)
                assert (await serving.endpoint(model)).provider == "fake"
                assert serving.cost_usd(model, prompt_tokens=10**6, completion_tokens=0) == 1.0


async def test_no_secret_of_an_address_lies_on_disk(tmp_path: Path) -> None:
    """Seen: a password in a provider's `base_url` stood in gateway.json."""
    address = "http://proxy:pw-1@127.0.0.1:9/v1"
    config = ProviderConfig(name="default", kind="compatible", base_url=Url(address))
    settings = Settings(dir=tmp_path, providers={"default": config})
    told = state()
    told["endpoints"][0].update(provider="default", base_url=address)
    async with listening(tmp_path) as service:
        service.says(told)
        async with gateway(tmp_path, settings) as serving:
            await eventually(lambda: serving.connected)
    assert "pw-1" not in (tmp_path / "gateway.json").read_text()
    async with gateway(tmp_path, settings) as serving:
        found = await serving.endpoint(Variant(model_id="base"))
        assert found.base_url.reveal() == address


@pytest.mark.parametrize("kept", [b"", b"[]", b"{}", b'{"at": 1}', b"\x00" * 100])
async def test_a_damaged_file_hinders_no_start(tmp_path: Path, kept: bytes) -> None:
    (tmp_path / "gateway.json").write_bytes(kept)
    async with listening(tmp_path) as service:
        service.says(state())
        async with gateway(tmp_path) as serving:
            assert served(serving).baseline.model_id == "base", "nobody is answered before"


@pytest.mark.parametrize("cut", ["at", "routing", "trust_s", "tokens"])
async def test_a_file_of_another_version_hinders_no_start(tmp_path: Path, cut: str) -> None:
    kept = {name: value for name, value in state("old").items() if name != cut}
    (tmp_path / "gateway.json").write_bytes(orjson.dumps(kept))
    async with listening(tmp_path) as service:
        service.says(state())
        async with gateway(tmp_path) as serving:
            await eventually(lambda: served(serving).baseline.model_id == "base")


async def test_a_service_that_fails_counts_as_away(tmp_path: Path) -> None:
    """Seen: a service that answered 500 to its gateway made it answer 500 to applications."""
    token = "tp_one"
    row = {"name": "app", "scopes": ["write"], "created_at": "2025-01-01T00:00:00+00:00"}
    at = (datetime.now(UTC) - timedelta(minutes=10)).isoformat()
    async with listening(tmp_path) as service:
        service.says(state(tokens={hashed(token): {**row, "at": at}}))
        service.fails = True
        async with gateway(tmp_path) as serving:
            await eventually(lambda: serving.connected)
            with pytest.raises(StoreUnavailableError):
                await serving.find_token(token)
            with pytest.raises(StoreUnavailableError):
                await serving.had("ab-test-1", "hook")
            with pytest.raises(StoreUnavailableError):
                await serving.keep()
            held = serving.held_token(token)
            assert held is not None
            assert (held[0].name, 600 <= held[1] < OUTAGE_S) == ("app", True)
            service.fails = False  # it says that there is no such token
            assert await serving.find_token(token) is None
            assert serving.held_token(token) is None


async def test_half_a_batch_is_none() -> None:
    """Of a gateway that is killed while it sends."""
    parts: list[Message] = [
        {"type": "http.request", "body": b'{"id": "\xc3', "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return parts.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    feed = Feed(cast(App, None), cast(OwnServing, None))
    await feed({"type": "http", "path": "/events"}, receive, send)
    assert sent == []


async def test_a_socket_without_a_service_is_not_served(tmp_path: Path) -> None:
    assert not is_served(tmp_path)
    async with listening(tmp_path):
        await stays(lambda: is_served(tmp_path), turns=3)
    assert not is_served(tmp_path)


async def test_it_picks_by_the_model_of_its_disk_once_that_is_there(tmp_path: Path) -> None:
    content = packed(learnt())
    hash = hashlib.sha256(content).hexdigest()
    async with listening(tmp_path) as service, gateway(tmp_path) as serving:
        service.says(state(pickers={"hook": [4, hash]}))
        await eventually(lambda: serving.spoken.is_set())
        assert serving.picker("hook") is None  # the file is not there: one answer
        (tmp_path / "outcome-models").mkdir()
        (tmp_path / "outcome-models" / f"{hash}.npz").write_bytes(content)
        service.says(state(pickers={"hook": [3, hash]}))
        found = await eventually(lambda: serving.picker("hook"))
        assert (found.answers, found.hash) == (3, hash)
        service.says(state())  # of a version that knows no pickers
        await eventually(lambda: serving.picker("hook") is None)
        service.says(state(pickers={"hook": [2, hash]}))
        await eventually(lambda: serving.picker("hook"))
    async with gateway(tmp_path) as serving:  # and without the service, from its disk
        found = serving.picker("hook")
        assert found is not None
        assert found.answers == 2
