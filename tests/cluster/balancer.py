"""A balancer before several workers, as Kubernetes' endpoints are one: round robin over the ready.

    async with balancing(one.port, two.port) as balancer:
        balancer.url                      # http://127.0.0.1:PORT
        balancer.take_out(one.port)       # as when a pod is deleted: no new connection goes there
        balancer.backend(one.port).ready

It asks each worker's /ready every quarter of a second and leads connections to those that say yes.
One that refuses a connection is taken out at once, and the connection goes to the next: nothing was
sent on it yet. Bytes pass as they are; a request that has begun is never sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

__all__ = ["Backend", "Balancer", "balancing"]

PROBE_EVERY_S = 0.25


@dataclass
class Backend:
    """A worker, by its port."""

    port: int
    ready: bool = False
    out: bool = False
    """Taken out for good, whatever it says."""
    connections: int = 0
    """How many it was given."""
    open: int = 0


class Balancer:
    """Where clients connect to."""

    def __init__(self, *ports: int) -> None:
        self.backends = [Backend(port) for port in ports]
        self.port = 0
        self.homeless = 0
        """Connections for which no worker was there."""
        self._next = 0
        self._led: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def backend(self, port: int) -> Backend:
        return next(one for one in self.backends if one.port == port and not one.out)

    def add(self, port: int) -> Backend:
        self.backends.append(Backend(port))
        return self.backends[-1]

    def take_out(self, port: int) -> Backend:
        found = self.backend(port)
        found.out = True
        return found

    async def probe(self) -> None:
        """Ask all, for ever."""
        timeout = aiohttp.ClientTimeout(total=5)
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            while True:
                await asyncio.gather(*(self._ask(session, one) for one in self.backends))
                await asyncio.sleep(PROBE_EVERY_S)

    async def _ask(self, session: aiohttp.ClientSession, one: Backend) -> None:
        try:
            async with session.get(f"http://127.0.0.1:{one.port}/ready") as answer:
                one.ready = answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            one.ready = False

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Lead one connection to one worker, until either ends it."""
        leading = asyncio.create_task(self._lead(reader, writer))
        self._led.add(leading)
        leading.add_done_callback(self._led.discard)

    async def close(self) -> None:
        """End all connections."""
        for leading in list(self._led):
            leading.cancel()
        await asyncio.gather(*self._led, return_exceptions=True)

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found = await self._connected()
        if found is None:
            self.homeless += 1
            writer.transport.abort()
            return
        one, there, back = found
        one.connections += 1
        one.open += 1
        try:
            await asyncio.gather(_pass(reader, back), _pass(there, writer))
        finally:
            one.open -= 1
            for each in (back, writer):
                each.close()

    async def _connected(
        self,
    ) -> tuple[Backend, asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in range(len(self.backends)):
            one = self._turn()
            if one is None:
                return None
            try:
                return one, *await asyncio.open_connection("127.0.0.1", one.port)
            except OSError:
                one.ready = False
        return None

    def _turn(self) -> Backend | None:
        ready = [one for one in self.backends if one.ready and not one.out]
        if not ready:
            return None
        self._next += 1
        return ready[self._next % len(ready)]


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


@asynccontextmanager
async def balancing(*ports: int) -> AsyncIterator[Balancer]:
    """A balancer at work until the block ends."""
    made = Balancer(*ports)
    server = await asyncio.start_server(made.handle, "127.0.0.1", 0, backlog=1024)
    made.port = server.sockets[0].getsockname()[1]
    probing = asyncio.create_task(made.probe())
    try:
        yield made
    finally:
        probing.cancel()
        server.close()
        await made.close()
