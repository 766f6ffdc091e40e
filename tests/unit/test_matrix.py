"""The matrix of versions is green only where each test ran on the version that it names."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.matrix.run import MATRIX, Outcome, counted, main, row, run

SUITE = """\
import pytest

def test_a(): pass

def test_b(): assert False

@pytest.mark.skip
def test_c(): pass
"""


def test_failed_and_skipped_tests_are_counted_and_red(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE)
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True)
    found = counted(report, version="13.23", code=done.returncode)
    assert (found.passed, found.failed, found.skipped, found.code) == (1, 1, 1, 1)
    assert row("postgresql-13", found).endswith("red (1)")


@pytest.mark.parametrize(
    ("numbers", "good"),
    [
        ({"passed": 9}, True),
        ({"passed": 9, "skipped": 1}, False),
        ({"passed": 9, "code": 3}, False),
        ({}, False),
    ],
)
def test_only_tests_that_all_ran_and_passed_are_green(numbers: dict[str, int], good: bool) -> None:
    nothing = {"passed": 0, "failed": 0, "skipped": 0, "code": 0}
    outcome = Outcome(version="13.23", seconds=1.0, **{**nothing, **numbers})
    assert outcome.good is good
    assert ("green" in row("postgresql-13", outcome)) is good


def test_server_that_is_missing_or_of_another_version_ends_it(tmp_path: Path) -> None:
    version = MATRIX[0]
    with pytest.raises(SystemExit, match="is missing"):
        run(replace(version, place=tmp_path / "absent"))
    with pytest.raises(SystemExit, match=r"says that it is 15\.18"):
        run(replace(version, place=tmp_path, asked=lambda: "15.18"))


def test_unknown_version_is_refused_with_those_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["postgresql-9"]) == 2
    assert "postgresql-13, postgresql-17, mlflow-2" in capsys.readouterr().out
