"""What a chat request asks for, read once: task, unit, stream; and how it goes on to a model."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from tuneproof.errors import InputError
from tuneproof.server.models import kept_text

__all__ = ["ChatRequest", "dumped", "loaded", "size"]

PREFIX = "tuneproof/"
MAX_UNIT = 500
MAX_COVARIATE = 9e9

Headers = Mapping[bytes, bytes]


def loaded(content: bytes) -> Any:
    """JSON as Python's own reader takes it, but for NaN and Infinity. Raises `ValueError`."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:  # half of a surrogate pair, or a number beyond a double
        try:
            return json.loads(content, parse_constant=_no_constant)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def dumped(body: Any) -> bytes:
    """What `loaded` gave, as JSON again."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """A chat request for a task. `body` is the caller's; `for_model` is what a provider gets."""

    body: dict[str, Any]
    task: str
    unit: str
    stream: bool
    wants_usage: bool
    covariate: float | None

    @classmethod
    def read(cls, content: bytes, headers: Headers, aliases: Mapping[str, str] = {}) -> ChatRequest:
        """From a request; `aliases` are model names that mean a task.

        Raises `InputError`, with status 400, as OpenAI's wire has it.
        """
        body = _object(content)
        return cls(
            body=body,
            task=_task(body["model"], headers, aliases),
            unit=_unit(headers, body),
            stream=bool(body.get("stream")),
            wants_usage=bool((body.get("stream_options") or {}).get("include_usage")),
            covariate=_covariate(headers),
        )

    def for_model(self, model_id: str, *, count: bool = True) -> bytes:
        """The request for this model; with `count` a stream is to say its usage."""
        asked = {**self.body, "model": model_id}
        if self.stream and count:
            asked["stream_options"] = {
                **(self.body.get("stream_options") or {}),
                "include_usage": True,
            }
        return dumped(asked)

    @property
    def messages(self) -> list[dict[str, str]]:
        """What was asked, as texts: of a message in parts the texts among them."""
        found = self.body.get("messages")
        return [
            {"role": str(message.get("role", "")), "content": _content(message.get("content"))}
            for message in (found if isinstance(found, list) else ())
            if isinstance(message, dict)
        ]


def _refused(what: str, mend: str) -> InputError:
    return InputError(what, mend=mend, status=400)


def _object(content: bytes) -> dict[str, Any]:
    try:
        body = loaded(content)
    except ValueError as error:
        raise _refused("The body is not JSON.", "Send a chat completion request.") from error
    if not isinstance(body, dict) or not isinstance(body.get("model"), str):
        mend = 'Send a chat completion request with model "tuneproof/TASK".'
        raise _refused("The body names no model.", mend)
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        mend = 'Send an object such as {"include_usage": true}, or leave it out.'
        raise _refused(f"stream_options is {str(options)[:50]!r}, no object.", mend)
    return body


def _task(model: str, headers: Headers, aliases: Mapping[str, str]) -> str:
    """The task of a request. A header names it for callers whose model name is to stay."""
    if model.startswith(PREFIX):
        return model[len(PREFIX) :]
    given = headers.get(b"x-tuneproof-task")
    return given.decode("latin-1") if given else aliases.get(model, model)


def _unit(headers: Headers, body: Mapping[str, Any]) -> str:
    """Whom the answer is for. Never `prompt_cache_key`: many users share one."""
    header = headers.get(b"x-tuneproof-unit")
    if header:
        given: Any = _text(header)
    else:
        given = body.get("user") or body.get("safety_identifier")
        metadata = body.get("metadata")
        if not given and isinstance(metadata, dict):
            given = metadata.get("unit")
        given = given or uuid.uuid4().hex
    if not isinstance(given, str) or len(given) > MAX_UNIT:
        raise _refused(
            f"The unit is not a text of at most {MAX_UNIT} characters.",
            "Send an id in `user` or in the header x-tuneproof-unit.",
        )
    try:
        return kept_text("The unit", given)
    except InputError as error:
        raise _refused(error.message, error.mend) from error


def _text(header: bytes) -> str:
    try:
        return header.decode()
    except UnicodeDecodeError:
        return header.decode("latin-1")


def _covariate(headers: Headers) -> float | None:
    """What the caller knew of the unit before the test; None where it does not say."""
    given = headers.get(b"x-tuneproof-covariate")
    if given is None:
        return None
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not abs(value) <= MAX_COVARIATE:
        raise _refused(
            f"The header x-tuneproof-covariate is {given[:50].decode('latin-1')!r}, no number.",
            "Send a number between -9e9 and 9e9, or leave it out.",
        )
    return value


def _content(content: Any) -> str:
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def size(text: str) -> int:
    """The bytes of a text."""
    return len(text) if text.isascii() else len(text.encode(errors="replace"))
