"""From the call that rolls back until 1,000 connected clients decide by the old model.

The real service on loopback with a rollout at 10 %; 1,000 clients in a second process; the
rollback over HTTP, as a person or a guardrail asks for it. Measured from before the call until
the last client holds the new routing. The peer is what the clients would do without a push:
ask every 5 s. On two cores the clients' own work is part of the figure.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import urllib.request
from typing import Any

import psutil

from environments import PEERS
from service import Running, running

CLIENTS = 1000
ROUNDS = 3
POLL_S = 5.0
PROMISED_S = 30.0
OF_POLLING, OF_THE_PROMISE = 4.4, 30.0
"""One second, against the 4.41 s of polling clients where the goal was set, and against 30 s."""
SCRIPT = PEERS / "rollback" / "clients.py"


def records() -> list[dict[str, Any]]:
    """Measure clients that are pushed, and clients that poll."""
    pushed = [_round("push") for _ in range(ROUNDS)]
    polled = _round("poll")
    push_s = statistics.median(r["last_s"] for r in pushed)
    return [
        _record("pushed", push_s, "clients that poll every 5 s", polled["last_s"], OF_POLLING)
        | {"call_s": _median(pushed, "call_s"), "half_s": _median(pushed, "half_s")},
        _record("pushed", push_s, "the promise of the first version", PROMISED_S, OF_THE_PROMISE),
        _record("polling every 5 s", polled["last_s"], "their interval", POLL_S, 1.0),
        _memory(_median(pushed, "rss_mb")),
    ]


def _median(rounds: list[dict[str, float]], key: str) -> float:
    return round(statistics.median(r[key] for r in rounds), 3)


def _round(way: str) -> dict[str, float]:
    with running() as service:
        command = [sys.executable, str(SCRIPT), way, str(service.port), str(CLIENTS), str(POLL_S)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as clients:
            assert clients.stdout is not None
            if clients.stdout.readline() != "ready\n":
                raise SystemExit(f"the clients ended with {clients.wait()}")
            rss_mb = psutil.Process(service.pid).memory_info().rss / 2**20
            began = time.monotonic()
            _roll_back(service)
            called = time.monotonic()
            restored = sorted(json.loads(clients.stdout.readline()))
    return {
        "call_s": called - began,
        "half_s": restored[CLIENTS // 2] - began,
        "last_s": restored[-1] - began,
        "rss_mb": rss_mb,
    }


def _roll_back(service: Running) -> None:
    request = urllib.request.Request(
        f"{service.url}/deployment/rollback/{service.rollout}",
        data=json.dumps({"reason": "harm"}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.load(answer)["status"] == "rolled_back"


def _record(how: str, ours_s: float, peer: str, theirs_s: float, goal: float) -> dict[str, Any]:
    return {
        "name": f"rollback: until the last of {CLIENTS:,} clients has it, {how}",
        "ours": round(ours_s, 3),
        "unit": "s",
        "peer": peer,
        "peer_value": round(theirs_s, 3),
        "ratio": round(theirs_s / ours_s, 2),
        "goal": f"≥ {goal:g} ×",
        "met": theirs_s / ours_s >= goal,
    }


def _memory(rss_mb: float) -> dict[str, Any]:
    return {
        "name": f"rollback: the service's memory with {CLIENTS:,} clients on the stream",
        "ours": round(rss_mb),
        "unit": "MB",
        "peer": None,
        "peer_value": None,
        "ratio": None,
        "goal": "",
        "met": None,
    }


if __name__ == "__main__":
    for record in records():
        print(record)
