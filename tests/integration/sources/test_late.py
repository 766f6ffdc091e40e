"""Outcomes that come late: each post is taken once, and none before its time."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.posts import UNTIL, row
from tests.sourcing import Make, Row

from tuneproof.collection import DataCollector
from tuneproof.errors import DataError

WEEK = timedelta(days=7)


async def taken(source: Any, week: int, **arguments: Any) -> list[str]:
    """The posts that the run of a week takes."""
    collecting = DataCollector(source=source, **arguments)
    query = await collecting.chosen(source, collecting.query(7, UNTIL + week * WEEK))
    return [post.id async for chunk in source.posts(query) for post in chunk]


def posts() -> list[Row]:
    """Post, the day on which it was published, and that on which its outcome was settled."""
    days = {
        1: (-6, -5),
        2: (-6, 3),
        3: (-1, 1),
        4: (1, None),
        5: (-40, 2),
        6: (-3, 13),
        7: (6, 6.9),
    }
    return [
        row(
            number,
            engagement_rate=0.1,
            ts=UNTIL + timedelta(days=published),
            matured_at=None if settled is None else UNTIL + timedelta(days=settled),
        )
        for number, (published, settled) in days.items()
    ]


@pytest.mark.parametrize("declared", ["timestamptz", "text"])
async def test_a_post_is_taken_once_in_the_week_in_which_its_outcome_was_settled(
    make: Make, declared: str
) -> None:
    """A post whose outcome came on day 9 never entered "7 days back"."""
    source = make(posts(), types={"matured_at": declared})
    weeks = [await taken(source, week, late_days=30) for week in range(4)]
    assert weeks == [["1"], ["2", "3", "7"], ["6"], []]
    assert (await taken(source, 1, late_days=60)) == ["2", "3", "5", "7"]


async def test_young_posts_are_left_for_the_next_run(make: Make) -> None:
    source = make(posts())
    plain = [await taken(source, week) for week in range(2)]
    assert plain == [["1", "2", "3", "6"], ["4", "7"]]
    aged = [await taken(source, week, min_age_hours=48) for week in range(3)]
    assert aged == [["1", "2", "6"], ["3", "4"], ["7"]]


async def test_a_share_of_what_matured_is_chosen_among_that(make: Make) -> None:
    rows = [{**r, "engagement_rate": 0.01 * r["id"]} for r in posts()]
    source = make(rows, types={"matured_at": "timestamptz"})
    collecting = DataCollector(source=source, late_days=30, top_share=0.34)
    query = await collecting.chosen(source, collecting.query(7, UNTIL + WEEK))
    assert (query.rated, query.threshold) == (3, pytest.approx(0.03))


async def test_when_an_outcome_was_settled_must_be_known(make: Make) -> None:
    rows = [{name: value for name, value in r.items() if name != "matured_at"} for r in posts()]
    source = make(rows)
    with pytest.raises(DataError, match="no column for matured_at"):
        await taken(source, 0, late_days=30)


async def test_the_manifest_says_what_was_settled_when(make: Make, tmp_path: Path) -> None:
    source = make(posts(), types={"matured_at": "timestamptz"})
    collecting = DataCollector(source=source, dir=tmp_path, late_days=30, min_age_hours=1)
    batch = await collecting.collect_training_data(until=UNTIL + WEEK)
    said = Path(batch.manifest_path).read_text("utf-8")
    assert '"matured_since": "2025-01-20T00:00:00+00:00"' in said
    assert batch.window.until == UNTIL + WEEK - timedelta(hours=1)
