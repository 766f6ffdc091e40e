"""Preference pairs: two posts that competed, of which one clearly did better.

Posts of one `group` competed, whatever they were asked, and nobody else: a house prompt that many
tests share says nothing of who their readers were. Where no group is named, posts of the same
input did, if they were published within some days of each other; a prompt that is the same for
every post is no input. The pair's prompt is that of the better post.

Outcomes differ clearly where the interval of the difference of the two rates lies above a
margin: Newcombe's hybrid score interval (Statistics in Medicine 17, 1998, method 10) from the
clicks and impressions of both, so posts without them give no pairs. Each line is
`{"input": {"messages": […]}, "preferred_output": […], "non_preferred_output": […]}`, the
format of the fine-tuning wire's method `dpo`. The same rules as elsewhere say which posts are
fit at all; the split is by group or input, so that none is on both sides.

Posts are kept by group or input until all are read: memory grows with these, not with the posts,
since of each only the `kept` best and worst are held.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from statistics import NormalDist
from typing import Any, Final

import orjson

from tuneproof.collection import NO_TIME, Collected, Curator, Post, TrainingDataBatch
from tuneproof.curation.curate import CurationOptions
from tuneproof.curation.files import DatasetFiles, on_disk
from tuneproof.curation.lines import Cleaner, LineMaker, asked_by, line_maker
from tuneproof.curation.provenance import provenance
from tuneproof.curation.sift import KEPT_BACK, TRAIN, VALIDATION, Dropped, side_of, split_key
from tuneproof.errors import ConfigError

__all__ = ["PairOptions", "clear_difference", "curate_pairs", "pairs_curator"]

_GROUP: Final = b"group\x1f"
"""What the key of a group begins with; that of an input is the JSON of its messages."""


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """When two outcomes differ clearly: the interval of `confidence` lies above `margin`.

    `most` pairs are made of one group or input; `kept` posts of each end are looked at. Without a
    group, posts within `days` of each other competed.
    """

    margin: float = 0.0
    confidence: float = 0.95
    most: int = 4
    kept: int = 4
    days: float = 7.0
    rules: CurationOptions = field(default_factory=CurationOptions)

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= 1 or not 0.5 <= self.confidence < 1:
            raise ConfigError(
                f"A margin of {self.margin} at a confidence of {self.confidence} cannot be.",
                mend="A margin lies in 0–1, a confidence in 0.5–1.",
            )
        if not self.days > 0:
            raise ConfigError(
                f"Posts cannot be {self.days:g} days apart at most.", mend="Give more than 0 days."
            )


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """One post as an example, with its outcome."""

    post_id: str
    clicks: int
    impressions: int
    at: datetime
    prompt: bytes
    messages: tuple[dict[str, Any], ...]

    @property
    def rate(self) -> float:
        return self.clicks / self.impressions


def clear_difference(
    better: tuple[int, int], worse: tuple[int, int], *, confidence: float
) -> float:
    """The lower bound of the difference of two rates given as (clicks, impressions).

    Newcombe's hybrid of two Wilson score intervals.

    >>> round(clear_difference((56, 70), (48, 80), confidence=0.95), 4)
    0.0524
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    (x1, n1), (x2, n2) = better, worse
    low1, _ = _wilson(x1, n1, z)
    _, high2 = _wilson(x2, n2, z)
    p1, p2 = x1 / n1, x2 / n2
    return p1 - p2 - math.sqrt((p1 - low1) ** 2 + (high2 - p2) ** 2)


def _wilson(x: int, n: int, z: float) -> tuple[float, float]:
    p = x / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def pairs_curator(options: PairOptions | None = None) -> Curator:
    """A curator that makes pairs, for `DataCollector(curator=…)`."""
    return partial(curate_pairs, options=options)


async def curate_pairs(
    collected: Collected, *, options: PairOptions | None = None
) -> TrainingDataBatch:
    """Make preference pairs of a stream of posts and write the dataset."""
    pairing = await asyncio.to_thread(_Pairing, collected, options or PairOptions())
    with pairing.files:
        async for chunk in collected.chunks:
            await asyncio.to_thread(pairing.add, chunk)
        return await asyncio.to_thread(pairing.finish)


class _Pairing:
    """The state of one curation of pairs."""

    def __init__(self, collected: Collected, options: PairOptions) -> None:
        self._collected = collected
        self._options = options
        self._tasks = collected.tasks
        self._dropped = Dropped()
        self._cleaner = Cleaner(options.rules.personal_data)
        self._makers = [line_maker(task) for task in self._tasks]
        columns = (c for task in self._tasks for c in (*task.columns, task.completion))
        self._columns = tuple(dict.fromkeys(columns))
        self._competed: dict[tuple[str, str, bytes], list[_Answer]] = {}
        self._within = timedelta(days=options.days)
        self._posts = 0
        self._used: set[str] = set()
        self.files = DatasetFiles(collected.directory, [task.name for task in self._tasks])

    def add(self, posts: Sequence[Post]) -> None:
        """Take in a chunk."""
        for post in posts:
            self._posts += 1
            side = self._side(post)
            if side is None:
                continue
            texts = {column: self._cleaner(post.text(column)) for column in self._columns}
            for maker in self._makers:
                self._take(post, side, maker, texts)

    def _side(self, post: Post) -> str | None:
        if post.ts == NO_TIME:
            self._dropped.add("invalid_time", post)
            return None
        rules = self._options.rules
        impressions, clicks = post.impressions, post.clicks
        if not impressions or clicks is None or not 0 <= clicks <= impressions:
            self._dropped.add("no_counts", post, impressions)
            return None
        if post.id in rules.erased:
            self._dropped.add("erased", post)
            return None
        side = side_of(
            split_key(post, self._tasks),
            post.id,
            validation_share=rules.validation_share,
            kept_back_share=rules.kept_back_share,
        )
        if side == KEPT_BACK:
            self._dropped.add(KEPT_BACK, post)
            return None
        return side

    def _take(self, post: Post, side: str, maker: LineMaker, texts: dict[str, Any]) -> None:
        line = maker.line(texts)
        answer = line.answer.strip()
        reason = line.fault
        if len(answer) < self._options.rules.min_characters:
            reason = reason or ("too_short" if answer else "empty")
        if line.tokens > self._options.rules.max_tokens:
            reason = reason or "too_long"
        if not post.group and not line.has_input:
            reason = reason or "no_group"
        if reason is not None:
            self._dropped.add(reason, post, line.answer, maker.name)
            return
        messages = orjson.loads(line.json)["messages"]
        prompt = orjson.dumps(messages[:-1])
        among = _GROUP + post.group.encode("utf-8", "surrogatepass") if post.group else prompt
        found = self._competed.setdefault((maker.name, side, among), [])
        assert post.impressions is not None
        assert post.clicks is not None
        found.append(
            _Answer(
                post_id=post.id,
                clicks=post.clicks,
                impressions=post.impressions,
                at=post.ts,
                prompt=prompt,
                messages=(messages[-1],),
            )
        )
        kept = 2 * self._options.kept
        if len(found) > 2 * kept:
            found.sort(key=_order)
            del found[self._options.kept : -self._options.kept]

    def finish(self) -> TrainingDataBatch:
        """Pair what was kept, write the manifest, move the dataset into place."""
        with on_disk(self._collected.directory):
            return self._finish()

    def _finish(self) -> TrainingDataBatch:
        counts: Counter[str] = Counter()
        for (task, side, among), answers in sorted(self._competed.items()):
            lines, lineage = [], []
            grouped = among.startswith(_GROUP)
            for better, worse in self._pairs(answers, None if grouped else self._within):
                lines.append(_line(better, worse))
                lineage += [
                    f"{a.post_id},{task},{side},{a.rate!r}".encode() for a in (better, worse)
                ]
                self._used |= {better.post_id, worse.post_id}
            counts[task] += len(lines)
            self.files.tasks[task].write(side, lines)
            self.files.note_lineage(lineage)
        self.files.finish_lines()
        examples = {task.name: counts[task.name] for task in self._tasks}
        digest, datasets, place = self.files.finish(self._manifest(examples))
        return TrainingDataBatch(
            pipeline=self._collected.pipeline,
            window=self._collected.query.window,
            hash=digest,
            posts=self._posts,
            total_records=sum(examples.values()),
            examples=examples,
            datasets=datasets,
            train_path=str(place / f"{TRAIN}.jsonl"),
            validation_path=str(place / f"{VALIDATION}.jsonl"),
            manifest_path=str(place / "manifest.json"),
            dropped=dict(self._dropped.counts),
            source=self._collected.source,
            note="" if counts.total() else _why_none(self._options),
        )

    def _pairs(
        self, answers: list[_Answer], within: timedelta | None
    ) -> Iterator[tuple[_Answer, _Answer]]:
        """The clearest differences first; each post is in at most one pair, texts differ."""
        ranked = sorted(answers, key=_order)
        found = []
        for i, worse in enumerate(ranked):
            for better in ranked[i + 1 :]:
                if within is not None and abs(better.at - worse.at) > within:
                    continue
                bound = clear_difference(
                    (better.clicks, better.impressions),
                    (worse.clicks, worse.impressions),
                    confidence=self._options.confidence,
                )
                if bound > self._options.margin and better.messages != worse.messages:
                    found.append((-bound, better.post_id, worse.post_id, better, worse))
        used: set[str] = set()
        made = 0
        for _, a, b, better, worse in sorted(found, key=lambda f: f[:3]):
            if made < self._options.most and not {a, b} & used:
                used |= {a, b}
                made += 1
                yield better, worse

    def _manifest(self, examples: dict[str, int]) -> dict[str, Any]:
        query = self._collected.query
        return {
            "format": 1,
            "method": "dpo",
            "pipeline": self._collected.pipeline,
            "source": self._collected.source,
            "query": query.described(),
            **provenance(self._collected),
            "pairs": {
                "margin": self._options.margin,
                "confidence": self._options.confidence,
                "most_of_one_input": self._options.most,
                "days": self._options.days,
            },
            "tasks": {
                task.name: {
                    "prompt": task.prompt,
                    "completion": task.completion,
                    **asked_by(task),
                    "examples": examples[task.name],
                    **self.files.tasks[task.name].counts,
                }
                for task in self._tasks
            },
            "posts": {"read": self._posts, "used": len(self._used)},
            "dropped": {
                reason: {"count": count, "samples": self._dropped.samples.get(reason, [])}
                for reason, count in sorted(self._dropped.counts.items())
            },
        }


def _order(answer: _Answer) -> tuple[float, str]:
    return answer.rate, answer.post_id


def _line(better: _Answer, worse: _Answer) -> bytes:
    return orjson.dumps(
        {
            "input": {"messages": orjson.loads(better.prompt)},
            "preferred_output": list(better.messages),
            "non_preferred_output": list(worse.messages),
        }
    )


def _why_none(options: PairOptions) -> str:
    return (
        "No two posts that competed differ clearly: pairs need posts of one group (or of one input "
        f"within {options.days:g} days) with impressions and clicks, and a difference above "
        f"{options.margin:g} at {options.confidence:.0%} confidence."
    )
