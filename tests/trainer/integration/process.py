"""The trainer as its users start it: by its command, in a process that can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from openai import OpenAI
from tests.servers import free_port, listens
from tests.waiting import until

SERVE = "from tuneproof_trainer.cli import main; main()"

MOUNTS = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]


class Process:
    """A trainer in a process of its own, on one folder and port.

    `within` is shell that runs before it, where mounts and limits are the process's own.
    """

    def __init__(self, folder: Path, *options: str, within: str = "") -> None:
        self.folder, self.port = folder, free_port()
        self.log = folder.with_name(f"{folder.name}.log")
        self._options, self._within = options, within
        self.client = OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="any", max_retries=0
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["serve", "--dir", str(self.folder), "--port", str(self.port), *self._options]
        command = [sys.executable, "-c", SERVE, *arguments]
        if self._within:
            command = [*MOUNTS, "sh", "-c", f'{self._within} && exec "$@"', "sh", *command]
        with self.log.open("ab") as log:
            process = self._process = subprocess.Popen(command, stderr=log)
        until(lambda: listens(self.port) or process.poll() is not None)
        assert process.poll() is None, "the trainer did not start"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> float:
        assert self._process is not None
        begun = time.monotonic()
        self._process.terminate()
        self._process.wait(timeout=30)
        return time.monotonic() - begun
