"""A run that is killed, again and again, ends as the undisturbed run did, with one of each effect.

The process is killed with SIGKILL before, inside and after each distinct step, the first time
and a later one (on PostgreSQL by `make acceptance-long`), and at random times on both databases,
while MLflow listens.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.loop_child import live
from tests.servers import PostgresServer, mlflow_server

pytestmark = pytest.mark.slow

RANDOM_KILLS = 20
EVERY_STEP = ("sqlite", "postgres") if os.environ.get("TUNEPROOF_KILLS") == "all" else ("sqlite",)
"""Where each step is killed: over a hundred lives each; both by `make acceptance-long`."""

LONGEST_S = 900


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("undisturbed")
    return finish(plan(directory))


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[str]:
    with mlflow_server() as server:
        yield server.url


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Iterator[str | None]:
    if request.param == "sqlite":
        yield None
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.create_database()
    yield url
    server.drop_database(url)


def plan(directory: Path, **more: Any) -> Path:
    path = directory / "plan.json"
    path.write_text(json.dumps({"dir": str(directory / "data"), **more}))
    return path


LIVES = get_context("forkserver")
"""A life is forked from a process that has imported all: half of each short one was imports."""
LIVES.set_forkserver_preload(["tests.acceptance.loop_child"])


@dataclass(frozen=True)
class Life:
    code: int
    said: str


def turn(path: Path) -> Life:
    said = path.with_name("said.txt")
    process = LIVES.Process(target=live, args=(path, said))
    process.start()
    process.join(LONGEST_S)
    assert process.exitcode is not None, f"it goes on after {LONGEST_S} s: {said.read_text()}"
    return Life(process.exitcode, said.read_text())


def finish(path: Path) -> dict[str, Any]:
    done = turn(path)
    assert done.code == 0, done.said[-3000:]
    found: dict[str, Any] = json.loads(done.said.splitlines()[-1])
    return found


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on kills: all but names that the provider draws, and time."""
    outcome = json.loads(json.dumps(found["outcome"]))
    outcome.pop("seconds")
    outcome["training"].pop("job_id")
    outcome["training"].pop("model")
    return outcome


EXACTLY_ONCE = {
    "jobs": 1,
    "files": 2,  # training and validation
    "file contents": 2,
    "experiments": 1,
    "rollouts": 1,
    "versions": 1,
    "runs": 1,
    "outbox": 0,
    "mlflow runs": 1,
    "mlflow versions": 1,
    "mlflow champion": 1,
}


def assert_once(found: dict[str, Any]) -> None:
    effects = found["effects"]
    assert {k: effects[k] for k in EXACTLY_ONCE} == EXACTLY_ONCE
    assert [k for k, n in effects.items() if k.startswith("rollups differ") and n] == []


@pytest.mark.parametrize("database", EVERY_STEP, indirect=True)
def test_killed_at_every_step_ends_as_undisturbed(
    tmp_path: Path, database: str | None, mlflow: str, undisturbed: dict[str, Any]
) -> None:
    memo = tmp_path / "memo"
    path = plan(tmp_path, database=database, mlflow=mlflow, memo=str(memo))
    while (done := turn(path)).code == -signal.SIGKILL:
        pass
    assert done.code == 0, done.said[-3000:]
    found = json.loads(done.said.splitlines()[-1])
    kills = memo.read_text().splitlines()
    steps = {line.split()[0] for line in kills}
    assert {f"{s} {m} first" for s in steps for m in ("before", "inside", "after")} <= set(kills)
    assert {"experiment.look inside later", "rollout.look after later"} <= set(kills)
    assert len(steps) >= 20
    assert figures(found) == figures(undisturbed)
    assert_once(found)


def test_killed_at_random_times_ends_as_undisturbed(
    tmp_path: Path, database: str | None, mlflow: str, undisturbed: dict[str, Any]
) -> None:
    draw = random.Random(2025)
    killed = 0
    while killed < RANDOM_KILLS:
        path = plan(tmp_path, database=database, mlflow=mlflow, die_after_s=draw.uniform(1.0, 4.0))
        code = turn(path).code
        assert code in (-signal.SIGKILL, 0)
        if code == 0:
            break
        killed += 1
    found = finish(plan(tmp_path, database=database, mlflow=mlflow))
    assert killed >= RANDOM_KILLS // 2
    assert figures(found) == figures(undisturbed)
    assert_once(found)


SEVERAL = {"traffic_split": 0.3, "candidates": 2, "search": {"n_epochs": [1, 2]}}
STEPS = [
    "train.declare_others",
    "gate.check",
    "gate.end",
    "experiment.declare",
    "experiment.look",
    "experiment.end",
]
"""What a run of several candidates does otherwise."""


def test_several_candidates_killed_at_their_steps_end_as_undisturbed(tmp_path: Path) -> None:
    undisturbed = finish(plan(_made(tmp_path / "undisturbed"), changes=SEVERAL))
    memo = tmp_path / "memo"
    path = plan(_made(tmp_path / "killed"), changes=SEVERAL, memo=str(memo), steps=STEPS)
    while (done := turn(path)).code == -signal.SIGKILL:
        pass
    assert done.code == 0, done.said[-3000:]
    found = json.loads(done.said.splitlines()[-1])
    kills = set(memo.read_text().splitlines())
    assert {f"{s} {m} first" for s in STEPS for m in ("before", "after")} <= kills
    assert {"experiment.declare inside first", "experiment.look inside later"} <= kills
    assert figures(found) == figures(undisturbed)
    assert found["effects"] == undisturbed["effects"]
    assert (found["effects"]["versions"], found["effects"]["experiments"]) == (2, 2)


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory
