"""The circuit breaker against published ones: cost, callers let through, memory left behind.

All run the same script (`peers/breakers/measure.py`) in turn, each in a process of its own, for
several rounds; the figures are medians.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

from environments import PEERS, interpreter, measured

ROUNDS = 5
SCRIPT = PEERS / "breakers" / "measure.py"
PEER_NAMES = ("purgatory", "pybreaker", "aiobreaker")


def records() -> list[dict[str, Any]]:
    """Measure everything and say how we do against each peer."""
    peers = interpreter("breakers")
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in ("tuneproof", *PEER_NAMES)}
    for _ in range(ROUNDS):
        for name, found in rounds.items():
            found.append(measured(sys.executable if name == "tuneproof" else peers, SCRIPT, name))
    ours = rounds.pop("tuneproof")
    return [record for name, theirs in rounds.items() for record in _against(name, ours, theirs)]


def _against(
    name: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    peer = f"{name} {theirs[0]['version']}"

    def medians(key: str) -> tuple[float, float]:
        return _median(ours, key), _median(theirs, key)

    cost, through, left = map(medians, ("overhead_ns", "let_through", "bytes_per_rejection"))
    return [
        {
            "name": "breaker: overhead of a closed call",
            "ours": round(cost[0]),
            "unit": "ns",
            "peer": peer,
            "peer_value": round(cost[1]),
            "ratio": round(cost[1] / cost[0], 2),
            "goal": "≥ 1 ×",
            "met": cost[0] <= cost[1],
        },
        {
            "name": "breaker: calls let through by 50 callers when half-open",
            "ours": through[0],
            "unit": "calls",
            "peer": peer,
            "peer_value": through[1],
            "ratio": through[1] / through[0],
            "goal": "exactly 1",
            "met": all(found["let_through"] == 1 for found in ours),
        },
        {
            "name": "breaker: memory that a refused call leaves behind",
            "ours": round(left[0], 1),
            "unit": "bytes",
            "peer": peer,
            "peer_value": round(left[1], 1),
            "ratio": None,
            "goal": "< 1 byte",
            "met": left[0] < 1,
        },
    ]


def _median(found: list[dict[str, Any]], key: str) -> float:
    return float(statistics.median(f[key] for f in found))
