"""How long an application waits for `import tuneproof.client`, and a user for `--help`.

Whole processes by the wall clock, the bare interpreter in turn with them; medians. What takes
the time is in the record's `slowest`, by `python -X importtime` (milliseconds of its own).
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROUNDS = 15
BARE = (sys.executable, "-c", "pass")
GOALS = {
    "import tuneproof.client": ((sys.executable, "-c", "import tuneproof.client"), 17),
    "tuneproof --help": ((str(Path(sys.executable).parent / "tuneproof"), "--help"), 45),
}
"""Commands, and how many times the bare interpreter they may take: 150 and 400 ms against 8.8 ms,
where the goals were set."""
_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|\s*(\S+)")


def records() -> list[dict[str, Any]]:
    """Measure both, each beside the bare interpreter."""
    commands = {"bare": BARE, **{name: command for name, (command, _) in GOALS.items()}}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS + 1):
        for name, command in commands.items():
            times[name].append(_milliseconds(command))
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    return [
        {
            "name": f"start: {name}",
            "ours": round(medians[name], 1),
            "unit": "ms",
            "peer": "python -c pass",
            "peer_value": round(medians["bare"], 1),
            "ratio": round(medians["bare"] / medians[name], 3),
            "goal": f"≤ {goal} × the interpreter's",
            "met": medians[name] <= goal * medians["bare"],
            "slowest": _slowest(command),
        }
        for name, (command, goal) in GOALS.items()
    ]


def _milliseconds(command: tuple[str, ...]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return (time.perf_counter() - started) * 1000


def _slowest(command: tuple[str, ...], count: int = 5) -> dict[str, float]:
    """The modules that take the most time of their own, in milliseconds."""
    arguments = command[1:] if command[0] == sys.executable else command
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True
    )
    own = {match[3]: int(match[1]) / 1000 for match in _LINE.finditer(done.stderr)}
    return dict(sorted(own.items(), key=lambda item: -item[1])[:count])
