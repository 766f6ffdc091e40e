"""What a durable step and a durable transaction cost, against the engine without us.

The same small step and the same one-row transaction go through `tuneproof.workflow` and
through bare DBOS, on SQLite and on PostgreSQL, each way in a process and a database of its own;
the ways take turns, a batch each. The figures are first quartiles over the batches, since waiting
for the disk behind other work can only add (medians are kept beside). On SQLite the engine's own
settings wait for the disk at each commit; beside it stands one with our settings.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.servers import postgres_server

from environments import PEERS

ROUNDS = 12
SLOW_ROUNDS = 1
GOAL = 1.2
SCRIPT = PEERS / "durable" / "measure.py"
Found = dict[str, list[dict[str, float]]]


def records() -> list[dict[str, Any]]:
    """Measure both databases."""
    with tempfile.TemporaryDirectory() as folder:
        sqlite = _sqlite(Path(folder))
    with postgres_server(fsync="on", synchronous_commit="on", full_page_writes="on") as server:
        urls = {way: server.create_database() for way in ("ours", "bare")}
        postgres = _take_turns({way: (url, url) for way, url in urls.items()}, ROUNDS)
    dbos = f"DBOS {version('dbos')}"
    return [
        *_records("SQLite", sqlite, "tuned", f"{dbos} with our SQLite settings", GOAL),
        *_records("SQLite", sqlite, "bare", f"{dbos} as it comes", None),
        *_records("PostgreSQL", postgres, "bare", f"{dbos} as it comes", GOAL),
    ]


def _sqlite(folder: Path) -> Found:
    def urls(way: str) -> tuple[str, str]:
        return f"sqlite+aiosqlite:///{folder / way}.db", f"sqlite:///{folder / way}-engine.db"

    found = _take_turns({way: urls(way) for way in ("ours", "tuned")}, ROUNDS)
    return found | _take_turns({"bare": urls("bare")}, SLOW_ROUNDS)


def _take_turns(ways: dict[str, tuple[str, str]], rounds: int) -> Found:
    found: Found = {way: [] for way in ways}
    with ExitStack() as stack:
        processes = {way: stack.enter_context(_process(way, *at)) for way, at in ways.items()}
        for number in range(rounds + 1):
            for way, process in processes.items():
                batch = _batch(process)
                if number or rounds < 3:  # the first one of many only warms up
                    found[way].append(batch)
    return found


@contextmanager
def _process(way: str, *urls: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(SCRIPT), way, *urls]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(20)


def _batch(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{process.args!r} ended with {process.wait()}")
    found: dict[str, float] = json.loads(line)
    return found


def _records(
    where: str, found: Found, way: str, peer: str, goal: float | None
) -> list[dict[str, Any]]:
    made = []
    for key, what in (("step_ms", "step"), ("transaction_ms", "transaction")):
        batches = {who: sorted(batch[key] for batch in found[who]) for who in ("ours", way)}
        ours, theirs = (batches[who][len(batches[who]) // 4] for who in ("ours", way))
        made.append(
            {
                "name": f"durable {what} on {where}",
                "ours": round(ours, 3),
                "unit": "ms",
                "peer": peer,
                "peer_value": round(theirs, 3),
                "ratio": round(theirs / ours, 2),
                "goal": "" if goal is None else f"≤ {goal} × the engine's",
                "met": None if goal is None else ours <= goal * theirs,
                "median": round(statistics.median(batches["ours"]), 3),
                "peer_median": round(statistics.median(batches[way]), 3),
            }
        )
    return made


if __name__ == "__main__":
    for record in records():
        print(record)
