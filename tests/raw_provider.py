"""A provider that answers chat requests with any bytes, for what no server library would send.

async with raw_provider() as provider:
    provider.url                                  # http://127.0.0.1:PORT/v1
    provider.say("cand", b"HTTP/1.1 204 No Content\r\n\r\n")
    provider.stream("base", [b"data: ...\n\n"])   # a 200 with these pieces, then it ends
    provider.stall("cand", [b"data: ...\n\n"])    # these pieces, then nothing, and no end
    provider.bodies                               # what was asked
    provider.open                                 # how many connections are in use now
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

__all__ = ["DONE", "RawProvider", "chunk", "raw_provider", "whole"]

DONE = b"data: [DONE]\n\n"

Say = Callable[[dict[str, Any]], tuple[Sequence[bytes], bool]]
"""The pieces of an answer to a request, and whether the connection is closed behind them."""


def whole(body: bytes, *, status: str = "200 OK", headers: bytes = b"") -> bytes:
    """A whole answer."""
    head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\n" % status.encode()
    return head + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunk(content: str = "", *, finish: str | None = None, **more: Any) -> bytes:
    """A chunk of a stream, as OpenAI sends them."""
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", **more}
    body.setdefault("choices", [choice])
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }
).encode()


class RawProvider:
    """What it answers, by model; a model of which nothing is said answers well."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.open = 0
        self._says: dict[str, Say] = {}

    def say(self, model: str, answer: bytes | Callable[[dict[str, Any]], bytes]) -> None:
        """Answer with these bytes, then close the connection."""
        self._says[model] = lambda body: ([answer(body) if callable(answer) else answer], True)

    def stream(self, model: str, pieces: Sequence[bytes]) -> None:
        """Answer 200 with these pieces of a stream, then close the connection."""
        self._says[model] = lambda _: ([_STREAM, *pieces], True)

    def stall(self, model: str, pieces: Sequence[bytes] | None = None) -> None:
        """Begin a stream with these pieces, or say nothing at all; then say nothing more."""
        begun = [] if pieces is None else [_STREAM, *pieces]
        self._says[model] = lambda _: (begun, False)

    def well(self, model: str) -> None:
        """Answer well again."""
        self._says.pop(model, None)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        self.open += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            body = json.loads(await reader.readexactly(length))
            self.bodies.append(body)
            pieces, end = self._says.get(body["model"], _well)(body)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            if not end:
                await reader.read()  # until the other side leaves
        except (asyncio.IncompleteReadError, ConnectionError, IndexError):
            pass
        finally:
            self.open -= 1
            writer.close()


_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def _well(body: dict[str, Any]) -> tuple[Sequence[bytes], bool]:
    if body.get("stream"):
        return [_STREAM, chunk("ok"), chunk(finish="stop"), DONE], True
    return [whole(ANSWER)], True


@asynccontextmanager
async def raw_provider() -> AsyncIterator[RawProvider]:
    """Serve until the block ends."""
    provider = RawProvider()
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    provider.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield provider
    finally:
        server.close()
