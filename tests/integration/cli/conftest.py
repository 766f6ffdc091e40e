"""A command line on a data directory of its own, away from the developer's settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.line import Line, clean_env


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings file, no variables of the developer's."""
    monkeypatch.chdir(tmp_path)
    for name in set(os.environ) - set(clean_env()):
        monkeypatch.delenv(name)


@pytest.fixture
def line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Line:
    return Line(tmp_path / "data", capsys)
