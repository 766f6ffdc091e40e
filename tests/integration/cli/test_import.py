"""`tuneproof posts import` on files that lack what the tasks need."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneproof import cli
from tuneproof.cli.output import FAILED


def test_absent_column_of_a_task_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was a warning, the posts were loaded, and the run failed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.csv").write_text(
        "id,original_input,hook,engagement_rate,ts\n1,about,a hook,0.07,2025-01-19T00:00:00Z\n"
    )
    code = cli.run(["posts", "import", "p.csv", "--dir", str(tmp_path / "d")])
    told = capsys.readouterr()
    assert code == FAILED
    assert "p.csv has no column for body, which the pipeline default needs" in told.err
    assert "[sources.posts.columns]" in told.err
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("rate", ["nan", "-3", "55", "inf"])
def test_a_rate_that_is_no_share_is_refused_by_row_and_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rate: str
) -> None:
    """Such rates were loaded, and the run failed, or was skipped."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.csv").write_text(
        "id,original_input,hook,body,engagement_rate,ts\n"
        "1,about,a hook,a body,0.07,2025-01-19T00:00:00Z\n"
        f"2,about,a hook,a body,{rate},2025-01-19T00:00:00Z\n"
    )
    code = cli.run(["posts", "import", "p.csv", "--dir", str(tmp_path / "d")])
    told = capsys.readouterr()
    assert code == FAILED
    assert f"row 2 (line 3): engagement_rate is '{rate}', no share." in told.err
    assert "divide percents by 100" in told.err
