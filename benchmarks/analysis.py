"""One analysis from aggregates: ours against tea-tasting and gbstats, the same six numbers in."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from environments import PEERS, interpreter, measured

SCRIPT = PEERS / "analysis" / "measure.py"
ROUNDS = 3
WANTED = 10


def records() -> list[dict[str, Any]]:
    """Ours and each peer, interleaved; the median of the rounds."""
    places: dict[str, Path | str] = {
        "tuneproof": sys.executable,
        "tea-tasting": interpreter("analysis/tea_tasting"),
        "gbstats-entry": interpreter("analysis/gbstats"),
        "gbstats": interpreter("analysis/gbstats"),
    }
    rounds = [
        {name: measured(python, SCRIPT, name) for name, python in places.items()}
        for _ in range(ROUNDS)
    ]
    micros = {
        name: statistics.median(found[name]["seconds"] for found in rounds) * 1e6 for name in places
    }
    ours = micros.pop("tuneproof")
    said = {
        "tea-tasting": "tea-tasting {}, analyze_aggregates",
        "gbstats-entry": "gbstats {}, process_experiment_results (pandas)",
        "gbstats": "gbstats {}, the bare test class",
    }
    return [
        {
            "name": "one analysis from aggregates",
            "ours": round(ours, 2),
            "unit": "µs",
            "peer": said[name].format(rounds[0][name]["version"]),
            "peer_value": round(theirs, 2),
            "ratio": round(theirs / ours, 1),
            "goal": "shown" if name == "gbstats" else f">= {WANTED} x faster",
            "met": name == "gbstats" or theirs / ours >= WANTED,
        }
        for name, theirs in micros.items()
    ]


if __name__ == "__main__":
    for record in records():
        print(record)
