"""Where HTTP itself goes wrong: bytes that are no request, and answers before all was sent.

`Protocol` is what uvicorn speaks HTTP by. It refuses what is framed wrongly in the shape that the
path's other errors have, and never inside another answer.
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


class Protocol(HttpToolsProtocol):
    """HTTP as uvicorn speaks it; what is no HTTP is refused as the service refuses."""

    def send_400_response(self, msg: str) -> None:
        """Refuse what is framed wrongly, and close the connection behind it."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and not self.cycle.more_body:  # it came behind a whole request
            self.pipeline.clear()
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if not (answering and self.cycle.response_started):
            self.transport.write(_refusal((self.url or b"").partition(b"?")[0].decode("latin-1")))
        self.transport.close()


def _refusal(path: str) -> bytes:
    problem = Problem(
        type="/problems/http",
        title="The request cannot be served",
        status=400,
        detail="The request is not framed as HTTP/1.1 says.",
        mend="Send one Content-Length that is a number, or chunks.",
        instance=path,
    )
    openai = speaks_openai(path)
    body = json.dumps(as_openai(problem) if openai else as_body(problem)).encode()
    kind = "application/json" if openai else MEDIA_TYPE
    head = f"HTTP/1.1 400 {HTTPStatus(400).phrase}\r\nContent-Type: {kind}\r\n"
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
