"""A load generator for HTTP on loopback: many kept-alive connections, one process, epoll.

    python benchmarks/load.py PORT CONNECTIONS SECONDS REQUEST...

REQUEST is a path for GET. Each connection asks for the paths in turn, the next when the answer
before it is whole. Prints JSON: requests a second, and the median and 99th percentile in µs.
It costs about as much as a quick server: on two cores, processor times say more
than rates.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Sequence
from itertools import cycle


def load(port: int, connections: int, seconds: float, paths: Sequence[str]) -> dict[str, float]:
    """Ask for `paths` over this many connections for this long."""
    requests = cycle(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: */*\r\n\r\n".encode()
        for path in paths
    )
    poll = select.epoll()
    lines: dict[int, socket.socket] = {}
    begun: dict[int, float] = {}
    for _ in range(connections):
        line = socket.create_connection(("127.0.0.1", port))
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(line, select.EPOLLIN)
        lines[line.fileno()] = line
    times: list[float] = []
    start = time.perf_counter()
    end = start + seconds
    for number, line in lines.items():
        begun[number] = time.perf_counter()
        line.sendall(next(requests))
    while (now := time.perf_counter()) < end:
        for number, _ in poll.poll(1.0):
            line = lines[number]
            _whole(line)
            now = time.perf_counter()
            times.append(now - begun[number])
            begun[number] = now
            line.sendall(next(requests))
    taken = time.perf_counter() - start
    for line in lines.values():
        line.close()
    times.sort()
    return {
        "rate": len(times) / taken,
        "p50_us": times[len(times) // 2] * 1e6,
        "p99_us": times[int(len(times) * 0.99)] * 1e6,
    }


def _whole(line: socket.socket) -> bytes:
    """One answer of status 200, head and body."""
    answer = line.recv(65_536)
    while True:
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the service answered {answer[:300]!r}")
        end = answer.find(b"\r\n\r\n")
        if end > 0:
            at = answer.lower().find(b"content-length: ", 0, end) + 16
            length = int(answer[at : answer.find(b"\r", at)])
            if len(answer) >= end + 4 + length:
                return answer
        answer += line.recv(65_536)


if __name__ == "__main__":
    port, connections, seconds, *paths = sys.argv[1:]
    print(json.dumps(load(int(port), int(connections), float(seconds), paths)))
