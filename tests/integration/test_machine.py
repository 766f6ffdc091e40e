"""Tests, rollouts, runs, events, people, two workers, restarts in any order: what must hold, holds.

Always the same few stories; `make machine` tells new ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.machine.running import assert_holds, worlds_on_postgresql, worlds_on_sqlite
from tests.servers import PostgresServer

STORIES, STEPS = 2, 20


def test_stories_on_sqlite(tmp_path: Path, sqlite_template: Path) -> None:
    assert_holds(worlds_on_sqlite(tmp_path, sqlite_template), stories=STORIES, steps=STEPS)


@pytest.mark.postgres
def test_stories_on_postgresql(
    tmp_path: Path, postgres: PostgresServer, postgres_template: str
) -> None:
    assert_holds(
        worlds_on_postgresql(tmp_path, postgres, postgres_template), stories=STORIES, steps=STEPS
    )
