"""A service that takes answers in and scores them, until it is killed; and what forks it.

Run as `python -m tests.acceptance.scoring_child DIR DATABASE PORT JUDGE`. For each line on its
standard input it forks a service, which prints "PID ready" once it listens.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
from pathlib import Path

from tests.waiting import eventually

from tuneproof.app import App
from tuneproof.cli.serve import serving
from tuneproof.errors import TuneProofError
from tuneproof.settings import (
    PipelineConfig,
    ProviderConfig,
    ScorerConfig,
    ServerConfig,
    Settings,
    StoreConfig,
)


async def serve(directory: str, database: str, port: str, judge: str) -> None:
    settings = Settings(
        dir=Path(directory),
        pipelines={"default": PipelineConfig(quality_scorer="judge", quality_calls_day=100_000)},
        providers={"default": ProviderConfig(kind="compatible", base_url=judge, api_key="k")},
        scorers={"judge": ScorerConfig(name="judge", model="judge")},
        store=StoreConfig(url=database),
        server=ServerConfig(port=int(port), metrics_enabled=False),
    )
    async with App.open(settings, engine=False) as app, serving(app, settings) as (_, server):
        worker = asyncio.create_task(score(app))
        print(f"{os.getpid()} ready", flush=True)
        await server.ended()
        worker.cancel()


async def score(app: App) -> None:
    while True:
        try:
            await eventually(app.scoring.score_waiting, math.inf)
        except TuneProofError as error:
            print(error, file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the killed
    while sys.stdin.readline():
        if os.fork() == 0:
            try:
                asyncio.run(serve(*sys.argv[1:]))
            except Exception as error:
                print(f"{os.getpid()} failed: {error!r}", flush=True)
                raise
            break
