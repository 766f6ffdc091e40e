"""Batches of events: what the routing says of each unit, with an effect; and strays."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tuneproof.rollout import Routing

EFFECTS = (1.0, 1.0, 1.0, 0.0, -0.6)
"""How much better the candidates are."""

MEAN = 0.06


@dataclass(frozen=True)
class Sent:
    """A batch, and how many units it has by subject and arm."""

    body: dict[str, Any]
    units: int
    by_arm: Counter[tuple[str, str]]


def batch_of(
    routing: Routing, name: str, units: int, effect: float, failing: float, at: datetime
) -> Sent:
    """An exposure and an outcome of each of so many new units, as the routing serves them."""
    draw, count = random.Random(name), Counter[tuple[str, str]]()
    exposures, outcomes = [], []
    for number in range(units):
        unit = f"unit-{name}-{number}"
        served = routing.serve(unit)
        assert served.subject is not None
        arm = str(served.arm)
        count[(served.subject, arm)] += 1
        better = effect if arm == "candidate" else 0.0
        common = {"subject": served.subject, "unit": unit, "at": at.isoformat()}
        exposures.append(
            {
                **common,
                "id": f"{unit}:e",
                "phase": routing.phase,
                "arm": arm,
                "task": routing.task,
                "latency_ms": 200.0,
                "error": arm == "candidate" and draw.random() < failing,
                "tokens": 100,
                "cost_usd": 0.0005,
            }
        )
        value = MEAN * (1 + better) * draw.uniform(0.8, 1.2)
        outcomes.append({**common, "id": f"{unit}:o", "value": value})
    return Sent({"exposures": exposures, "outcomes": outcomes}, units, count)


STRAYS: dict[str, dict[str, Any]] = {
    "subject": {"subject": "ab-test-20000101-001"},
    "phase 0": {"phase": 0},
    "phase": {"phase": 9999},
    "arm": {"arm": "control"},
    "before": {"at": timedelta(days=-400)},
    "after": {"at": timedelta(minutes=6)},
    "far": {"at": timedelta(days=900_000)},
    "first": {"at": "0001-01-01T00:00:00Z"},
    "before the first": {"at": "0001-01-01T00:00:00+14:00"},
    "last": {"at": "9999-12-31T23:59:59.999999Z"},
    "beyond the last": {"at": "9999-12-31T23:59:59-14:00"},
    "leap day": {"at": "2024-02-29T23:59:60Z"},
    "no day": {"at": "2025-02-29T00:00:00Z"},
    "old": {"at": "1999-12-31T23:59:59Z"},
}
"""Events that no test or rollout can mean: what is wrong with each."""


def stray(kind: str, subject: str, id: str, now: datetime) -> dict[str, Any]:
    """An exposure that is right but for one thing."""
    wrong = dict(STRAYS[kind])
    at = wrong.pop("at", now.isoformat())
    at = (now + at).isoformat() if isinstance(at, timedelta) else at
    whole = {"id": id, "subject": subject, "phase": 1, "arm": "candidate", "unit": id, "at": at}
    return {**whole, **wrong}
