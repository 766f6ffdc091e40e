"""What came of the posts until now: what a model of each task's outcomes learns from."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from tuneproof.collection import NO_TIME, Post, PostQuery, Source, Task, Window
from tuneproof.curation import KEPT_BACK, TRAIN, side_of, split_key
from tuneproof.evaluation.outcomes import Published

__all__ = ["MOST_POSTS", "Answered", "published_answers", "published_of", "published_posts"]

MOST_POSTS = 5_000
MOST_OF_GROUP = 200
"""How many posts of a task are learnt from, and how many of one group: of more a sample by hash."""


async def published_posts(
    source: Source, tasks: Sequence[Task], until: datetime, *, days: float, pair_days: float
) -> dict[str, Sequence[Published]]:
    """Of each task the rated posts of the `days` before `until`.

    Raises as the source does: `DataError`, `StoreUnavailableError`.
    """
    columns = tuple(dict.fromkeys(c for task in tasks for c in (*task.columns, task.completion)))
    query = PostQuery(
        window=Window(since=until - timedelta(days=days), until=until),
        threshold=0.0,
        max_records=None,
        columns=columns,
    )
    kept = {task.name: _Kept() for task in tasks}
    async for chunk in source.posts(query):
        for post in chunk:
            for task in tasks:
                found = published_of(post, task, pair_days)
                if found is not None:
                    kept[task.name].add(post.id, found)
    return {name: one.published for name, one in kept.items()}


class Answered(NamedTuple):
    """An answer that was published, and what it answered: the values of its prompt's variables."""

    id: str
    values: Mapping[str, str]
    published: Published


async def published_answers(
    source: Source, task: Task, until: datetime, *, days: float, pair_days: float
) -> list[Answered]:
    """Rated posts of one task that examples may be trained on: none of the gate's side.

    Of more than `MOST_POSTS` a sample by hash, in a fixed order. Raises as the source does.
    """
    query = PostQuery(
        window=Window(since=until - timedelta(days=days), until=until),
        threshold=0.0,
        max_records=None,
        columns=(*task.columns, task.completion),
    )
    found: dict[str, Answered] = {}
    async for chunk in source.posts(query):
        for post in chunk:
            published = published_of(post, task, pair_days)
            if published is not None and side_of(split_key(post, (task,)), post.id) == TRAIN:
                values = {name: post.text(name) for name in task.columns}
                found[post.id] = Answered(post.id, values, published)
        if len(found) > 2 * MOST_POSTS:
            found = {one.id: one for one in _fewest(found)}
    return _fewest(found)


def _fewest(found: Mapping[str, Answered]) -> list[Answered]:
    return sorted(found.values(), key=lambda one: (_hashed(one.id), one.id))[:MOST_POSTS]


def published_of(post: Post, task: Task, pair_days: float) -> Published | None:
    """A post as an answer to a task; None where it has no time, no answer or no usable rate, and
    of units that are kept back from all use.

    Without a `group`, posts of the same input competed that were published in the same `pair_days`.
    """
    rate, text = post.engagement_rate, post.text(task.completion)
    if rate is None or not 0 <= rate <= 1 or post.ts == NO_TIME or not text.strip():
        return None
    if side_of("", post.id) == KEPT_BACK:
        return None
    impressions = post.impressions if post.impressions and post.impressions > 0 else None
    return Published(text, _competed_in(post, task, pair_days), rate, impressions)


def _competed_in(post: Post, task: Task, pair_days: float) -> str:
    if post.group:
        return f"group\x1f{post.group}"
    if not any(post.text(column).strip() for column in task.columns):
        return ""
    turn = int(post.ts.timestamp() // (pair_days * 86_400))
    return f"input\x1f{turn}\x1f{task.request(post)}"


class _Kept:
    """The posts of a task, thinned by hash where they are too many: of a group some posts, of the
    groups some. In whatever order they come, the same are kept."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, Published]] = {}
        self._every = 1
        self._count = 0

    def add(self, post_id: str, published: Published) -> None:
        name = published.group or f"single\x1f{post_id}"
        if _hashed(name) % self._every:
            return
        group = self._groups.setdefault(name, {})
        self._count += post_id not in group and len(group) < MOST_OF_GROUP
        group[post_id] = published
        if len(group) > 2 * MOST_OF_GROUP:
            self._groups[name] = _some(group)
        while self._count > MOST_POSTS:
            self._halve()

    def _halve(self) -> None:
        self._every *= 2
        self._groups = {
            name: group for name, group in self._groups.items() if not _hashed(name) % self._every
        }
        self._count = sum(min(len(group), MOST_OF_GROUP) for group in self._groups.values())

    @property
    def published(self) -> Sequence[Published]:
        return [one for group in self._groups.values() for one in _some(group).values()]


def _some(group: Mapping[str, Published]) -> dict[str, Published]:
    return dict(sorted(group.items(), key=lambda one: (_hashed(one[0]), one[0]))[:MOST_OF_GROUP])


def _hashed(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))
