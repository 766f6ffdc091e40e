"""What the client costs an application: a decision, a record, and how soon a change arrives.

The decision is compared with GrowthBook's SDK, which also decides in the process, with the bare
hash that it stands on, and with asking a service on this machine for each one.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from environments import PEERS, interpreter, measured
from tuneproof.client import Choice, Client

SCRIPT = PEERS / "choose" / "measure.py"
ROUNDS = 3
CHANGES = 20
RECORDS = 20_000
OF_GROWTHBOOK, OF_A_HASH = 18.0, 0.25
"""A quarter of a bare hash's speed: 0.5 µs where the goal was set."""
RECORD_OF_A_CALL = 1.3
"""100 µs against a call's 128 µs, where the goal was set."""
CHANGE_OF_POLLING = 5.0
"""One second against the five of a poll."""


def records() -> list[dict[str, Any]]:
    """Measure decisions, records and the way of a change."""
    choose_us = _choose_us(sys.executable, "tuneproof")
    with _service() as service:
        return [
            *_decisions(choose_us, service),
            _recording(service),
            _change(service),
        ]


def _choose_us(python: Any, name: str) -> float:
    found = [measured(python, SCRIPT, name)["seconds"] for _ in range(ROUNDS)]
    return statistics.median(found) * 1e6


def _decisions(ours_us: float, service: _Service) -> list[dict[str, Any]]:
    peers = {
        "growthbook 4.0.0": (_choose_us(interpreter("choose"), "growthbook"), OF_GROWTHBOOK),
        "one bare hash of the unit by xxhash": (_choose_us(sys.executable, "xxhash"), OF_A_HASH),
        "a call to a service on this machine": (_call_us(service), None),
    }
    return [
        {
            "name": "client: one choose()",
            "ours": round(ours_us, 2),
            "unit": "µs",
            "peer": peer,
            "peer_value": round(theirs_us, 2),
            "ratio": round(theirs_us / ours_us, 1),
            "goal": None if goal is None else f"≥ {goal:g} ×",
            "met": None if goal is None else theirs_us / ours_us >= goal,
        }
        for peer, (theirs_us, goal) in peers.items()
    ]


def _call_us(service: _Service, count: int = 500) -> float:
    line = HTTPConnection("127.0.0.1", service.port)
    rounds = []
    for _ in range(count):
        began = time.perf_counter()
        line.request("GET", "/routing")
        line.getresponse().read()
        rounds.append(time.perf_counter() - began)
    line.close()
    return statistics.median(rounds) * 1e6


def _recording(service: _Service) -> dict[str, Any]:
    """The 99th percentile of record() with the service away, which must not be felt."""
    choice = Choice("hook", "post-1", "base", "baseline", "ab-test-1", 1, 1, None, "service")
    with tempfile.TemporaryDirectory() as folder:
        client = Client("http://127.0.0.1:9", state_dir=folder, push=False)
        times = []
        for _ in range(RECORDS):
            began = time.perf_counter()
            client.record(choice, latency_ms=400.0, tokens=96, cost_usd=0.0002)
            times.append(time.perf_counter() - began)
            if len(times) % 100 == 0:
                time.sleep(0.001)
        client.close(timeout_s=0.1)
    times.sort()
    ours_us, call_us = times[int(0.99 * RECORDS)] * 1e6, _call_us(service)
    return {
        "name": "client: record(), 99th percentile, service away",
        "ours": round(ours_us, 1),
        "unit": "µs",
        "peer": "a call to a service on this machine, median",
        "peer_value": round(call_us, 1),
        "ratio": round(call_us / ours_us, 1),
        "goal": f"≥ {RECORD_OF_A_CALL:g} ×",
        "met": call_us / ours_us >= RECORD_OF_A_CALL,
    }


def _change(service: _Service) -> dict[str, Any]:
    """From the write of a routing to the first decision by it, pushed; the longest of many."""
    waits = []
    with Client(service.url, poll_s=60.0) as client:
        client.choose("hook", "1")
        service.listening.wait(5)
        for _ in range(CHANGES):
            time.sleep(0.05)
            began = time.perf_counter()
            version = service.change()
            while client.choose("hook", "1").version != version:
                time.sleep(0.0005)
            waits.append(time.perf_counter() - began)
    longest_ms = max(waits) * 1000
    return {
        "name": "client: from a rollback's write to a decision by it, longest of 20",
        "ours": round(longest_ms, 1),
        "unit": "ms",
        "peer": "polling every 5 s (the longest wait)",
        "peer_value": 5000.0,
        "ratio": round(5000 / longest_ms, 1),
        "goal": f"≥ {CHANGE_OF_POLLING:g} ×",
        "met": 5000 / longest_ms >= CHANGE_OF_POLLING,
    }


class _Service:
    """The routes that a client needs, by the standard library."""

    def __init__(self) -> None:
        self.version = 1
        self.changed = threading.Condition()
        self.listening = threading.Event()
        self.ended = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def change(self) -> int:
        with self.changed:
            self.version += 1
            self.changed.notify_all()
            return self.version

    def close(self) -> None:
        with self.changed:
            self.ended = True
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def table(self) -> bytes:
        row = {
            "task": "hook",
            "baseline": {"model_id": "base", "version": None},
            "candidate": None,
            "share": 0.0,
            "salt": "s",
            "subject": None,
            "phase": 0,
            "version": self.version,
        }
        return json.dumps({"version": self.version, "routing": [row]}).encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                if self.path == "/stream":
                    return self._stream()
                body = service.table()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return None

            def _stream(self) -> None:
                self.close_connection = True
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(b": connected\n\n")
                service.listening.set()
                seen = service.version
                while not service.ended:
                    with service.changed:
                        service.changed.wait_for(
                            lambda seen=seen: service.ended or service.version != seen
                        )
                        seen = service.version
                    self.wfile.write(b"event: routing\ndata: {}\n\n")

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        return Handler


@contextmanager
def _service() -> Iterator[_Service]:
    service = _Service()
    try:
        yield service
    finally:
        service.close()
