"""The wires that a task is asked over: what a request, an answer and a stream look like on each.

A wire knows no provider and no route. What it says of an answer is strict: what a reader could
not use is the provider's failure, whatever its status.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from tuneproof.prompts import Message

__all__ = ["CHAT", "MESSAGES", "RESPONSES", "WIRES", "Wire"]

Body = Mapping[str, Any]

LENGTHS = ("max_tokens", "max_completion_tokens")
"""What a chat calls the limit of an answer's length."""

MOST_TOKENS = 2**31 - 1
"""The largest count that a provider is believed, and that a database keeps."""


class Wire(ABC):
    """One form of request and answer."""

    path: str
    """Where it is asked for, below `/v1` here and below a provider's address there."""
    asked: str
    """What its requests are called."""
    headers: tuple[bytes, ...] = ()
    """How the names of its own headers begin, which go on to the provider."""
    holder: str = ""
    """The field of an event that holds the answer's id; empty: the event itself has it."""
    done_ends: bool = False
    """Whether `[DONE]` says that the answer is whole."""

    @abstractmethod
    def wrong(self, body: Body) -> str:
        """What keeps a whole body from being an answer; empty where it is one."""

    @abstractmethod
    def failure(self, event: Body) -> str:
        """What went wrong, as an event of a stream says; empty where nothing did."""

    @abstractmethod
    def begins(self, event: Body) -> bool:
        """Whether this event is a part of the answer; until then another may be asked."""

    @abstractmethod
    def finishes(self, event: Body) -> bool:
        """Whether the answer is whole with this event."""

    @abstractmethod
    def is_last(self, event: Body) -> bool:
        """Whether nothing follows this event."""

    @abstractmethod
    def usage(self, body: Body) -> Mapping[str, int]:
        """The tokens that an answer or an event names, as far as it does."""

    @abstractmethod
    def text(self, body: Body) -> str:
        """The text of a whole answer, the first one of several."""

    @abstractmethod
    def delta(self, event: Body) -> str:
        """The text that an event adds to it."""

    @abstractmethod
    def messages(self, body: Body) -> Iterator[tuple[Any, Any]]:
        """Role and content of each message of a request, as it says them."""

    @abstractmethod
    def follows(self, body: Body) -> str:
        """What keeps the messages of a request from following a prompt; empty where nothing does.

        They may be none, and no system's.
        """

    @abstractmethod
    def prompted(
        self, body: Body, said: Sequence[Message], parameters: Body, length: str
    ) -> dict[str, Any]:
        """A request with a prompt's messages before its own, and its parameters in place of theirs.

        `length` is what the provider calls the limit of a chat's answer.
        """

    def unsaid(self, parameters: Body) -> str:
        """The first of a prompt's parameters that cannot be said here; empty where all can."""
        return ""

    def unit(self, body: Body) -> Any:
        """Whom a request is for; None where it does not say.

        Never `prompt_cache_key`: many users share one.
        """
        metadata = body.get("metadata")
        told = metadata.get("unit") if isinstance(metadata, Mapping) else None
        return body.get("user") or body.get("safety_identifier") or told

    def shaped(self, error: dict[str, Any], status: int) -> dict[str, Any]:
        """An error in OpenAI's shape as this wire's clients read it."""
        return error

    def broken(self, error: dict[str, Any], status: int) -> bytes:
        """The event that tells a reader that the stream broke off by this error."""
        return b"data: " + orjson.dumps(self.shaped(error, status)) + b"\n\n"


class Chat(Wire):
    """OpenAI's chat completions."""

    path = "/chat/completions"
    asked = "a chat completion request"
    done_ends = True

    def wrong(self, body: Body) -> str:
        if body.get("error") and not body.get("choices"):
            return f"with an error: {message_of(body)}"
        good = isinstance(body.get("choices"), list) and body["choices"]
        return "" if good else "without any choice"

    def failure(self, event: Body) -> str:
        return message_of(event) if event.get("error") and not event.get("choices") else ""

    def begins(self, event: Body) -> bool:
        return isinstance(event.get("choices"), list)

    def finishes(self, event: Body) -> bool:
        return any(choice.get("finish_reason") for choice in _objects(event.get("choices")))

    def is_last(self, event: Body) -> bool:
        return False  # usage may follow, and `[DONE]` does

    def usage(self, body: Body) -> Mapping[str, int]:
        return _both(_object(body.get("usage")), "prompt_tokens", "completion_tokens")

    def text(self, body: Body) -> str:
        return self._first(body, "message")

    def delta(self, event: Body) -> str:
        return self._first(event, "delta")

    @staticmethod
    def _first(body: Body, part: str) -> str:
        for choice in _objects(body.get("choices")):
            if not choice.get("index"):
                return _text(_object(choice.get(part)).get("content"))
        return ""

    def messages(self, body: Body) -> Iterator[tuple[Any, Any]]:
        for message in _objects(body.get("messages")):
            yield message.get("role"), message.get("content")

    def follows(self, body: Body) -> str:
        return _follow(body, "messages")

    def prompted(
        self, body: Body, said: Sequence[Message], parameters: Body, length: str
    ) -> dict[str, Any]:
        found = {**body, **parameters, "messages": [*said, *(body.get("messages") or ())]}
        if "max_tokens" in parameters:
            found = {name: value for name, value in found.items() if name not in LENGTHS}
            found[length] = parameters["max_tokens"]
        return found


class Responses(Wire):
    """OpenAI's responses."""

    path = "/responses"
    asked = "a request for a response"
    headers = (b"openai-beta",)
    holder = "response"

    _BEFORE = frozenset({"response.created", "response.queued", "response.in_progress"})
    _ENDS = frozenset({"response.completed", "response.incomplete"})

    def wrong(self, body: Body) -> str:
        if body.get("error"):
            return f"with an error: {message_of(body)}"
        if body.get("status") not in ("completed", "incomplete"):
            return f"with the status {str(body.get('status'))[:50]!r}"
        good = isinstance(body.get("output"), list) and body["output"]
        return "" if good else "without any output"

    def failure(self, event: Body) -> str:
        kind = event.get("type")
        if kind == "error":
            return message_of(event) if event.get("error") else _text(event.get("message"))
        if kind == "response.failed":
            return message_of(_object(event.get("response")))
        return message_of(event) if event.get("error") and not kind else ""

    def begins(self, event: Body) -> bool:
        kind = _text(event.get("type"))
        return kind.startswith("response.") and kind not in self._BEFORE

    def finishes(self, event: Body) -> bool:
        return event.get("type") in self._ENDS

    def is_last(self, event: Body) -> bool:
        return self.finishes(event)

    def usage(self, body: Body) -> Mapping[str, int]:
        told = _object(_object(body.get("response")).get("usage") or body.get("usage"))
        return _both(told, "input_tokens", "output_tokens")

    def text(self, body: Body) -> str:
        parts = (
            part.get("text")
            for item in _objects(body.get("output"))
            if item.get("type") == "message"
            for part in _objects(item.get("content"))
            if part.get("type") == "output_text"
        )
        return "".join(_text(part) for part in parts)

    def delta(self, event: Body) -> str:
        text = event.get("type") == "response.output_text.delta"
        return _text(event.get("delta")) if text else ""

    def messages(self, body: Body) -> Iterator[tuple[Any, Any]]:
        if body.get("instructions"):
            yield "system", body["instructions"]
        given = body.get("input")
        if isinstance(given, str):
            yield "user", given
        for item in _objects(given):
            if item.get("role"):
                yield item["role"], item.get("content")

    def follows(self, body: Body) -> str:
        if body.get("instructions"):
            return _SYSTEM
        return "" if isinstance(body.get("input"), str) else _follow(body, "input")

    def prompted(
        self, body: Body, said: Sequence[Message], parameters: Body, length: str
    ) -> dict[str, Any]:
        own = body.get("input")
        own = [{"role": "user", "content": own}] if isinstance(own, str) and own else own or []
        found = {**body, "input": [*said, *own]}
        for name, value in parameters.items():
            if name == "max_tokens":
                found["max_output_tokens"] = value
            elif name == "response_format":
                found["text"] = {**_object(body.get("text")), "format": _flat(value, "json_schema")}
            elif name == "reasoning_effort":
                found["reasoning"] = {**_object(body.get("reasoning")), "effort": value}
            elif name == "tools":
                found["tools"] = _each(value, lambda tool: _flat(tool, "function"))
            else:
                found[name] = _flat(value, "function") if name == "tool_choice" else value
        return found

    def unsaid(self, parameters: Body) -> str:
        return "stop" if "stop" in parameters else ""

    def broken(self, error: dict[str, Any], status: int) -> bytes:
        told = {"type": "error", "sequence_number": 0, **error["error"], **error}
        return b"event: error\ndata: " + orjson.dumps({**told, "type": "error"}) + b"\n\n"


class Messages(Wire):
    """Anthropic's messages."""

    path = "/messages"
    asked = "a request for a message"
    headers = (b"anthropic-",)
    holder = "message"

    _BEFORE = frozenset({"message_start", "ping", "error"})
    _KINDS: Mapping[int, str] = {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
    }

    def wrong(self, body: Body) -> str:
        if body.get("error"):
            return f"with an error: {message_of(body)}"
        content = body.get("content")
        if not isinstance(content, list) or not (content or body.get("stop_reason")):
            return "without any content"
        return ""

    def failure(self, event: Body) -> str:
        return message_of(event) if event.get("error") or event.get("type") == "error" else ""

    def begins(self, event: Body) -> bool:
        kind = event.get("type")
        return isinstance(kind, str) and kind not in self._BEFORE

    def finishes(self, event: Body) -> bool:
        if event.get("type") == "message_delta":
            return bool(_object(event.get("delta")).get("stop_reason"))
        return self.is_last(event)

    def is_last(self, event: Body) -> bool:
        return event.get("type") == "message_stop"

    def usage(self, body: Body) -> Mapping[str, int]:
        """What the cache wrote and read counts as asked; the first event knows no answer yet."""
        begun = body.get("type") == "message_start"
        told = _object(_object(body.get("message")).get("usage") or body.get("usage"))
        read, written = _count(told.get("input_tokens")), _count(told.get("output_tokens"))
        found: dict[str, int] = {}
        if read is not None:
            cached = (told.get(f"cache_{what}_input_tokens") for what in ("creation", "read"))
            found["prompt_tokens"] = read + sum(_count(part) or 0 for part in cached)
        if written is not None and not begun:
            found["completion_tokens"] = written
        return found

    def text(self, body: Body) -> str:
        parts = _objects(body.get("content"))
        return "".join(_text(part.get("text")) for part in parts if part.get("type") == "text")

    def delta(self, event: Body) -> str:
        return _text(_object(event.get("delta")).get("text"))

    def messages(self, body: Body) -> Iterator[tuple[Any, Any]]:
        if body.get("system"):
            yield "system", body["system"]
        for message in _objects(body.get("messages")):
            yield message.get("role"), message.get("content")

    def follows(self, body: Body) -> str:
        return _SYSTEM if body.get("system") else _follow(body, "messages")

    def prompted(
        self, body: Body, said: Sequence[Message], parameters: Body, length: str
    ) -> dict[str, Any]:
        system = [one["content"] for one in said if one["role"] in _SYSTEMS]
        others = [one for one in said if one["role"] not in _SYSTEMS]
        found = {**body, "messages": [*others, *(body.get("messages") or ())]}
        if system:
            found["system"] = "\n\n".join(system)
        for name, value in parameters.items():
            if name == "stop":
                found["stop_sequences"] = [value] if isinstance(value, str) else value
            elif name == "tools":
                found["tools"] = _each(value, _anthropic_tool)
            elif name == "tool_choice":
                found["tool_choice"] = _anthropic_choice(value)
            elif name != "response_format":  # `unsaid` lets through one that says nothing
                found[name] = value
        return found

    def unsaid(self, parameters: Body) -> str:
        form = parameters.get("response_format")
        if form is not None and _object(form).get("type") != "text":
            return "response_format"
        return "reasoning_effort" if "reasoning_effort" in parameters else ""

    def unit(self, body: Body) -> Any:
        metadata = body.get("metadata")
        told = metadata.get("user_id") if isinstance(metadata, Mapping) else None
        return super().unit(body) or told

    def shaped(self, error: dict[str, Any], status: int) -> dict[str, Any]:
        kind = self._KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": error["error"]["message"]}}

    def broken(self, error: dict[str, Any], status: int) -> bytes:
        return b"event: error\n" + super().broken(error, status)


CHAT, RESPONSES, MESSAGES = Chat(), Responses(), Messages()

WIRES: Mapping[str, Wire] = {f"/v1{wire.path}": wire for wire in (CHAT, RESPONSES, MESSAGES)}
"""By where they are asked for."""


_SYSTEMS = ("system", "developer")
_SYSTEM = "a system message of its own"


def _follow(body: Body, field: str) -> str:
    """What keeps a list of messages from following a prompt."""
    own = body.get(field)
    if own is not None and not isinstance(own, list):
        return f"{field} {str(own)[:50]!r}, which is no list"
    return _SYSTEM if any(one.get("role") in _SYSTEMS for one in _objects(own)) else ""


# What a prompt says may have been kept before its form was looked at. What has not a chat's form
# stays as it is, for the provider to refuse: that is the prompt's fault, and not a request's.


def _flat(value: object, inner: str) -> object:
    """A chat's tool, its choice or form as the responses have it: without the object within."""
    told = _object(value).get(inner)
    if not isinstance(told, Mapping):
        return value
    return {**{name: one for name, one in _object(value).items() if name != inner}, **told}


def _anthropic_tool(tool: object) -> object:
    told = _object(tool).get("function")
    if not isinstance(told, Mapping):
        return tool
    schema = told.get("parameters") or {"type": "object"}
    named = {name: told[name] for name in ("name", "description") if name in told}
    return {**named, "input_schema": schema}


def _anthropic_choice(choice: object) -> object:
    if isinstance(choice, str):
        return {"type": {"required": "any"}.get(choice, choice)}
    named = _object(_object(choice).get("function")).get("name")
    return choice if named is None else {"type": "tool", "name": named}


def _each(values: object, change: Callable[[object], object]) -> object:
    return [change(one) for one in values] if isinstance(values, list) else values


def wire_like(path: str) -> Wire:
    """Whose errors who asks for this path expects."""
    return next((w for at, w in WIRES.items() if path == at or path.startswith(f"{at}/")), CHAT)


def message_of(body: Any) -> str:
    """What an error says of itself, whole or beside other fields."""
    error = body.get("error") if isinstance(body, Mapping) else None
    if isinstance(error, Mapping):
        return str(error.get("message") or dict(error))[:500]
    return str(error or body or "nothing")[:500]


def _object(value: Any) -> Body:
    return value if isinstance(value, Mapping) else {}


def _objects(values: Any) -> Iterable[Body]:
    known = values if isinstance(values, list) else []
    return (value for value in known if isinstance(value, Mapping))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    """A number of tokens; None for what is none."""
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS
    return value if good else None


def _both(told: Body, prompt: str, completion: str) -> Mapping[str, int]:
    """Both counts, or none: half of them is not believed."""
    read, written = _count(told.get(prompt)), _count(told.get(completion))
    if read is None or written is None:
        return {}
    return {"prompt_tokens": read, "completion_tokens": written}
