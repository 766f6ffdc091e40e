"""The real service for benchmarks, by `running()`.

An App behind uvicorn as `tuneproof serve` runs it, on a free port of loopback, in a process of
its own; what it serves (a test, a rollout) is made before it listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXPERIMENT = "ab-test-20250120-001"
TASKS = ("hook", "body")


@dataclass(frozen=True)
class Running:
    """Where a service is, its process, and the rollout that serves 10 % of its tasks."""

    port: int
    pid: int
    rollout: str
    gateway_port: int = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running(
    database: str | None = None, provider: str | None = None, *, gateways: int = 0
) -> Iterator[Running]:
    """A service with a rollout at 10 %; on SQLite where no database is named.

    `provider` is the address at which its models are asked, where anybody asks them; `gateways`
    processes beside it do.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, folder, database or "", provider or ""]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"the service did not start; it ended with {process.wait()}")
            found: dict[str, Any] = json.loads(line)
            with _gateways(folder, gateways) as port:
                yield Running(**found, gateway_port=port)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@contextmanager
def _gateways(folder: str, processes: int) -> Iterator[int]:
    """The port of so many gateway processes, once all of them are fed."""
    if not processes:
        yield 0
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tuneproof", "gateway", "--processes", str(processes)]
    environment = {**os.environ, "PROMETHEUS_METRICS_ENABLED": "false"}
    process = subprocess.Popen(
        [*command, "--port", str(port), "--dir", folder, "--log-level", "error"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        seen: set[int] = set()
        while len(seen) < processes:
            with contextlib.suppress(OSError):
                if (
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5).status
                    == 200
                ):
                    answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/live", timeout=5)
                    seen.add(json.load(answer)["pid"])
            time.sleep(0.1)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


async def _serve(folder: Path, database: str, provider: str) -> None:
    from tuneproof.app import App
    from tuneproof.cli.serve import serving, settle
    from tuneproof.settings import Settings
    from tuneproof.testing import MemoryProvider

    given = {"store.url": database} if database else {}
    if provider:
        given |= {"base_url": provider, "api_key": "any"}
    settings = Settings.load(
        dir=folder, env={}, port=0, **{"server.metrics_enabled": False, **given}
    )
    async with App.open(settings, provider=MemoryProvider()) as app:
        rollout = await _rollout(app)
        end = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
        async with serving(app, settings) as (address, _):
            port = int(address.rpartition(":")[2])
            settle()
            found = {"port": port, "pid": os.getpid(), "rollout": rollout}
            print(json.dumps(found), flush=True)
            await end.wait()


async def _rollout(app: Any) -> str:
    from tests.integration.store.records import experiment

    from tuneproof.experiments import Variant

    await app.store.experiments.add(experiment(EXPERIMENT))
    manager = app.managers.of(app.pipelines.get("default"))
    async with app.store.database.begin() as tx:
        declared = await manager.declare(
            Variant(model_id="ft:base:hook:7f3a", version="1.0.0"),
            Variant(model_id="base"),
            ab_test_id=None,
            salt="salt",
            at=app.clock.now(),
            tx=tx,
        )
        begun = await manager.begin(declared.id, at=app.clock.now(), tx=tx)
    await app.routing.board.refresh()
    return str(begun.id)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
