"""The script that runs the suite again and again: what is red is told, and ends it with 1."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tools import steady

CHECKOUT = Path(__file__).parents[3]


def steadily(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [".venv/bin/python", "tools/steady.py", *arguments]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_each_second_round_has_another_suite_in_a_checkout_of_its_own(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    done = steadily("--rounds", "4", "--command", f"test -e pyproject.toml && pwd >> {seen}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "6 of 6 green"
    places = seen.read_text().split()
    assert places.count(str(CHECKOUT)) == 4
    [second] = {place for place in places if place != str(CHECKOUT)}
    assert places.count(second) == 2
    assert second.startswith(str(tmp_path))


def test_one_red_suite_is_named_and_makes_all_red() -> None:
    command = 'case $PWD in */second) echo "FAILED tests/a.py::test_b[x] - no"; exit 1;; esac'
    done = steadily("--rounds", "2", "--command", command)
    assert done.returncode == 1
    header, first, second, beside, said = done.stdout.splitlines()
    assert header.split()[:3] == ["round", "minutes", "result"]
    assert first.split()[0::2] == ["1", "green"]
    assert second.split()[0::2] == ["2", "green"]
    assert beside.split()[0:2] == ["2", "beside"]
    assert beside.endswith("red (1)   tests/a.py::test_b[x]")
    assert said == "2 of 3 green"


def test_a_suite_that_ends_without_a_failed_test_is_red_too(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("collected nothing")
    suite = steady.Suite(number=1, beside=False, minutes=0.5, code=5, log=log)
    assert steady.row(suite).split() == ["1", "0.5", "red", "(5)"]
