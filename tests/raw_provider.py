"""A provider that answers requests with any bytes, for what no server library would send.

async with raw_provider() as provider:
    provider.url                                  # http://127.0.0.1:PORT/v1
    provider.say("cand", b"HTTP/1.1 204 No Content\r\n\r\n")
    provider.stream("base", [b"data: ...\n\n"])   # a 200 with these pieces, then it ends
    provider.stall("cand", [b"data: ...\n\n"])    # these pieces, then nothing, and no end
    provider.turns("base", [[ANSWER], None])      # the first is answered, the second stalls
    provider.bodies                               # what was asked, as far as it was JSON
    provider.seen[-1].path                        # each request: its path, headers and bytes
    provider.say("/v1/files", whole(b"{}"))       # where there is no model: by path
    provider.open                                 # how many connections are in use now
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["DONE", "RawProvider", "Seen", "chunk", "event", "raw_provider", "whole"]

DONE = b"data: [DONE]\n\n"

Piece = bytes | asyncio.Event
"""A part of an answer; or what is waited for before the next one."""

Say = Callable[[dict[str, Any]], tuple[Sequence[Piece], bool]]
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


def event(body: dict[str, Any]) -> bytes:
    """An event of a stream, as OpenAI's responses and Anthropic's messages send them."""
    return f"event: {body['type']}\ndata: {json.dumps(body)}\n\n".encode()


RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "error": None,
    "model": "m",
    "output": [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "ok", "annotations": []}],
        },
    ],
    "usage": {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10},
}
RESPONSE_EVENTS = [
    event({"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}}),
    event({"type": "response.in_progress", "response": {"id": "resp_1"}}),
    event({"type": "response.output_item.added", "item": {"id": "msg_1", "type": "message"}}),
    event({"type": "response.output_text.delta", "item_id": "msg_1", "delta": "ok"}),
    event({"type": "response.completed", "response": RESPONSE}),
]
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "ok"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 4, "cache_read_input_tokens": 3, "output_tokens": 3},
}
MESSAGE_EVENTS = [
    event(
        {
            "type": "message_start",
            "message": {**MESSAGE, "content": [], "usage": {"input_tokens": 7, "output_tokens": 1}},
        }
    ),
    event(
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    ),
    event({"type": "ping"}),
    event(
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": "ok"},
        }
    ),
    event({"type": "content_block_stop", "index": 0}),
    event(
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": 3},
        }
    ),
    event({"type": "message_stop"}),
]

ANSWERS = {
    "/v1/responses": (json.dumps(RESPONSE).encode(), RESPONSE_EVENTS),
    "/v1/messages": (json.dumps(MESSAGE).encode(), MESSAGE_EVENTS),
}
"""By path: a whole answer and a streamed one; what no path is named for gets a chat's."""


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    content: bytes


class RawProvider:
    """What it answers, by model or path; one of which nothing is said answers well."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.seen: list[Seen] = []
        self.open = 0
        self._says: dict[str, Say] = {}

    def say(self, model: str, answer: bytes | Callable[[dict[str, Any]], bytes]) -> None:
        """Answer with these bytes, then close the connection."""
        self._says[model] = lambda body: ([answer(body) if callable(answer) else answer], True)

    def stream(self, model: str, pieces: Sequence[Piece]) -> None:
        """Answer 200 with these pieces of a stream, then close the connection."""
        self._says[model] = lambda _: ([_STREAM, *pieces], True)

    def pieces(self, model: str, pieces: Sequence[Piece]) -> None:
        """Answer with these pieces, the head among them, then close the connection."""
        self._says[model] = lambda _: (pieces, True)

    def stall(self, model: str, pieces: Sequence[Piece] | None = None) -> None:
        """Begin a stream with these pieces, or say nothing at all; then say nothing more."""
        begun = [] if pieces is None else [_STREAM, *pieces]
        self._says[model] = lambda _: (begun, False)

    def turns(self, model: str, answers: Sequence[Sequence[bytes] | None]) -> None:
        """Answer one request after the other with the pieces of one of these, each once; None says
        nothing, and keeps the connection. After the last it begins anew."""
        turn = itertools.cycle(answers)

        def say(_: dict[str, Any]) -> tuple[Sequence[Piece], bool]:
            pieces = next(turn)
            return ([], False) if pieces is None else (pieces, True)

        self._says[model] = say

    def well(self, model: str) -> None:
        """Answer well again."""
        self._says.pop(model, None)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        self.open += 1
        try:
            seen = await _read(reader)
            self.seen.append(seen)
            body = _object(seen.content)
            if body:
                self.bodies.append(body)
            say = self._says.get(seen.path) or self._says.get(str(body.get("model")))
            pieces, end = say(body) if say else _well(seen.path, body)
            for piece in pieces:
                if isinstance(piece, asyncio.Event):
                    await piece.wait()
                    continue
                writer.write(piece)
                await writer.drain()
            if not end:
                await reader.read()  # until the other side leaves
        except (asyncio.IncompleteReadError, ConnectionError, IndexError):
            pass
        finally:
            self.open -= 1
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Seen:
    """One request, its body by length or in chunks."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        return Seen(method, path, headers, await _chunks(reader))
    length = int(headers.get("content-length", "0"))
    return Seen(method, path, headers, await reader.readexactly(length))


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    found = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        found += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return found


def _object(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def _well(path: str, body: dict[str, Any]) -> tuple[Sequence[Piece], bool]:
    answer, events = ANSWERS.get(path, (ANSWER, [chunk("ok"), chunk(finish="stop"), DONE]))
    if body.get("stream"):
        return [_STREAM, *events], True
    return [whole(answer)], True


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
