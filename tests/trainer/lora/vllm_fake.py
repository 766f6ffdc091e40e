"""A loopback server that speaks the part of vLLM's documented API which the engine uses:
models, adapter loading, chat completions with `prompt_logprobs`, and `/tokenize`."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from tests.servers import free_port
from tests.wire import serving

__all__ = ["FakeVllm", "vllm_server"]

_NUMBERS = itertools.count()
WORDS = ("three", " small", " words")


class FakeVllm:
    """What it was told and asked."""

    def __init__(self, url: str, base: str) -> None:
        self.url, self.base = url, base
        self.adapters: dict[str, str] = {}
        self.asked: list[dict[str, Any]] = []
        self.refuses = self.broken = False

    async def models(self, request: Request) -> Response:
        names = [self.base, *self.adapters]
        data = [{"id": n, "object": "model", "created": 1, "owned_by": "vllm"} for n in names]
        return JSONResponse({"object": "list", "data": data})

    async def load(self, request: Request) -> Response:
        body = await request.json()
        name, path = body["lora_name"], body["lora_path"]
        if self.refuses or not (Path(path) / "adapter_config.json").exists():
            return _error(400, f"No adapter found for {path}")
        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        self.adapters[name] = path
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if self.adapters.pop(name, None) is None:
            return _error(404, f"The lora adapter '{name}' cannot be found.")
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def tokenize(self, request: Request) -> Response:
        body = await request.json()
        return JSONResponse({"count": len(_tokens(body)), "max_model_len": 256, "tokens": []})

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        if body["model"] not in (self.base, *self.adapters):
            return _error(404, f"The model `{body['model']}` does not exist.")
        if self.broken:
            return _error(400, "the adapter does not fit")
        if body.get("tools") or body.get("response_format"):
            return _called(body)
        if body.get("stream"):
            return StreamingResponse(_stream(body), media_type="text/event-stream")
        scores = [
            {str(n): {"logprob": -0.5, "rank": 1, "decoded_token": token}}
            for n, token in enumerate(_tokens(body))
        ]
        message = {"role": "assistant", "content": WORDS[0]}
        choice = {"index": 0, "message": message, "finish_reason": "length"}
        whole = _head(body, "chat.completion") | {"choices": [choice]}
        return JSONResponse(whole | {"prompt_logprobs": [None, *scores[1:]]})


def _tokens(body: dict[str, Any]) -> list[str]:
    """A word a token: the role, the words, the end."""
    made = []
    for message in body["messages"]:
        made += [f"<|{message['role']}|>", *message["content"].split(), "<|end|>"]
    made = made[:-1] if made[-1] == "" else made
    return made + (["<|assistant|>"] if body.get("add_generation_prompt", True) else [])


CALL = {"name": "weather", "arguments": '{"place":"Ulm"}'}


def _called(body: dict[str, Any]) -> Response:
    """A call of the tool until its result is there, or JSON where that is asked for."""
    message: dict[str, Any] = {"role": "assistant", "content": "It is dry in Ulm."}
    reason = "stop"
    if body.get("response_format"):
        message["content"] = '{"place": "Ulm", "dry": true}'
    elif body["messages"][-1]["role"] != "tool":
        call = {"id": "call_1", "type": "function", "function": CALL}
        message, reason = {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"
    if body.get("stream"):
        return StreamingResponse(_streamed(body, message, reason), media_type="text/event-stream")
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
    return JSONResponse(_head(body, "chat.completion") | {"choices": [choice]})


async def _streamed(
    body: dict[str, Any], message: dict[str, Any], reason: str
) -> AsyncIterator[bytes]:
    for call in message.get("tool_calls") or ():
        begun = {**call, "index": 0, "function": {**CALL, "arguments": ""}}
        yield _event(body, {"index": 0, "delta": {"role": "assistant", "tool_calls": [begun]}})
        for at in range(0, len(CALL["arguments"]), 4):
            more = {"index": 0, "function": {"arguments": CALL["arguments"][at : at + 4]}}
            yield _event(body, {"index": 0, "delta": {"tool_calls": [more]}})
    if message["content"]:
        yield _event(body, {"index": 0, "delta": {"content": message["content"]}})
    yield _event(body, {"index": 0, "delta": {}, "finish_reason": reason})
    yield b"data: [DONE]\n\n"


def _head(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{next(_NUMBERS)}",
        "object": kind,
        "created": 1,
        "model": body["model"],
    }


async def _stream(body: dict[str, Any]) -> AsyncIterator[bytes]:
    words = WORDS[: body["max_tokens"]]
    for word in words:
        said = [{"token": word, "logprob": -0.25, "bytes": None, "top_logprobs": []}]
        logprobs = {"content": said} if body.get("logprobs") else None
        delta = {"content": word}
        yield _event(body, {"index": 0, "delta": delta, "logprobs": logprobs})
    reason = "length" if len(words) == body["max_tokens"] else "stop"
    yield _event(body, {"index": 0, "delta": {"content": ""}, "finish_reason": reason})
    yield b"data: [DONE]\n\n"


def _event(body: dict[str, Any], choice: dict[str, Any]) -> bytes:
    chunk = _head(body, "chat.completion.chunk") | {"choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _error(status: int, message: str) -> Response:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return JSONResponse({"error": error}, status)


@contextmanager
def vllm_server(base: str, port: int | None = None) -> Iterator[FakeVllm]:
    """Serve until the block ends."""
    port = port or free_port()
    fake = FakeVllm(f"http://127.0.0.1:{port}/v1", base)
    routes = [
        Route("/v1/models", fake.models),
        Route("/v1/load_lora_adapter", fake.load, methods=["POST"]),
        Route("/v1/unload_lora_adapter", fake.unload, methods=["POST"]),
        Route("/v1/chat/completions", fake.chat, methods=["POST"]),
        Route("/tokenize", fake.tokenize, methods=["POST"]),
    ]
    with serving(Starlette(routes=routes), port):
        yield fake
