"""Calls of tools as a chat template shows them: in which form, and whether it shows them at all.

Some templates want a call's arguments as an object, some as text, and some drop calls without a
word, so that an empty answer would be learned. What a template does is found out by asking it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from tuneproof_trainer.engines.protocol import EngineError, Message, ToolCall

__all__ = [
    "PROBE_ASKED",
    "PROBE_CALL",
    "PROBE_TOOLS",
    "Form",
    "Turn",
    "ensure_said",
    "find_form",
    "turn",
]

Turn = dict[str, Any]
"""A message as templates read it."""

Form = Literal["object", "text"]
"""How a template wants a call's arguments."""

_NAME, _KEY, _VALUE, _RESULT = "probe_call", "probe_key", "probe_value", "probe_result"
_ID = "probe0001"  # some templates want nine letters and digits

PROBE_TOOLS: Sequence[dict[str, Any]] = (
    {
        "type": "function",
        "function": {
            "name": _NAME,
            "description": "Probe.",
            "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}},
        },
    },
)
PROBE_ASKED = Message(role="user", content="probe")
PROBE_CALL = Message(
    role="assistant",
    content="",
    tool_calls=(ToolCall(id=_ID, name=_NAME, arguments=f'{{"{_KEY}": "{_VALUE}"}}'),),
)
_GAVE = Message(role="tool", content=_RESULT, tool_call_id=_ID, name=_NAME)
_SAID = Message(role="assistant", content="probe")


class Write(Protocol):
    """What a template makes of turns; raises EngineError where it refuses them."""

    def __call__(self, turns: list[Turn], tools: Sequence[dict[str, Any]] = ...) -> str: ...


def turn(message: Message, form: Form | None) -> Turn:
    """A message as a template of this form reads it."""
    role = "system" if message.role == "developer" else message.role
    found: Turn = {"role": role, "content": message.content}
    if message.tool_calls:
        found["tool_calls"] = [_call(call, form) for call in message.tool_calls]
    if message.role == "tool":
        found |= {"tool_call_id": message.tool_call_id, "name": message.name}
    return found


def _call(call: ToolCall, form: Form | None) -> dict[str, Any]:
    arguments: Any = call.arguments if form == "text" else json.loads(call.arguments)
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def find_form(write: Write) -> Form | None:
    """The form in which a template shows all of a call and what it gave back; None: in none."""
    forms: tuple[Form, ...] = ("object", "text")
    return next((form for form in forms if _shows(write, form)), None)


def _shows(write: Write, form: Form) -> bool:
    def shown(*messages: Message) -> str:
        return write([turn(message, form) for message in messages], PROBE_TOOLS)

    try:
        asked = shown(PROBE_ASKED)
        called = shown(PROBE_ASKED, PROBE_CALL)
        whole = shown(PROBE_ASKED, PROBE_CALL, _GAVE, _SAID)
    except Exception:  # a template is a program of somebody's, which may do anything
        return False
    added = called[_common(asked, called) :]
    if f"'{_KEY}'" in added:  # as Python writes an object, which is no JSON
        return False
    return all(part in added for part in (_NAME, _KEY, _VALUE)) and _RESULT in whole


def _common(first: str, second: str) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))


def ensure_said(message: Message, shown: Callable[[Message], str]) -> None:
    """Refuse a template that leaves out one of a message's calls, or what it says beside them.

    `shown` is what the template makes of the conversation up to such a message: where that is the
    same without a part, the part is not shown. Raises EngineError `invalid_training_file`.
    """
    calls, whole = message.tool_calls, shown(message)
    if message.content.strip() and shown(replace(message, content="")) == whole:
        raise _left_out(
            f"what an answer says beside its call, {message.content[:200]!r}", "Leave it out"
        )
    for at, call in enumerate(calls if len(calls) > 1 else ()):
        if shown(replace(message, tool_calls=calls[:at] + calls[at + 1 :])) == whole:
            told = f"the call of {call.name} with {call.arguments[:200]}, one of {len(calls)}"
            raise _left_out(f"{told} of its message", "Let each message call one tool")


def _left_out(what: str, mend: str) -> EngineError:
    return EngineError(
        "invalid_training_file",
        f"The model's chat template does not show {what}. {mend}, or take a base model whose "
        "template shows it.",
        "training_file",
    )
