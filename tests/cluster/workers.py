"""Workers of a cluster: `tuneproof serve` on one PostgreSQL, each with a folder of its own.

    worker = Worker(folder / "one", database, trainer.url)
    worker.start()
    worker.end()                    # SIGTERM, and waits
    worker.kill()                   # SIGKILL

`python` is that of another version, say.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import psycopg
from tests.line import clean_env
from tests.servers import die_with_parent, free_port, listens
from tests.waiting import until

__all__ = ["LOOK_S", "RESUMED_S", "START_S", "Worker", "looks", "query", "trainer", "write_posts"]

PATIENCE = float(os.environ.get("TUNEPROOF_PATIENCE", "1"))
"""How many times as long things may take: above 1 on a machine that is busy with something else."""

LOOK_S = 2.0
START_S = 15.0 * PATIENCE
RESUMED_S = 15.0 * PATIENCE
"""Within which a worker has to start, and another to go on with its runs."""

SETTINGS = """
[providers.default]
kind = "compatible"
base_url = "{trainer}"
api_key_env = "TRAINER_KEY"

[sources.posts]
url = "{posts}"

[pipelines.default]
provider = "default"

[pipelines.default.training]
base_model = "tuneproof-ngram-1"
poll_seconds = 1

[pipelines.default.gate]
samples = 2

[pipelines.default.evaluation]
look_interval_hours = {look}

[pipelines.default.schedule]
driver = "external"

[server]
metrics_enabled = false
"""

HEADER = "id,persona_id,original_input,hook,body,engagement_rate,ts\n"


def write_posts(path: Path, count: int = 300) -> Path:
    """Posts of the last days that did well, each with texts of its own."""
    now = datetime.now(UTC)
    rows = [
        f"p{i},a,topic {i},hook number {i},a body with number {i},0.08,"
        f"{(now - timedelta(minutes=20 * (i + 1))).isoformat()}\n"
        for i in range(count)
    ]
    path.write_text(HEADER + "".join(rows))
    return path


@dataclass
class Worker:
    """One worker."""

    folder: Path
    database: str
    trainer: str
    posts: Path
    python: str = sys.executable
    drain_s: float = 0.0
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def launch(self) -> None:
        """Begin its process."""
        self.folder.mkdir(exist_ok=True)
        look = f"{LOOK_S / 3600:.6f}"
        settings = SETTINGS.format(trainer=self.trainer, posts=self.posts, look=look)
        (self.folder / "tuneproof.toml").write_text(settings)
        drain = {"TUNEPROOF_DRAIN_SECONDS": f"{self.drain_s}"} if self.drain_s else {}
        serve = ("serve", "--port", str(self.port), "--dir", "data")
        address = self.database.replace("+psycopg", "")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.python, "-m", "tuneproof", *serve],
                cwd=self.folder,
                env=clean_env(DATABASE_URL=address, TRAINER_KEY="any", **drain),
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(signal.SIGKILL),
            )

    def start(self, *, within_s: float = 300.0) -> float:
        """Begin it and wait until it is ready; the seconds that took."""
        began = time.monotonic()
        self.launch()
        until(self.ready, within_s, every_s=0.05, otherwise=lambda: self.log)
        return time.monotonic() - began

    def ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log
        try:
            return httpx2.get(f"{self.url}/ready", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False

    def end(self) -> float:
        """End it as a pod is ended; the seconds that took. Fails where it does not end well."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=60) == 0, self.log
        self.process = None
        return time.monotonic() - began

    def kill(self) -> None:
        """End it as a machine ends that loses its power."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def trainer(folder: Path) -> Iterator[str]:
    """A trainer of its own, by its address."""
    port = free_port()
    program = "from tuneproof_trainer.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", "--port", str(port)]
    folder.mkdir()
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--dir", str(folder / "data")],
            env=clean_env(),
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
    try:
        until(lambda: process.poll() is not None or listens(port))
        assert process.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def query(database: str, statement: str) -> list[tuple[object, ...]]:
    """Rows of the workers' database."""
    with psycopg.connect(database.replace("+psycopg", ""), autocommit=True) as connection:
        return connection.execute(statement.encode()).fetchall()


def looks(database: str) -> int:
    """How many looks were taken at all tests."""
    [(count,)] = query(database, "SELECT count(*) FROM looks")
    assert isinstance(count, int)
    return count
