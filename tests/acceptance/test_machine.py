"""More stories of tests, rollouts, runs, events, people, two workers and restarts.

`TUNEPROOF_MACHINE` says how many on each database, `TUNEPROOF_MACHINE_SEED` which: the same ones
each time where nobody says, new ones by `make machine`, where a failure tells the seed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.machine.running import assert_holds, worlds_on_postgresql, worlds_on_sqlite
from tests.servers import PostgresServer

pytestmark = pytest.mark.slow

STORIES = int(os.environ.get("TUNEPROOF_MACHINE", "6"))
SEED = int(os.environ.get("TUNEPROOF_MACHINE_SEED", "7"))


def test_more_stories_on_sqlite(tmp_path: Path, sqlite_template: Path) -> None:
    assert_holds(worlds_on_sqlite(tmp_path, sqlite_template), stories=STORIES, begin=SEED)


@pytest.mark.postgres
def test_more_stories_on_postgresql(
    tmp_path: Path, postgres: PostgresServer, postgres_template: str
) -> None:
    new_world = worlds_on_postgresql(tmp_path, postgres, postgres_template)
    assert_holds(new_world, stories=STORIES, begin=SEED)
