"""What an answer used is read from its bytes, however they arrive and however many they are."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.raw_provider import ANSWER, DONE, MESSAGE, MESSAGE_EVENTS, RESPONSE_EVENTS, chunk

from tuneproof.server.meter import TAIL, USUAL_TOKENS, Meter, expected_tokens

ANSWERS = {
    "chat": ANSWER,
    "chat, streamed": chunk("x", usage=None)
    + chunk(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 3})
    + DONE,
    "response, streamed": b"".join(RESPONSE_EVENTS),
    "message": json.dumps(MESSAGE).encode(),
    "message, streamed": b"".join(MESSAGE_EVENTS),
    "in its text": json.dumps(
        {
            "text": 'a "usage": {"prompt_tokens": 9}',
            "usage": {"input_tokens": 7, "output_tokens": 3},
        }
    ).encode(),
}


@pytest.mark.parametrize("name", ANSWERS)
@given(cuts=st.lists(st.integers(0, 2000), max_size=8))
def test_usage_is_read_however_the_bytes_are_cut(name: str, cuts: list[int]) -> None:
    answer, meter = ANSWERS[name], Meter()
    edges = [0, *sorted(cuts), len(answer)]
    for begin, end in itertools.pairwise(edges):
        meter.feed(answer[begin:end])
    assert meter.usage == (7, 3)
    assert meter.bytes == len(answer)


@pytest.mark.parametrize("size", [10, 70_000, 3_000_000])
def test_the_usage_at_the_end_of_a_long_answer_is_read_with_little_memory(size: int) -> None:
    meter = Meter()
    for _ in range(size // 10):
        meter.feed(b'{"x": "0",')
    meter.feed(b'"usage": {"prompt_tokens": 7, "completion_tokens": 3}}')
    assert meter.usage == (7, 3)
    assert len(meter._tail) <= 2 * TAIL


@given(st.binary(max_size=300))
def test_any_bytes_can_be_read(data: bytes) -> None:
    meter = Meter(streamed=True)
    meter.feed(data)
    assert meter.usage is None or all(part >= 0 for part in meter.usage)
    assert meter.written == data.count(b"data:")


def test_what_is_no_count_is_not_believed() -> None:
    for told in ('"many"', "-1", "true", "1e400", "null", "99999999999999999999"):
        meter = Meter()
        meter.feed(b'{"usage": {"prompt_tokens": %s}}' % told.encode())
        assert meter.usage is None


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({}, USUAL_TOKENS),
        ({"max_tokens": 40}, 40),
        ({"max_tokens": 40, "n": 128}, 40 * 128),
        ({"n": 3}, 3 * USUAL_TOKENS),
        ({"max_tokens": 40, "best_of": 5, "n": 2}, 200),
        ({"max_tokens": True, "n": "9"}, USUAL_TOKENS),
        ({"max_tokens": -1, "n": 0}, USUAL_TOKENS),
    ],
)
def test_each_answer_that_is_asked_for_may_cost_its_tokens(body, tokens) -> None:
    """Seen: six requests with `n` = 128 spent six times a budget that they were held to."""
    assert expected_tokens(body) == tokens
