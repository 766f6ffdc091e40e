"""A run whose process is killed at each step that touches a dataset, and whose folder is lost then.

It is what pods without a volume meet: the next one has the store alone.
"""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from tests.acceptance.test_kills import figures, finish, plan, turn

pytestmark = pytest.mark.objects

STEPS = ["collect.build", "collect.end", "train.check", "train.start", "gate.check"]


def test_killed_with_its_folder_at_every_step_ends_as_undisturbed(tmp_path: Path) -> None:
    (tmp_path / "undisturbed").mkdir()
    undisturbed = finish(plan(tmp_path / "undisturbed"))
    bucket, memo = tmp_path / "bucket", tmp_path / "memo"
    path = plan(tmp_path, files=f"file://{bucket}", memo=str(memo), steps=STEPS)
    while (done := turn(path)).code == -signal.SIGKILL:
        shutil.rmtree(tmp_path / "data" / "datasets", ignore_errors=True)
    assert done.code == 0, done.said[-3000:]
    found = json.loads(done.said.splitlines()[-1])
    moments = {
        f"{step} {moment} first" for step in STEPS for moment in ("before", "inside", "after")
    }
    assert set(memo.read_text().splitlines()) >= moments
    assert figures(found) == figures(undisturbed)
    assert found["effects"] == undisturbed["effects"]
    [dataset] = (bucket / "datasets").iterdir()
    assert dataset.suffix == ".tar"
