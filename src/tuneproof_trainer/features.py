"""What of a chat request changes nothing here, and what this server does not do, by its name.

Libraries send what they have defaults for: nulls, empty lists, `modalities: ["text"]`. That is
taken. What would change the answer and cannot be done is refused, never passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tuneproof_trainer.errors import ApiError, bad_request
from tuneproof_trainer.requests import ChatMessage, ChatRequest
from tuneproof_trainer.toolcalls import unanswered, wrong_call, wrong_tools

__all__ = ["needs_relay", "refuse_unsupported", "tools_of", "uses_tools"]

_TOOLS = "Tools"
_FEATURES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "tools": (_TOOLS, lambda value: not value),
    "tool_choice": (_TOOLS, lambda value: value in ("none", "auto")),
    "functions": (_TOOLS, lambda value: not value),
    "function_call": (_TOOLS, lambda value: value in ("none", "auto")),
    "response_format": ("Structured outputs", lambda value: value.type == "text"),
    "presence_penalty": ("Penalties", lambda value: value == 0),
    "frequency_penalty": ("Penalties", lambda value: value == 0),
    "logit_bias": ("Biased tokens", lambda value: not any(value.values())),
    "audio": ("Spoken answers", lambda value: False),
    "modalities": ("Spoken answers", lambda value: value == ["text"]),
    "prediction": ("Predicted outputs", lambda value: False),
    "reasoning_effort": ("Reasoning", lambda value: value == "none"),
    "verbosity": ("Verbosity", lambda value: value == "medium"),
    "web_search_options": ("Web search", lambda value: False),
    "moderation": ("Moderation", lambda value: False),
}
"""Parameters, the feature that each belongs to, and which of their values change nothing."""

_RELAYED = frozenset(
    {"tools", "tool_choice", "functions", "function_call", "response_format"}
    | {"presence_penalty", "frequency_penalty", "logit_bias"}
)
"""What an engine does that has the request passed on as it is."""

_CALLED = frozenset({"tools"})
"""What an engine does whose own models call tools: which one, they decide."""

_PARTS = {
    "image_url": "Images",
    "input_audio": "Spoken questions",
    "file": "Files in messages",
}


def needs_relay(request: ChatRequest) -> bool:
    """Whether it asks for what only a server behind an engine may do."""
    if any(name in _RELAYED for name in _asked(request)):
        return True
    return any(m.role == "tool" or m.tool_calls for m in request.messages)


def _asked(request: ChatRequest) -> list[str]:
    """The parameters that would change the answer."""
    idle = request.tool_choice == "none" or request.function_call == "none"
    found = []
    for name, (feature, changes_nothing) in _FEATURES.items():
        value = getattr(request, name)
        if value is None or changes_nothing(value) or (idle and feature == _TOOLS):
            continue
        found.append(name)
    return found


def refuse_unsupported(request: ChatRequest, *, relayed: bool, calls: bool = False) -> None:
    """Raise ApiError 400 for what cannot be done; `relayed` says that the engine passes it on,
    `calls` that its own models call tools."""
    done = _RELAYED if relayed else _CALLED if calls else frozenset()
    for name in _asked(request):
        if name not in done:
            raise _unsupported(_FEATURES[name][0], name)
    for place, message in enumerate(request.messages):
        old_form = message.role == "function" or bool(message.function_call)
        _check_message(message, f"messages[{place}]", relayed or (calls and not old_form))
    if calls and not relayed:
        _check_calls(request)


def tools_of(request: ChatRequest) -> tuple[dict[str, Any], ...]:
    """What the answer may call."""
    return () if request.tool_choice == "none" else tuple(request.tools or ())


def uses_tools(request: ChatRequest) -> bool:
    """Whether tools play a part in it."""
    said = any(m.role == "tool" or m.tool_calls for m in request.messages)
    return said or bool(tools_of(request))


def _check_calls(request: ChatRequest) -> None:
    """Definitions, calls and what they gave back must fit, as the original has it."""
    wrong = wrong_tools(list(tools_of(request)))
    if wrong:
        raise bad_request(f"Invalid value for 'tools': {wrong}", "tools", "invalid_value")
    for place, message in enumerate(request.messages):
        at = f"messages[{place}]"
        if message.role == "tool" and message.tool_call_id is None:
            raise bad_request(
                f"Missing required parameter: '{at}.tool_call_id'.",
                f"{at}.tool_call_id",
                "missing_required_parameter",
            )
        wrong = wrong_call(message.tool_calls or [], None)
        if wrong:
            raise bad_request(f"Invalid value for '{at}': {wrong}", f"{at}.tool_calls")
    misfit = unanswered([message.model_dump() for message in request.messages], ends=False)
    if misfit is not None:
        at = f"messages[{misfit[0]}]"
        raise bad_request(f"Invalid value for '{at}': {misfit[1]}", at)


def _check_message(message: ChatMessage, place: str, allowed: bool) -> None:
    tools = message.role in ("tool", "function") or message.tool_calls or message.function_call
    if tools and not allowed:
        named = "role" if message.role in ("tool", "function") else "tool_calls"
        raise _unsupported(_TOOLS, f"{place}.{named}")
    if message.audio:
        raise _unsupported("Spoken answers", f"{place}.audio")
    for number, part in enumerate(message.content if isinstance(message.content, list) else ()):
        at = f"{place}.content[{number}]"
        if part.type in _PARTS:
            raise _unsupported(_PARTS[part.type], f"{at}.type")
        if part.said is None:
            raise bad_request(
                f"Missing required parameter: '{at}.{part.type}'.",
                f"{at}.{part.type}",
                "missing_required_parameter",
            )


def _unsupported(feature: str, param: str) -> ApiError:
    return bad_request(
        f"{feature} are not supported by the model of this server that was asked: leave '{param}' "
        "out. An engine that answers through vLLM (`--vllm`) has all tools and structured outputs, "
        "and the engine lora has tools where the model may choose."
        if feature in (_TOOLS, "Structured outputs")
        else f"Unsupported: {feature.lower()} ('{param}'). No model of this server does that; "
        "leave it out.",
        param,
        "unsupported_parameter",
    )
