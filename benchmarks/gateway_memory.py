"""What a million requests leave in the memory of the gateway's processes.

The real service with two gateway processes, a rollout under way, and a provider that answers at
once; wrk asks with 32 connections, whole answers and streams by turns. Resident memory of the
gateway processes together, after the first 50,000 requests (caches are full, allocators warm) and
after the last. Takes ten to twenty minutes; `REQUESTS=200000` in the environment asks for less.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import psutil

from gateway import PROVIDER, SCRIPT, Served, started
from service import running

REQUESTS = int(os.environ.get("REQUESTS", "1000000"))
WARM = 50_000
TURN_S = 15
GOAL = 1.1


def records() -> list[dict[str, Any]]:
    """Measure."""
    with ExitStack() as stack:
        provider = stack.enter_context(started([sys.executable, str(PROVIDER)]))
        url = f"http://127.0.0.1:{provider['port']}/v1"
        service = stack.enter_context(running(provider=url, gateways=2))
        one = Served(
            f"http://127.0.0.1:{service.gateway_port}/v1/chat/completions", "tuneproof/hook"
        )
        asked, warm, turn = 0, 0.0, 0
        while asked < REQUESTS:
            asked += _asked(one, stream=bool(turn % 2))
            turn += 1
            if not warm and asked >= WARM:
                warm = _resident(service.gateway_port)
            print(f"{asked} requests: {_resident(service.gateway_port):.0f} MB", file=sys.stderr)
        after = _resident(service.gateway_port)
    return [
        {
            "name": f"gateway: memory of both processes after {asked:,} requests",
            "ours": round(after),
            "unit": "MB",
            "peer": f"itself after {WARM:,}",
            "peer_value": round(warm),
            "ratio": round(warm / after, 2),
            "goal": f"≥ {1 / GOAL:.2f} ×",
            "met": after <= GOAL * warm,
        }
    ]


def _asked(one: Served, *, stream: bool) -> int:
    environment = {**os.environ, "BODY_MODEL": one.model, "BODY_STREAM": "1" if stream else "0"}
    said = subprocess.run(
        ["wrk", "-t1", "-c32", f"-d{TURN_S}s", "--timeout", "20s", "-s", str(SCRIPT), one.url],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    ).stdout
    found = re.search(r"(\d+) requests in", said)
    if found is None or "Non-2xx" in said:
        raise SystemExit(f"{one.url} did not answer well:\n{said}")
    return int(found[1])


def _resident(port: int) -> float:
    """Resident memory of the processes that listen on this port and began there, in MB."""
    listening = {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr
        and connection.laddr[1] == port
        and connection.pid is not None
    }
    parents = {psutil.Process(pid).ppid() for pid in listening}
    return sum(psutil.Process(pid).memory_info().rss for pid in listening - parents) / 1e6


if __name__ == "__main__":
    for record in records():
        print(record)
