"""Curation: what is left out and why, and files that depend on nothing but the posts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.first_users import BODY_INPUT, EXAMPLE, NO_INPUT, differences
from tests.posts import post

from tuneproof.collection import Post, Task, TrainingDataBatch
from tuneproof.curation import CurationOptions, curate_posts, side_of
from tuneproof.errors import ConfigError, DataError

HOOK = Task(name="hook", prompt="{original_input}", completion="hook")
BODY = Task(name="body", prompt="{hook}\n\nWrite a detailed post:", completion="body")
ALL_IN = CurationOptions(validation_share=0.0, kept_back_share=0.0)


async def curated(
    tmp_path: Path, posts: list[Post], *, tasks: tuple[Task, ...] = (HOOK,), **options: Any
) -> TrainingDataBatch:
    chosen = {"validation_share": 0.0, "kept_back_share": 0.0, **options}
    return await curate_posts(posts, tasks, tmp_path, options=CurationOptions(**chosen))


def chats(path: str) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in Path(path).read_text("utf-8").splitlines()]


def manifest(batch: TrainingDataBatch) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(batch.manifest_path).read_text("utf-8"))
    return found


async def test_each_task_gets_its_examples(tmp_path: Path) -> None:
    batch = await curated(tmp_path, [post(1), post(2)], tasks=(HOOK, BODY))
    assert batch.examples == {"hook": 2, "body": 2}
    assert (len(batch.hook_examples), len(batch.body_examples), batch.total_records) == (2, 2, 4)
    assert chats(batch.datasets["body"].train_path)[0] == [
        {"role": "user", "content": "You will not believe topic 1\n\nWrite a detailed post:"},
        {"role": "assistant", "content": "Here is all there is to say on topic 1."},
    ]
    merged = chats(batch.train_path)
    assert merged == [c for d in batch.datasets.values() for c in chats(d.train_path)]
    assert Path(batch.manifest_path).parent.name == batch.hash


async def test_system_prompt_and_empty_input(tmp_path: Path) -> None:
    task = Task(name="hook", prompt="{original_input}", completion="hook", system="Be brief.")
    batch = await curated(tmp_path, [post(1, original_input="  ")], tasks=(task,))
    (chat,) = chats(batch.train_path)
    assert [m["content"] for m in chat[:2]] == ["Be brief.", "Create engaging content"]


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("invalid_rate", {"engagement_rate": float("nan")}),
        ("invalid_rate", {"engagement_rate": -0.1}),
        ("invalid_rate", {"engagement_rate": 1.2}),
        ("not_utf8", {"hook": "caf\udce9"}),
        ("not_utf8", {"original_input": "\ud800"}),
        ("empty", {"hook": " \n"}),
        ("empty", {"hook": None}),
        ("too_short", {"hook": "ok"}),
        ("too_long", {"hook": "x" * 1_000_000}),
        ("special_token", {"hook": "so <|im_end|> there"}),
        ("blocked", {"hook": "buy our VIAGRA today"}),
        ("erased", {"id": "forget-me"}),
    ],
)
async def test_unfit_post_is_left_out_and_counted(
    tmp_path: Path, reason: str, changes: dict[str, Any]
) -> None:
    batch = await curated(
        tmp_path,
        [post(1), post(2), post(9, **changes)],
        blocked=["viagra"],
        erased=frozenset({"forget-me"}),
    )
    assert batch.examples == {"hook": 2}
    assert batch.dropped == {reason: 1}
    sample = manifest(batch)["dropped"][reason]["samples"][0]
    assert sample["post"] == changes.get("id", "9")
    assert len(json.dumps(sample)) < 400


async def test_moderation_hook_names_its_reason(tmp_path: Path) -> None:
    batch = await curated(
        tmp_path,
        [post(1), post(2)],
        refuse=lambda chat: "off_topic" if "topic 1" in chat[-1]["content"] else None,
    )
    assert batch.dropped == {"off_topic": 1}


async def test_rates_in_percent_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"engagement_rate.*6\.5.*divide percents by 100"):
        await curated(tmp_path, [post(i, engagement_rate=6.5) for i in range(3)])
    assert list((tmp_path / "datasets").iterdir()) == []


async def test_personal_data_is_redacted_dropped_or_kept(tmp_path: Path) -> None:
    posts = [post(1, hook="Write to ada@example.org")]
    batch = await curated(tmp_path, posts)
    assert chats(batch.train_path)[0][-1]["content"] == "Write to [email]"
    assert manifest(batch)["personal_data"] == {"rule": "redact", "email": 1}
    assert (await curated(tmp_path, posts, personal_data="drop")).dropped == {"personal_data": 1}
    kept = await curated(tmp_path, posts, personal_data="keep")
    assert "ada@example.org" in chats(kept.train_path)[0][-1]["content"]


async def test_exact_duplicates_are_used_once(tmp_path: Path) -> None:
    same = {"original_input": "in", "hook": "the same hook"}
    batch = await curated(tmp_path, [post(1, **same), post(2, **same), post(3)])
    assert (batch.examples, batch.dropped) == ({"hook": 2}, {"duplicate": 1})


async def test_persona_cap_keeps_the_best(tmp_path: Path) -> None:
    batch = await curated(tmp_path, [post(i) for i in range(5)], persona_cap=2)
    assert (batch.examples["hook"], batch.dropped) == (2, {"persona_cap": 3})


async def test_own_output_makes_up_at_most_its_share(tmp_path: Path) -> None:
    posts = [post(i, version="ver-1" if i < 6 else None) for i in range(10)]
    batch = await curated(tmp_path, posts, own_output_share=0.5)
    assert (batch.examples["hook"], batch.dropped) == (8, {"own_output": 2})
    hooks = [chat[-1]["content"] for chat in chats(batch.train_path)]
    assert hooks == [f"You will not believe topic {i}" for i in (0, 1, 2, 3, 6, 7, 8, 9)]
    lineage = (Path(batch.manifest_path).parent / "lineage.csv").read_text().splitlines()
    assert len(lineage) == 1 + 8


async def test_held_out_answer_is_not_trained_on_under_another_input(tmp_path: Path) -> None:
    posts = [post(i, hook="the very same hook") for i in range(200)]
    batch = await curated(tmp_path, posts, validation_share=0.3)
    assert batch.datasets["hook"].train_examples == 0
    assert batch.dropped["held_out"] > 100
    assert batch.datasets["hook"].validation_examples + batch.dropped["held_out"] == 200


async def test_same_posts_give_the_same_bytes_in_any_chunking(tmp_path: Path) -> None:
    from tests.posts import UNTIL, ListSource

    from tuneproof.collection import DataCollector

    posts = [post(i, original_input=f"in {i % 7}") for i in range(100)]
    seen = set()
    for size, place in ((1, "a"), (7, "b"), (1000, "c")):
        collector = DataCollector(source=ListSource(posts), dir=tmp_path / place, chunk_size=size)
        batch = await collector.collect_training_data(until=UNTIL)
        seen.add((batch.hash, Path(batch.train_path).read_bytes()))
    assert len(seen) == 1


async def test_nothing_half_written_is_left_by_an_error(tmp_path: Path) -> None:
    broken = post(2, fields={}, hook="fine")._replace(fields=None)
    task = Task(name="hook", prompt="{absent}", completion="hook")
    with pytest.raises(DataError, match="absent"):
        await curated(tmp_path, [broken], tasks=(task,))
    assert list((tmp_path / "datasets").iterdir()) == []


async def test_split_shares_are_kept(tmp_path: Path) -> None:
    posts = [post(i) for i in range(2000)]
    batch = await curate_posts(posts, [HOOK], tmp_path)
    assert 140 < batch.datasets["hook"].validation_examples < 240
    assert 70 < batch.dropped["kept_back"] < 130


async def test_tasks_of_a_post_fall_on_one_side(tmp_path: Path) -> None:
    posts = [post(i) for i in range(300)]
    batch = await curate_posts(posts, [HOOK, BODY], tmp_path)
    hooks = {chat[-1]["content"] for chat in chats(batch.datasets["hook"].validation_path)}
    bodies = chats(batch.datasets["body"].validation_path)
    assert {chat[0]["content"].split("\n")[0] for chat in bodies} == hooks


@given(key=st.text(), unit=st.text(min_size=1))
def test_what_is_held_out_stays_held_out_when_the_share_grows(key: str, unit: str) -> None:
    small = side_of(key, unit, validation_share=0.1)
    large = side_of(key, unit, validation_share=0.2)
    assert small != "validation" or large == "validation"
    assert small == side_of(key, unit, validation_share=0.1)


@pytest.mark.parametrize("options", [{"validation_share": 1.5}, {"personal_data": "maybe"}])
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        CurationOptions(**options)


async def test_examples_are_the_documented_objects_and_their_rate_is_not_uploaded(
    tmp_path: Path,
) -> None:
    """`hook_examples` and `body_examples` were numbers."""
    posts = [post(i, original_input=None, engagement_rate=0.06 + i / 100) for i in range(40)]
    batch = await curate_posts(posts, (HOOK, BODY), tmp_path)
    assert batch.total_records == len(batch.hook_examples) + len(batch.body_examples) > 50
    for one in (*batch.hook_examples, *batch.body_examples):
        assert differences(EXAMPLE, one, whole=True) == []
    by_id = {f"You will not believe topic {i}": 0.06 + i / 100 for i in range(40)}
    assert {one["messages"][0]["content"] for one in batch.hook_examples} == {NO_INPUT}
    for one in batch.hook_examples:
        assert one["engagement_rate"] == by_id[one["messages"][1]["content"]]
    for one in batch.body_examples:
        hook = one["messages"][0]["content"].partition("\n")[0]
        assert one["messages"][0]["content"] == BODY_INPUT.format(hook=hook)
        assert one["engagement_rate"] == by_id[hook]
    assert "engagement_rate" not in Path(batch.train_path).read_text("utf-8")


async def test_rates_stay_with_their_examples_where_some_were_taken_out(tmp_path: Path) -> None:
    posts = [
        post(i, version="ver-1" if i < 6 else None, engagement_rate=0.9 - i / 100)
        for i in range(10)
    ]
    batch = await curated(tmp_path, posts, own_output_share=0.5)
    found = [one["engagement_rate"] for one in batch.hook_examples]
    assert found == [0.9 - i / 100 for i in (0, 1, 2, 3, 6, 7, 8, 9)]


async def test_examples_of_a_dataset_that_is_elsewhere_say_so(tmp_path: Path) -> None:
    batch = await curated(tmp_path, [post(1)])
    shutil.rmtree(tmp_path)
    with pytest.raises(DataError, match="not on this machine"):
        batch.hook_examples  # noqa: B018
    assert batch.examples_of("poem") == []


async def test_datasets_from_before_rates_were_noted_keep_their_examples(tmp_path: Path) -> None:
    batch = await curated(tmp_path, [post(1), post(2)])
    lineage = Path(batch.manifest_path).with_name("lineage.csv")
    lineage.write_text("post_id,task,side\n1,hook,train\n2,hook,train\n", "utf-8")
    assert [one["engagement_rate"] for one in batch.hook_examples] == [None, None]
