"""Tools in training files: their definitions, the calls of answers, and what the calls gave back.

Checked as strictly as the original checks them: each call names one of the example's tools, its
arguments are a JSON object, and each is answered once before the conversation goes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tuneproof_trainer.bounded import loads, texts_in
from tuneproof_trainer.engines.protocol import ToolCall

__all__ = [
    "calls_of",
    "names_of",
    "said_by",
    "texts_of",
    "unanswered",
    "wire_calls",
    "wrong_call",
    "wrong_tools",
]

MOST_TOOLS = MOST_CALLS = 128
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DEFINED = {"name", "description", "parameters", "strict"}
_CALL_KEYS = {"id", "type", "function"}


def wrong_tools(tools: Any) -> str:
    """What is wrong with an example's `tools`, in words; empty where nothing is."""
    if not isinstance(tools, list):
        return "`tools` must be a list of definitions."
    if len(tools) > MOST_TOOLS:
        return f"`tools` has {len(tools)} definitions; {MOST_TOOLS} is the most."
    seen: set[str] = set()
    for at, tool in enumerate(tools):
        wrong = _wrong_definition(tool, seen)
        if wrong:
            return f"definition {at + 1} of `tools`: {wrong}"
        seen.add(tool["function"]["name"])
    return ""


def _wrong_definition(tool: Any, seen: Collection[str]) -> str:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        return "must be an object with the `type` 'function'."
    function = tool.get("function")
    if not isinstance(function, dict):
        return "`function` must be an object with a `name`."
    unknown = sorted(tool.keys() - {"type", "function"}) or sorted(function.keys() - _DEFINED)
    if unknown:
        return f"unknown key `{unknown[0]}`; remove it."
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return "`name` must be a string of 1 to 64 letters, digits, `_` and `-`."
    if name in seen:
        return f"`{name}` is defined twice."
    if not isinstance(function.get("description"), str | None):
        return "`description` must be a string."
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        return "`parameters` must be a JSON schema: an object."
    if isinstance(parameters, dict) and parameters.get("type", "object") != "object":
        return "`parameters` must describe an object."
    if not isinstance(function.get("strict"), bool | None):
        return "`strict` must be true or false."
    try:
        texts_in(parameters)
    except ValueError as error:
        return f"`parameters` are {error}."
    return ""


def names_of(tools: Sequence[Mapping[str, Any]] | None) -> frozenset[str]:
    """What tools that were checked are called."""
    return frozenset(tool["function"]["name"] for tool in tools or ())


def wrong_call(calls: Any, tools: Collection[str] | None) -> str:
    """What is wrong with the `tool_calls` of a message, in words; empty where nothing is.

    Where `tools` are known, each call must be of one of them.
    """
    if not isinstance(calls, list):
        return "`tool_calls` must be a list."
    if len(calls) > MOST_CALLS:
        return f"`tool_calls` has {len(calls)} calls; {MOST_CALLS} is the most."
    ids: set[str] = set()
    for call in calls:
        if not isinstance(call, dict) or call.keys() != _CALL_KEYS or call["type"] != "function":
            return "a call of `tool_calls` needs `id`, `type` 'function' and `function`, alone."
        if not isinstance(call["id"], str) or not call["id"] or call["id"] in ids:
            return "each call of `tool_calls` needs an `id` of its own, a string."
        ids.add(call["id"])
        wrong = _wrong_function(call["function"], tools)
        if wrong:
            return wrong
    return ""


def _wrong_function(function: Any, tools: Collection[str] | None) -> str:
    if not isinstance(function, dict) or function.keys() != {"name", "arguments"}:
        return "the `function` of a call needs `name` and `arguments`, alone."
    name, arguments = function["name"], function["arguments"]
    if not isinstance(name, str):
        return "the `name` of a call must be a string."
    if tools is not None and name not in tools:
        known = ", ".join(sorted(tools)) or "none"
        return f"calls {name[:64]!r}, which is not among the example's `tools` ({known})."
    if not isinstance(arguments, str):
        return f"the `arguments` of {name} must be a string that holds a JSON object."
    try:
        texts_in(loads(arguments.encode()))  # strict, and within bounds
        found = json.loads(arguments)  # as templates get them: no number is too long for that
    except ValueError as error:
        return f"the `arguments` of {name} are not valid JSON ({error})."
    if not isinstance(found, dict):
        return f"the `arguments` of {name} must be a JSON object."
    return ""


def unanswered(messages: Sequence[Mapping[str, Any]], *, ends: bool) -> tuple[int, str] | None:
    """Where calls and what they gave back do not fit, and how; None where they do.

    Calls may stay without an answer in the last message alone, where that `ends` the example.
    """
    waiting: dict[str, int] = {}
    for at, message in enumerate(messages):
        if message["role"] == "tool":
            if waiting.pop(message["tool_call_id"], None) is None:
                return at, f"`tool_call_id` {message['tool_call_id'][:64]!r} answers no open call."
            continue
        if waiting:
            return at, f"the call {next(iter(waiting))[:64]!r} before it has no tool message."
        waiting = {call["id"]: at for call in message.get("tool_calls") or ()}
    last = len(messages) - 1
    if waiting and not (ends and set(waiting.values()) == {last}):
        call, at = next(iter(waiting.items()))
        return at, f"the call {call[:64]!r} has no tool message."
    return None


def calls_of(message: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """The calls of a message that was checked."""
    return tuple(
        ToolCall(
            id=call["id"], name=call["function"]["name"], arguments=call["function"]["arguments"]
        )
        for call in message.get("tool_calls") or ()
    )


def said_by(call: Mapping[str, Any]) -> list[str]:
    """All texts of a call that was checked, as it is written and as it is read."""
    arguments = call["function"]["arguments"]
    return [call["id"], arguments, *texts_in(json.loads(arguments))]


def wire_calls(calls: Sequence[ToolCall], *, streamed: bool = False) -> list[dict[str, Any]]:
    """Calls as the wire has them; in a stream each says its place."""
    found: list[dict[str, Any]] = []
    for place, call in enumerate(calls):
        function = {"name": call.name, "arguments": call.arguments}
        told = {"id": call.id, "type": "function", "function": function}
        found.append({"index": place, **told} if streamed else told)
    return found


def texts_of(calls: Sequence[ToolCall]) -> list[str]:
    """What of calls is text, and is billed."""
    return [text for call in calls for text in (call.name, call.arguments)]
