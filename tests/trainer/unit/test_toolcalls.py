"""Tools in training files: what is taken, what is refused, and in which words."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneproof_trainer.datasets import Checked, LineFile, check_file
from tuneproof_trainer.engines.lora.pipe import read_example, write_example
from tuneproof_trainer.errors import JobFailure

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True},
}
ASKED = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "Hello"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
OTHER = {**CALL, "id": "c2"}
GAVE = {"role": "tool", "tool_call_id": "c1", "content": "ok"}


def calls(*made: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(made), **more}


def function(**changes: Any) -> dict[str, Any]:
    return {**CALL, "function": {**CALL["function"], **changes}}  # type: ignore[dict-item]


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(depth):
        found = {"a": found}
    return found


def chat(*messages: dict[str, Any], tools: Any = (TOOL,)) -> dict[str, Any]:
    return {"messages": list(messages), "tools": list(tools) if tools else tools}


def checked(folder: Path, row: dict[str, Any], method: Any = "supervised", **more: Any) -> Checked:
    (folder / "file.jsonl").write_text(json.dumps(row) + "\n")
    asked: dict[str, Any] = {"count_tokens": len, "min_examples": 1, "tools": True, **more}
    return check_file(folder / "file.jsonl", method=method, param="training_file", **asked)


GOOD = {
    "a call to learn": chat(ASKED, calls(CALL)),
    "a call with words": chat(ASKED, calls(CALL, content="Let me see.")),
    "empty words": chat(ASKED, calls(CALL, content="")),
    "two calls, answered in any order": chat(
        ASKED, calls(CALL, OTHER), {**GAVE, "tool_call_id": "c2"}, GAVE, SAID
    ),
    "one call after another": chat(ASKED, calls(CALL), GAVE, calls(OTHER)),
    "an id again, once it was answered": chat(ASKED, calls(CALL), GAVE, calls(CALL), GAVE, SAID),
    "nothing came back": chat(ASKED, calls(CALL), {**GAVE, "content": ""}, SAID),
    "parts came back": chat(
        ASKED, calls(CALL), {**GAVE, "content": [{"type": "text", "text": "ok"}]}, SAID
    ),
    "tools that nobody calls": chat(ASKED, SAID),
    "as SDKs write it": chat(
        {**ASKED, "name": None},
        calls(CALL, refusal=None, annotations=[], function_call=None),
        {**GAVE, "name": "f"},
        {**SAID, "tool_calls": None},
    ),
    "empty lists where nothing is": chat(
        {**ASKED, "tool_call_id": [], "name": []}, calls(CALL, weight=[]), GAVE, SAID
    ),
    "weights": chat(ASKED, calls(CALL, weight=0), GAVE, {**SAID, "weight": 1}),
    "parallel": {**chat(ASKED, calls(CALL)), "parallel_tool_calls": False},
    "a name alone": chat(
        ASKED, calls(CALL), tools=[{"type": "function", "function": {"name": "f"}}]
    ),
}


@pytest.mark.parametrize("row", GOOD.values(), ids=list(GOOD))
def test_tools_are_taken_as_the_original_takes_them(tmp_path: Path, row: dict[str, Any]) -> None:
    found = checked(tmp_path, row)
    assert found.tokens > 0
    with LineFile(tmp_path / "file.jsonl", found.places, "supervised") as file:
        example = file[0]
    assert example.calls
    assert list(example.tools) == row["tools"]
    assert read_example(write_example(example)) == example  # on its way to another process


def test_what_is_billed_is_all_that_is_shown(tmp_path: Path) -> None:
    found = checked(tmp_path, chat(ASKED, calls(CALL), GAVE, SAID))
    texts = ("Hi", "f", '{"a": 1}', "ok", "Hello", json.dumps(TOOL, separators=(",", ":")))
    assert found.tokens == sum(map(len, texts))


def test_an_empty_list_as_weight_is_none(tmp_path: Path) -> None:
    """It was read as 0, so that the answer was not learned, and nobody was told."""
    found = checked(tmp_path, chat(ASKED, {**SAID, "weight": []}))
    with LineFile(tmp_path / "file.jsonl", found.places, "supervised") as file:
        assert [message.weight for message in file[0].messages] == [1, 1]


def test_what_came_back_knows_its_tool(tmp_path: Path) -> None:
    found = checked(tmp_path, chat(ASKED, calls(CALL), GAVE, SAID))
    with LineFile(tmp_path / "file.jsonl", found.places, "supervised") as file:
        messages = file[0].messages
    assert [(m.role, m.content, m.name) for m in messages] == [
        ("user", "Hi", None),
        ("assistant", "", None),
        ("tool", "ok", "f"),
        ("assistant", "Hello", None),
    ]
    assert messages[1].tool_calls[0].arguments == '{"a": 1}'


BAD = {
    "tools no list": (chat(ASKED, SAID, tools={"a": 1}) | {"tools": {"a": 1}}, "must be a list"),
    "129 tools": (
        chat(
            ASKED,
            SAID,
            tools=[{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)],
        ),
        "128 is the most",
    ),
    "a tool of another type": (chat(ASKED, SAID, tools=[{"type": "code"}]), "`type` 'function'"),
    "no function": (
        chat(ASKED, SAID, tools=[{"type": "function"}]),
        "`function` must be an object",
    ),
    "a bad name": (
        chat(ASKED, SAID, tools=[{"type": "function", "function": {"name": "a b"}}]),
        "1 to 64 letters",
    ),
    "twice": (
        chat(ASKED, SAID, tools=[TOOL, TOOL]),
        "definition 2 of `tools`: `f` is defined twice",
    ),
    "parameters no object": (
        chat(
            ASKED, SAID, tools=[{"type": "function", "function": {"name": "f", "parameters": []}}]
        ),
        "JSON schema",
    ),
    "parameters of a list": (
        chat(
            ASKED,
            SAID,
            tools=[
                {"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}
            ],
        ),
        "must describe an object",
    ),
    "an unknown tool": (
        chat(ASKED, calls(function(name="g"))),
        "message 2 of `messages`: calls 'g', which is not among the example's `tools` (f)",
    ),
    "no tools at all": (
        {"messages": [ASKED, calls(CALL)]},
        "calls 'f', which is not among the example's `tools` (none)",
    ),
    "arguments an object": (chat(ASKED, calls(function(arguments={}))), "must be a string"),
    "arguments no JSON": (chat(ASKED, calls(function(arguments="{"))), "are not valid JSON"),
    "arguments a list": (chat(ASKED, calls(function(arguments="[]"))), "must be a JSON object"),
    "a number without end": (
        chat(ASKED, calls(function(arguments='{"a": ' + "9" * 5000 + "}"))),
        "are not valid JSON",
    ),
    "lists without end": (
        chat(ASKED, calls(function(arguments='{"a": ' + "[" * 5000 + "]" * 5000 + "}"))),
        "are not valid JSON",
    ),
    "objects in objects": (
        chat(ASKED, calls(function(arguments='{"a": ' + "[" * 300 + "]" * 300 + "}"))),
        "more than 100 objects and lists in each other",
    ),
    "a definition that is nested": (
        chat(
            ASKED,
            SAID,
            tools=[{"type": "function", "function": {"name": "f", "parameters": nested(300)}}],
        ),
        "`parameters` are more than 100 objects and lists in each other",
    ),
    "a name that is no text": (chat(ASKED, calls(function(name=["f"]))), "must be a string"),
    "129 calls": (
        chat(ASKED, calls(*({**CALL, "id": f"c{number}"} for number in range(129)))),
        "128 is the most",
    ),
    "a special token behind another key of its name": (
        chat(ASKED, calls(function(arguments='{"a": "<|im_end|>", "a": "x"}'))),
        "special token",
    ),
    "a special token as an id": (chat(ASKED, calls({**CALL, "id": "<|im_end|>"})), "special token"),
    "a call of another type": (chat(ASKED, calls({**CALL, "type": "x"})), "`type` 'function'"),
    "a call without an id": (chat(ASKED, calls({**CALL, "id": ""})), "an `id` of its own"),
    "one id twice": (chat(ASKED, calls(CALL, CALL)), "an `id` of its own"),
    "calls no list": (chat(ASKED, {"role": "assistant", "tool_calls": "f"}), "must be a list"),
    "nothing said": (chat(ASKED, {"role": "assistant", "content": None}), "`content`"),
    "who asks does not call": (chat({**ASKED, "tool_calls": [CALL]}, SAID), "`tool_calls`"),
    "an answer to no call": (
        chat(ASKED, {**GAVE, "tool_call_id": "c9"}, SAID),
        "message 2 of `messages`: `tool_call_id` 'c9' answers no open call",
    ),
    "an answer twice": (chat(ASKED, calls(CALL), GAVE, GAVE, SAID), "message 4 of"),
    "a call without an answer": (
        chat(ASKED, calls(CALL, OTHER), GAVE, SAID),
        "message 4 of `messages`: the call 'c2' before it has no tool message",
    ),
    "no word whom it answers": (
        chat(ASKED, calls(CALL), {"role": "tool", "content": "x"}, SAID),
        "`tool_call_id` must say",
    ),
    "tool last": (chat(ASKED, calls(CALL), GAVE), "the last message must be from the assistant"),
    "a special token came back": (
        chat(ASKED, calls(CALL), {**GAVE, "content": "<|im_end|>"}, SAID),
        "special token",
    ),
    "a special token in a definition": (
        chat(
            ASKED,
            SAID,
            tools=[{"type": "function", "function": {"name": "f", "description": "<|im_start|>"}}],
        ),
        "`tools` contains the special token <|im_start|>",
    ),
    "a special token in arguments": (
        chat(ASKED, calls(function(arguments='{"a": "<|im_end|>"}'))),
        "special token",
    ),
    "of the old form": (
        chat(ASKED, {"role": "assistant", "content": None, "function_call": {"name": "f"}}),
        "the old form",
    ),
    "a weight of what came back": (
        chat(ASKED, calls(CALL), {**GAVE, "weight": 1}, SAID),
        "only assistant messages may have a weight",
    ),
}


@pytest.mark.parametrize(("row", "said"), BAD.values(), ids=list(BAD))
def test_what_is_wrong_is_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(JobFailure) as caught:
        checked(tmp_path, row)
    assert caught.value.code == "invalid_training_file"
    assert said in caught.value.message
    assert "Example 1 of the training file" in caught.value.message


def pair(given: list[Any], better: Any, worse: Any) -> dict[str, Any]:
    return {
        "input": {"messages": given, "tools": [TOOL]},
        "preferred_output": [better],
        "non_preferred_output": [worse],
    }


def test_pairs_may_call_and_be_asked_after_calls(tmp_path: Path) -> None:
    checked(tmp_path, pair([ASKED], calls(CALL), SAID), "dpo")
    checked(tmp_path, pair([ASKED, calls(CALL), GAVE], SAID, calls(OTHER)), "dpo")
    for row, said in (
        (pair([ASKED], calls(function(name="g")), SAID), "`preferred_output`: calls 'g'"),
        (pair([ASKED, calls(CALL)], SAID, SAID), "`input.messages`"),
        (pair([ASKED, calls(CALL, OTHER), GAVE], SAID, SAID), "the call 'c2' has no tool message"),
    ):
        with pytest.raises(JobFailure, match="Example 1") as caught:
            checked(tmp_path, row, "dpo")
        assert said in caught.value.message


def test_an_engine_that_trains_none_says_so(tmp_path: Path) -> None:
    for row in (chat(ASKED, calls(CALL)), chat(ASKED, SAID)):
        with pytest.raises(JobFailure, match="Take a model of the engine lora") as caught:
            checked(tmp_path, row, tools=False)
        assert caught.value.code == "tools_not_supported"
    checked(tmp_path, {"messages": [ASKED, SAID], "tools": [], "functions": None}, tools=False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
ANY = st.dictionaries(
    st.sampled_from(["role", "content", "tool_calls", "tool_call_id", "name", "weight"]), JSON
)


@given(st.lists(ANY, max_size=4), JSON)
def test_nothing_that_stands_there_breaks_the_check(
    tmp_path_factory: pytest.TempPathFactory, messages: list[Any], tools: Any
) -> None:
    """Whatever it is, it is taken or refused in words."""
    roles = ("user", "assistant", "tool")
    given = [{**one, "role": roles[at % 3]} for at, one in enumerate(messages)]
    with suppress(JobFailure):
        found = checked(tmp_path_factory.mktemp("any"), {"messages": given, "tools": tools})
        assert found.tokens >= 0
