"""What is done to whom: a proxy before each server, and signals to our own processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.gateways import Place
from tests.servers import Server, free_port

SLOW_S = 0.2
"""How long a slowed proxy holds back each piece."""


class Proxy:
    """Passes bytes on to a port of loopback, or refuses, holds them back, slows them."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._mode = "pass"
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", self.port)

    async def stop(self) -> None:
        self.cut()
        if self._server is not None:
            self._server.close()

    def set(self, mode: str) -> None:
        self._mode = mode
        if mode == "refuse":
            self.cut()

    def cut(self) -> None:
        """Break off every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "refuse":
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, back}
        self._writers |= pair
        try:
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        except asyncio.CancelledError:
            return  # the loop ends
        finally:
            self._writers -= pair
            for one in pair:
                one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self._mode == "slow":
                    await asyncio.sleep(SLOW_S)
                while self._mode == "stall":
                    await asyncio.sleep(0.05)
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()


@dataclass(frozen=True)
class Fault:
    """One thing that was done, from when until when (seconds on the monotonic clock)."""

    whom: str
    what: str
    began: float
    ended: float


Deed = Callable[[float], Awaitable[None]]


class Faults:
    """Does one thing after the other, drawn by a seed so that everything comes about equally."""

    def __init__(
        self, place: Place, proxies: dict[str, Proxy], servers: dict[str, Server], seed: int
    ) -> None:
        self._place = place
        self._proxies = proxies
        self._random = random.Random(seed)
        self._deck: list[tuple[str, str, Deed]] = []
        self._all = [
            *(
                (name, what, self._at_proxy(proxy, what))
                for name, proxy in proxies.items()
                for what in ("refuse", "stall", "cut", "slow")
            ),
            *((name, "kill", self._killed(server)) for name, server in servers.items()),
            ("service", "kill", self._service_killed),
            ("service", "stall", self._service_stalled),
            ("service and gateways", "replace", self._replaced),
        ]
        self.done: list[Fault] = []

    async def go_on(self, until: float) -> None:
        """Until that instant; at the end everything is well again."""
        while time.monotonic() < until:
            if not self._deck:
                self._deck = self._random.sample(self._all, len(self._all))
            whom, what, deed = self._deck.pop()
            lasts_s = self._random.uniform(1.5, 5.0)
            began = time.monotonic()
            await deed(lasts_s)
            self.done.append(Fault(whom, what, began, time.monotonic()))
            print(f"{whom}: {what} for {time.monotonic() - began:.1f} s", flush=True)  # noqa: T201
            await asyncio.sleep(self._random.uniform(1.0, 3.0))

    def at_fault(self, whom: str, began: float, ended: float) -> bool:
        """Whether anything was done to it between these instants, or just before."""
        return any(
            fault.whom == whom and fault.began - 1.0 <= ended and fault.ended + 3.0 >= began
            for fault in self.done
        )

    def _at_proxy(self, proxy: Proxy, what: str) -> Deed:
        async def deed(seconds: float) -> None:
            if what == "cut":
                for _ in range(5):
                    proxy.cut()
                    await asyncio.sleep(seconds / 5)
                return
            proxy.set(what)
            await asyncio.sleep(seconds)
            proxy.set("pass")

        return deed

    @staticmethod
    def _killed(server: Server) -> Deed:
        async def deed(seconds: float) -> None:
            await asyncio.to_thread(server.stop, kill=True)
            await asyncio.sleep(seconds)
            await asyncio.to_thread(server.start)

        return deed

    async def _service(self) -> int:
        return await asyncio.to_thread(self._place.service_pid)

    async def _back(self) -> None:
        await asyncio.to_thread(self._place.back)

    async def _service_killed(self, _seconds: float) -> None:
        os.kill(await self._service(), signal.SIGKILL)
        await self._back()

    async def _service_stalled(self, seconds: float) -> None:
        pid = await self._service()
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        os.kill(pid, signal.SIGCONT)
        await self._back()

    async def _replaced(self, _seconds: float) -> None:
        before = await asyncio.to_thread(self._place.pids)
        assert self._place.process is not None
        self._place.process.send_signal(signal.SIGHUP)
        while before & await asyncio.to_thread(self._place.pids):
            await asyncio.sleep(0.2)
        await self._back()
