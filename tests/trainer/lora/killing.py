"""A server that a test can kill and start again, and what it has told of a job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI
from tests.servers import free_port, listens
from tests.waiting import until

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
        until(lambda: listens(self._port), 120)

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

    def more() -> int:
        steps = [row["step"] for row in told(client, job_id) if row.get("full_valid_loss")]
        return len(steps) if len(steps) > count else 0

    return until(more, 180)
