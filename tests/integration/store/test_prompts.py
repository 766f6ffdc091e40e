"""Prompts in the database: byte for byte what was hashed, kept once."""

from __future__ import annotations

import asyncio

import pytest

from tuneproof.errors import NotFoundError
from tuneproof.prompts import Prompt
from tuneproof.store import Store

ODD = Prompt(
    messages=(("system", "\u2028 “é” 🙂"), ("user", 'About {topic}: {"a": 1}')),
    parameters={"temperature": 1e-7, "max_tokens": 10**21, "stop": ["\n"], "top_p": 1.0},
    variables=("topic",),
)


async def test_a_prompt_comes_back_as_it_was(store: Store) -> None:
    """Whatever it says: its hash is that of what was kept."""
    assert await store.prompts.keep(ODD, origin="person")
    kept = await store.prompts.get(ODD.hash)
    assert kept.prompt == ODD
    assert kept.prompt.hash == ODD.hash
    assert kept.origin == "person"
    assert await store.prompts.of([ODD.hash, "0" * 16]) == {ODD.hash: ODD}
    assert await store.prompts.of([]) == {}
    assert [one.prompt for one in await store.prompts.list()] == [ODD]


async def test_a_prompt_is_kept_once(store: Store) -> None:
    """By several at once, and later; who came first says where it came from."""
    new = await asyncio.gather(*(store.prompts.keep(ODD, origin="settings") for _ in range(4)))
    assert sorted(new) == [False, False, False, True]
    assert not await store.prompts.keep(ODD, origin="person", parent="a" * 16)
    kept = await store.prompts.get(ODD.hash)
    assert (kept.origin, kept.parent) == ("settings", None)


async def test_an_unknown_prompt_is_said(store: Store) -> None:
    """By its hash."""
    with pytest.raises(NotFoundError, match="no prompt 0000"):
        await store.prompts.get("0" * 16)
