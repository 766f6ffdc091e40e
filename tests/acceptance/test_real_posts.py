"""Real headlines, from a file and from a PostgreSQL table: collected, trained on, gated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.servers import PostgresServer

pytestmark = pytest.mark.slow

POSTS = Path(__file__).parents[3] / "shared" / "data" / "upworthy_posts.parquet"
WINDOW = ["--as-of", "2014-12-01", "--days-back", "365", "--engagement-threshold", "0.03"]


def tuneproof(*arguments: str) -> Any:
    command = [sys.executable, "-m", "tuneproof", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(autouse=True)
def _real_posts() -> None:
    if not POSTS.exists():
        pytest.skip(f"{POSTS} is not here: the real posts are kept beside the project")


def assert_learned(run: dict[str, Any]) -> str:
    gate = run["stages"]["gate"]
    assert gate["status"] == "completed"
    detail = gate["detail"]
    assert detail["heldout_loss"] < detail["base_heldout_loss"]
    assert detail["improvement"] > 0.15
    found: str = run["stages"]["curate"]["detail"]["hash"]
    return found


def test_file_and_table_give_the_same_dataset_and_the_model_learns_from_it(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    url = postgres.create_database()
    from_file = tuneproof(
        "run", "start", "--dir", str(tmp_path / "file"), "--posts", str(POSTS), *WINDOW
    )
    imported = tuneproof(
        "posts", "import", str(POSTS), "--database", url, "--dir", str(tmp_path / "table")
    )
    assert imported
    from_table = tuneproof(
        "run", "start", "--dir", str(tmp_path / "table"), "--posts", url, *WINDOW
    )
    assert assert_learned(from_file) == assert_learned(from_table)
