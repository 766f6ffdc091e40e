"""Prompts: named by content, filled alike everywhere, and read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneproof.errors import InputError
from tuneproof.prompts import MOST_BYTES, PARAMETERS, Prompt, check_values

HOOK = Prompt(
    messages=(("system", "You write hooks."), ("user", "About {topic}, for {reader}.")),
    parameters={"temperature": 0.2},
    variables=("topic", "reader"),
    empty_prompt="Write any hook.",
)


def test_content_alone_names_a_prompt() -> None:
    """The order of keys and of variables says nothing; each word and number does."""
    same = Prompt.of(
        {
            "variables": ["reader", "topic"],
            "parameters": {"temperature": 0.2},
            "empty_prompt": "Write any hook.",
            "messages": HOOK.document()["messages"],
        }
    )
    assert same == HOOK
    assert same.hash == HOOK.hash == "c023951d507733dd"
    assert len({same, HOOK}) == 1
    warmer = Prompt.of({**HOOK.document(), "parameters": {"temperature": 0.3}})
    assert warmer.hash != HOOK.hash


def test_only_declared_names_are_filled() -> None:
    """Braces of JSON and other names stay, and a value is never read as a template."""
    asked = Prompt(
        messages=(("user", 'Say {"hook": "…"} or {answer} about {topic} {{topic}}.'),),
        variables=("topic",),
    )
    [message] = asked.render({"topic": "{answer} \\1 {topic}", "answer": "no"})
    assert message["content"] == (
        'Say {"hook": "…"} or {answer} about {answer} \\1 {topic} {{answer} \\1 {topic}}.'
    )


def test_values() -> None:
    """Numbers are written, nothing is empty, further ones are not read, missing ones named."""
    assert HOOK.render({"topic": 3, "reader": None, "more": object()})[1] == {
        "role": "user",
        "content": "About 3, for .",
    }
    assert HOOK.render({"topic": " ", "reader": ""})[1]["content"] == "Write any hook."
    with pytest.raises(InputError, match="variable reader is missing; there is topic"):
        HOOK.render({"topic": "tea"})
    with pytest.raises(InputError, match=r"variable topic is .* neither text nor a number"):
        HOOK.render({"topic": ["tea"], "reader": ""})


@given(topic=st.text(), reader=st.text())
def test_what_was_filled_is_read_back(topic: str, reader: str) -> None:
    """As values that make the same text, whatever is in them."""
    asked = HOOK.render({"topic": topic, "reader": reader})
    assert HOOK.render(HOOK.values_of(asked)) == asked


def test_values_are_read_back() -> None:
    """Those that were filled in, where the text says which; else the shortest first."""
    tea = {"topic": "tea", "reader": "you"}
    assert HOOK.values_of(HOOK.render(tea)) == tea
    two = HOOK.render({"topic": "tea, for two", "reader": "you"})
    assert HOOK.values_of(two) == {"topic": "tea", "reader": "two, for you"}
    blank = {"topic": "", "reader": ""}
    assert HOOK.values_of(HOOK.render(blank)) == blank
    twice = Prompt(messages=(("user", "{a}-{a}"),), variables=("a",))
    assert twice.values_of(twice.render({"a": "x-y"})) == {"a": "x-y"}
    none = Prompt(messages=(("user", "Anything."),))
    assert none.values_of(none.render({})) == {}


def test_what_another_prompt_asked_is_not_read() -> None:
    """It is refused, not guessed at."""
    asked = HOOK.render({"topic": "tea", "reader": "you"})
    both = Prompt(messages=(("user", "{a}"), ("user", "{a}!")), variables=("a",))
    for prompt, messages in (
        (HOOK, asked[1:]),
        (HOOK, [asked[0], {"role": "user", "content": "Something else"}]),
        (HOOK, [{"role": "user", "content": asked[0]["content"]}, asked[1]]),
        (both, [{"role": "user", "content": "a"}, {"role": "user", "content": "b!"}]),
        (Prompt(messages=(("user", "Anything."),)), asked),
    ):
        with pytest.raises(InputError, match=f"prompt {prompt.hash} does not make"):
            prompt.values_of(messages)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"messages": []}, "ends with a message of the user"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "ends with a message of the user"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "role 'robot'"),
        ({"messages": [{"role": "user", "content": 3}]}, "content is '3'"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "half of a surrogate"),
        ({"messages": [{"role": "user"}]}, "That is no prompt"),
        ({}, "That is no prompt"),
        ({"messages": [{"role": "user", "content": "a"}], "variables": ["b"]}, "not say b"),
        ({"messages": [{"role": "user", "content": "a"}], "parameters": {"n": 2}}, "parameter n"),
        (
            {"messages": [{"role": "user", "content": "a"}], "parameters": {"top_p": float("nan")}},
            "cannot be written as JSON",
        ),
        ({"messages": [{"role": "user", "content": "a" * MOST_BYTES}]}, "may be"),
    ],
)
def test_what_is_no_prompt(document: dict[str, object], said: str) -> None:
    """It is refused with what is wrong."""
    with pytest.raises(InputError, match=said):
        Prompt.of(document)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("temperature", "hot", "a number of 0 to 2"),
        ("temperature", True, "a number of 0 to 2"),
        ("top_p", 1.5, "a number of 0 to 1"),
        ("max_tokens", -3, "a whole number above 0"),
        ("max_tokens", 1.5, "a whole number above 0"),
        ("stop", [1], "a text or a list of texts"),
        ("tools", {}, "a list"),
        ("tool_choice", 1, "a text or an object"),
        ("response_format", "json", "an object"),
        ("reasoning_effort", 3, "a text"),
    ],
)
def test_values_that_no_provider_takes_are_refused(name: str, value: object, rule: str) -> None:
    """Where a prompt is made; one that is kept is read all the same."""
    with pytest.raises(InputError, match=f"parameter {name} is .* must be {rule}"):
        check_values({name: value})
    assert Prompt(messages=(("user", "a"),), parameters={name: value}).parameters == {name: value}


def test_values_that_providers_take() -> None:
    """One of each parameter."""
    good = {
        "temperature": 0,
        "top_p": 1.0,
        "max_tokens": 1,
        "stop": ["a"],
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "json_object"},
        "reasoning_effort": "low",
    }
    assert good.keys() == set(PARAMETERS)
    check_values(good)
    check_values({"stop": "a", "tool_choice": {"type": "function"}})
