"""A chat request through the gateway, against other gateways before the same provider.

The real service (a rollout under way, each exposure recorded in SQLite), by two gateway processes
and by its own, and each peer stand before one provider that answers at once, all in processes of
their own, and are driven in turn by wrk: 1 and 32 connections, whole answers and streams of ten
chunks, for several rounds; the figures are medians. All of them share two cores with the provider
and with wrk. nginx passes through and reads nothing: it is the limit. Needs wrk and nginx on the
PATH (Debian packages of these names).

Reef keeps each whole exchange, which is its default, where ours and the others keep none. It needs
Python 3.12 and git-lfs; where either is missing it is not measured, and a record says so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environments import PEERS, Lacking, interpreter
from service import running

ROUNDS = 3
SECONDS = 4
PROVIDER = PEERS / "gateway" / "provider.py"
SCRIPT = PEERS / "gateway" / "chat.lua"
TENSORZERO, LITELLM, NGINX = "TensorZero 2026.6.0", "LiteLLM 1.108.7, one worker", "nginx"
REEF = "Reef 0.1.3, each exchange kept"
BESIDE, WITHIN = "two gateway processes", "in the service's process"
"""Ours: `tuneproof serve --gateways 2`, and without."""

KEY = "sk-any-key-of-this-benchmark"
_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}


@dataclass(frozen=True)
class Served:
    """Where chat requests go, the model that they name there, and what headers it asks for."""

    url: str
    model: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """Requests a second, and the median in µs."""

    rate: float
    p50_us: float


def records() -> list[dict[str, Any]]:
    """Measure."""
    for needed in ("wrk", "nginx"):
        if shutil.which(needed) is None:
            raise SystemExit(f"This benchmark needs {needed}: sudo apt-get install wrk nginx-light")
    with ExitStack() as stack:
        provider = stack.enter_context(started([sys.executable, str(PROVIDER)]))
        url = f"http://127.0.0.1:{provider['port']}/v1"
        service = stack.enter_context(running(provider=url, gateways=2))
        beside = f"http://127.0.0.1:{service.gateway_port}"
        gateways = {
            BESIDE: Served(f"{beside}/v1/chat/completions", "tuneproof/hook"),
            WITHIN: Served(f"{service.url}/v1/chat/completions", "tuneproof/hook"),
            "none": Served(f"{url}/chat/completions", "base"),
            NGINX: stack.enter_context(_nginx(provider["port"])),
            TENSORZERO: stack.enter_context(_peer("gateway_tensorzero", url)),
            LITELLM: stack.enter_context(_peer("gateway_litellm", url)),
        }
        lacking = ""
        try:
            gateways[REEF] = stack.enter_context(_reef(url))
        except Lacking as reason:
            lacking = f"{REEF} (not measured: {reason})"
            print(lacking, file=sys.stderr)
        for one in gateways.values():
            _answers(one)
        found = {
            (connections, stream): _rounds(gateways, connections, stream=stream)
            for stream in (False, True)
            for connections in (1, 32)
        }
    made = [record for case, one in found.items() for record in _records(case, one)]
    return [*made, _not_measured(lacking)] if lacking else made


def _records(case: tuple[int, bool], found: dict[str, Measured]) -> list[dict[str, Any]]:
    """Of one number of connections, whole or streamed: ours in both ways beside each peer."""
    connections, stream = case
    kind = "streamed" if stream else "whole"
    bare = found["none"].p50_us
    made = []
    for ours in (BESIDE, WITHIN):
        goals = {TENSORZERO: 1.0, LITELLM: 40.0, NGINX: 0.6} if ours == BESIDE else {}
        for peer in (TENSORZERO, LITELLM, REEF, NGINX):
            if peer not in found:
                continue
            goal = goals.get(peer)
            if connections > 1:
                name = f"gateway, {ours}: {kind} answers, {connections} connections"
                figures = found[ours].rate, found[peer].rate
                ratio = figures[0] / figures[1]
            else:
                name = f"gateway, {ours}: added to a {kind} answer, median"
                figures = found[ours].p50_us - bare, found[peer].p50_us - bare
                ratio, goal = figures[1] / figures[0], goal if peer == TENSORZERO else None
            unit = "requests/s" if connections > 1 else "µs"
            made.append(_record(name, unit, figures, peer, ratio, goal))
    return made


def _record(
    name: str,
    unit: str,
    figures: tuple[float, float],
    peer: str,
    ratio: float,
    goal: float | None,
) -> dict[str, Any]:
    stretch = " (stretch)" if peer == NGINX else ""
    return {
        "name": name,
        "ours": round(figures[0]),
        "unit": unit,
        "peer": peer,
        "peer_value": round(figures[1]),
        "ratio": round(ratio, 2),
        "goal": "" if goal is None else f"≥ {goal:g} ×{stretch}",
        "met": None if goal is None else ratio >= goal,
    }


def _not_measured(peer: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("ours", "peer_value", "ratio", "met"))
    return {"name": "gateway", "unit": "", "peer": peer, "goal": "", **nothing}


def _rounds(gateways: dict[str, Served], connections: int, *, stream: bool) -> dict[str, Measured]:
    found: dict[str, list[Measured]] = {name: [] for name in gateways}
    for _ in range(ROUNDS):
        for name, one in gateways.items():
            found[name].append(_driven(one, connections, stream=stream))
    return {
        name: Measured(
            statistics.median(m.rate for m in rounds), statistics.median(m.p50_us for m in rounds)
        )
        for name, rounds in found.items()
    }


def _driven(one: Served, connections: int, *, stream: bool) -> Measured:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", "--timeout", "20s", "--latency"]
    body = {"BODY_MODEL": one.model, "BODY_STREAM": "1" if stream else "0"}
    headers = "\n".join(f"{name}: {value}" for name, value in one.headers.items())
    environment = {**os.environ, **body, "HEADERS": headers}
    ran = subprocess.run(
        [*command, "-s", str(SCRIPT), one.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    if ran.returncode or "Non-2xx" in ran.stdout or "Socket errors" in ran.stdout:
        raise SystemExit(f"{one.url} did not answer well:\n{ran.stdout}")
    said = ran.stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    half = re.search(r"50%\s+([\d.]+)(us|ms|s)", said)
    if rate is None or half is None:
        raise SystemExit(f"wrk said nothing of {one.url}:\n{said}")
    return Measured(float(rate[1]), float(half[1]) * _UNITS[half[2]])


def _answers(one: Served) -> None:
    """Wait until a gateway answers, and see that it does."""
    body = {"model": one.model, "messages": [{"role": "user", "content": "hello"}], "user": "u"}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    asked = urllib.request.Request(one.url, json.dumps(body).encode(), headers | one.headers)
    deadline = time.monotonic() + 120
    while True:
        try:
            answer = json.load(urllib.request.urlopen(asked, timeout=20))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
            continue
        assert answer["choices"][0]["message"]["content"].startswith("word"), answer
        return


def _reef(provider: str) -> AbstractContextManager[Served]:
    if shutil.which("git-lfs") is None:
        raise Lacking("git-lfs is not installed")
    return _peer("gateway_reef", provider, version=">=3.12")


@contextmanager
def _peer(name: str, provider: str, *, version: str | None = None) -> Iterator[Served]:
    python = interpreter(name, version=version)
    with started([str(python), str(PEERS / name / "serve.py"), provider]) as found:
        base = found.get("url") or f"http://127.0.0.1:{found['port']}/v1"
        yield Served(f"{base}/chat/completions", found["model"], found.get("headers", {}))


@contextmanager
def started(command: list[str]) -> Iterator[dict[str, Any]]:
    """A program that prints one line of JSON once it serves, and that line; ended afterwards.

    What it prints from then on is read and dropped: a full pipe would hold it up.
    """
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("{"):
                threading.Thread(target=deque, args=(process.stdout, 0), daemon=True).start()
                yield json.loads(line)
                return
        raise SystemExit(f"{command} ended with {process.wait()}")
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def _nginx(provider: int) -> Iterator[Served]:
    """nginx with one worker, its connections to the provider kept."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "nginx.conf"
        config.write_text(
            f"""
daemon off; worker_processes 1; pid {folder}/pid; error_log /dev/null;
events {{ worker_connections 1024; }}
http {{
  access_log {folder}/access.log;
  upstream provider {{ server 127.0.0.1:{provider}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://provider; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""
        )
        process = subprocess.Popen(["nginx", "-c", str(config), "-p", folder])
        try:
            yield Served(f"http://127.0.0.1:{port}/v1/chat/completions", "base")
        finally:
            process.terminate()
            process.wait(20)


if __name__ == "__main__":
    for record in records():
        print(record)
