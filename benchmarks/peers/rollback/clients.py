"""Many clients of one service, in one process: `push` listens to the stream, `poll` asks again.

    python clients.py push|poll PORT CLIENTS POLL_S

Each does what `tuneproof.client` does: it asks `GET /routing`, then listens on `GET /stream`
and asks again at each routing event (or every POLL_S, 75 to 95 % of it, at random), each kind
over a connection of its own. Prints `ready` once all hold a table with a candidate; then, when
all hold one without, the instants at which each got it, on the clock that all processes share.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time


class Client:
    """One application's client."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.candidate = False
        self.restored_at = 0.0

    async def open(self) -> None:
        """Connect and take the first table."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        await self.refresh()

    async def refresh(self) -> None:
        """Ask for the routing."""
        self._writer.write(_request("/routing", self._port))
        head = await self._reader.readuntil(b"\r\n\r\n")
        at = head.lower().index(b"content-length: ") + 16
        body = await self._reader.readexactly(int(head[at : head.index(b"\r", at)]))
        table = json.loads(body)
        self.candidate = any(row["candidate"] for row in table["routing"])
        if not self.candidate and not self.restored_at:
            self.restored_at = time.monotonic()

    async def listen(self, listening: asyncio.Semaphore) -> None:
        """Follow the stream until the candidate is gone."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(_request("/stream", self._port))
        while (line := await reader.readline()) != b": connected\n":
            if not line:
                raise SystemExit("the stream was closed")
        listening.release()
        while self.candidate:
            line = await reader.readline()
            if not line:
                raise SystemExit("the stream was closed")
            if line.startswith(b"event: routing"):
                await self.refresh()
        writer.close()

    async def poll(self, every_s: float) -> None:
        """Ask again and again until the candidate is gone."""
        while self.candidate:
            await asyncio.sleep(every_s * random.uniform(0.75, 0.95))
            await self.refresh()


def _request(path: str, port: int) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()


async def main(way: str, port: int, count: int, every_s: float) -> None:
    """Run them all."""
    clients = [Client(port) for _ in range(count)]
    for start in range(0, count, 50):  # a few at a time: the backlog is finite
        await asyncio.gather(*(client.open() for client in clients[start : start + 50]))
    if not all(client.candidate for client in clients):
        raise SystemExit("there is no candidate to take back")
    listening = asyncio.Semaphore(0)
    if way == "push":
        tasks = [asyncio.create_task(client.listen(listening)) for client in clients]
        for _ in clients:
            await listening.acquire()
    else:
        tasks = [asyncio.create_task(client.poll(every_s)) for client in clients]
        await asyncio.sleep(every_s)  # until their turns are spread
    print("ready", flush=True)
    await asyncio.gather(*tasks)
    print(json.dumps([client.restored_at for client in clients]), flush=True)


if __name__ == "__main__":
    way, *numbers = sys.argv[1:]
    asyncio.run(main(way, int(numbers[0]), int(numbers[1]), float(numbers[2])))
