"""A decision over HTTP by one worker, against FastAPI's dict route and against uvicorn alone.

The real service (rollout at 10 %, units that change, each request counted) and the peers run
at once, each in a process of its own, and are asked in turn for several rounds; the figures
are medians. FastAPI's route decides nothing and returns the same fields. The goal is read from
the worker's processor time: the generator of the load costs as much as the quicker servers, and
on two cores it, not they, sets the rate that is shown beside.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from environments import PEERS, measured
from service import running

ROUNDS = 5
SECONDS = 1.2
LOAD = Path(__file__).with_name("load.py")
PATHS = [f"/decide?task=hook&unit=post-{number}" for number in range(50)]
GOAL = 2.8
FASTAPI = f"FastAPI {version('fastapi')}, dict route"


def records() -> list[dict[str, Any]]:
    """Measure at 32 connections and at one."""
    with ExitStack() as stack:
        service = stack.enter_context(running())
        _warm(service.port)
        servers = {"ours": (service.port, service.pid)}
        for name in ("fastapi", "raw"):
            servers[name] = stack.enter_context(_peer(name))
        many = _rounds(servers, 32)
        one = _rounds(servers, 1)
    return [
        _capacity(many, FASTAPI, "fastapi", GOAL),
        _capacity(many, "uvicorn alone, constant bytes (the limit)", "raw", None),
        _rate(many),
        _latency(one),
    ]


def _rounds(servers: dict[str, tuple[int, int]], connections: int) -> dict[str, dict[str, float]]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    for _ in range(ROUNDS):
        for name, (port, pid) in servers.items():
            found[name].append(_asked(port, pid, connections))
    return {
        name: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        for name, rounds in found.items()
    }


def _asked(port: int, pid: int, connections: int) -> dict[str, float]:
    process = psutil.Process(pid)
    before = sum(process.cpu_times()[:2])
    answer = measured(sys.executable, LOAD, str(port), str(connections), str(SECONDS), *PATHS)
    spent = sum(process.cpu_times()[:2]) - before
    return {**answer, "cpu_us": spent / (answer["rate"] * SECONDS) * 1e6}


def _warm(port: int) -> None:
    answer = urllib.request.urlopen(f"http://127.0.0.1:{port}{PATHS[0]}")
    assert json.loads(answer.read())["task"] == "hook"


@contextmanager
def _peer(name: str) -> Iterator[tuple[int, int]]:
    command = [sys.executable, str(PEERS / "decide" / "serve.py"), name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = json.loads(process.stdout.readline())
        yield found["port"], found["pid"]
    finally:
        process.terminate()
        process.wait(20)


def _capacity(
    found: dict[str, dict[str, float]], peer: str, name: str, goal: float | None
) -> dict[str, Any]:
    ours, theirs = (1e6 / found[way]["cpu_us"] for way in ("ours", name))
    return {
        "name": "decide: decisions over HTTP in a second of one worker's processor time",
        "ours": round(ours),
        "unit": "requests",
        "peer": peer,
        "peer_value": round(theirs),
        "ratio": round(ours / theirs, 2),
        "goal": "" if goal is None else f"≥ {goal} ×",
        "met": None if goal is None else ours >= goal * theirs,
        "cpu_us": round(found["ours"]["cpu_us"], 1),
        "peer_cpu_us": round(found[name]["cpu_us"], 1),
    }


def _rate(found: dict[str, dict[str, float]]) -> dict[str, Any]:
    ours, theirs = found["ours"]["rate"], found["fastapi"]["rate"]
    return {
        "name": "decide: decisions over HTTP, one worker, 32 connections from the same machine",
        "ours": round(ours),
        "unit": "requests/s",
        "peer": FASTAPI,
        "peer_value": round(theirs),
        "ratio": round(ours / theirs, 2),
        "goal": "",
        "met": None,
        "limit": round(found["raw"]["rate"]),
    }


def _latency(found: dict[str, dict[str, float]]) -> dict[str, Any]:
    ours, theirs = found["ours"]["p50_us"], found["fastapi"]["p50_us"]
    return {
        "name": "decide: one decision over HTTP at a time, median",
        "ours": round(ours),
        "unit": "µs",
        "peer": FASTAPI,
        "peer_value": round(theirs),
        "ratio": round(theirs / ours, 2),
        "goal": "",
        "met": None,
    }


if __name__ == "__main__":
    for record in records():
        print(record)
