"""Milliseconds of a durable step and a durable transaction: ours, or those of the engine bare.

    python measure.py ours|bare|tuned STORE_URL SYSTEM_URL

`bare` is the engine as its manual shows it; `tuned` gives it SQLite connections set as ours are
(WAL, `synchronous=NORMAL`, writes that begin as such), so that only what we put around it is left.

For each line on its input it runs a durable function of STEPS steps (each returns a small
record) and as many transactions (each inserts a row), and prints {"step_ms", "transaction_ms"}:
who measures lets the ways take turns.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, AsyncSQLAlchemyDatasource, SetWorkflowID
from sqlalchemy.ext.asyncio import create_async_engine

STEPS = 60
RESULT = {"job_id": "ftjob-1", "status": "running", "step": 12, "loss": 1.25}
CREATE = "CREATE TABLE IF NOT EXISTS counted (at double precision, what text)"
INSERT = sa.text("INSERT INTO counted VALUES (:at, 'x')")


async def effect() -> dict[str, Any]:
    """What a step does here: next to nothing, so that its record is what is measured."""
    return RESULT


async def timed(
    step: Callable[[], Awaitable[Any]], transaction: Callable[[], Awaitable[Any]]
) -> dict[str, float]:
    """Milliseconds of each."""
    found = {}
    for name, act in (("step_ms", step), ("transaction_ms", transaction)):
        began = time.perf_counter()
        for _ in range(STEPS):
            await act()
        found[name] = (time.perf_counter() - began) * 1000 / STEPS
    return found


async def answer(run: Callable[[str], Awaitable[Any]]) -> None:
    """Run once for each line that comes in."""
    number = 0
    while await asyncio.to_thread(sys.stdin.readline):
        number += 1
        print(json.dumps(await run(f"run-{number}")), flush=True)


async def ours(store_url: str, system_url: str) -> None:
    """Through `tuneproof.workflow`."""
    from tuneproof import workflow
    from tuneproof.store import open_store

    async def insert(tx: Any) -> None:
        await tx.execute(INSERT, {"at": time.time()})

    @workflow.durable("measured")
    async def measured(run_id: str) -> dict[str, float]:
        return await timed(
            lambda: workflow.step("effect", effect), lambda: workflow.transaction("insert", insert)
        )

    store = await open_store(store_url)
    async with store.database.begin() as tx:
        await tx.exec_driver_sql(CREATE)
    engine = workflow.Engine(
        store_url=store.database.url.render_as_string(hide_password=False),
        store_engine=store.database.engine,
        system_url=system_url,
        executor_id="measured",
        clock=workflow.SystemClock(),
    )
    await engine.launch()

    async def run(name: str) -> Any:
        await engine.start(measured, name)
        return await engine.result(name)

    await answer(run)


async def bare(store_url: str, system_url: str, *, as_ours: bool = False) -> None:
    """Through the engine itself."""
    made = create_async_engine(store_url)
    config: Any = {"name": "measured", "system_database_url": system_url, "log_level": "ERROR"}
    if as_ours:
        from tuneproof.store.engine import make_engine

        made = make_engine(store_url)
        if system_url.startswith("sqlite"):
            config["system_database_engine"] = _sqlite_engine(system_url)
    async with made.begin() as tx:
        await tx.exec_driver_sql(CREATE)

    async def insert() -> None:
        session = source.sql_session()
        await session.execute(INSERT, {"at": time.time()})

    @DBOS.workflow(name="measured")
    async def measured() -> dict[str, float]:
        return await timed(
            lambda: DBOS.run_step_async({"name": "effect"}, effect),
            lambda: source.run_tx_step_async({"name": "insert"}, insert),
        )

    DBOS(config=config)
    source = await AsyncSQLAlchemyDatasource.create(store_url, engine=made)
    DBOS.launch()

    async def run(name: str) -> Any:
        with SetWorkflowID(name):
            handle = await DBOS.start_workflow_async(measured)
        return await handle.get_result()

    await answer(run)


def _sqlite_engine(url: str) -> sa.Engine:
    """As `tuneproof.workflow` makes its own."""
    made = sa.create_engine(url, connect_args={"check_same_thread": False})

    @sa.event.listens_for(made, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = "IMMEDIATE"
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    return made


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))
    way, *urls = sys.argv[1:]
    asyncio.run({"ours": ours, "bare": bare, "tuned": partial(bare, as_ours=True)}[way](*urls))
    os._exit(0)  # threads of the engine may linger
