"""The durable engine as it stops: a run in the midst of a write goes on at the next start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tuneproof import workflow
from tuneproof.store import Store, open_store
from tuneproof.workflow import Tx


class Driver:
    """What the first life's write waits for; its roll-back fails, as where a connection broke."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.answers = asyncio.Event()


@workflow.durable("test.written_in_the_end")
async def written(run_id: str) -> str:
    """Goes on after an error of its write, as the looks of a test do."""
    try:
        return await workflow.transaction("write", _write)
    except OSError as error:
        return f"failed: {error}"


async def _write(tx: Tx) -> str:
    driver: Driver = workflow.resources()
    driver.reached.set()
    try:
        await driver.answers.wait()
    except asyncio.CancelledError:
        raise OSError("the connection is closed") from None
    return "written"


@asynccontextmanager
async def engine_of(store: Store, folder: Path, driver: Driver) -> AsyncIterator[workflow.Engine]:
    url = store.database.url
    address = url.render_as_string(hide_password=False)
    plain = url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    embedded = store.database.path is not None
    engine = workflow.Engine(
        store_url=address,
        store_engine=store.engine,
        system_url=f"sqlite:///{folder / 'engine.db'}" if embedded else plain,
        executor_id="one",
        clock=workflow.SystemClock(),
        resources=driver,
        poll_s=0.01,
    )
    await engine.launch()
    try:
        yield engine
    finally:
        await engine.stop()


async def test_a_write_that_is_broken_off_by_the_stop_is_done_after_the_next_start(
    tmp_path: Path, database_url: str
):
    """The error of the roll-back took the place of the cancellation: the look counted as failed,
    and was told of."""
    store = await open_store(database_url)
    first = Driver()
    async with engine_of(store, tmp_path, first) as engine:
        await engine.start(written, "run-1")
        await asyncio.wait_for(first.reached.wait(), 30)
    second = Driver()
    second.answers.set()
    async with engine_of(store, tmp_path, second) as engine:
        assert await asyncio.wait_for(engine.result("run-1"), 30) == "written"
    await store.close()
