"""A prompt in each wire's words: its messages before the caller's, its parameters by name."""

from __future__ import annotations

from typing import Any

import pytest

from tuneproof.errors import InputError
from tuneproof.prompts import Prompt
from tuneproof.server.chatting import ChatRequest
from tuneproof.server.wires import CHAT, MESSAGES, RESPONSES, Wire

TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}},
}
NAMED = {"type": "function", "function": {"name": "look"}}
FORM = {"type": "json_schema", "json_schema": {"name": "hook", "schema": {"type": "object"}}}
SAID = [{"role": "system", "content": "You ask."}, {"role": "user", "content": "On tea?"}]


def prompted(wire: Wire, body: dict[str, Any], **parameters: Any) -> dict[str, Any]:
    """What a provider is asked, but for the model."""
    prompt = Prompt(
        messages=(("system", "You ask."), ("user", "On {topic}?")),
        parameters=parameters,
        variables=("topic",),
    )
    given = {"model": "tuneproof/hook", "prompt_variables": {"topic": "tea"}, **body}
    found = ChatRequest.read(given, "hook", {}, wire).asked_by(prompt).body
    return {name: value for name, value in found.items() if name != "model"}


def test_a_chat_is_asked_as_before() -> None:
    own = {"role": "user", "content": "Go"}
    found = prompted(CHAT, {"messages": [own], "max_completion_tokens": 7}, max_tokens=60, stop="x")
    assert found == {"messages": [*SAID, own], "max_tokens": 60, "stop": "x"}
    assert prompted(CHAT, {}, temperature=0.1) == {"messages": SAID, "temperature": 0.1}


def test_responses_say_it_in_their_words() -> None:
    found = prompted(
        RESPONSES,
        {
            "input": "Go",
            "text": {"verbosity": "low"},
            "temperature": 2,
            "reasoning": {"summary": "auto"},
        },
        temperature=0.1,
        top_p=0.5,
        max_tokens=60,
        tools=[TOOL],
        tool_choice=NAMED,
        response_format=FORM,
        reasoning_effort="low",
    )
    assert found == {
        "input": [*SAID, {"role": "user", "content": "Go"}],
        "temperature": 0.1,
        "top_p": 0.5,
        "max_output_tokens": 60,
        "tools": [{"type": "function", **TOOL["function"]}],  # type: ignore[dict-item]
        "tool_choice": {"type": "function", "name": "look"},
        "text": {
            "verbosity": "low",
            "format": {"type": "json_schema", "name": "hook", "schema": {"type": "object"}},
        },
        "reasoning": {"summary": "auto", "effort": "low"},
    }
    item = {"type": "function_call_output", "call_id": "c", "output": "sunny"}
    assert prompted(RESPONSES, {"input": [item]})["input"] == [*SAID, item]
    for body in ({}, {"input": ""}, {"input": []}, {"input": None}):
        assert prompted(RESPONSES, body)["input"] == SAID
    plain = prompted(RESPONSES, {}, tool_choice="auto", response_format={"type": "text"})
    assert (plain["tool_choice"], plain["text"]) == ("auto", {"format": {"type": "text"}})


def test_anthropics_messages_say_it_in_theirs() -> None:
    own = {"role": "user", "content": "Go"}
    found = prompted(
        MESSAGES,
        {"messages": [own], "max_tokens": 5},
        temperature=0.1,
        max_tokens=60,
        stop=["a", "b"],
        tools=[TOOL],
        tool_choice="required",
        response_format={"type": "text"},
    )
    assert found == {
        "system": "You ask.",
        "messages": [SAID[1], own],
        "temperature": 0.1,
        "max_tokens": 60,
        "stop_sequences": ["a", "b"],
        "tools": [{"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any"},
    }
    assert prompted(MESSAGES, {"max_tokens": 5}) == {
        "system": "You ask.",
        "messages": [SAID[1]],
        "max_tokens": 5,
    }
    assert prompted(MESSAGES, {}, stop="a")["stop_sequences"] == ["a"]
    for choice, theirs in (
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        (NAMED, {"type": "tool", "name": "look"}),
    ):
        assert prompted(MESSAGES, {}, tool_choice=choice)["tool_choice"] == theirs


@pytest.mark.parametrize(
    ("wire", "body", "parameters", "said"),
    [
        (CHAT, {"messages": [SAID[0]]}, {}, "a system message of its own"),
        (CHAT, {"messages": "tea"}, {}, "messages 'tea', which is no list"),
        (RESPONSES, {"instructions": "Be brief."}, {}, "a system message of its own"),
        (RESPONSES, {"input": [SAID[0]]}, {}, "a system message of its own"),
        (RESPONSES, {"input": [{"role": "developer"}]}, {}, "a system message of its own"),
        (RESPONSES, {"input": 5}, {}, "input '5', which is no list"),
        (RESPONSES, {}, {"stop": "x"}, "the parameter stop, which a request for a response cannot"),
        (MESSAGES, {"system": [{"type": "text", "text": "x"}]}, {}, "a system message of its own"),
        (MESSAGES, {"messages": {}}, {}, "which is no list"),
        (MESSAGES, {}, {"response_format": FORM}, "the parameter response_format"),
        (MESSAGES, {}, {"reasoning_effort": "low"}, "the parameter reasoning_effort"),
    ],
)
def test_what_cannot_follow_or_be_said_is_refused_by_name(
    wire: Wire, body: dict[str, Any], parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        prompted(wire, body, **parameters)
    assert said in caught.value.message
    assert caught.value.mend


@pytest.mark.parametrize("wire", [CHAT, RESPONSES, MESSAGES])
@pytest.mark.parametrize(
    "parameters",
    [
        {"tools": "none"},
        {"tools": [5, {"type": "custom", "name": "x"}, {"function": {"name": "f"}}]},
        {"tool_choice": {"type": "custom"}},
        {"tool_choice": ["f"]},
        {"tool_choice": {"function": {"name": "f"}}},
    ],
)
def test_a_prompt_of_another_form_is_for_the_provider_to_refuse(
    wire: Wire, parameters: dict[str, Any]
) -> None:
    """It may have been kept before anybody looked; a request is not to fail here for it."""
    assert {*parameters} <= prompted(wire, {"max_tokens": 5}, **parameters).keys()
