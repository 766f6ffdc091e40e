"""The two ends of a request in plain ASGI: what the caller sends, and what it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tuneproof.errors import InputError, TuneProofError
from tuneproof.server.bodies import dumped, loaded
from tuneproof.server.events import MAX_BYTES
from tuneproof.server.gateway import error_body
from tuneproof.server.openai_shape import error_object
from tuneproof.server.problems import headers_of, status_of
from tuneproof.server.upstream import Refused
from tuneproof.server.wires import CHAT, Wire

if TYPE_CHECKING:
    from starlette.types import Receive, Send

__all__ = ["Left", "RawHeaders", "Sender", "Upload", "body_of", "while_there"]

_JSON = (b"content-type", b"application/json")
_SAFE = (b"x-content-type-options", b"nosniff")

QUOTED = 200
"""How many bytes of a provider's refusal in other words are repeated."""

RawHeaders = Sequence[tuple[bytes, bytes]]


def _is_object(content: bytes) -> bool:
    try:
        return isinstance(loaded(content), dict)
    except ValueError:
        return False


class Left(Exception):
    """Whoever asked has gone."""


async def body_of(receive: Receive) -> bytes:
    """The request's body. Raises `Left`, and `InputError` for one that is too large."""
    parts, taken = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Left
        part = message.get("body", b"")
        taken += len(part)
        if taken <= MAX_BYTES:
            parts.append(part)
        if not message.get("more_body") or taken > MAX_BYTES:
            break
    if taken > MAX_BYTES:
        raise InputError(
            f"The body is larger than {MAX_BYTES} bytes.", mend="Send less.", status=413
        )
    return parts[0] if len(parts) == 1 else b"".join(parts)


class Upload:
    """A request's body that is passed on as it arrives; `first` are the bytes that were here."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._more = True
        self.first = b""
        self.bytes = 0
        self.left = False
        self.read = asyncio.Event()

    async def begin(self) -> None:
        """Wait for its first bytes. Raises `Left`."""
        while self._more and not self.first:
            self.first = await self._next()

    async def parts(self) -> AsyncIterator[bytes]:
        """All of it. Raises `Left`, and says so in `left`: whoever sends it on wraps errors."""
        if self.first:
            yield self.first
        while self._more:
            if part := await self._next():
                yield part
        self.read.set()

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.left = True
            raise Left
        self._more = message.get("more_body", False)
        part: bytes = message.get("body", b"")
        self.bytes += len(part)
        return part


@contextmanager
def while_there(receive: Receive, read: asyncio.Event | None = None) -> Iterator[None]:
    """Break the block off once whoever asked has gone. Raises `Left` then.

    The body must have been read, or `read` says when it is.
    """
    working = asyncio.current_task()
    assert working is not None
    left = False

    async def listen() -> None:
        nonlocal left
        if read is not None:
            await read.wait()
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        working.cancel()

    listening = asyncio.create_task(listen())
    try:
        yield
    except asyncio.CancelledError:
        if not left or working.uncancel():
            raise
        raise Left from None
    finally:
        listening.cancel()


class Sender:
    """The answer on its way; `status` is what it began with, 500 before.

    Errors have the shape of `wire`.
    """

    def __init__(self, send: Send, wire: Wire = CHAT) -> None:
        self._send = send
        self._wire = wire
        self.begun = False
        self.status = 500

    async def begin(self, status: int, headers: RawHeaders) -> None:
        """Send the head of an answer."""
        self.begun = True
        self.status = status
        await self._send(
            {"type": "http.response.start", "status": status, "headers": [*headers, _SAFE]}
        )

    async def more(self, body: bytes) -> None:
        """Send a part of it."""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        """Nothing more comes."""
        await self._send({"type": "http.response.body", "body": b""})

    async def whole(self, status: int, body: bytes, headers: RawHeaders) -> None:
        """Send an answer with its body; nothing where one has begun."""
        if self.begun:
            return
        length = (b"content-length", b"%d" % len(body))
        typed = [] if any(name == b"content-type" for name, _ in headers) else [_JSON]
        await self.begin(status, [*headers, *typed, length])
        await self._send({"type": "http.response.body", "body": body})

    async def refused(self, refusal: Refused) -> None:
        """Send a provider's refusal as it came; in the wire's shape where it is no JSON object."""
        body, status = refusal.body, refusal.status
        if not _is_object(body):
            text = " ".join(body[:QUOTED].decode(errors="replace").split())
            said = error_object(
                f"The provider refused the request with {status}{text and ': '}{text}",
                status=status,
                code="rate_limit_exceeded" if refusal.limited else None,
            )
            body = dumped(self._wire.shaped(said, status))
        await self.whole(status, body, refusal.headers)

    async def error(self, error: TuneProofError) -> None:
        """Send an error in the shape that the wire's clients read."""
        headers = [(n.lower().encode(), v.encode()) for n, v in headers_of(error).items()]
        status = status_of(error)
        await self.whole(status, dumped(self._wire.shaped(error_body(error), status)), headers)

    async def broken(self, error: TuneProofError) -> None:
        """Say in a stream that has begun why it breaks off."""
        await self.more(self._wire.broken(error_body(error), status_of(error)))

    async def unexpected(self) -> None:
        """Say that the fault is ours."""
        error = {"message": "The service failed; its log says why.", "type": "server_error"}
        body = {"error": {**error, "param": None, "code": "internal"}}
        await self.whole(500, dumped(self._wire.shaped(body, 500)), [])
