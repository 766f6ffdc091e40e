"""Posts that differ from the training window are told of once, shown, and maybe trained on."""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.integration.loop import T0, Loop, open_loop, posts

from tuneproof.collection import Post
from tuneproof.errors import StoreUnavailableError
from tuneproof.store import RunStatus
from tuneproof.testing import MemorySource


def later(count: int, *, times: float = 1.0, more: str = "") -> list[Post]:
    """Posts of the days after the window: like those of it, or with other rates and longer."""
    mixed = posts(count)
    random.Random(5).shuffle(mixed)
    return [
        post._replace(
            id=f"later-{post.id}",
            ts=T0 + timedelta(hours=1 + 60 * i / count),
            engagement_rate=(post.engagement_rate or 0) * times,
            hook=f"{post.hook}{more}",
        )
        for i, post in enumerate(mixed)
    ]


async def looked(tmp_path: Path, database: str, new: list[Post], **changes: Any) -> Any:
    """What `status` shows after a run, then these posts, then a look on each of four days."""
    source = MemorySource(posts())
    async with open_loop(tmp_path, database, source=source, changes=changes) as loop:
        assert (await loop.turn(as_of=T0, last_stage="gate")).status is RunStatus.SUCCESS
        source.rows += new
        loop.app.clock.restore(T0 + timedelta(days=4))
        for _ in range(4):
            await loop.app.drifts.look()
            loop.app.clock.restore(loop.app.clock.now() + timedelta(days=1))
        return await shown(loop)


async def shown(loop: Loop) -> dict[str, Any]:
    status = (await loop.app.overview.status())["pipelines"][0]
    told = [a for a in (await loop.app.store.activity.page()).items if a.action == "drift"]
    runs = (await loop.app.store.runs.page()).items
    return {"status": status["drift"], "told": [a.reason for a in told], "runs": len(runs)}


async def test_posts_like_those_of_the_window_are_no_drift(
    tmp_path: Path, database_url: str
) -> None:
    seen = await looked(tmp_path, database_url, later(200))
    assert (seen["told"], seen["runs"]) == ([], 1)
    assert seen["status"]["sentence"] == "No measure has left the training window."
    [rates, *lengths] = seen["status"]["measures"]
    assert (rates["name"], rates["window_posts"], rates["new_posts"]) == ("engagement", 200, 200)
    assert [measure["name"] for measure in lengths] == ["hook_length", "body_length"]


async def test_outcomes_that_fell_are_told_once_and_shown_each_day(
    tmp_path: Path, database_url: str
) -> None:
    """A loop went on for weeks with a window whose outcomes were of another time."""
    seen = await looked(tmp_path, database_url, later(200, times=0.4))
    assert seen["runs"] == 1
    assert seen["status"]["drifted"]
    [said] = seen["told"]
    assert said == seen["status"]["sentence"]
    assert said.startswith("Since the training window engagement fell (median 0.0995, now 0.0398,")
    drifted = [m["name"] for m in seen["status"]["measures"] if m["drifted"]]
    assert drifted == ["engagement"]


async def test_longer_texts_start_one_run_where_the_settings_say_train(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    new = later(200, more=", and what is more, it is told at great length")
    seen = await looked(tmp_path, sqlite_store_url, new, on_drift="train")
    assert seen["runs"] == 2
    assert "hook length rose" in seen["told"][0]


async def test_off_looks_at_nothing_and_posts_that_cannot_be_read_are_said(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    source = MemorySource(posts())
    async with open_loop(tmp_path, sqlite_store_url, source=source) as loop:
        assert (await loop.turn(as_of=T0, last_stage="gate")).status is RunStatus.SUCCESS
        source.fail = StoreUnavailableError("The table is away.")
        await loop.app.drifts.look()
        seen = await shown(loop)
        assert (seen["status"]["drifted"], seen["status"]["error"]) == (False, "The table is away.")
    off = {"on_drift": "off"}
    async with open_loop(tmp_path, sqlite_store_url, source=source, changes=off) as loop:
        asked = len(source.queries)
        loop.app.clock.restore(loop.app.clock.now() + timedelta(days=3))
        await loop.app.drifts.look()
        assert len(source.queries) == asked
