"""A service that takes events on a port, until it is killed; and the process that forks it.

Run as `python -m tests.acceptance.ingestion_child DIR DATABASE PORT`. For each line on its
standard input it forks a service, which prints "PID ready" once it listens: everything is
imported once only, so a service that was killed is there again at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from tuneproof.app import App
from tuneproof.cli.serve import serving
from tuneproof.settings import ServerConfig, Settings, StoreConfig


async def serve(directory: str, database: str, port: str) -> None:
    settings = Settings(
        dir=Path(directory),
        store=StoreConfig(url=database),
        server=ServerConfig(port=int(port), metrics_enabled=False),
    )
    async with App.open(settings, engine=False) as app, serving(app, settings) as (_, server):
        print(f"{os.getpid()} ready", flush=True)
        await server.ended()


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
