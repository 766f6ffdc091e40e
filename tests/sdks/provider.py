"""A provider that answers as OpenAI does what libraries ask for: words, tools, objects, errors.

What it says depends on what it is asked: "too long" is refused (400), "in a hurry" comes too often
(429), a tool that is offered is called until its result is there, and a schema is filled in.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tests.servers import free_port
from tests.wire import serving

__all__ = ["openai_like"]

TEXT = "three small words"
VALUES = {"name": "Ada", "age": 36, "city": "Berlin", "content": TEXT}
"""What a schema's fields are filled with, by their names."""

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
REFUSALS = {
    "too long": (400, "context_length_exceeded", {}),
    "in a hurry": (429, "rate_limit_exceeded", {"retry-after": "7"}),
}


@contextmanager
def openai_like(model: str = "base") -> Iterator[str]:
    """Its address, while it serves."""
    port = free_port()
    listed = {"object": "list", "data": [{"id": model, "object": "model", "created": 1}]}
    routes = [
        Route("/v1/chat/completions", _complete, methods=["POST"]),
        Route("/v1/models", lambda _: JSONResponse(listed)),
    ]
    with serving(Starlette(routes=routes), port):
        yield f"http://127.0.0.1:{port}/v1"


async def _complete(request: Request) -> Response:
    body = await request.json()
    said = json.dumps(body["messages"])
    for words, (status, code, headers) in REFUSALS.items():
        if words in said:
            error = {"message": words, "type": "invalid_request_error", "param": None, "code": code}
            return JSONResponse({"error": error}, status, headers=headers)
    message, reason = _message(body)
    head = {"id": "chatcmpl-1", "created": 1, "model": body["model"]}
    if body.get("stream"):
        usage = (body.get("stream_options") or {}).get("include_usage")
        return StreamingResponse(
            _stream(head, message, reason, bool(usage)), media_type="text/event-stream"
        )
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
    return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": USAGE})


def _message(body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    answer: dict[str, Any] = {"role": "assistant", "refusal": None}
    tools = body.get("tools") or []
    if tools and body.get("tool_choice") != "none" and body["messages"][-1]["role"] != "tool":
        function = _chosen(tools, body.get("tool_choice"))["function"]
        call = {"name": function["name"], "arguments": _filled(function["parameters"])}
        calls = [{"id": "call_1", "type": "function", "function": call}]
        return {**answer, "content": None, "tool_calls": calls}, "tool_calls"
    asked = body.get("response_format") or {}
    if asked.get("type") == "json_schema":
        return {**answer, "content": _filled(asked["json_schema"]["schema"])}, "stop"
    return {**answer, "content": TEXT}, "stop"


def _chosen(tools: list[dict[str, Any]], choice: Any) -> dict[str, Any]:
    name = choice["function"]["name"] if isinstance(choice, dict) else None
    return next((tool for tool in tools if tool["function"]["name"] == name), tools[0])


def _filled(schema: dict[str, Any]) -> str:
    return json.dumps({name: VALUES[name] for name in schema["properties"]})


async def _stream(
    head: dict[str, Any], message: dict[str, Any], reason: str, usage: bool
) -> AsyncIterator[bytes]:
    for delta in _deltas(message):
        yield _event(head, [{"index": 0, "delta": delta, "finish_reason": None}])
    yield _event(head, [{"index": 0, "delta": {}, "finish_reason": reason}])
    if usage:
        yield _event({**head, "usage": USAGE}, [])
    yield b"data: [DONE]\n\n"


def _deltas(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": None if message["content"] is None else ""}
    text = message["content"] or ""
    yield from ({"content": text[at : at + 5]} for at in range(0, len(text), 5))
    for index, call in enumerate(message.get("tool_calls", ())):
        arguments = call["function"]["arguments"]
        begun = {**call, "function": {"name": call["function"]["name"], "arguments": ""}}
        yield {"tool_calls": [{"index": index, **begun}]}
        for at in range(0, len(arguments), 5):
            part = {"arguments": arguments[at : at + 5]}
            yield {"tool_calls": [{"index": index, "function": part}]}


def _event(head: dict[str, Any], choices: list[dict[str, Any]]) -> bytes:
    chunk = {**head, "object": "chat.completion.chunk", "choices": choices}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"
