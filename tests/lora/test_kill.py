"""A server with the lora engine that is killed in the middle of a training, twice."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI
from tests.integration.trainer.conftest import ended, upload
from tests.lora.tiny import lines
from tests.servers import free_port

pytestmark = pytest.mark.lora
SERVE = "from tuneproof_trainer.cli import main; main()"


class Server:
    """A trainer in a process of its own."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self._model, self._port = folder, model, free_port()
        self.client = OpenAI(
            base_url=f"http://127.0.0.1:{self._port}/v1", api_key="any", max_retries=0
        )

    def start(self) -> None:
        arguments = ["serve", "--dir", str(self.folder), "--port", str(self._port)]
        arguments += ["--engine", "lora", "--model", str(self._model)]
        self._process = subprocess.Popen([sys.executable, "-c", SERVE, *arguments])
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


@pytest.fixture
def server(tmp_path: Path, tiny: Path) -> Iterator[Server]:
    running = Server(tmp_path / "trainer", tiny)
    running.start()
    yield running
    running.stop()


def told(client: OpenAI, job_id: str) -> list[dict[str, Any]]:
    events = client.fine_tuning.jobs.list_events(job_id, limit=100)
    found: list[Any] = [event.data for event in events if event.type == "metrics"]
    return found[::-1]


def until_more(client: OpenAI, job_id: str, count: int) -> int:
    """Wait until more checkpoints than `count` were told; how many there are."""
    deadline = time.monotonic() + 90
    while True:
        steps = [row["step"] for row in told(client, job_id) if row.get("full_valid_loss")]
        if len(steps) > count:
            return len(steps)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_twice_it_ends_with_the_same_losses(server: Server) -> None:
    client = server.client
    asked: dict[str, Any] = {
        "model": "tiny",
        "training_file": upload(client, lines(160, 1)),
        "validation_file": upload(client, lines(16, 2)),
        "seed": 3,
        "hyperparameters": {"n_epochs": 5, "batch_size": 8},
    }
    job = client.fine_tuning.jobs.create(**asked)
    done = 0
    for _ in range(2):
        done = until_more(client, job.id, done)
        server.kill()
        server.start()
    job = ended(client, job, timeout_s=120)
    assert job.status == "succeeded", job.error
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert sum("goes on from its last snapshot" in message for message in messages) == 2
    assert sum("New fine-tuned model" in message for message in messages) == 1
    whole = ended(client, client.fine_tuning.jobs.create(**asked), timeout_s=120)
    assert [row["step"] for row in told(client, job.id)] == list(range(1, 101))
    assert told(client, job.id) == told(client, whole.id)
    assert job.trained_tokens == whole.trained_tokens
    assert len(client.fine_tuning.jobs.checkpoints.list(job.id).data) == 3
    assert not (server.folder / "models" / job.id / "work").exists()
