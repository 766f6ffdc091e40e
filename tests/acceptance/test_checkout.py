"""What a newcomer has after `git clone` and `make setup`: a clean checkout that works."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]


def run(command: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_uv(folder: Path) -> str:
    """A PATH on which there is everything but uv."""
    folder.mkdir()
    for place in reversed(os.environ["PATH"].split(os.pathsep)):
        for program in Path(place).glob("*"):
            link = folder / program.name
            if program.name not in ("uv", "uvx"):
                link.unlink(missing_ok=True)
                link.symlink_to(program)
    assert shutil.which("uv", path=str(folder)) is None
    return str(folder)


def test_a_clone_is_clean_after_its_setup_on_a_machine_without_uv(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    run(["git", "clone", "--quiet", str(CHECKOUT), str(clone)], tmp_path)
    path = without_uv(tmp_path / "bin")
    run(["make", "setup"], clone, PATH=path)
    assert run(["git", "status", "--porcelain"], clone) == ""
    assert "Usage: tuneproof" in run([".venv/bin/tuneproof", "--help"], clone, PATH=path)
    found = "from benchmarks.environments import uv; print(uv())"
    assert run([".venv/bin/python", "-c", found], clone, PATH=path).strip().endswith(".uv/bin/uv")
