"""The official npm package drives a whole life against the server, in its own types.

Missing Node, or packages that cannot be installed, fail these tests: none is skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.integration.conftest import BASE, Start, lines

PROJECT = Path(__file__).parents[1] / "npm"
MODULES = PROJECT / "node_modules"
LEAST_NODE = 22


def run(*command: str | Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """The packages of the lock hold a Node.js for Linux: a distribution's own is often too old."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=PROJECT,
        env={**os.environ, "PATH": f"{MODULES / '.bin'}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )


def program(name: str) -> str:
    found = shutil.which(name)
    assert found, f"`{name}` is missing; `make services` installs Node.js and npm"
    return found


@pytest.fixture(scope="module")
def compiler() -> Path:
    """TypeScript, with the packages of the lock beside it."""
    lock = PROJECT / "package-lock.json"
    installed = MODULES / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        done = run(program("npm"), "ci", "--no-audit", "--no-fund", timeout_s=300)
        assert done.returncode == 0, done.stderr
    major = int(run("node", "--version").stdout.removeprefix("v").split(".")[0])
    assert major >= LEAST_NODE, f"Node.js {major} is too old; install {LEAST_NODE} or newer"
    return MODULES / ".bin" / "tsc"


@pytest.fixture(scope="module")
def life(compiler: Path) -> Path:
    """The life as a program, once it agrees with the package's types."""
    done = run(compiler, "--project", PROJECT)
    assert done.returncode == 0, done.stdout
    return PROJECT / "dist" / "life.js"


@pytest.fixture
def seen(life: Path, start: Start, tmp_path: Path) -> list[dict[str, Any]]:
    """What the server sent in a life that went well."""
    small, large = tmp_path / "small.jsonl", tmp_path / "large.jsonl"
    small.write_bytes(lines(count=60))
    large.write_bytes(lines(None, count=15_000))
    done = run("node", life, start().base_url, BASE, small, large)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_life_with_the_npm_package_and_every_field_of_its_types(
    seen: list[dict[str, Any]], compiler: Path
) -> None:
    named = set(re.findall(r"^  (\w+): ", (PROJECT / "complete.ts").read_text(), re.MULTILINE))
    assert {one["type"] for one in seen} == named
    told = mistakes(seen, compiler)
    assert told == "", told


def test_the_check_of_fields_notices_one_that_is_missing_or_of_another_type(
    seen: list[dict[str, Any]], compiler: Path
) -> None:
    checkpoint = next(one for one in seen if one["type"] == "Checkpoint")
    del checkpoint["value"]["metrics"]["valid_loss"]
    model = next(one for one in seen if one["type"] == "Model")
    model["value"]["created"] = "today"
    told = mistakes([checkpoint, model], compiler)
    assert "'valid_loss'" in told
    assert "'string' is not assignable to type 'number'" in told


def mistakes(seen: list[dict[str, Any]], compiler: Path) -> str:
    """What the compiler says of what was seen, each as a literal of its complete type."""
    file = PROJECT / "dist" / "seen.ts"
    literals = [
        f'export const seen{n}: Seen["{one["type"]}"] = {json.dumps(one["value"])};'
        for n, one in enumerate(seen)
    ]
    file.write_text("\n".join(['import type { Seen } from "../complete.js";', *literals]))
    options = ("--ignoreConfig", "--module", "nodenext", "--strict", "--skipLibCheck")
    done = run(compiler, "--noEmit", *options, file)
    return done.stdout
