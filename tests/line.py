"""Runs commands of `tuneproof` on one data directory, in this process or in one of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tuneproof import cli
from tuneproof.cli.output import OK

__all__ = ["EXECUTABLE", "Line", "clean_env", "write_posts"]

EXECUTABLE = [sys.executable, "-c", "from tuneproof.cli import main; main()"]


def clean_env(**more: str) -> dict[str, str]:
    """The environment without what would change the settings."""
    skip = ("FINE_TUNING", "OPENAI", "DATABASE", "REDIS", "MLFLOW", "TUNEPROOF", "K8S")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(skip)}
    return {**kept, "NO_COLOR": "1", **more}


class Line:
    """Runs commands in this process on one data directory."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self._capsys = capsys

    def __call__(self, *tokens: str) -> tuple[int, str, str]:
        """The exit code, stdout, stderr of a command."""
        code = cli.run([*tokens, "--dir", str(self.directory)])
        shown = self._capsys.readouterr()
        return code, shown.out, shown.err

    def json(self, *tokens: str, code: int = OK) -> Any:
        """What a command answers as JSON."""
        found, out, err = self(*tokens, "--json")
        assert found == code, err
        return json.loads(out)

    def apart(self, *tokens: str) -> subprocess.CompletedProcess[str]:
        """A command in a process of its own: it starts the engine."""
        command = [*EXECUTABLE, *tokens, "--dir", str(self.directory)]
        return subprocess.run(
            command, env=clean_env(), capture_output=True, text=True, timeout=120, check=False
        )


def write_posts(path: Path, count: int = 150) -> None:
    """A CSV of posts of January 2025 that all did well."""
    words = [
        "summer",
        "winter",
        "coffee",
        "travel",
        "music",
        "garden",
        "river",
        "city",
        "sea",
        "art",
    ]
    with path.open("w", encoding="utf-8") as file:
        file.write("id,persona_id,original_input,hook,body,engagement_rate,ts,tokens_used\n")
        for i in range(count):
            a, b = words[i % 10], words[(i // 10) % 10]
            file.write(
                f"p{i},persona-{i % 9},about {a} and {b} {i},You will love {a} with {b} {i},"
                f"A longer text on {a} and {b} with number {i} in it,{0.06 + i / 10_000},"
                f"2025-01-{i % 27 + 1:02d}T08:00:00Z,60\n"
            )
