"""The real trainer for benchmarks: by its command, in a process of its own, on a free port."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from openai import OpenAI

SERVE = "from tuneproof_trainer.cli import main; main()"
MODEL = "tuneproof-ngram-1"


@dataclass(frozen=True)
class Trainer:
    """Where a trainer is, its process, and the official client of it."""

    port: int
    pid: int
    client: OpenAI


@contextmanager
def running() -> Iterator[Trainer]:
    """A trainer with the ngram engine on a folder that goes with it."""
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        command = ["serve", "--dir", str(Path(folder) / "trainer"), "--port", str(port)]
        process = subprocess.Popen([sys.executable, "-c", SERVE, *command], stderr=subprocess.PIPE)
        try:
            _wait(process, port)
            client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0)
            with closing(client):
                yield Trainer(port, process.pid, client)
        finally:
            process.terminate()
            process.wait(60)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the trainer did not start: {process.returncode}") from None
            time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
