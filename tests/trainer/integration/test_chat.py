"""Chat completions: parameters, streams, log-probabilities, scoring."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from openai import APIStatusError, BadRequestError, OpenAI
from openai.types.chat import ChatCompletion
from tests.trainer.integration.conftest import BASE

ASKED: Any = [{"role": "user", "content": "tips about sourdough"}]
DETAILED: Any = [{"role": "user", "content": "Slow bread\n\nWrite a detailed post:"}]


def ask(client: OpenAI, messages: Any = ASKED, **how: Any) -> ChatCompletion:
    return client.chat.completions.create(model=BASE, messages=messages, **how)


def text_of(answer: ChatCompletion, choice: int = 0) -> str:
    return answer.choices[choice].message.content or ""


def test_an_answer_has_text_usage_and_a_reason_to_end(client: OpenAI) -> None:
    answer = ask(client)
    assert text_of(answer)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == BASE
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    assert answer.usage.total_tokens == 3 + answer.usage.completion_tokens
    assert answer.system_fingerprint is not None


def test_seeds_repeat_an_answer_and_choices_differ(client: OpenAI) -> None:
    first, second = ask(client, seed=11, n=4), ask(client, seed=11, n=4)
    texts = [text_of(first, n) for n in range(4)]
    assert texts == [text_of(second, n) for n in range(4)]
    assert len(set(texts)) > 1
    assert text_of(ask(client, seed=11)) == texts[0]
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_length_limits_end_an_answer(client: OpenAI, name: str) -> None:
    answer = ask(client, DETAILED, **{name: 5})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_stop_sequences_are_left_out_also_across_tokens(client: OpenAI) -> None:
    whole = text_of(ask(client, DETAILED, seed=3))
    middle = whole[len(whole) // 2 - 4 : len(whole) // 2 + 3]
    for stop in (middle, ["never in there", middle]):
        answer = ask(client, DETAILED, seed=3, stop=stop)
        assert text_of(answer) == whole[: whole.index(middle)]
        assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("how", [{}, {"stop": ["e "]}, {"n": 3}, {"logprobs": True}])
def test_a_stream_says_what_the_whole_answer_says(client: OpenAI, how: dict[str, Any]) -> None:
    whole = ask(client, DETAILED, seed=5, **how)
    texts = [""] * len(whole.choices)
    finishes: list[str | None] = [None] * len(texts)
    tokens: list[str] = []
    usage = None
    stream = client.chat.completions.create(
        model=BASE,
        messages=DETAILED,
        seed=5,
        stream=True,
        stream_options={"include_usage": True},
        **how,
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finishes[choice.index] = choice.finish_reason or finishes[choice.index]
            if choice.logprobs and choice.logprobs.content:
                tokens += [said.token for said in choice.logprobs.content]
    assert texts == [text_of(whole, n) for n in range(len(texts))]
    assert finishes == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    if how.get("logprobs"):
        assert "".join(tokens) == texts[0]


def test_logprobs_cover_every_token_with_alternatives(client: OpenAI) -> None:
    answer = ask(client, seed=2, logprobs=True, top_logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(said.token for said in logprobs.content) == text_of(answer)
    for said in logprobs.content:
        assert said.logprob < 0
        assert bytes(said.bytes or []).decode() == said.token
        assert len(said.top_logprobs) == 3
        order = [top.logprob for top in said.top_logprobs]
        assert order == sorted(order, reverse=True)


def scored(client: OpenAI, answer: str, prompt: str = "tips about sourdough") -> list[Any]:
    completion = ask(
        client,
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}],
        max_tokens=1,
        extra_body={"prompt_logprobs": 1, "add_generation_prompt": False},
    )
    found: list[Any] = completion.prompt_logprobs  # type: ignore[attr-defined]
    return found


def test_a_given_answer_is_scored_token_by_token(client: OpenAI) -> None:
    entries = scored(client, "Do you toast the spices on Sundays?")
    assert entries[:3] == [None, None, None]
    words = [next(iter(entry.values())) for entry in entries[3:]]
    said = "".join(word["decoded_token"] for word in words[:-1])
    assert said == "Do you toast the spices on Sundays?"
    assert all(word["logprob"] < 0 and word["rank"] >= 1 for word in words)
    total = sum(word["logprob"] for word in words)
    nonsense = scored(client, "Spices the toast Sundays you on do?")
    assert total > sum(next(iter(e.values()))["logprob"] for e in nonsense[3:]) + 10


def test_scores_agree_with_the_logprobs_of_generation(client: OpenAI) -> None:
    answer = ask(client, seed=4, logprobs=True)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    generated = [said.logprob for said in logprobs.content or []]
    entries = scored(client, text_of(answer))[3:-1]
    given = [next(iter(entry.values()))["logprob"] for entry in entries]
    assert given == pytest.approx(generated)
    assert math.isfinite(sum(given))


def test_max_tokens_zero_only_scores(client: OpenAI) -> None:
    answer = ask(client, max_tokens=0, extra_body={"prompt_logprobs": 0})
    assert text_of(answer) == ""
    assert answer.prompt_logprobs == [None] * 3  # type: ignore[attr-defined]


def test_text_parts_and_developer_messages_are_read(client: OpenAI) -> None:
    parts: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "tips about sourdough"}]},
    ]
    assert text_of(ask(client, parts, seed=1))


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "empty_array", "messages"),
    ({"messages": [{"role": "boss", "content": "x"}]}, "invalid_value", "messages[0].role"),
    ({"temperature": 3}, "decimal_above_max_value", "temperature"),
    ({"top_p": -1}, "decimal_below_min_value", "top_p"),
    ({"n": 0}, "integer_below_min_value", "n"),
    ({"max_tokens": 10_000}, "invalid_value", "max_tokens"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "array_above_max_length", "stop"),
    ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
    ({"presence_penalty": 1.0}, "unsupported_parameter", "presence_penalty"),
    ({"response_format": {"type": "yaml"}}, "invalid_value", "response_format.type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "missing_required_parameter",
        "messages[0].content[0].text",
    ),
    ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    ({"extra_body": {"nonsense": 1}}, "unknown_parameter", "nonsense"),
]


@pytest.mark.parametrize(
    ("how", "code", "param"), REFUSED, ids=[f"{next(iter(c[0]))}" for c in REFUSED]
)
def test_what_cannot_be_done_is_refused_by_name(
    client: OpenAI, how: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(BadRequestError) as refused:
        ask(client, **how)
    assert (refused.value.code, refused.value.param) == (code, param)


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
NULLS = [
    *("max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "seed", "stop", "stream"),
    *("stream_options", "logprobs", "top_logprobs", "presence_penalty", "frequency_penalty"),
    *("logit_bias", "response_format", "tools", "tool_choice", "parallel_tool_calls", "functions"),
    *("function_call", "modalities", "audio", "prediction", "reasoning_effort", "verbosity"),
    *("web_search_options", "moderation", "metadata", "store", "user", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention", "service_tier", "prompt_logprobs"),
    "add_generation_prompt",
]
CHANGES_NOTHING: list[dict[str, Any]] = [
    dict.fromkeys(NULLS),
    {"modalities": ["text"]},
    {"logit_bias": {}},
    {"logit_bias": {"17": 0}},
    {"tools": []},
    {"tools": [], "parallel_tool_calls": False},
    {"tools": [TOOL], "tool_choice": "none"},
    {"tool_choice": "none"},
    {"tool_choice": "auto"},
    {"functions": [], "function_call": "none"},
    {"top_p": 0},
    {"presence_penalty": 0, "frequency_penalty": 0.0},
    {"response_format": {"type": "text"}},
    {"reasoning_effort": "none", "verbosity": "medium"},
    {"stream_options": {"include_usage": None}},
    {"service_tier": "auto", "prompt_cache_key": "x", "prompt_cache_retention": "24h"},
    {"top_logprobs": 0},
]


@pytest.mark.parametrize("how", CHANGES_NOTHING, ids=[f"{next(iter(c))}" for c in CHANGES_NOTHING])
def test_what_changes_nothing_is_taken(client: OpenAI, how: dict[str, Any]) -> None:
    """Libraries send it: it was refused, value by value."""
    said = text_of(ask(client, seed=3, temperature=0, extra_body=how))
    assert said
    if "seed" not in how:
        assert said == text_of(ask(client, seed=3, temperature=0))


def test_messages_are_taken_back_as_libraries_dump_them(client: OpenAI) -> None:
    said = ask(client, seed=3).choices[0].message
    again = [*ASKED, said.model_dump(), {"role": "user", "content": "more", "name": None}]
    assert ask(client, again).choices


UNSUPPORTED: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [TOOL]}, "tools", "Tools"),
    ({"functions": [{"name": "f"}]}, "functions", "Tools"),
    ({"tool_choice": "required"}, "tool_choice", "Tools"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "Tools"),
    ({"response_format": {"type": "json_object"}}, "response_format", "Structured outputs"),
    ({"logit_bias": {"17": 5}}, "logit_bias", "biased tokens"),
    ({"modalities": ["text", "audio"]}, "modalities", "spoken answers"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "reasoning"),
    ({"web_search_options": {}}, "web_search_options", "web search"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction", "predicted outputs"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
        "images",
    ),
]


@pytest.mark.parametrize(
    ("how", "param", "feature"), UNSUPPORTED, ids=[f"{next(iter(c[0]))}" for c in UNSUPPORTED]
)
def test_what_is_not_done_is_refused_as_the_feature_that_it_is(
    client: OpenAI, how: dict[str, Any], param: str, feature: str
) -> None:
    """`Unknown parameter: 'tools'` told nobody what to do."""
    with pytest.raises(BadRequestError) as refused:
        ask(client, extra_body=how)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", param)
    assert feature in refused.value.message


def test_unknown_models_are_refused_and_those_there_are_named(client: OpenAI) -> None:
    with pytest.raises(APIStatusError) as refused:
        client.chat.completions.create(model="gpt-4o", messages=ASKED)
    assert (refused.value.status_code, refused.value.code) == (404, "model_not_found")
    assert BASE in refused.value.message


def test_what_this_server_does_not_do_is_refused_clearly(client: OpenAI) -> None:
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: client.embeddings.create(model=BASE, input="x"), "no embeddings"),
        (lambda: client.completions.create(model=BASE, prompt="x"), "/v1/chat/completions"),
        (lambda: client.responses.create(model=BASE, input="x"), "/v1/chat/completions"),
    ]
    for call, told in calls:
        with pytest.raises(BadRequestError) as refused:
            call()
        assert refused.value.code == "unsupported_endpoint"
        assert told in refused.value.message
