"""What a request for a task asks for, read once: task, unit, stream; and how it goes on."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tuneproof.errors import InputError
from tuneproof.prompts import Prompt
from tuneproof.server.bodies import dumped, loaded
from tuneproof.server.models import kept_text
from tuneproof.server.tickets import Ticket
from tuneproof.server.wires import CHAT, RESPONSES, Wire

__all__ = ["ChatRequest", "opened", "size", "task_of"]

PREFIX = "tuneproof/"
VARIABLES = "prompt_variables"
MAX_UNIT = 500
MAX_COVARIATE = 9e9

Headers = Mapping[bytes, bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """A request for a task over one of the wires. `body` is the caller's; `for_model` is what a
    provider gets."""

    wire: Wire = CHAT
    body: dict[str, Any]
    task: str
    unit: str
    stream: bool
    wants_usage: bool
    covariate: float | None
    headers: Mapping[str, str]
    """The caller's headers that belong to the wire, and go on to the provider."""
    variables: Mapping[str, Any] | None = None
    """Of which the task's prompt is made; None where the caller knows no prompts."""

    @classmethod
    def read(cls, body: dict[str, Any], task: str, headers: Headers, wire: Wire) -> ChatRequest:
        """From a request for this task.

        Raises `InputError`, with status 400, as OpenAI's wire has it.
        """
        options = body.get("stream_options")
        if options is not None and not isinstance(options, dict):
            mend = 'Send an object such as {"include_usage": true}, or leave it out.'
            raise _refused(f"stream_options is {str(options)[:50]!r}, no object.", mend)
        if wire is RESPONSES and body.get("background"):
            mend = "Leave it out: a task's answer is waited for."
            raise _refused("background is true, and this gateway keeps no answers.", mend)
        variables = _variables(body)
        return cls(
            wire=wire,
            body={k: v for k, v in body.items() if k != VARIABLES} if VARIABLES in body else body,
            variables=variables,
            task=task,
            unit=_unit(headers, body, wire),
            stream=bool(body.get("stream")),
            wants_usage=bool((options or {}).get("include_usage")),
            covariate=_covariate(headers),
            headers={
                name.decode("latin-1"): value.decode("latin-1")
                for name, value in (headers.items() if wire.headers else ())
                if name.startswith(wire.headers)
            },
        )

    def for_model(self, model_id: str, *, count: bool = True) -> bytes:
        """The request for this model; with `count` a chat's stream is to say its usage."""
        asked = {**self.body, "model": model_id}
        if self.stream and count and self.wire is CHAT:
            asked["stream_options"] = {
                **(self.body.get("stream_options") or {}),
                "include_usage": True,
            }
        if self.wire is RESPONSES:
            _go_on(asked)
        return dumped(asked)

    def ensure_asks(self) -> None:
        """Refuse a request without variables that has no messages either, of a task whose prompt
        variants own; raises `InputError`, with status 400."""
        if next(self.wire.messages(self.body), None) is None:
            raise _refused(
                f"The prompt of {self.task} is its variant's, and the request has no "
                f"{VARIABLES} to fill it by, and no messages.",
                f'Send {VARIABLES}, such as {{"topic": "tea"}}.',
            )

    def asked_by(self, prompt: Prompt, length: str = "max_tokens") -> ChatRequest:
        """The request as this prompt asks it: its messages before the caller's, its parameters in
        place of theirs. `length` is what the provider calls the limit of an answer's length.

        Raises `InputError`, with status 400.
        """
        unfit = self.wire.follows(self.body)
        if unfit:
            raise _refused(
                f"The prompt of {self.task} is its variant's, and the request has {unfit}.",
                f"Send {VARIABLES}, and messages that follow what is made of them, or none.",
            )
        unsaid = self.wire.unsaid(prompt.parameters)
        if unsaid:
            raise _refused(
                f"The prompt of {self.task} has the parameter {unsaid}, which {self.wire.asked} "
                "cannot say.",
                "Ask /v1/chat/completions, or give the task a prompt without it.",
            )
        try:
            messages = prompt.render(self.variables or {})
        except InputError as error:
            raise _refused(error.message, error.mend) from error
        body = self.wire.prompted(self.body, messages, prompt.parameters, length)
        return replace(self, body=body)

    def can_say(self, prompts: Iterable[Prompt]) -> bool:
        """Whether each of these prompts could be asked over this request's wire."""
        return not any(self.wire.unsaid(prompt.parameters) for prompt in prompts)

    @property
    def messages(self) -> list[dict[str, str]]:
        """What was asked, as texts: of a message in parts the texts among them."""
        return [
            {"role": str(role or ""), "content": _content(content)}
            for role, content in self.wire.messages(self.body)
        ]


def _variables(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    given = body.get(VARIABLES)
    if given is None or isinstance(given, dict):
        return given
    mend = 'Send an object such as {"topic": "tea"}, or leave it out.'
    raise _refused(f"{VARIABLES} is {str(given)[:50]!r}, no object.", mend)


def _refused(what: str, mend: str) -> InputError:
    return InputError(what, mend=mend, status=400)


def opened(content: bytes, wire: Wire = CHAT) -> dict[str, Any]:
    """A request's body, which names a model. Raises `InputError` for any other."""
    try:
        body = loaded(content)
    except ValueError as error:
        raise _refused("The body is not JSON.", f"Send {wire.asked}.") from error
    if not isinstance(body, dict) or not isinstance(body.get("model"), str):
        mend = f'Send {wire.asked} with model "tuneproof/TASK".'
        raise _refused("The body names no model.", mend)
    return body


def task_of(model: str, headers: Headers, aliases: Mapping[str, str]) -> tuple[str, bool]:
    """The task that a request may be for, and whether it can be for nothing else.

    A header names it for callers whose model name is to stay; `aliases` are model names that mean
    one.
    """
    if model.startswith(PREFIX):
        return model[len(PREFIX) :], True
    given = headers.get(b"x-tuneproof-task")
    return (given.decode("latin-1"), True) if given else (aliases.get(model, model), False)


def _answered_before(body: Mapping[str, Any]) -> Ticket | None:
    """The receipt of the answer that a request goes on from, where a gateway gave it."""
    before = body.get("previous_response_id")
    if not isinstance(before, str) or not before.startswith(Ticket.PREFIX):
        return None
    try:
        ticket = Ticket.decode(before)
    except InputError as error:
        raise _gone(before) from error
    if not ticket.theirs:
        raise _gone(before)
    return ticket


def _gone(before: str) -> InputError:
    return _refused(
        f"previous_response_id is {before[:80]!r}, the id of no response.",
        "Send the `id` of an answer of /v1/responses as it came.",
    )


def _go_on(asked: dict[str, Any]) -> None:
    """Let a request go on from an answer by the provider's own id of it."""
    before = _answered_before(asked)
    if before is not None:
        asked["previous_response_id"] = before.theirs


def _unit(headers: Headers, body: Mapping[str, Any], wire: Wire) -> str:
    """Whom the answer is for; without a word of it, who the answer was for that it goes on from."""
    header = headers.get(b"x-tuneproof-unit")
    given: Any = _text(header) if header else wire.unit(body)
    if not given:
        before = _answered_before(body)
        given = uuid.uuid4().hex if before is None else before.unit
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
