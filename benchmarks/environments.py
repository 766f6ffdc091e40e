"""Python environments of the peers that benchmarks compare us with."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "peers"
OWN_UV = Path(__file__).resolve().parent.parent / ".uv" / "bin" / "uv"


def interpreter(name: str) -> Path:
    """The Python of `peers/NAME`, its environment made anew where its requirements changed."""
    folder = PEERS / name
    requirements = folder / "requirements.txt"
    python = folder / ".venv" / "bin" / "python"
    stamp = folder / ".venv" / ".requirements"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    _run([uv(), "venv", "--quiet", "--clear", "--python", sys.executable, str(folder / ".venv")])
    _run([uv(), "pip", "install", "--quiet", "--python", str(python), "-r", str(requirements)])
    stamp.write_text(wanted)
    return python


def uv() -> str:
    """The uv on the PATH, or the one that `make setup` brought."""
    found = shutil.which("uv") or shutil.which(OWN_UV)
    if found is None:
        raise SystemExit("The peers' environments are made by uv: `make setup` brings one.")
    return str(found)


def measured(python: Path | str, script: Path, *arguments: str) -> dict[str, Any]:
    """What a script prints as JSON on its last line, run by the interpreter `python`."""
    found: dict[str, Any] = json.loads(
        _run([str(python), str(script), *arguments]).strip().splitlines()[-1]
    )
    return found


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout
