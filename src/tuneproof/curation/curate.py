"""From a stream of posts to a dataset on disk, a chunk at a time, in a worker thread."""

from __future__ import annotations

import asyncio
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson

from tuneproof.collection import (
    NO_TIME,
    Collected,
    Curator,
    Post,
    PostQuery,
    Task,
    TrainingDataBatch,
    Window,
)
from tuneproof.curation.files import DatasetFiles, on_disk
from tuneproof.curation.lines import (
    NOT_UTF8,
    Cleaner,
    ColumnText,
    LineMaker,
    TrainingLine,
    asked_by,
    line_maker,
)
from tuneproof.curation.provenance import provenance
from tuneproof.curation.sift import (
    KEPT_BACK,
    TRAIN,
    VALIDATION,
    Dropped,
    Placed,
    Seen,
    side_of,
    split_key,
)
from tuneproof.errors import ConfigError, DataError

__all__ = ["CurationOptions", "curate", "curate_posts", "curator"]

_FORMAT: Final = 1
_QUOTED: Final = re.compile(r"""[,"\n\r]""")
_TOKEN_EDGES: Final = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
_USABLE_RATE: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class CurationOptions:
    """How strict curation is. Shares are 0–1; tokens are estimated at four bytes each.

    `own_output_share` is the most that posts of our own versions may make up, `persona_cap`
    the most examples of a task that one persona gives (None: any number). `blocked` are words
    that no example may hold; `refuse` is a moderation hook: it gets the messages and names a
    reason to leave the example out, or None. `erased` are units whose data is never used.
    """

    min_characters: int = 3
    max_tokens: int = 16_384
    personal_data: str = "redact"
    validation_share: float = 0.1
    kept_back_share: float = 0.05
    own_output_share: float = 0.5
    persona_cap: int | None = None
    blocked: Sequence[str] = ()
    refuse: Callable[[Sequence[dict[str, str]]], str | None] | None = None
    erased: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        for name in ("validation_share", "kept_back_share", "own_output_share"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value}.", mend="A share lies between 0 and 1.")
        if self.personal_data not in ("redact", "drop", "keep"):
            raise ConfigError(
                f"personal_data is {self.personal_data!r}.", mend="Write redact, drop or keep."
            )


def curator(options: CurationOptions) -> Curator:
    """A curator with options of its own, for `DataCollector(curator=…)`."""
    return partial(curate, options=options)


async def curate(
    collected: Collected, *, options: CurationOptions | None = None
) -> TrainingDataBatch:
    """Run a stream of posts through all rules and write the dataset.

    Memory does not grow with the posts but by 16 bytes an example, for the exact duplicates.
    Raises `DataError` where the rates are no shares, so that nothing can be told from them.
    """
    curation = await asyncio.to_thread(_Curation, collected, options or CurationOptions())
    with curation.files:
        working: asyncio.Task[None] | None = None
        try:
            async for chunk in collected.chunks:  # fetched while the one before is worked on
                if working is not None:
                    await working
                working = asyncio.create_task(asyncio.to_thread(curation.add, chunk))
        finally:
            if working is not None:
                await working
        return await asyncio.to_thread(curation.finish)


async def curate_posts(
    posts: Iterable[Post],
    tasks: Sequence[Task],
    directory: Path | str,
    *,
    options: CurationOptions | None = None,
) -> TrainingDataBatch:
    """Curate posts that are in memory: curation by itself, without a source."""
    always = Window(since=datetime(1970, 1, 1, tzinfo=UTC), until=datetime(9999, 1, 1, tzinfo=UTC))
    collected = Collected(
        pipeline="default",
        tasks=tuple(tasks),
        query=PostQuery(window=always, threshold=0.0, max_records=None),
        source="posts in memory",
        chunks=_one_chunk(list(posts)),
        directory=Path(directory),
    )
    return await curate(collected, options=options)


async def _one_chunk(posts: list[Post]) -> AsyncIterator[list[Post]]:
    yield posts


class _Curation:
    """The state of one curation; `add` and `finish` run in a thread, one at a time."""

    def __init__(self, collected: Collected, options: CurationOptions) -> None:
        self._collected = collected
        self._options = options
        self._blocked = [word.casefold() for word in options.blocked]
        self._tasks = collected.tasks
        self._dropped = Dropped()
        self._seen = Seen()
        self._cleaner = Cleaner(options.personal_data)
        self._makers = [line_maker(task) for task in self._tasks]
        columns = (c for task in self._tasks for c in (*task.columns, task.completion))
        self._columns = tuple(dict.fromkeys(columns))
        self._personas: Counter[tuple[str, str]] = Counter()
        self._placed = Placed()
        self._tokens = [0] * (len(_TOKEN_EDGES) + 1)
        self._token_sum = 0
        self._posts = 0
        self._used = 0
        with on_disk(collected.directory):
            self.files = DatasetFiles(collected.directory, [task.name for task in self._tasks])

    def add(self, posts: Sequence[Post]) -> None:
        """Take in a chunk."""
        with on_disk(self._collected.directory):
            self._add(posts)

    def _add(self, posts: Sequence[Post]) -> None:
        lines: dict[tuple[str, str], list[bytes]] = {
            (task.name, side): [] for task in self._tasks for side in (TRAIN, VALIDATION)
        }
        lineage: list[bytes] = []
        for post in posts:
            self._posts += 1
            side = self._side(post)
            if side is None:
                continue
            used, post_id = False, _csv(post.id)
            rate = "" if post.engagement_rate is None else repr(post.engagement_rate)
            texts = {column: self._cleaner(post.text(column)) for column in self._columns}
            for maker in self._makers:
                line = self._example(post, maker, texts)
                if line is not None:
                    used = True
                    own = post.version is not None
                    self._placed.add(maker.name, side, line.answer, own=own)
                    lines[maker.name, side].append(line.json)
                    lineage.append(f"{post_id},{maker.name},{side},{rate}".encode())
            self._used += used
        for (name, side), found in lines.items():
            self.files.tasks[name].write(side, found)
        self.files.note_lineage(lineage)

    def _side(self, post: Post) -> str | None:
        """Where the post's examples belong, or None where the post as such is left out."""
        if post.ts == NO_TIME:
            self._dropped.add("invalid_time", post)
            return None
        rate = post.engagement_rate
        if rate is not None and not (math.isfinite(rate) and 0 <= rate <= _USABLE_RATE):
            self._dropped.add("invalid_rate", post, rate)
            return None
        query = self._collected.query
        if (rate or 0.0) < query.threshold or not query.inside(post):
            self._dropped.add("not_asked_for", post, rate)  # whatever its source believes
            return None
        if post.id in self._options.erased:
            self._dropped.add("erased", post)
            return None
        side = side_of(
            split_key(post, self._tasks),
            post.id,
            validation_share=self._options.validation_share,
            kept_back_share=self._options.kept_back_share,
        )
        if side == KEPT_BACK:
            self._dropped.add(KEPT_BACK, post)
            return None
        return side

    def _example(
        self, post: Post, maker: LineMaker, texts: dict[str, ColumnText]
    ) -> TrainingLine | None:
        """The post as a line for one task, or None where a rule leaves it out."""
        line = maker.line(texts)
        reason = self._unfit(line) or self._refused(line)
        if reason is None and not self._seen.new(line.json):
            reason = "duplicate"
        if reason is None and self._above_cap(post, maker.name):
            reason = "persona_cap"
        if reason is not None:
            self._dropped.add(reason, post, line.answer, maker.name)
            return None
        self._token_sum += line.tokens
        self._tokens[bisect_left(_TOKEN_EDGES, line.tokens)] += 1
        return line

    def _unfit(self, line: TrainingLine) -> str | None:
        """Why this line is no example, in the order of the rules, or None."""
        if line.fault == NOT_UTF8:
            return line.fault
        answer = line.answer.strip()
        if len(answer) < self._options.min_characters:
            return "too_short" if answer else "empty"
        return "too_long" if line.tokens > self._options.max_tokens else line.fault

    def _refused(self, line: TrainingLine) -> str | None:
        if not self._blocked and self._options.refuse is None:
            return None
        messages = orjson.loads(line.json)["messages"]
        text = " ".join(m["content"] for m in messages).casefold()
        if any(word in text for word in self._blocked):
            return "blocked"
        return self._options.refuse(messages) if self._options.refuse else None

    def _above_cap(self, post: Post, task: str) -> bool:
        if self._options.persona_cap is None:
            return False
        key = (task, post.persona_id or "")
        self._personas[key] += 1
        return self._personas[key] > self._options.persona_cap

    def finish(self) -> TrainingDataBatch:
        """Take out what only the whole shows, write the manifest, move the dataset into place."""
        with on_disk(self._collected.directory):
            return self._finish()

    def _finish(self) -> TrainingDataBatch:
        self._check_rates()
        self.files.finish_lines()
        self._take_out()
        examples = {name: sum(files.counts.values()) for name, files in self.files.tasks.items()}
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
        )

    def _check_rates(self) -> None:
        bad = self._dropped.counts["invalid_rate"]
        if bad == 0 or bad * 2 <= self._posts:
            return
        sample = self._dropped.samples["invalid_rate"][0]
        raise DataError(
            f"{bad} of {self._posts} posts have an engagement_rate that is no share of 1; post "
            f"{sample['post']} has {sample['value']}.",
            mend="A rate lies between 0 and 1: divide percents by 100 in a view, or name "
            "another column in [sources.posts.columns].",
            field="engagement_rate",
            value=sample["value"],
        )

    def _take_out(self) -> None:
        """Drop what only the whole shows to be unfit: leaks of held-out answers, own output."""
        leaks = self._placed.held_out_too()
        own = self._placed.own_surplus(self._options.own_output_share, leaks)
        lineage: set[int] = set()
        for reason, places in (("held_out", leaks), ("own_output", own)):
            count = sum(len(numbers) for numbers in places.values())
            if count:
                self._dropped.counts[reason] += count
        for place in dict.fromkeys((*leaks, *own)):
            unwanted = leaks.get(place, set()) | own.get(place, set())
            if unwanted:
                self.files.tasks[place[0]].drop_lines(place[1], unwanted)
                lineage |= self._placed.lineage_of(place, unwanted)
        if lineage:
            self.files.drop_lineage(lineage)

    def _manifest(self, examples: dict[str, int]) -> dict[str, Any]:
        query = self._collected.query
        options = self._options
        return {
            "format": _FORMAT,
            "pipeline": self._collected.pipeline,
            "source": self._collected.source,
            "query": query.described(),
            **provenance(self._collected),
            "tasks": {
                task.name: {
                    "prompt": task.prompt,
                    "completion": task.completion,
                    "empty_prompt": task.empty_prompt,
                    "system": task.system,
                    **asked_by(task),
                    "examples": examples[task.name],
                    **self.files.tasks[task.name].counts,
                }
                for task in self._tasks
            },
            "posts": {"read": self._posts, "used": self._used},
            "dropped": {
                reason: {"count": count, "samples": self._dropped.samples.get(reason, [])}
                for reason, count in sorted(self._dropped.counts.items())
            },
            "personal_data": {
                "rule": options.personal_data,
                **dict(sorted(self._cleaner.redacted.items())),
            },
            "split": {
                "validation_share": options.validation_share,
                "kept_back_share": options.kept_back_share,
            },
            "tokens": {
                "estimated_total": self._token_sum,
                "histogram": {"edges": list(_TOKEN_EDGES), "counts": self._tokens},
            },
        }


def _csv(text: str) -> str:
    if text.isalnum() and text.isascii():
        return text
    clean = text.encode("utf-8", "backslashreplace").decode()
    return '"' + clean.replace('"', '""') + '"' if _QUOTED.search(clean) else clean
