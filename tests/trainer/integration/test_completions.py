"""Chat completions that are kept for whoever trains on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from openai import NotFoundError, OpenAI
from tests.trainer.integration.conftest import BASE, Start, client_of
from tests.trainer.integration.test_access import made_key

ASKED: Any = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "tips about sourdough"}], "name": "ann"},
]


def kept(client: OpenAI, **how: Any) -> Any:
    return client.chat.completions.create(
        **({"model": BASE, "messages": ASKED, "store": True} | how)
    )


def test_a_kept_completion_is_listed_read_changed_and_deleted(start: Start) -> None:
    client = client_of(start())
    stored = client.chat.completions
    first = kept(client, metadata={"task": "hook"}, temperature=0.5, seed=4)
    second = kept(client, metadata={"task": "body"})
    kept(client, store=False)
    assert [one.id for one in stored.list()] == [first.id, second.id]
    assert [one.id for one in stored.list(order="desc", limit=1).data] == [second.id]
    assert [one.id for one in stored.list(metadata={"task": "body"})] == [second.id]
    assert [one.id for one in stored.list(model="another")] == []
    assert [one.id for one in stored.list(metadata={'"x': "body"})] == []
    assert [one.id for one in stored.list(after=first.id)] == [second.id]
    read: Any = stored.retrieve(first.id)
    assert read.choices == first.choices
    assert (read.temperature, read.seed, read.metadata) == (0.5, 4, {"task": "hook"})
    asked: Any = stored.messages.list(first.id).data
    assert [(one.role, one.content) for one in asked] == [
        ("system", "Be brief."),
        ("user", "tips about sourdough"),
    ]
    assert asked[1].name == "ann"
    assert [one.id for one in stored.messages.list(first.id, after=asked[0].id)] == [asked[1].id]
    changed: Any = stored.update(first.id, metadata={"outcome": "0.08"})
    assert changed.metadata == {"outcome": "0.08"}
    assert stored.delete(first.id).deleted
    with pytest.raises(NotFoundError):
        stored.retrieve(first.id)
    assert [one.id for one in stored.list()] == [second.id]


def test_a_streamed_completion_is_kept_whole(start: Start) -> None:
    client = client_of(start())
    said = "".join(
        chunk.choices[0].delta.content or "" for chunk in kept(client, stream=True, seed=2)
    )
    only = client.chat.completions.list().data[0]
    assert only.choices[0].message.content == said
    assert only.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(("policy", "count"), [("asked", 1), ("all", 2), ("none", 0)])
def test_the_policy_says_which_are_kept(start: Start, policy: str, count: int) -> None:
    client = client_of(start(keep_completions=policy))
    kept(client)
    kept(client, store=None)
    assert len(client.chat.completions.list().data) == count


def test_old_ones_are_deleted_and_others_are_nobody_elses(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "trainer"
    mine, theirs = (made_key(folder, "--org", org) for org in ("acme", "beta"))
    trainer = start(dir=folder, completion_lifetime_s=-1)
    client, other = client_of(trainer, mine), client_of(trainer, theirs)
    one = kept(client)
    assert other.chat.completions.list().data == []
    with pytest.raises(NotFoundError):
        other.chat.completions.retrieve(one.id)
    assert trainer.app is not None
    trainer.app.service.collect()
    assert client.chat.completions.list().data == []
