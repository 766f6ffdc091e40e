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


class Lacking(SystemExit):
    """What a peer needs and this machine does not have."""


def interpreter(name: str, *, version: str | None = None) -> Path:
    """The Python of `peers/NAME`, its environment made anew where its requirements changed.

    It is made from the Python that runs this, or from one of `version` (`>=3.12`). Raises
    `Lacking` where there is none.
    """
    folder = PEERS / name
    requirements = folder / "requirements.txt"
    python = folder / ".venv" / "bin" / "python"
    stamp = folder / ".venv" / ".requirements"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    base = sys.executable if version is None else _python(version)
    _run([uv(), "venv", "--quiet", "--clear", "--python", base, str(folder / ".venv")])
    _run([uv(), "pip", "install", "--quiet", "--python", str(python), "-r", str(requirements)])
    stamp.write_text(wanted)
    return python


def _python(version: str) -> str:
    """A Python of this version that uv finds here; none is fetched."""
    command = [uv(), "python", "find", "--no-python-downloads", version]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise Lacking(f"no Python {version} is on the PATH")
    return done.stdout.strip()


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
