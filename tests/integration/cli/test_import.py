"""`tuneproof posts import` on files that lack what the tasks need."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneproof import cli
from tuneproof.cli.output import OK


def test_absent_column_of_a_task_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.csv").write_text(
        "id,original_input,hook,engagement_rate,ts\n1,about,a hook,0.07,2025-01-19T00:00:00Z\n"
    )
    code = cli.run(["posts", "import", "p.csv", "--dir", str(tmp_path / "d")])
    told = capsys.readouterr()
    assert code == OK
    assert "Warning: p.csv has no column for body," in told.err
    assert "Warning" not in told.out
