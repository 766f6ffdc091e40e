"""A real service in the middle of a test, in which much has happened and some things are wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from tests.integration.loop import Loop
from tests.integration.providing import Provider, open_providers
from tests.servers import free_port
from tests.waiting import eventually

from tuneproof.cli.serve import serving
from tuneproof.experiments import Variant
from tuneproof.settings import CacheConfig, ServerConfig, TrackingConfig, Url
from tuneproof.store import RunStatus

CACHED = CacheConfig(enabled=True)
BUDGETED = {"max_cost_usd_month": 100.0}
PRICED = {"training_prices": {"base": 1.0}, "prices": {"base": [1.0, 2.0], "ft:": [1.0, 2.0]}}


class Standing:
    """A participant that lets time stand still once a test has been under way for half a day."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.stands = asyncio.Event()
        self.wanted = False

    async def advance(self, since: datetime, until: datetime) -> None:
        watched = await self._loop.app.store.watches.under_way() if self.wanted else []
        if watched and until - watched[0].since > timedelta(hours=12):
            self.stands.set()
            await asyncio.Event().wait()


@dataclass(frozen=True)
class Watched:
    """The loop, where its service is, the port of its metrics, and the run that is training."""

    loop: Loop
    address: str
    metrics_port: int
    run_id: str


@asynccontextmanager
async def in_the_middle_of_a_test(
    directory: Path, database: str, *, cache: CacheConfig = CACHED
) -> AsyncIterator[Watched]:
    """A service whose version was promoted, rolled out and taken back, and is tested again while
    the next one is trained; its base model is shut down soon, and something in it keeps dying."""
    provider, port = Provider(name="p"), free_port()
    async with open_providers(
        directory, database, provider, changes=BUDGETED, more=PRICED,
        cache=cache, tracking=TrackingConfig(uri=Url("http://127.0.0.1:9")),
        server=ServerConfig(port=0, metrics_port=port),
    ) as loop:  # fmt: skip
        app, standing = loop.app, Standing(loop)
        app.let_time_pass(standing)
        assert (await loop.turn()).status is RunStatus.SUCCESS
        await app.rollouts.rollback("hook", reason="readers complain")
        [version] = await app.store.versions.list()
        standing.wanted = True
        await app.experiments.create(
            baseline=Variant(model_id="base"),
            candidates=[Variant(model_id=str(version.model_id), version=version.id)],
        )
        await asyncio.wait_for(standing.stands.wait(), 60)
        run = await app.runs.start(force=True)
        await eventually(partial(trains, loop, run.id))
        provider.shutdowns["base"] = app.clock.now() + timedelta(days=50)
        await app.shutdown_watch.look(app.clock.now())
        app.supervisor.every("dies", 0.1, dies)
        await app.gauges.refresh()
        await app.concerns.refresh()
        async with serving(app, app.settings) as (address, _):
            yield Watched(loop, address, port, run.id)


async def trains(loop: Loop, run_id: str) -> bool:
    return (await loop.app.store.runs.get(run_id)).current_stage == "train"


async def dies() -> None:
    raise RuntimeError("again")
