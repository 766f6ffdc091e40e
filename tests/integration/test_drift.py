"""Posts that differ from the training window are told of once, shown, and maybe trained on."""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.integration.loop import T0, Loop, open_loop, posts

from tuneproof.collection import Post
from tuneproof.errors import StoreUnavailableError
from tuneproof.experiments import Variant
from tuneproof.rollout import Routing
from tuneproof.store import RunStatus
from tuneproof.testing import MemorySource

WORDS = (
    *("the", "garden", "river", "morning", "quiet", "letter", "winter", "market", "story"),
    *("music", "window", "orange", "paper", "village", "friend", "doctor", "summer", "bridge"),
)
OTHER = "Nadie sabía qué pasó después de aquella noche en la que llovió"


def written(seed: int, count: int) -> list[Post]:
    """Posts of the window, whose texts are of the same words each time, and not the same."""
    draw = random.Random(seed)

    def words(number: int) -> str:
        return " ".join(draw.choices(WORDS, k=number))

    made = posts(count)
    rates = draw.sample([post.engagement_rate for post in made], count)  # the same on all days
    return [
        post._replace(hook=words(8), body=words(20), engagement_rate=rate)
        for post, rate in zip(made, rates, strict=True)
    ]


def later(count: int, *, times: float = 1.0, more: str = "") -> list[Post]:
    """Posts of the days after the window: like those of it, or with other rates and longer."""
    mixed = written(6, count)
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
    source = MemorySource(written(1, 600))
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
    [rates, *others] = seen["status"]["measures"]
    assert (rates["name"], rates["window_posts"], rates["new_posts"]) == ("engagement", 600, 200)
    texts = [f"{task}_{what}" for task in ("hook", "body") for what in ("spelling", "topic")]
    assert [m["name"] for m in others] == ["hook_length", "body_length", *texts]
    halves = {m["window_posts"] for m in others[2:]}
    assert all(250 <= half <= 350 for half in halves)
    assert {m["new_posts"] for m in others} == {200}


async def test_outcomes_that_fell_are_told_once_and_shown_each_day(
    tmp_path: Path, database_url: str
) -> None:
    """A loop went on for weeks with a window whose outcomes were of another time."""
    seen = await looked(tmp_path, database_url, later(200, times=0.4))
    assert seen["runs"] == 1
    assert seen["status"]["drifted"]
    [said] = seen["told"]
    assert said == seen["status"]["sentence"]
    assert said.startswith("Since the training window engagement fell (median 0.09983, now 0.0398,")
    drifted = [m["name"] for m in seen["status"]["measures"] if m["drifted"]]
    assert drifted == ["engagement"]


async def test_longer_texts_start_one_run_where_the_settings_say_train(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    new = later(200, more=", and what is more, it is told at great length")
    seen = await looked(tmp_path, sqlite_store_url, new, on_drift="train")
    assert seen["runs"] == 2
    assert "hook length rose" in seen["told"][0]


async def test_a_run_that_drift_starts_and_that_is_refused_is_told(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    """It ends no look at the pipelines after it, and tomorrow's tries again."""
    source = MemorySource(written(1, 600))
    changes = {"on_drift": "train"}
    async with open_loop(tmp_path, sqlite_store_url, source=source, changes=changes) as loop:
        assert (await loop.turn(as_of=T0, last_stage="gate")).status is RunStatus.SUCCESS
        store = loop.app.store
        async with store.database.begin() as tx:
            for task, model in (("hook", "one"), ("body", "two")):
                routing = Routing(task=task, baseline=Variant(model_id=model))
                await store.routing.set(routing, tx=tx)
        source.rows += later(200, more=", and what is more, it is told at great length")
        loop.app.clock.restore(T0 + timedelta(days=4))
        await loop.app.drifts.look()
        told = (await store.activity.page()).items
        assert [a.actor for a in told if a.action == "run refused"] == ["drift"]
        assert len((await store.runs.page()).items) == 1


async def test_texts_in_another_language_are_told(tmp_path: Path, database_url: str) -> None:
    """Seen: a source that turned to another language within a week was like the window, as long
    as its texts had the same length."""
    new = [post._replace(hook=OTHER) if i % 3 == 0 else post for i, post in enumerate(later(200))]
    seen = await looked(tmp_path, database_url, new)
    [said] = seen["told"]
    assert "hook texts are spelt unlike those of the window (of 200 posts)" in said
    [spelling] = [m for m in seen["status"]["measures"] if m["name"] == "hook_spelling"]
    assert spelling["new_median"] < spelling["window_median"]
    assert (spelling["topic"], spelling["window_share"]) == (None, None)


async def test_texts_about_something_else_are_told_by_its_words(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    themes = ("football match goal", "garden flower water", "train station ticket")

    def about(number: int, *, football: int) -> str:
        theme = themes[0] if number % 10 < football else themes[1 + number % 2]
        return " ".join(random.Random(number).sample(theme.split(), 2)) + f" {number}"

    window = [p._replace(hook=about(i, football=2)) for i, p in enumerate(written(1, 600))]
    new = [p._replace(hook=about(i, football=8)) for i, p in enumerate(later(200))]
    source = MemorySource(window)
    async with open_loop(tmp_path, sqlite_store_url, source=source) as loop:
        assert (await loop.turn(as_of=T0, last_stage="gate")).status is RunStatus.SUCCESS
        source.rows += new
        loop.app.clock.restore(T0 + timedelta(days=4))
        await loop.app.drifts.look()
        seen = await shown(loop)
    [topic] = [m for m in seen["status"]["measures"] if m["name"] == "hook_topic"]
    assert topic["drifted"]
    assert (topic["chance"], topic["window_median"]) == (None, None)
    assert f"hook texts about “{topic['topic']}” went from" in seen["told"][0]
    assert abs(topic["new_share"] - topic["window_share"]) > 0.1
    assert set(topic["topic"].split(", ")) <= set(" ".join(themes).split())


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
