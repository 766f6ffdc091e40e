"""A small real chat provider on a free loopback port, which can be told to fail.

with chat_server() as chat:
    chat.url                              # http://127.0.0.1:PORT/v1
    chat.fail("ft:candidate", status=500) # calls of this model fail from now on
    chat.cut("ft:candidate")              # its streams break off after one word
    chat.answer("judge", lambda asked: "{\"score\": 4}")  # what a model answers
    chat.bodies                           # what was asked
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tests.servers import free_port
from tests.wire import serving

__all__ = ["Chat", "chat_server"]

WORDS = ("three", "small", "words")
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


class Chat:
    """What the provider was asked, and how it is to fail."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.failing: dict[str, int] = {}
        self.cutting: set[str] = set()
        self.answers: dict[str, Callable[[str], str]] = {}
        self.refusing: Callable[[dict[str, Any]], bool] = lambda body: False
        """Which requests are answered with 400."""

    def answer(self, model: str, say: Callable[[str], str]) -> None:
        """Answer calls of this model with what `say` makes of the last message."""
        self.answers[model] = say

    def fail(self, model: str, *, status: int) -> None:
        """Answer calls of this model with `status` from now on."""
        self.failing[model] = status

    def cut(self, model: str) -> None:
        """Break streams of this model off after their first word."""
        self.cutting.add(model)


@contextmanager
def chat_server() -> Iterator[Chat]:
    """Serve until the block ends."""
    port = free_port()
    chat = Chat(f"http://127.0.0.1:{port}/v1")

    async def complete(request: Request) -> Response:
        body = await request.json()
        chat.bodies.append(body)
        chat.headers.append(dict(request.headers))
        status = chat.failing.get(body["model"]) or (400 if chat.refusing(body) else None)
        if status is not None:
            error = {"message": "told to fail", "type": "error", "param": None, "code": None}
            return JSONResponse({"error": error}, status)
        if body.get("stream"):
            return StreamingResponse(_stream(chat, body), media_type="text/event-stream")
        say = chat.answers.get(body["model"])
        text = " ".join(WORDS) if say is None else say(_asked(body))
        return JSONResponse(_whole(body, text))

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": []})

    routes = [
        Route("/v1/chat/completions", complete, methods=["POST"]),
        Route("/v1/models", models),
    ]
    with serving(Starlette(routes=routes), port):
        yield chat


def _asked(body: dict[str, Any]) -> str:
    """The last message; nothing where there is none."""
    return str(body["messages"][-1]["content"]) if body["messages"] else ""


def _whole(body: dict[str, Any], text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return _envelope(body, "chat.completion") | {"choices": [choice], "usage": USAGE}


async def _stream(chat: Chat, body: dict[str, Any]) -> AsyncIterator[bytes]:
    for number, word in enumerate(WORDS):
        if number == 1 and body["model"] in chat.cutting:
            raise RuntimeError("told to cut the stream")
        delta = {"role": "assistant", "content": f"{word} "}
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        yield _line(_envelope(body, "chat.completion.chunk") | {"choices": [choice]})
    if (body.get("stream_options") or {}).get("include_usage"):
        yield _line(_envelope(body, "chat.completion.chunk") | {"choices": [], "usage": USAGE})
    yield b"data: [DONE]\n\n"


def _envelope(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": body["model"]}


def _line(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"
