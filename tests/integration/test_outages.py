"""What is away for minutes is shown and told, at every worker, until it is back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.integration.loop import QUICK, SECRET, T0, open_loop, posts, settings
from tests.integration.test_alerts import Receiver, listening
from tests.waiting import eventually
from tests.wire import Wire, wire_server

from tuneproof.app import App
from tuneproof.app.outages import Outages
from tuneproof.collection import PostQuery
from tuneproof.errors import ProviderUnavailableError
from tuneproof.resilience import BreakerEvent, CircuitBreaker, State
from tuneproof.settings import AlertsConfig, ProviderConfig, Secret, Url, WebhookUrl
from tuneproof.store import RunStatus
from tuneproof.testing import MemorySource, VirtualClock

TOLD = {"env": {"TUNEPROOF_ALERTS_SECRET": SECRET}}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with listening() as made:
        yield made


@pytest.fixture
def wire() -> Iterator[Wire]:
    with wire_server() as made:
        yield made


@asynccontextmanager
async def standing(
    directory: Path, database: str, wire: Wire, receiver: Receiver
) -> AsyncIterator[App]:
    """An App over a provider by HTTP; nothing of its time passes unless a test says so."""
    provider = ProviderConfig(
        name="default", kind="compatible", base_url=Url(wire.url), api_key=Secret("key")
    )
    alerts = AlertsConfig(webhook_url=WebhookUrl(f"{receiver.url}/hook"))
    async with App.open(
        settings(
            directory, database, QUICK, providers={"default": provider}, alerts=alerts, **TOLD
        ),
        clock=VirtualClock(T0),
        source=MemorySource(posts()),
        poll_s=0.005,
        background=False,
    ) as app:
        yield app


async def passes(app: App, minutes: float) -> None:
    """Time in which the App's background tasks do what they do."""
    assert isinstance(app.clock, VirtualClock)
    app.clock.restore(app.clock.now() + timedelta(minutes=minutes))
    await app.providers.probe()
    await app.outages.look()


async def pipeline(app: App) -> Mapping[str, Any]:
    [found] = (await app.overview.status())["pipelines"]
    return found


async def test_provider_that_is_away_is_shown_at_every_worker_and_told(
    tmp_path: Path, database_url: str, wire: Wire, receiver: Receiver
) -> None:
    """Seen: a provider was away for half an hour, and `waits_for_person` was empty."""
    wire.fail("GET /models", status=503)
    async with standing(tmp_path, database_url, wire, receiver) as app:
        run = await app.runs.start()

        async def waits() -> str:
            return (await app.store.runs.get(run.id)).note

        note = await eventually(waits)
        assert "The next try is at" in note
        assert (await pipeline(app))["run"]["note"] == note
        assert note in [line.message for line in await app.runs.log(run.id)]

        provider = app.providers.get("default")
        while app.providers.breakers["openai"].state == "CLOSED":
            with pytest.raises(ProviderUnavailableError):
                await provider.models()
        await passes(app, 0)
        assert (await pipeline(app))["waits_for_person"] == []
        await passes(app, 3)
        [said] = (await pipeline(app))["waits_for_person"]
        assert said.startswith("openai has been away since 2025-01-06 02:00 UTC: ")
        assert said in [line.message for line in await app.runs.log(run.id)]

        # A worker that has not called it knows too, from the store.
        other = Outages(breakers=dict, store=app.store, now=app.clock.now, alert=app.alert)
        assert [o.sentence() for o in await other.lasting()] == [said]

        def told() -> list[str]:
            return [m["type"] for m in receiver.messages]

        await eventually(lambda: told() == ["tuneproof.breaker_open"])
        for _ in range(4):
            await passes(app, 6)
        await eventually(lambda: len(told()) == 2)
        assert told() == ["tuneproof.breaker_open", "tuneproof.provider_away"]
        assert receiver.messages[-1]["data"]["subject"] == "openai"

        wire.faults.clear()
        await passes(app, 6)
        assert (await pipeline(app))["waits_for_person"] == []
        assert await other.lasting() == []


async def test_what_nobody_renews_is_believed_no_more(
    tmp_path: Path, database_url: str, wire: Wire, receiver: Receiver
) -> None:
    wire.fail("GET /models", status=503)
    async with standing(tmp_path, database_url, wire, receiver) as app:
        for _ in range(3):
            with pytest.raises(ProviderUnavailableError):
                await app.providers.get("default").models()
        await passes(app, 0)
        await passes(app, 3)
        assert isinstance(app.clock, VirtualClock)
        other = Outages(breakers=dict, store=app.store, now=app.clock.now, alert=app.alert)
        assert len(await other.lasting()) == 1
        app.clock.restore(app.clock.now() + timedelta(minutes=4))  # its worker has died
        assert await other.lasting() == []
        app.clock.restore(app.clock.now() + timedelta(days=2))
        await other.look()
        assert await app.store.meta.under("away:") == {}


class Looking(MemorySource):
    """Reads the gauge of memory while a run collects."""

    app: App
    seen: float = 0.0

    async def posts(self, query: PostQuery) -> AsyncIterator[Any]:
        self.seen = peak_mb(self.app)
        async for chunk in super().posts(query):
            yield chunk


def peak_mb(app: App) -> float:
    body, _ = app.metrics.render()
    [line] = [
        line
        for line in body.decode().splitlines()
        if line.startswith("fine_tuning_pipeline_memory_peak_mb ")
    ]
    return float(line.split()[1])


async def test_peak_of_memory_moves_while_a_run_works_and_too_much_is_told(
    tmp_path: Path, sqlite_store_url: str, receiver: Receiver
) -> None:
    """Seen: the gauge stood at 0 while a run worked, and at its peak for ever after."""
    source = Looking(posts())
    alerts = AlertsConfig(webhook_url=WebhookUrl(f"{receiver.url}/hook"))
    async with open_loop(
        tmp_path,
        sqlite_store_url,
        source=source,
        alerts=alerts,
        changes={"memory_warning_mb": 1},
    ) as loop:
        source.app = loop.app
        assert peak_mb(loop.app) == 0
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.SUCCESS
        assert source.seen > 20
        assert peak_mb(loop.app) == 0
        await eventually(lambda: receiver.messages)
        [message] = receiver.messages
        assert message["type"] == "tuneproof.memory_high"
        assert message["data"]["subject"] == run.id


async def test_an_outage_that_a_gateway_told_is_over_when_nobody_speaks_of_it(
    tmp_path: Path, database_url: str, wire: Wire, receiver: Receiver
) -> None:
    """Seen: a gateway was replaced while a provider was away, so nobody said that it was back; the
    next outage, weeks later, was told as one of weeks."""
    name = "chat:default:base"
    opened = BreakerEvent(
        breaker=name,
        kind="opened",
        state=State.OPEN,
        failure_count=3,
        retry_after_s=60.0,
        cause="503",
    )
    async with standing(tmp_path, database_url, wire, receiver) as app:
        outages = Outages(
            breakers=lambda: {name: CircuitBreaker(name=name)},
            store=app.store,
            now=app.clock.now,
            alert=app.alert,
        )
        outages.heard(opened)
        await passes(app, 60 * 24 * 14)
        outages.heard(opened)
        await outages.look()
        await passes(app, 2.5)
        [outage] = await outages.lasting()
        assert app.clock.now() - outage.since < timedelta(minutes=3)
