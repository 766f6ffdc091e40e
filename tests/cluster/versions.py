"""Versions of before, each whole in a folder of its own, with what its own lock names.

python = installed(RELEASE_0_2_0, folder)      # the interpreter of its environment
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.environments import uv

__all__ = ["RELEASE_0_2_0", "installed"]

RELEASE_0_2_0 = "e87489f2df142ba9a34f0277b785418a08ad0601"
"""The last commit of 0.2.0: those behind it are of 0.3.0, as the changelog says."""

CHECKOUT = Path(__file__).parents[2]


def installed(commit: str, folder: Path) -> str:
    """Make it, and say which Python has it. Fails where the history has no such commit."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=CHECKOUT, capture_output=True)
    if archive.returncode:
        raise AssertionError(
            f"The history here has no commit {commit}: {archive.stderr.decode().strip()}. "
            "Fetch it: git fetch --unshallow"
        )
    subprocess.run(["tar", "--extract"], cwd=folder, input=archive.stdout, check=True)
    python = folder / ".venv" / "bin" / "python"
    for command in (
        ["venv", "--quiet", "--python", sys.executable, ".venv"],
        ["pip", "sync", "--quiet", "--python", str(python), "requirements.lock"],
        ["pip", "install", "--quiet", "--python", str(python), "--no-deps", "--editable", "."],
    ):
        done = subprocess.run([uv(), *command], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, f"uv {' '.join(command)}: {done.stderr}"
    return str(python)
