"""The collector keeps to its window and threshold, and says why there is nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.posts import UNTIL, ListSource, post

from tuneproof.collection import (
    Collected,
    DataCollector,
    SourceCheck,
    Task,
    TrainingDataBatch,
    Window,
)
from tuneproof.errors import ConfigError, DataError
from tuneproof.testing import MemorySource


async def test_collector_keeps_to_its_threshold_and_window(tmp_path: Path) -> None:
    source = MemorySource(
        [
            post(1, engagement_rate=0.06),
            post(2, engagement_rate=0.0599),
            post(3, engagement_rate=None),
            post(4, ts=UNTIL),
            post(5, ts=UNTIL - timedelta(days=7)),
            post(6, ts=UNTIL - timedelta(days=7, seconds=1)),
        ]
    )
    batch = await DataCollector(0.06, source=source, dir=tmp_path).collect_training_data(
        days_back=7, until=UNTIL
    )
    assert batch.posts == 2
    assert batch.window == Window(since=UNTIL - timedelta(days=7), until=UNTIL)
    (query,) = source.queries
    assert (query.threshold, query.max_records, query.chunk_size) == (0.06, 10_000, 1000)


async def test_curator_can_be_replaced(tmp_path: Path) -> None:
    seen: list[Collected] = []

    async def count(collected: Collected) -> TrainingDataBatch:
        seen.append(collected)
        total = sum([len(chunk) async for chunk in collected.chunks])
        return TrainingDataBatch(
            pipeline=collected.pipeline, window=collected.query.window, hash="h", posts=total,
            total_records=total, examples={}, datasets={}, train_path="", validation_path="",
            manifest_path="",
        )  # fmt: skip

    collector = DataCollector(
        source=ListSource([post(i) for i in range(25)]), dir=tmp_path, curator=count, chunk_size=10
    )
    assert (await collector.collect_training_data()).posts == 25
    assert seen[0].tasks[0].name == "hook"


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (SourceCheck(found=("id",), rows=0), "no posts at all"),
        (SourceCheck(found=("id",), newest=datetime(2024, 1, 1, tzinfo=UTC)), "2024-01-01"),
        (SourceCheck(found=("id",)), "lower engagement_threshold"),
    ],
)
async def test_empty_batch_says_why(tmp_path: Path, check: SourceCheck, says: str) -> None:
    source = ListSource([], check)
    batch = await DataCollector(source=source, dir=tmp_path).collect_training_data(until=UNTIL)
    assert (batch.posts, batch.examples) == (0, {"hook": 0, "body": 0})
    assert says in batch.note


async def test_absent_column_is_named_with_those_that_exist(tmp_path: Path) -> None:
    source = ListSource([], SourceCheck(found=("id", "title"), missing=("hook",)))
    with pytest.raises(DataError, match=r"no column for hook; it has id, title"):
        await DataCollector(source=source, dir=tmp_path).collect_training_data()


@pytest.mark.parametrize(
    "arguments",
    [
        {"engagement_threshold": 1.5},
        {"engagement_threshold": float("nan")},
        {"days_back": -1},
        {"chunk_size": 0},
        {"max_records": 0},
    ],
)
def test_setting_out_of_range_is_refused_by_name(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        DataCollector(**arguments)


def test_templates_fill_columns_and_keep_doubled_braces() -> None:
    task = Task(name="t", prompt="{{json}} {original_input} for {audience}", completion="hook")
    assert task.columns == ("original_input", "audience")
    assert task.request(post(1, fields={"audience": "cats"})) == "{json} about topic 1 for cats"


def test_text_of_a_post_is_not_read_as_a_template() -> None:
    task = Task(name="t", prompt="{original_input}!", completion="hook")
    assert task.request(post(1, original_input="{hook} {0}")) == "{hook} {0}!"
