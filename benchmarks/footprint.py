"""What the service weighs: its memory while idle, and its base install on the disk.

Memory is that of `python -m tuneproof serve` ten seconds after it answers, with the embedded
trainer in it, on an empty data directory. The install is the built wheel without extras in a
fresh environment.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from environments import uv

ROOT = Path(__file__).parents[1]
IDLE_S = 10
MEMORY_GOAL_MB, INSTALL_GOAL_MB = 200, 320


def records() -> list[dict[str, Any]]:
    """Measure both; the heaviest packages are named beside."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = _installed(Path(folder))
        idle_mb, bare_mb = _idle_mb(Path(folder)), _bare_mb()
    total = sizes.pop("")
    heaviest = sorted(sizes.items(), key=lambda item: -item[1])[:8]
    return [
        _record(
            "memory of the idle service",
            idle_mb,
            "Python with numpy, scipy and FastAPI imported",
            bare_mb,
            f"< {MEMORY_GOAL_MB} MB",
            idle_mb < MEMORY_GOAL_MB,
        ),
        _record(
            "size of the base install",
            total,
            "numpy and scipy alone",
            sum(size for name, size in sizes.items() if name.startswith(("numpy", "scipy"))),
            f"≤ {INSTALL_GOAL_MB} MB",
            total <= INSTALL_GOAL_MB,
        )
        | {"heaviest_mb": {name: round(size, 1) for name, size in heaviest}},
    ]


def _record(
    name: str, ours: float, peer: str, theirs: float, goal: str, met: bool
) -> dict[str, Any]:
    return {
        "name": f"footprint: {name}",
        "ours": round(ours),
        "unit": "MB",
        "peer": peer,
        "peer_value": round(theirs),
        "ratio": None,
        "goal": goal,
        "met": met,
    }


def _idle_mb(folder: Path) -> float:
    """Resident memory, children's too."""
    command = [sys.executable, "-m", "tuneproof", "serve", "--port", "0", "--json"]
    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "PYTHONPATH")}
    process = subprocess.Popen(
        [*command, "--dir", str(folder / "data")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment | {"PROMETHEUS_METRICS_ENABLED": "false"},
    )
    assert process.stdout is not None
    try:
        address = _address(process)
        urllib.request.urlopen(f"{address}/live", timeout=10).read()
        time.sleep(IDLE_S)
        all_of_it = [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
        return sum(p.memory_info().rss for p in all_of_it) / 2**20
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            return str(json.loads(line)["address"])
    raise SystemExit(f"the service did not start; it ended with {process.wait()}")


def _bare_mb() -> float:
    code = (
        "import numpy, scipy.stats, fastapi, sqlalchemy, psutil;"
        "print(psutil.Process().memory_info().rss / 2**20)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def _installed(folder: Path) -> dict[str, float]:
    """MB of each entry of site-packages as the disk holds it, and of all (under "")."""
    builder = uv()

    def run(*command: str) -> None:
        done = subprocess.run([builder, *command], capture_output=True, text=True, cwd=ROOT)
        if done.returncode != 0:
            raise SystemExit(f"uv {' '.join(command)} ended with {done.returncode}: {done.stderr}")

    run("build", "--wheel", "--out-dir", str(folder / "dist"))
    run("venv", "--python", sys.executable, str(folder / "venv"))
    (wheel,) = (folder / "dist").glob("*.whl")
    python = folder / "venv" / "bin" / "python"
    run("pip", "install", "--python", str(python), "--link-mode", "copy", str(wheel))
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    sizes = {entry.name: _mb(entry) for entry in packages.iterdir()}
    return sizes | {"": sum(sizes.values())}


def _mb(entry: Path) -> float:
    found = [entry, *entry.rglob("*")] if entry.is_dir() else [entry]
    return sum(f.lstat().st_blocks for f in found) * 512 / 2**20


if __name__ == "__main__":
    for record in records():
        print(record)
