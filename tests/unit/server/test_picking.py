"""How long answers are waited for once the first is there."""

from __future__ import annotations

import asyncio
import random

import pytest
from tests.liked import disliked, learnt, liked
from tests.waiting import stays

from tuneproof.app import Picker
from tuneproof.server import picking
from tuneproof.server.picking import _Came, _enough
from tuneproof.server.upstream import Answer
from tuneproof.server.written import Written

PICKER = Picker(answers=4, model=learnt(), hash="0")


def test_the_text_that_readers_like_is_picked_and_an_empty_one_never() -> None:
    draw = random.Random(5)
    for place in range(4):
        texts = [disliked(draw) for _ in range(3)]
        texts.insert(place, liked(draw))
        assert PICKER.pick(texts) == place
    assert PICKER.pick(["", "\n", disliked(draw), ""]) == 2
    assert PICKER.pick(["", ""]) == 0
    assert PICKER.pick(["unknown words", "unknown words"]) == 0


async def call(heard: asyncio.Event, came: bool = True) -> _Came | RuntimeError:
    """An answer, or none, once it may be."""
    await heard.wait()
    return _Came(Answer(b"", {}, ()), (), Written(texts=[])) if came else RuntimeError("no")


async def test_others_are_waited_for_only_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picking, "PATIENCE_S", 0.05)
    heard, stalls = asyncio.Event(), asyncio.Event()
    heard.set()
    calls = [asyncio.create_task(call(heard)) for _ in range(2)]
    stalled = asyncio.create_task(call(stalls))
    async with asyncio.timeout(10):
        await _enough([*calls, stalled])
    assert all(one.done() for one in calls)
    assert not stalled.done()
    stalled.cancel()


async def test_a_failure_is_no_reason_to_give_up_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(picking, "PATIENCE_S", 0.0)
    heard, slow = asyncio.Event(), asyncio.Event()
    heard.set()
    calls = [asyncio.create_task(call(heard, came=False)), asyncio.create_task(call(slow))]
    waiting = asyncio.create_task(_enough(calls))
    await stays(lambda: not waiting.done())
    slow.set()
    async with asyncio.timeout(10):
        await waiting
    assert all(one.done() for one in calls)
