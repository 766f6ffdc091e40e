"""Which connections are ended for what they do not send, by a clock that is set by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from tuneproof.server.framing import LOOK_EVERY_S, SLOWEST_S, Protocol

HEAD = b"POST /events HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"


class Loop:
    """The running loop, whose time passes by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio.get_running_loop(), name)

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        self._due.append((self.now + delay, call))
        return asyncio.TimerHandle(self.now + delay, call, (), asyncio.get_running_loop())

    def wait(self, seconds: float) -> None:
        """Let time pass, a look at a time."""
        end = self.now + seconds
        while self.now < end:
            self.now += LOOK_EVERY_S
            due, self._due = self._due, []
            for at, call in due:
                call() if at <= self.now else self._due.append((at, call))


class Transport(asyncio.Transport):
    """What is written, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Connection:
    """A connection to an application that answers once it has the body."""

    def __init__(self) -> None:
        self.loop, self.transport = Loop(), Transport()
        self.answered = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.takes_all = True
        config = Config(self._app, http=Protocol, interface="asgi3", log_config=None)
        config.load()
        self.protocol = Protocol(config, ServerState(), {}, self.loop)  # type: ignore[arg-type]
        self.protocol.connection_made(self.transport)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        await self.reads.wait()
        while self.takes_all and (await receive()).get("more_body"):
            pass
        await self.answered.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(self, data: bytes) -> None:
        self.protocol.data_received(data)
        await self.turn()

    async def turn(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
async def connection() -> Iterator[Connection]:  # type: ignore[misc]
    made = Connection()
    yield made
    made.answered.set()
    made.reads.set()
    made.protocol.connection_lost(None)
    await made.turn()


@pytest.mark.parametrize("sent", [b"", HEAD[:30], HEAD, HEAD + b"ab"])
async def test_what_stands_still_is_ended(connection: Connection, sent: bytes) -> None:
    if sent:
        await connection.send(sent)
    connection.loop.wait(SLOWEST_S)
    assert not connection.transport.closed
    connection.loop.wait(LOOK_EVERY_S)
    assert connection.transport.closed
    assert connection.transport.written.startswith(b"HTTP/1.1 408 Request Timeout\r\n")


async def test_who_was_answered_while_still_sending_gets_no_second_answer(
    connection: Connection,
) -> None:
    connection.takes_all = False
    connection.answered.set()
    await connection.send(HEAD + b"ab")
    assert connection.transport.written.startswith(b"HTTP/1.1 204")
    connection.loop.wait(SLOWEST_S + LOOK_EVERY_S)
    assert connection.transport.closed
    assert connection.transport.written.count(b"HTTP/1.1") == 1


async def test_a_head_that_drips_in_is_ended(connection: Connection) -> None:
    for byte in HEAD[:20]:
        await connection.send(bytes([byte]))
        connection.loop.wait(LOOK_EVERY_S)
    assert connection.transport.closed


async def test_a_body_that_goes_on_is_not(connection: Connection) -> None:
    await connection.send(HEAD.replace(b": 4", b": 400"))
    for _ in range(399):
        await connection.send(b"a")
        connection.loop.wait(LOOK_EVERY_S)
    assert not connection.transport.closed


async def test_an_answer_may_take_its_time(connection: Connection) -> None:
    await connection.send(HEAD + b"abcd")
    connection.loop.wait(100 * SLOWEST_S)
    assert not connection.transport.closed
    connection.answered.set()
    await connection.turn()
    assert connection.transport.written.startswith(b"HTTP/1.1 204")


async def test_a_body_that_we_do_not_read_may_wait(connection: Connection) -> None:
    connection.reads.clear()
    await connection.send(HEAD.replace(b": 4", b": 999999") + b"a" * 200_000)
    connection.loop.wait(10 * SLOWEST_S)
    assert not connection.transport.closed
    connection.reads.set()
    await connection.turn()
    connection.loop.wait(2 * SLOWEST_S)
    assert connection.transport.closed


async def test_what_follows_a_whole_request_takes_nothing_from_its_answer(
    connection: Connection,
) -> None:
    await connection.send(HEAD + b"abcd" + HEAD[:20])
    connection.loop.wait(2 * SLOWEST_S)
    assert not connection.transport.closed
    connection.answered.set()
    await connection.turn()
    assert connection.transport.written.startswith(b"HTTP/1.1 204")
    assert connection.transport.closed
