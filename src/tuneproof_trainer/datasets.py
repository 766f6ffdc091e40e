"""Training files: read line by line, checked as strictly as the original checks them.

A failure names the example (counted from 1) and the message at fault and says how to mend it.
Examples are found again by the place of their line, so a file of any size stays on disk.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import orjson

from tuneproof_trainer.bounded import MAX_LINE_BYTES, lines, loads, texts_in
from tuneproof_trainer.engines.protocol import Message, TrainingExample
from tuneproof_trainer.errors import JobFailure
from tuneproof_trainer.toolcalls import (
    calls_of,
    names_of,
    said_by,
    texts_of,
    unanswered,
    wrong_call,
    wrong_tools,
)

__all__ = ["Checked", "LineFile", "check_file", "find_lines"]

Method = Literal["supervised", "dpo"]
_ROLES = ("system", "developer", "user", "assistant", "tool")
_TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")
_TOOLS = {"tools", "parallel_tool_calls", "functions"}
_KEYS = frozenset({"role", "content", "name"})
_MAY_HAVE = dict.fromkeys(("system", "developer", "user"), _KEYS) | {
    "assistant": _KEYS | {"weight", "tool_calls"},
    "tool": _KEYS | {"tool_call_id"},
}
_OPTIONAL = frozenset({"refusal", "annotations", "audio", "name", "weight", *_TOOL_KEYS})
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|endofprompt|>",
    "<|im_start|>",
    "<|im_end|>",
)


class LineFile:
    """The examples of a checked file, read from disk by number."""

    def __init__(self, path: Path, places: array[int], method: Method) -> None:
        self._file = path.open("rb")
        self._places = places
        self._method = method

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> TrainingExample:
        self._file.seek(self._places[index])
        return _example(orjson.loads(self._file.readline()), self._method)

    def __enter__(self) -> LineFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


class Checked:
    """What a check found: where the examples are and how many tokens count for training."""

    def __init__(self) -> None:
        self.places = array("q")
        self.tokens = 0


def check_file(
    path: Path,
    *,
    method: Method,
    param: str,
    count_tokens: Callable[[str], int],
    min_examples: int,
    blocklist: Sequence[str] = (),
    tools: bool = False,
    stopping: Callable[[], bool] = lambda: False,
) -> Checked:
    """Check every line of the file at `path`, which may have `tools` where the engine trains them.

    Raises JobFailure `invalid_file_format`, `invalid_training_file`, `invalid_n_examples`,
    `tools_not_supported` or `unsafe_file`, with `param` naming which of the job's files it was.
    Raises InterruptedError as soon as `stopping` says so.
    """
    checked = Checked()
    blocked = [phrase.casefold() for phrase in blocklist]
    with path.open("rb") as file:
        for place, line in lines(file):
            if stopping():
                raise InterruptedError("the server stops")
            data = _check_line(line, len(checked.places) + 1, method, param, blocked)
            if not tools and _calls(data, method):
                raise _no_tools(len(checked.places) + 1, param)
            checked.places.append(place)
            checked.tokens += sum(count_tokens(text) for text in _texts(data, method))
    if len(checked.places) < min_examples:
        raise JobFailure(
            "invalid_n_examples",
            f"The {_named(param)} has {len(checked.places)} example(s), but must have at least "
            f"{min_examples} examples. Add examples and upload it again.",
            param,
        )
    return checked


def find_lines(path: Path) -> array[int]:
    """Where the examples of a checked file begin."""
    with path.open("rb") as file:
        return array("q", (place for place, _ in lines(file)))


def _no_tools(number: int, param: str) -> JobFailure:
    return JobFailure(
        "tools_not_supported",
        f"Example {number} of the {_named(param)} has tools, which the engine of this model does "
        "not train. Take a model of the engine lora, or remove tools and calls.",
        param,
    )


def _named(param: str) -> str:
    return param.replace("_", " ")


def _check_line(
    line: bytes, number: int, method: Method, param: str, blocked: Sequence[str]
) -> dict[str, Any]:
    wrong = _Wrong(number, param)
    if len(line) > MAX_LINE_BYTES:
        raise wrong.format(f"is longer than {MAX_LINE_BYTES // 1024**2} MiB")
    try:
        data = loads(line)
    except ValueError as error:
        raise wrong.format(f"is not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise wrong.format("is not a JSON object")
    _check_kind(data, method, wrong)
    if method == "dpo":
        _check_pair(data, wrong)
    else:
        tools = _check_keys(data, {"messages"}, _TOOLS, wrong)
        _check_conversation(data["messages"], tools, wrong)
    text = line.decode("utf-8", "replace").casefold() if blocked else ""
    for phrase in blocked:
        if phrase in text:
            raise JobFailure(
                "unsafe_file",
                f"Example {number} of the {_named(param)} contains a phrase on this server's "
                "blocklist. Remove the example and upload the file again.",
                param,
            )
    return data


class _Wrong:
    """Makes failures that name the example, and the message where there is one."""

    def __init__(self, number: int, param: str) -> None:
        self._number, self._param = number, param

    def format(self, what: str) -> JobFailure:
        return JobFailure(
            "invalid_file_format",
            f"Line {self._number} of the {_named(self._param)} {what}. The file must be JSONL: "
            "one JSON object on each line, in UTF-8.",
            self._param,
        )

    def example(self, what: str) -> JobFailure:
        return JobFailure(
            "invalid_training_file",
            f"Example {self._number} of the {_named(self._param)}: {what}",
            self._param,
        )

    def message(self, at: int, what: str, within: str = "messages") -> JobFailure:
        return self.example(f"message {at + 1} of `{within}`: {what}")


def _check_kind(data: dict[str, Any], method: Method, wrong: _Wrong) -> None:
    """Tell examples of another kind from broken ones."""
    if {"prompt", "completion"} <= data.keys():
        raise wrong.format(
            "is in the prompt-completion format, but this model is a chat model and requires "
            "chat-formatted data (`messages`)"
        )
    if method == "supervised" and "preferred_output" in data:
        raise wrong.example(
            "it is a preference example (`preferred_output`), but the job's method is "
            "'supervised'. Create the job with the method 'dpo'."
        )
    if method == "dpo" and "messages" in data:
        raise wrong.example(
            "it is a conversation (`messages`), but the job's method is 'dpo', which needs "
            "`input`, `preferred_output` and `non_preferred_output`."
        )


def _check_keys(
    data: dict[str, Any], needed: set[str], allowed: set[str], wrong: _Wrong
) -> frozenset[str]:
    """The names of the tools that are defined there."""
    missing = sorted(needed - data.keys())
    if missing:
        raise wrong.example(f"the key `{missing[0]}` is missing.")
    unknown = sorted(data.keys() - needed - allowed)
    if unknown:
        raise wrong.example(f"unknown key `{unknown[0]}`; remove it.")
    if data.get("functions"):
        raise wrong.example("`functions` is the old form; write them as `tools`.")
    if not isinstance(data.get("parallel_tool_calls"), bool | None):
        raise wrong.example("`parallel_tool_calls` must be true or false.")
    if not data.get("tools"):
        return frozenset()
    told = wrong_tools(data["tools"])
    if told:
        raise wrong.example(told)
    token = _token_in(texts_in(data["tools"]))
    if token:
        raise wrong.example(f"`tools` contains the special token {token}; remove it.")
    return names_of(data["tools"])


def _check_conversation(messages: Any, tools: frozenset[str], wrong: _Wrong) -> None:
    _check_messages(messages, tools, wrong, "messages", ends=True)
    if messages[-1]["role"] != "assistant":
        raise wrong.message(
            len(messages) - 1,
            f"the last message must be from the assistant, not from `{messages[-1]['role']}`.",
        )
    if not any(_weight(m) for m in messages if m["role"] == "assistant"):
        raise wrong.example("every assistant message has weight 0, so there is nothing to learn.")


def _check_messages(
    messages: Any, tools: frozenset[str], wrong: _Wrong, within: str, *, ends: bool
) -> None:
    if not isinstance(messages, list) or not messages:
        raise wrong.example(f"`{within}` must be a list with at least one message.")
    for at, message in enumerate(messages):
        _check_message(message, at, tools, wrong, within)
    calls = any("tool_calls" in message or message["role"] == "tool" for message in messages)
    misfit = unanswered(messages, ends=ends) if calls else None
    if misfit is not None:
        raise wrong.message(*misfit, within)


def _check_message(
    message: Any, at: int, tools: frozenset[str], wrong: _Wrong, within: str
) -> None:
    if not isinstance(message, dict):
        raise wrong.message(at, "is not an object.", within)
    message = _said(message)
    role = message.get("role")
    if role == "function" or "function_call" in message:
        raise wrong.message(
            at, "is of the old form; write `tool_calls` and messages of the role 'tool'.", within
        )
    if role not in _ROLES:
        raise wrong.message(at, f"role {role!r} is not one of {', '.join(_ROLES)}.", within)
    _check_parts(message, role, at, wrong, within)
    if "tool_calls" in message:
        _check_calls(message["tool_calls"], at, tools, wrong, within)
    nothing = message.get("content") in (None, "") and "tool_calls" in message
    if not nothing and not (role == "tool" and message.get("content") == ""):
        _check_content(message.get("content"), at, wrong, within)
    name = message.get("name", "x")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise wrong.message(
            at, "`name` must be a string of 1 to 64 letters, digits, `_` and `-`.", within
        )
    if "weight" in message:
        _check_weight(message["weight"], at, wrong, within)


def _check_calls(calls: Any, at: int, tools: frozenset[str], wrong: _Wrong, within: str) -> None:
    told = wrong_call(calls, tools)
    if told:
        raise wrong.message(at, told, within)
    for call in calls:
        _check_tokens(said_by(call), at, wrong, within)


def _check_parts(message: dict[str, Any], role: str, at: int, wrong: _Wrong, within: str) -> None:
    """Each role has keys of its own."""
    unknown = sorted(message.keys() - _MAY_HAVE[role])
    if unknown == ["weight"]:
        raise wrong.message(at, f"only assistant messages may have a weight, not `{role}`.", within)
    if unknown:
        named = f"`{unknown[0]}` of the role '{role}'" if unknown[0] in _TOOL_KEYS else unknown[0]
        named = named if named.startswith("`") else f"`{named}`"
        raise wrong.message(at, f"unknown key {named}; remove it.", within)
    if role == "tool":
        if not isinstance(message.get("tool_call_id"), str):
            raise wrong.message(at, "`tool_call_id` must say which call it answers.", within)
        _check_tokens([message["tool_call_id"]], at, wrong, within)


def _said(message: dict[str, Any]) -> dict[str, Any]:
    """The message without what libraries write where nothing is: nulls and empty lists."""
    return {
        key: value
        for key, value in message.items()
        if not (key in _OPTIONAL and (value is None or value == []))
    }


def _weight(message: dict[str, Any]) -> int:
    weight = message.get("weight")
    return 1 if weight is None or weight == [] else weight


def _check_content(content: Any, at: int, wrong: _Wrong, within: str) -> None:
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text":
                reason = f"a content part of type {kind!r} cannot be trained; only text can."
                raise wrong.message(at, reason, within)
            if part.keys() != {"type", "text"} or not isinstance(part["text"], str):
                raise wrong.message(at, "a text part needs `text`, a string, alone.", within)
        content = _text(content)
    if not isinstance(content, str) or not content:
        raise wrong.message(at, "`content` must be a string that is not empty.", within)
    _check_tokens([content], at, wrong, within)


def _check_tokens(texts: Sequence[str], at: int, wrong: _Wrong, within: str) -> None:
    token = _token_in(texts)
    if token:
        raise wrong.message(at, f"contains the special token {token}; remove it.", within)


def _token_in(texts: Sequence[str]) -> str:
    """The first special token that stands in one of these; empty where none does."""
    found = (token for token in _CONTROL_TOKENS for text in texts if token in text)
    return next(found, "")


def _text(content: Any) -> str:
    """Content that was checked, as one string; of a message that only calls it is empty."""
    if content is None:
        return ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _check_weight(weight: Any, at: int, wrong: _Wrong, within: str) -> None:
    if isinstance(weight, bool) or weight not in (0, 1):
        raise wrong.message(at, f"weight must be 0 or 1, not {weight!r}.", within)


def _check_pair(data: dict[str, Any], wrong: _Wrong) -> None:
    _check_keys(data, {"input", "preferred_output", "non_preferred_output"}, set(), wrong)
    given = data["input"]
    if not isinstance(given, dict) or "messages" not in given:
        raise wrong.example("`input` must be an object with `messages`.")
    tools = _check_keys(given, {"messages"}, _TOOLS, wrong)
    messages = given["messages"]
    _check_messages(messages, tools, wrong, "input.messages", ends=False)
    if messages[-1]["role"] == "assistant":
        raise wrong.message(
            len(messages) - 1,
            "the last message of the input must not be the assistant's: the outputs answer it.",
            "input.messages",
        )
    for name in ("preferred_output", "non_preferred_output"):
        output = data[name]
        _check_messages(output, tools, wrong, name, ends=True)
        if len(output) != 1 or output[0]["role"] != "assistant":
            raise wrong.example(f"`{name}` must be exactly one assistant message.")


def _messages(data: list[dict[str, Any]]) -> tuple[Message, ...]:
    names: dict[str, str] = {}
    found = []
    for said in data:
        calls = calls_of(said)
        names |= {call.id: call.name for call in calls}
        answered = said.get("tool_call_id") or None  # libraries write an empty list, too
        found.append(
            Message(
                role=said["role"],
                content=_text(said.get("content")),
                weight=_weight(said),
                tool_calls=calls,
                tool_call_id=answered,
                name=None if answered is None else names.get(answered),
            )
        )
    return tuple(found)


def _example(data: dict[str, Any], method: Method) -> TrainingExample:
    if method == "supervised":
        tools = tuple(data.get("tools") or ())
        return TrainingExample(messages=_messages(data["messages"]), tools=tools)
    return TrainingExample(
        messages=_messages(data["input"]["messages"]),
        preferred=_messages(data["preferred_output"]),
        rejected=_messages(data["non_preferred_output"]),
        tools=tuple(data["input"].get("tools") or ()),
    )


def _all_messages(data: dict[str, Any], method: Method) -> list[dict[str, Any]]:
    if method == "supervised":
        supervised: list[dict[str, Any]] = data["messages"]
        return supervised
    return [*data["input"]["messages"], *data["preferred_output"], *data["non_preferred_output"]]


def _tools(data: dict[str, Any], method: Method) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] | None = (data if method == "supervised" else data["input"]).get(
        "tools"
    )
    return found or []


def _calls(data: dict[str, Any], method: Method) -> bool:
    """Whether tools play a part in it, without making records of it all."""
    said = _all_messages(data, method)
    return bool(_tools(data, method)) or any(
        one.get("tool_calls") or one["role"] == "tool" for one in said
    )


def _texts(data: dict[str, Any], method: Method) -> list[str]:
    """All text of an example: what is billed."""
    found = [orjson.dumps(tool).decode() for tool in _tools(data, method)]
    for message in _all_messages(data, method):
        found.append(_text(message.get("content")))
        if message.get("tool_calls"):
            found += texts_of(calls_of(message))
    return [text for text in found if text]
