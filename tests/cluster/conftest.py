"""Two workers on one PostgreSQL, with a run whose test is looked at every two seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from tests.cluster.workers import Worker, looks, query, trainer, write_posts
from tests.servers import PostgresServer, postgres_server
from tests.waiting import until


@dataclass
class Place:
    """What the workers of a test share."""

    folder: Path
    database: str
    trainer: str
    posts: Path

    def worker(self, name: str, *, python: str = "", drain_s: float = 0.0) -> Worker:
        more = {"python": python} if python else {}
        return Worker(
            self.folder / name, self.database, self.trainer, self.posts, drain_s=drain_s, **more
        )

    def begin_run(self, worker: Worker) -> None:
        """Start a run at a worker, which then owns it, and wait until its test is looked at."""
        answer = httpx2.post(f"{worker.url}/fine-tuning/start", json={}, timeout=60)
        assert answer.status_code in (200, 202), answer.text
        until(lambda: looks(self.database) > 0, 120, otherwise=lambda: worker.log)

    def kept(self) -> set[str]:
        """The ids of the exposures that are kept."""
        rows = query(self.database, "SELECT id FROM exposures WHERE id LIKE 'load-%'")
        assert len(rows) == len(set(rows)), "an exposure is kept twice"
        return {str(id) for (id,) in rows}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as made:
        yield made


@pytest.fixture
def place(tmp_path: Path, server: PostgresServer) -> Iterator[Place]:
    with trainer(tmp_path / "trainer") as address:
        posts = write_posts(tmp_path / "posts.csv")
        yield Place(tmp_path, server.create_database(), address, posts)
