"""What a version recorded is replayed by this one to the same end, by the same steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.histories.scenarios import DATABASES, RECORDED, SCENARIOS, path_of, read, replay
from tests.servers import PostgresServer

from tuneproof.store.migrate import HEAD

HISTORIES = {name: scenario for scenario in SCENARIOS.values() for name in scenario.interrupted}
KEPT = sorted(path.relative_to(RECORDED) for path in RECORDED.rglob("*.json.gz"))
FIRST = "0001"


def test_each_schema_has_histories_on_both_databases_and_each_scenario_has_one() -> None:
    found = {(str(path.parent), path.name.split(".")[1]) for path in KEPT}
    schemas = [f"{number:04}" for number in range(1, int(HEAD) + 1)]
    assert found == {(schema, database) for schema in schemas for database in DATABASES}
    assert {path.name.split(".")[0] for path in KEPT} == HISTORIES.keys()


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=str(path), marks=[pytest.mark.postgres] * (".postgres." in str(path)))
        for path in KEPT
    ],
)
async def test_history_is_replayed_to_its_end(
    path: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name, database = path.name.split(".")[:2]
    url = f"sqlite:///{tmp_path / 'store.db'}"
    if database == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.create_database()
    history = read(RECORDED / path)
    found = await replay(HISTORIES[name], history, url, tmp_path)
    assert found == history["end"]


async def test_transaction_that_was_committed_just_before_a_kill_is_not_done_again(
    tmp_path: Path,
) -> None:
    scenario, history = (
        HISTORIES["run-experiment"],
        read(path_of("run-experiment", "sqlite", FIRST)),
    )
    engine_forgets(history, "experiment.look")
    found = await replay(scenario, history, f"sqlite:///{tmp_path / 'store.db'}", tmp_path)
    assert found == history["end"]


async def test_replay_that_asks_for_another_transaction_is_given_up_and_says_so(
    tmp_path: Path,
) -> None:
    """As where a later version had another transaction in its place."""
    scenario, history = (
        HISTORIES["run-experiment"],
        read(path_of("run-experiment", "sqlite", FIRST)),
    )
    engine_forgets(history, "experiment.look")
    known = history["databases"]["store"]
    before, name, after = known.rpartition('{"transaction":"experiment.look"')
    assert name
    changed = before + name.replace("experiment.look", "experiment.glance") + after
    history["databases"]["store"] = changed
    said = r"function experiment\.glance was recorded when experiment\.look was expected"
    with pytest.raises(RuntimeError, match=said):
        await replay(scenario, history, f"sqlite:///{tmp_path / 'store.db'}", tmp_path)


def engine_forgets(history: dict[str, Any], step: str) -> None:
    """Take the newest record of a transaction from the engine, as where a kill came before it."""
    lines = history["databases"]["engine"].splitlines()
    newest = max(i for i, line in enumerate(lines) if f",'{step}'," in line)
    assert lines[newest].startswith('INSERT INTO "operation_outputs"')
    del lines[newest]
    history["databases"]["engine"] = "\n".join(lines)
