"""A server that a test can kill and start again, and what it has told of a job."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI
from tests.servers import free_port

__all__ = ["Server", "told", "until_more"]

_SERVE = "from tuneproof_trainer.cli import main; main()"


class Server:
    """A trainer in a process of its own; `arguments` go to `serve`."""

    def __init__(self, folder: Path, model: Path, *arguments: str) -> None:
        self.folder, self._port = folder, free_port()
        self._arguments = ["serve", "--dir", str(folder), "--port", str(self._port)]
        self._arguments += ["--model", str(model), *arguments]
        self.client = OpenAI(
            base_url=f"http://127.0.0.1:{self._port}/v1", api_key="any", max_retries=0
        )

    def start(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", _SERVE, *self._arguments])
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill the server alone; its training must notice by itself."""
        trainings = psutil.Process(self._process.pid).children()
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        _, alive = psutil.wait_procs(trainings, timeout=20)
        assert not alive

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)


def told(client: OpenAI, job_id: str) -> list[dict[str, Any]]:
    events = client.fine_tuning.jobs.list_events(job_id, limit=100)
    found: list[Any] = [event.data for event in events if event.type == "metrics"]
    return found[::-1]


def until_more(client: OpenAI, job_id: str, count: int) -> int:
    """Wait until more checkpoints than `count` were told; how many there are."""
    deadline = time.monotonic() + 180
    while True:
        steps = [row["step"] for row in told(client, job_id) if row.get("full_valid_loss")]
        if len(steps) > count:
            return len(steps)
        assert time.monotonic() < deadline
        time.sleep(0.02)
