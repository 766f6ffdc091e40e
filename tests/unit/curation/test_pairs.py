"""Preference pairs: of the same input, clearly different, each post once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.posts import post

from tuneproof.collection import Collected, Post, PostQuery, Task, TrainingDataBatch, Window
from tuneproof.curation.pairs import PairOptions, clear_difference, curate_pairs
from tuneproof.errors import ConfigError
from tuneproof.settings import HOOK

T0 = post(1).ts


def made(number: int, topic: str, clicks: int | None, shown: int | None = 1000) -> Post:
    return post(number)._replace(
        original_input=topic,
        hook=f"Hook {number} about {topic}",
        impressions=shown,
        clicks=clicks,
        engagement_rate=0.0,
    )


async def paired(
    directory: Path, posts: list[Post], options: PairOptions | None = None
) -> TrainingDataBatch:
    async def chunks() -> AsyncIterator[list[Post]]:
        for start in range(0, len(posts), 7):
            yield posts[start : start + 7]

    query = PostQuery(window=Window(since=T0, until=T0), threshold=0.0, max_records=None)
    collected = Collected(
        pipeline="default",
        tasks=(Task.of(HOOK),),
        query=query,
        source="memory",
        chunks=chunks(),
        directory=directory,
    )
    return await curate_pairs(collected, options=options)


def lines(batch: TrainingDataBatch) -> list[dict[str, object]]:
    paths = (batch.train_path, batch.validation_path)
    return [json.loads(line) for path in paths for line in read(path)]


def read(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


async def test_pair_prefers_the_post_that_clearly_did_better(tmp_path: Path) -> None:
    posts = [
        p
        for i in range(20)
        for p in (
            made(4 * i, f"cat {i}", 150),
            made(4 * i + 1, f"cat {i}", 30),
            made(4 * i + 2, f"dog {i}", 50),
            made(4 * i + 3, f"dog {i}", 51),
        )
    ]
    batch = await paired(tmp_path, posts)
    found = lines(batch)
    assert batch.examples["hook"] == len(found) > 10
    assert [one["messages"][-1] for one in batch.hook_examples[: len(found)]] == [
        line["preferred_output"][0]  # type: ignore[index]
        for line in found
    ]
    assert {one["engagement_rate"] for one in batch.hook_examples} == {0.15}
    for line in found:
        asked = line["input"]["messages"][0]["content"]  # type: ignore[index,call-overload]
        number = 4 * int(asked.removeprefix("cat "))  # the dogs differ too little
        assert line["preferred_output"] == [
            {"role": "assistant", "content": f"Hook {number} about {asked}"}
        ]
        assert line["non_preferred_output"] == [
            {"role": "assistant", "content": f"Hook {number + 1} about {asked}"}
        ]


async def test_many_inputs_give_pairs_on_both_sides_and_no_input_on_two(tmp_path: Path) -> None:
    posts = [
        p
        for i in range(200)
        for p in (made(2 * i, f"topic {i}", 150), made(2 * i + 1, f"topic {i}", 20))
    ]
    batch = await paired(tmp_path, posts)
    assert batch.train_examples > 100
    assert batch.validation_examples > 5
    assert batch.total_records == sum(batch.examples.values())
    sides = [
        {json.loads(line)["input"]["messages"][0]["content"] for line in read(path)}
        for path in (batch.train_path, batch.validation_path)
    ]
    assert not sides[0] & sides[1]


async def test_posts_without_counts_give_no_pairs_and_are_counted(tmp_path: Path) -> None:
    posts = [made(1, "cats", None), made(2, "cats", 5, None), made(3, "cats", 9, 3)]
    batch = await paired(tmp_path, posts)
    assert batch.examples == {"hook": 0}
    assert batch.dropped["no_counts"] == 3
    assert "impressions and clicks" in batch.note


async def test_margin_asks_for_more_than_any_difference(tmp_path: Path) -> None:
    posts = [
        p
        for i in range(60)
        for p in (made(2 * i, f"topic {i}", 150), made(2 * i + 1, f"topic {i}", 20))
    ]
    assert sum((await paired(tmp_path, posts)).examples.values()) > 40
    strict = PairOptions(margin=0.2)
    assert sum((await paired(tmp_path, posts, strict)).examples.values()) == 0


async def test_same_posts_in_any_order_give_the_same_dataset(tmp_path: Path) -> None:
    posts = [made(i, f"topic {i % 20}", 10 + 13 * (i % 11)) for i in range(200)]
    first = await paired(tmp_path / "a", posts)
    second = await paired(tmp_path / "b", posts[::-1])
    assert first.hash == second.hash


async def test_each_post_is_in_one_pair_of_an_input(tmp_path: Path) -> None:
    posts = [made(i, f"topic {i % 10}", 10 + 20 * (i // 10)) for i in range(100)]
    batch = await paired(tmp_path, posts)
    answers = [
        str(line[side])
        for line in lines(batch)
        for side in ("preferred_output", "non_preferred_output")
    ]
    assert answers
    assert len(answers) == len(set(answers))


def test_interval_is_newcombe_s() -> None:
    # Newcombe (1998), table II, method 10: 56/70 against 48/80, and 10/10 against 0/10.
    assert clear_difference((56, 70), (48, 80), confidence=0.95) == pytest.approx(0.0524, abs=5e-5)
    assert clear_difference((10, 10), (0, 10), confidence=0.95) == pytest.approx(0.6075, abs=5e-5)
    assert clear_difference((9, 10), (3, 10), confidence=0.95) == pytest.approx(0.1705, abs=5e-5)


@given(st.integers(1, 500), st.integers(1, 500), st.data())
def test_bound_lies_below_the_difference_and_rises_as_confidence_falls(
    shown: int, other: int, data: st.DataObject
) -> None:
    better = (data.draw(st.integers(0, shown)), shown)
    worse = (data.draw(st.integers(0, other)), other)
    wide = clear_difference(better, worse, confidence=0.99)
    narrow = clear_difference(better, worse, confidence=0.8)
    assert wide <= narrow + 1e-12
    assert narrow <= better[0] / shown - worse[0] / other + 1e-12


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError):
        PairOptions(margin=2)
    with pytest.raises(ConfigError):
        PairOptions(confidence=1)


def grouped(number: int, group: str, clicks: int, topic: str = "the house prompt") -> Post:
    return made(number, topic, clicks)._replace(group=group)


async def test_pairs_are_made_within_a_group_only_whatever_the_prompt(tmp_path: Path) -> None:
    posts = [
        p
        for i in range(60)
        for p in (
            grouped(3 * i, f"test {i}", 150, f"angle {i}"),
            grouped(3 * i + 1, f"test {i}", 20),
            grouped(3 * i + 2, f"lonely {i}", 90),  # same prompt, other readers
        )
    ]
    batch = await paired(tmp_path, posts)
    found = lines(batch)
    assert 30 < len(found) <= 60
    for line in found:
        asked = line["input"]["messages"][0]["content"]  # type: ignore[index,call-overload]
        number = 3 * int(asked.removeprefix("angle "))
        assert line["preferred_output"][0]["content"].startswith(f"Hook {number} ")  # type: ignore[index]
        assert line["non_preferred_output"][0]["content"].startswith(f"Hook {number + 1} ")  # type: ignore[index]


async def test_a_group_is_on_one_side_though_its_inputs_differ(tmp_path: Path) -> None:
    posts = [
        p
        for i in range(300)
        for p in (grouped(2 * i, f"test {i}", 150, f"a {i}"), grouped(2 * i + 1, f"test {i}", 20))
    ]
    batch = await paired(tmp_path, posts)
    lineage = Path(batch.manifest_path).with_name("lineage.csv").read_text().splitlines()[1:]
    sides: dict[int, set[str]] = {}
    for post_id, _, side, _ in (row.split(",") for row in lineage):
        sides.setdefault(int(post_id) // 2, set()).add(side)
    assert all(len(found) == 1 for found in sides.values())
    assert {"train", "validation"} == {next(iter(found)) for found in sides.values()}


async def test_an_empty_input_is_no_group_and_inputs_are_bounded_in_time(tmp_path: Path) -> None:
    empty = [made(2 * i, "", 150) for i in range(40)] + [made(2 * i + 1, "", 20) for i in range(40)]
    batch = await paired(tmp_path, empty)
    assert batch.total_records == 0
    assert batch.dropped["no_group"] > 60
    assert "one group" in batch.note
    apart = [
        p._replace(ts=T0 + timedelta(days=9 * place))
        for i in range(60)
        for place, p in enumerate((made(2 * i, f"t {i}", 150), made(2 * i + 1, f"t {i}", 20)))
    ]
    assert (await paired(tmp_path, apart)).total_records == 0
    assert (await paired(tmp_path, apart, PairOptions(days=10))).total_records > 30
    with pytest.raises(ConfigError, match="0 days apart"):
        PairOptions(days=0)
