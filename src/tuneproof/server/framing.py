"""Where HTTP itself goes wrong: bytes that are no request, requests that never end, and answers
before all was sent.

`Protocol` is what uvicorn speaks HTTP by. It refuses what is framed wrongly, or comes too slowly,
in the shape that the path's other errors have, and never inside another answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from http import HTTPStatus
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tuneproof.server.events import MAX_BYTES
from tuneproof.server.openai_shape import speaks_openai
from tuneproof.server.problems import MEDIA_TYPE, Problem, as_body, as_openai

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

__all__ = ["Protocol", "answered_when_sent"]

DRAINED = 4 * MAX_BYTES
"""How much of a body that nobody wants is read, so that its sender gets to read the answer."""

DRAINED_S = 10.0
"""For how long it is."""

SLOWEST_S = 60.0
"""How long a connection may say nothing before its first request, a request's head may take, and
its body may stand still: else who opens many and sends nothing holds them all open for ever."""

LOOK_EVERY_S = 10.0


class Protocol(HttpToolsProtocol):
    """HTTP as uvicorn speaks it; what is no HTTP, or never ends, is refused as the service does."""

    url = b""
    _waits_since: float | None = None  # for more of a request that has not come to its end
    _in_body = False
    _look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, and look from now on whether its requests come to their ends."""
        super().connection_made(transport)
        self._waits_since = self.loop.time()
        self._look = self.loop.call_later(LOOK_EVERY_S, self._end_what_stands_still)

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no more."""
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._waits_since = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        self._in_body = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Its body goes on."""
        self._waits_since = self.loop.time()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """It is whole."""
        self._waits_since, self._in_body = None, False
        super().on_message_complete()

    def _end_what_stands_still(self) -> None:
        now, since = self.loop.time(), self._waits_since
        if since is not None and self.flow.read_paused:  # it is we who do not read
            self._waits_since = now
        elif since is not None and now - since > SLOWEST_S:
            if self._in_body and self.cycle.response_complete:  # it was answered all the same
                self.transport.close()
                return
            self._refuse(408, "The request did not come to its end.", "Send all of it at once.")
            return
        self._look = self.loop.call_later(LOOK_EVERY_S, self._end_what_stands_still)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is framed wrongly, and close the connection behind it."""
        mend = "Send one Content-Length that is a number, or chunks."
        self._refuse(400, "The request is not framed as HTTP/1.1 says.", mend)

    def _refuse(self, status: int, detail: str, mend: str) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and not self.cycle.more_body:  # it came behind a whole request
            self.pipeline.clear()
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if not (answering and self.cycle.response_started):
            path = (self.url or b"").partition(b"?")[0].decode("latin-1")
            self.transport.write(_refusal(status, detail, mend, path))
        self.transport.close()


def _refusal(status: int, detail: str, mend: str, path: str) -> bytes:
    problem = Problem(
        type="/problems/http",
        title="The request cannot be served",
        status=status,
        detail=detail,
        mend=mend,
        instance=path,
    )
    openai = speaks_openai(path)
    body = json.dumps(as_openai(problem) if openai else as_body(problem)).encode()
    kind = "application/json" if openai else MEDIA_TYPE
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def answered_when_sent(scope: Scope, receive: Receive, send: Send) -> tuple[Receive, Send]:
    """`receive` and `send` that answer a request only once its body was read, up to a bound.

    A connection that is closed with something unread is reset, and then its sender, who is still
    sending, never reads why it was refused.
    """
    headers = {name for name, _ in scope["headers"]}
    if headers.isdisjoint((b"content-length", b"transfer-encoding")):
        return receive, send
    unread, taken = True, 0
    sent = b"expect" not in headers  # else only once it is asked for

    async def receiving() -> Message:
        nonlocal unread, taken, sent
        sent = True
        message = await receive()
        if unread:
            taken += len(message.get("body", b""))
            unread = bool(message.get("more_body")) and taken <= DRAINED
        return message

    async def sending(message: Message) -> None:
        if unread and sent:
            await drained()
        await send(message)

    async def drained() -> None:
        nonlocal unread
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAINED_S):
                while unread:
                    await receiving()
        unread = False

    return receiving, sending
