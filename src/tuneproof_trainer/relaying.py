"""Answers of a server behind an engine: tools and structured outputs come as that server says them.

Body and stream are passed on as they are; rebuilt from tokens, calls would be lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.types import Send

from tuneproof_trainer.engines.protocol import RelayingEngine, TrainingEngine
from tuneproof_trainer.turns import Turns

__all__ = ["RelayedAnswer", "relay_of"]

_OWN = frozenset({"store", "metadata", "service_tier", "user", "safety_identifier", "moderation"})
"""What is this server's to do, or nobody's."""


def relay_of(engine: TrainingEngine) -> RelayingEngine | None:
    """The engine, if it has a server behind it."""
    return engine if isinstance(engine, RelayingEngine) and engine.relays else None


class RelayedAnswer:
    """One answer that the server behind makes."""

    def __init__(
        self,
        engine: RelayingEngine,
        model: str,
        body: dict[str, Any],
        turns: Turns,
        keep: Callable[[Any], Awaitable[None]] | None,
    ) -> None:
        self._engine, self._model, self._turns, self._keep = engine, model, turns, keep
        self._body = {name: value for name, value in body.items() if name not in _OWN}
        self._metadata = body.get("metadata")

    async def send(self, send: Send) -> None:
        """Have it made and send it, whole or as it comes."""
        relayed = await self._turns.run(self._engine.relay, self._model, self._body)
        heard = _Heard(stream=bool(self._body.get("stream")))
        headers = [(b"content-type", relayed.content_type.encode("latin-1"))]
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        pieces = self._turns.in_threads(lambda: (piece for piece in relayed.pieces))
        async with contextlib.aclosing(pieces) as coming:
            if heard.stream:
                await send(start)
            async for piece in coming:
                if self._keep is not None or not heard.stream:
                    heard.hear(piece)
                if heard.stream:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        if self._keep is not None:
            await self._keep({**heard.completion(), "metadata": self._metadata})
        if not heard.stream:
            await send(start)
        await send({"type": "http.response.body", "body": b"" if heard.stream else heard.text()})


class _Heard:
    """A completion put together from what was passed on."""

    def __init__(self, *, stream: bool) -> None:
        self.stream = stream
        self._pieces: list[bytes] = []

    def hear(self, piece: bytes) -> None:
        """One more piece."""
        self._pieces.append(piece)

    def text(self) -> bytes:
        """All of it."""
        return b"".join(self._pieces)

    def completion(self) -> dict[str, Any]:
        """The whole."""
        text = self.text()
        if not self.stream:
            whole: dict[str, Any] = orjson.loads(text)
            return whole
        chunks = [
            orjson.loads(line.removeprefix(b"data: "))
            for line in text.splitlines()
            if line.startswith(b"data: {")
        ]
        return _joined(chunks)


def _joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """One completion of the chunks of a stream."""
    choices: dict[int, dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    for chunk in chunks:
        whole |= {name: value for name, value in chunk.items() if name != "choices"}
        for said in chunk.get("choices") or ():
            _add(choices.setdefault(said["index"], _nothing(said["index"])), said)
    made = [choices[index] for index in sorted(choices)]
    return {**whole, "object": "chat.completion", "choices": made}


def _nothing(index: int) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
    }
    return {"index": index, "message": message, "logprobs": None, "finish_reason": "stop"}


def _add(choice: dict[str, Any], said: dict[str, Any]) -> None:
    message, delta = choice["message"], said.get("delta") or {}
    if delta.get("content"):
        message["content"] = (message["content"] or "") + delta["content"]
    for call in delta.get("tool_calls") or ():
        _add_call(message.setdefault("tool_calls", []), call)
    choice["finish_reason"] = said.get("finish_reason") or choice["finish_reason"]


def _add_call(calls: list[dict[str, Any]], said: dict[str, Any]) -> None:
    while len(calls) <= said["index"]:
        calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call, function = calls[said["index"]], said.get("function") or {}
    call["id"] = said.get("id") or call["id"]
    call["function"]["name"] += function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""
