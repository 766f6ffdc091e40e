"""Collection: the posts that did best, read once, in chunks, from the user's own table.

Says what a post, a task and a source are, and how posts become a batch of training data. It
knows no SQL and no file format (`sources`), and not what makes an example fit to train on:
that is the curator, which it is given (`curation`).
"""

from __future__ import annotations

import asyncio
import math
import pkgutil
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple, Protocol, TypedDict, runtime_checkable

from tuneproof.errors import ConfigError, DataError
from tuneproof.prompts import Prompt
from tuneproof.settings import BODY, HOOK, PipelineConfig, Settings, TaskConfig, refuse_both

__all__ = [
    "NO_TIME",
    "Collected",
    "Curator",
    "Cut",
    "Cutting",
    "DataCollector",
    "Dataset",
    "Example",
    "ExampleObject",
    "Post",
    "PostQuery",
    "Reporting",
    "Source",
    "SourceCheck",
    "Task",
    "TimeSource",
    "Totalling",
    "Totals",
    "TrainingDataBatch",
    "Window",
]

CURATOR = "tuneproof.curation:curate"
"""What curates where no curator is given. A name, since imports point down."""

EXAMPLES = "tuneproof.curation:read_examples"
"""What reads the examples of a batch from the files that curation wrote. A name, likewise."""

NO_TIME = datetime.min.replace(tzinfo=UTC)
"""The time of a post of a file whose time is absent or none; curation leaves it out."""


class Post(NamedTuple):
    """One published output with its measured outcome: a row of the user's table.

    A tuple, not a dataclass: millions are made, and this takes a third of the time. `version`
    is our version that wrote it, None for anybody else. `group` is the test or slot in which it
    competed with others, None where nobody says. `matured_at` is when its outcome was settled,
    where that was asked for. `fields` holds further columns by the words
    that the tasks' templates use.
    """

    id: str
    persona_id: str | None
    original_input: str | None
    hook: str | None
    body: str | None
    engagement_rate: float | None
    ts: datetime
    tokens_used: int | None = None
    impressions: int | None = None
    clicks: int | None = None
    version: str | None = None
    group: str | None = None
    matured_at: datetime | None = None
    fields: Mapping[str, Any] | None = None

    def text(self, column: str) -> str:
        """A column as text; empty where it is NULL. Raises `DataError` for an unknown one."""
        place = _PLACES.get(column)
        if place is not None and not (self.fields and column in self.fields):
            value = self[place]
        elif self.fields and column in self.fields:
            value = self.fields[column]
        else:
            raise DataError(
                f"A post has no column {column!r}.",
                mend="Name it in the source's columns, or mend the task's template.",
            )
        return value if type(value) is str else "" if value is None else str(value)


_PLACES = {name: place for place, name in enumerate(Post._fields) if name != "fields"}


@dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of time: `since` ≤ ts < `until`."""

    since: datetime
    until: datetime


@dataclass(frozen=True, kw_only=True)
class PostQuery:
    """Which posts: those of the window with a rate at or above `threshold`, best first.

    Ties are in the order of their ids. `max_records` None: all. `columns` are the words that
    the tasks' templates need beside the usual ones. Where the threshold came of a share of the
    window's posts, `top_share` is that share and `rated` how many posts had a rate.

    With `matured`, they are those of the window whose outcome was settled within that.
    """

    window: Window
    threshold: float
    max_records: int | None = 10_000
    chunk_size: int = 1000
    columns: tuple[str, ...] = ()
    top_share: float | None = None
    rated: int | None = None
    matured: Window | None = None

    def inside(self, post: Post) -> bool:
        """Whether the post is of the window, and was settled when that is asked."""
        if not self.window.since <= post.ts < self.window.until:
            return False
        if self.matured is None:
            return True
        at = post.matured_at
        return at is not None and self.matured.since <= at < self.matured.until

    def described(self) -> dict[str, object]:
        """What a manifest says of it."""
        found: dict[str, object] = {
            "since": self.window.since.isoformat(),
            "until": self.window.until.isoformat(),
            "engagement_threshold": self.threshold,
            "max_records": self.max_records,
        }
        if self.matured is not None:
            found["matured_since"] = self.matured.since.isoformat()
            found["matured_until"] = self.matured.until.isoformat()
        if self.top_share is not None:
            found |= {"top_share": self.top_share, "rated": self.rated}
        return found

    def selects(self) -> str:
        """Which posts that are, in words."""
        if self.top_share is None:
            return f"posts with a rate of {self.threshold:g} or more"
        if not self.rated:
            return (
                f"the best {100 * self.top_share:g} % of the posts; none of the window has a rate"
            )
        return (
            f"the best {100 * self.top_share:g} % of {self.rated:,} rated posts: those with a "
            f"rate of {self.threshold:.4g} or more"
        )


@dataclass(frozen=True, kw_only=True)
class SourceCheck:
    """What a source has: columns found and missing, and what would make it faster or right.

    `missing` are columns without which nothing can be collected. `types` says of each column how
    it is declared, `used` by our words which of them are read.
    """

    found: tuple[str, ...]
    missing: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    rows: int | None = None
    newest: datetime | None = None
    types: Mapping[str, str] = field(default_factory=dict)
    used: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """Where posts come from: a table or a file, read only.

    Errors: `DataError` where the source is not as described, `StoreUnavailableError` where it
    does not answer.
    """

    async def check(self, query: PostQuery) -> SourceCheck:
        """Look at the columns and indexes; `rows` and `newest` where that is cheap."""

    def posts(self, query: PostQuery) -> AsyncIterator[list[Post]]:
        """The posts, in chunks of `chunk_size`: one query, in memory that does not grow."""

    async def close(self) -> None:
        """Give connections back."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """The rated posts of a window in sums: what planning a test needs of them.

    `n` posts have a rate of 0..1, whose sum and sum of squares are `rates` and `squares`; the
    earliest was published at `first`; `counted` of them have `tokens` in all. Beside them
    `negative` posts have a rate below 0, `negative_rates` in all.
    """

    n: int = 0
    rates: float = 0.0
    squares: float = 0.0
    first: datetime | None = None
    tokens: float = 0.0
    counted: int = 0
    negative: int = 0
    negative_rates: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Where a share of the best begins: `rated` posts have a rate of 0..1, `threshold` is the least
    rate of the share; 0 where there are none."""

    rated: int
    threshold: float


@runtime_checkable
class Cutting(Protocol):
    """A source that finds where its best begin by itself, instead of handing each post over."""

    async def cut(self, window: Window, share: float) -> Cut | None:
        """The cut of a window; None where it cannot be had so, and posts must be read."""


async def cut_of(source: Source, query: PostQuery, share: float) -> Cut:
    """Where the best `share` of a window's rated posts begins: of n the ceil(share * n) best, with
    all that are as good as the last of them."""
    if isinstance(source, Cutting) and query.matured is None:
        found = await source.cut(query.window, share)
        if found is not None:
            return found
    rates = array("d")
    async for chunk in source.posts(replace(query, threshold=0.0, max_records=None)):
        rates.extend(
            rate for post in chunk if (rate := post.engagement_rate) is not None and 0 <= rate <= 1
        )
    if not rates:
        return Cut(rated=0, threshold=0.0)
    return Cut(rated=len(rates), threshold=sorted(rates, reverse=True)[best_of(rates, share) - 1])


def best_of(rated: Sized | int, share: float) -> int:
    """How many posts the best share of so many is: at least one."""
    number = rated if isinstance(rated, int) else len(rated)
    return min(number, max(1, math.ceil(share * number - 1e-9)))


@runtime_checkable
class Totalling(Protocol):
    """A source that can add its posts up where they are, instead of handing each one over."""

    async def totals(self, window: Window) -> Totals | None:
        """The window's totals; None where they cannot be had so, and posts must be read."""


@runtime_checkable
class Reporting(Protocol):
    """A source that tells what it could not read."""

    def unread(self) -> Mapping[str, Mapping[str, object]]:
        """By our word for the column how many values of the last reading, and some of them."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing the application asks a model for, and how a post shows it done well.

    `prompt` is a template over the post's columns; where all of its columns are empty, the
    prompt is `empty_prompt`. `completion` is the column with the answer. Where variants own the
    prompt, `asked_by` is the one that examples are made by; None: the `first_prompt`.
    """

    name: str
    prompt: str
    completion: str
    empty_prompt: str = "Create engaging content"
    system: str | None = None
    owned_by_variants: bool = False
    asked_by: Prompt | None = None

    @classmethod
    def of(cls, config: TaskConfig | Task) -> Task:
        """The task that the settings describe."""
        if isinstance(config, Task):
            return config
        return cls(
            name=config.name,
            prompt=config.prompt,
            completion=config.completion,
            empty_prompt=config.empty_prompt,
            system=config.system,
            owned_by_variants=config.owned_by_variants,
        )

    @cached_property
    def first_prompt(self) -> Prompt:
        """What the settings say that models are asked, as the prompt that variants begin with."""
        asked = "".join(t if name is None else f"{t}{{{name}}}" for t, name in self.pieces)
        system = [("system", self.system)] if self.system else []
        return Prompt(
            messages=(*system, ("user", asked)),
            variables=self.columns,
            empty_prompt=self.empty_prompt if self.columns else "",
        )

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that the prompt names, in order, each once."""
        return tuple(dict.fromkeys(name for _, name in self.pieces if name is not None))

    @cached_property
    def pieces(self) -> tuple[tuple[str, str | None], ...]:
        """The prompt taken apart: texts, each followed by a column or by None."""
        return tuple((text, name) for text, name, _, _ in Formatter().parse(self.prompt))

    def request(self, post: Post) -> str:
        """What the model is asked by the settings: the last message."""
        values = {name: post.text(name) for name in self.columns}
        if values and not any(value.strip() for value in values.values()):
            return self.empty_prompt
        return "".join(text if name is None else text + values[name] for text, name in self.pieces)

    def messages(self, post: Post) -> list[dict[str, str]]:
        """The chat that a training line shows: system (if any), user, assistant."""
        if self.asked_by is not None:
            values = {name: post.text(name) for name in self.columns}
            chat = [{**message} for message in self.asked_by.render(values)]
        else:
            chat = [{"role": "system", "content": self.system}] if self.system else []
            chat.append({"role": "user", "content": self.request(post)})
        chat.append({"role": "assistant", "content": post.text(self.completion)})
        return chat


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training line, and where it came from."""

    task: str
    messages: tuple[Mapping[str, str], ...]
    post_id: str
    unit: str
    input_hash: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One task's examples on disk; never changed once written. Counts are lines."""

    task: str
    hash: str
    train_path: str
    validation_path: str
    train_examples: int
    validation_examples: int

    @property
    def examples(self) -> int:
        """Lines of both files."""
        return self.train_examples + self.validation_examples


class ExampleObject(TypedDict):
    """One example as an object: the chat that is trained on, and the rate of its post.

    The rate is what it was when the dataset was made, None where that was not noted. Files that
    are uploaded do not have it: trainers refuse keys that they do not know.
    """

    messages: list[dict[str, str]]
    engagement_rate: float | None


@dataclass(frozen=True, kw_only=True)
class TrainingDataBatch:
    """What a run trains on: a dataset for each task, and the merged files of all.

    `hash` names it all by content. `posts` were read. `examples` counts lines by task, training
    and validation together, `total_records` those of all tasks. `dropped` counts by
    reason what curation left out; `note` says in words why there is nothing, where there is
    nothing. Paths are absolute.
    """

    pipeline: str
    window: Window
    hash: str
    posts: int
    total_records: int
    examples: Mapping[str, int]
    datasets: Mapping[str, Dataset]
    train_path: str
    validation_path: str
    manifest_path: str
    dropped: Mapping[str, int] = field(default_factory=dict)
    source: str = ""
    note: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """By task, the hash of the prompt that its examples are made by, where variants own it."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The columns of the source, as it declares them."""
    used: Mapping[str, str] = field(default_factory=dict)
    """By our words the columns that were read."""
    changes: tuple[str, ...] = ()
    """What of the source's columns is not as it was at the run before."""

    @property
    def prompt(self) -> str | None:
        """The hash of that prompt; None where the application owns it. There is one at most."""
        return next(iter(self.prompts.values()), None)

    @property
    def heldout(self) -> dict[str, str]:
        """The held-out file of each task."""
        return {task: dataset.validation_path for task, dataset in self.datasets.items()}

    @property
    def hook_examples(self) -> list[ExampleObject]:
        """The examples of the task `hook`, as `examples_of` reads them."""
        return self.examples_of("hook")

    @property
    def body_examples(self) -> list[ExampleObject]:
        """The examples of the task `body`, as `examples_of` reads them."""
        return self.examples_of("body")

    def examples_of(self, task: str) -> list[ExampleObject]:
        """The examples of a task, each with the rate of its post; read from its files anew.

        Those to train on come first. Of a pair it is the answer that did better. Raises
        `DataError` where the files are not on this machine.
        """
        found: list[ExampleObject] = pkgutil.resolve_name(EXAMPLES)(self, task)
        return found

    def within(self, folder: Path) -> TrainingDataBatch:
        """The same dataset where its folder is another one."""
        here = Path(self.train_path).parent

        def at(path: str) -> str:
            return str(folder / Path(path).relative_to(here)) if path else path

        datasets = {
            task: replace(
                dataset,
                train_path=at(dataset.train_path),
                validation_path=at(dataset.validation_path),
            )
            for task, dataset in self.datasets.items()
        }
        return replace(
            self,
            datasets=datasets,
            train_path=at(self.train_path),
            validation_path=at(self.validation_path),
            manifest_path=at(self.manifest_path),
        )

    @property
    def train_examples(self) -> int:
        """Lines of the merged training file."""
        return sum(dataset.train_examples for dataset in self.datasets.values())

    @property
    def validation_examples(self) -> int:
        """Lines of the merged validation file."""
        return sum(dataset.validation_examples for dataset in self.datasets.values())


@dataclass(frozen=True, kw_only=True)
class Collected:
    """A stream of posts on its way to the curator, with what the manifest says of it."""

    pipeline: str
    tasks: tuple[Task, ...]
    query: PostQuery
    source: str
    chunks: AsyncIterator[list[Post]]
    directory: Path
    check: SourceCheck | None = None
    unread: Callable[[], Mapping[str, Mapping[str, object]]] = dict


Curator = Callable[[Collected], Awaitable[TrainingDataBatch]]
"""Makes a batch of training data of a stream of posts."""


class TimeSource(Protocol):
    """What time it is."""

    def now(self) -> datetime:
        """The present instant, aware."""


class DataCollector:
    """Collects the posts of a window and has them curated. Usable by itself.

    `engagement_threshold` is inclusive; `top_share` takes its place. Posts younger than
    `min_age_hours` are left for later, and with `late_days` posts are taken when their outcome was
    settled (`query`). Left out, `source` and
    `tasks` are those of the settings, `dir` is the settings' data directory, and posts are
    curated by `curation`.
    Raises `ConfigError` for thresholds and sizes that cannot be.
    """

    def __init__(
        self,
        engagement_threshold: float = 0.06,
        *,
        source: Source | None = None,
        tasks: Sequence[Task | TaskConfig] | None = None,
        dir: Path | str | None = None,
        pipeline: str = "default",
        days_back: float = 7,
        max_records: int | None = 10_000,
        chunk_size: int = 1000,
        clock: TimeSource | None = None,
        curator: Curator | None = None,
        settings: Settings | None = None,
        top_share: float | None = None,
        min_age_hours: float = 0.0,
        late_days: float | None = None,
    ) -> None:
        _check("engagement_threshold", engagement_threshold, 0, 1)
        if top_share is not None:
            _check("top_share", top_share, math.ulp(0), 1)
        refuse_both(top_share, engagement_threshold)
        _check("days_back", days_back, 0, 36_500)
        _check("chunk_size", chunk_size, 1, 100_000)
        _check("min_age_hours", min_age_hours, 0, 876_000)
        if late_days is not None:
            _check("late_days", late_days, 0, 36_500)
        if max_records is not None:
            _check("max_records", max_records, 1, math.inf)
        self.engagement_threshold = engagement_threshold
        self.top_share = top_share
        self.days_back = days_back
        self.min_age_hours = min_age_hours
        self.late_days = late_days
        self.max_records = max_records
        self.chunk_size = chunk_size
        self.pipeline = pipeline
        self.tasks = tuple(Task.of(task) for task in (tasks or (HOOK, BODY)))
        self._source = source
        self._dir = None if dir is None else Path(dir)
        self._clock = clock
        self._curator = curator
        self._settings = settings

    @classmethod
    def of(cls, config: PipelineConfig, **arguments: Any) -> DataCollector:
        """The collector that a pipeline's config asks for."""
        return cls(
            config.engagement_threshold,
            pipeline=config.name,
            days_back=config.days_back,
            max_records=config.max_records,
            chunk_size=config.chunk_size,
            top_share=config.top_share,
            min_age_hours=config.min_age_hours,
            late_days=config.late_days,
            **arguments,
        )

    async def collect_training_data(
        self, days_back: float | None = None, until: datetime | None = None
    ) -> TrainingDataBatch:
        """Read the best posts of the last `days_back` days before `until` (now) and curate them.

        The same posts and the same window always give the same files, under the same hash.
        With too few posts the batch is small or empty, and its `note` says why; what is too
        few is the caller's to say. Raises `DataError` where the source lacks a column or its
        rates are no shares, `StoreUnavailableError` where it does not answer.
        """
        days = self.days_back if days_back is None else days_back
        _check("days_back", days, 0, 36_500)
        query = self.query(days, until or self._now())
        source = self._source or self._own_source()
        try:
            return await self._collect(source, query)
        finally:
            if self._source is None:
                await source.close()

    def query(self, days_back: float, until: datetime) -> PostQuery:
        """The query that collects the `days_back` days before `until`; naive times are UTC.

        They end `min_age_hours` before it. With `late_days` they are the posts since so long ago
        whose outcome was settled within the `days_back` days: each run after the other takes up
        where the one before ended, so that a post comes once, however late its outcome.
        """
        now = until if until.tzinfo else until.replace(tzinfo=UTC)
        end, days = now - timedelta(hours=self.min_age_hours), timedelta(days=days_back)
        since, matured = end - days, None
        if self.late_days is not None:
            matured = Window(since=now - days, until=now)
            since = min(since, now - timedelta(days=self.late_days))
        columns = (c for task in self.tasks for c in (*task.columns, task.completion))
        return PostQuery(
            window=Window(since=since, until=end),
            matured=matured,
            threshold=self.engagement_threshold if self.top_share is None else 0.0,
            max_records=self.max_records,
            chunk_size=self.chunk_size,
            columns=tuple(dict.fromkeys(columns)),
            top_share=self.top_share,
        )

    async def chosen(self, source: Source, query: PostQuery) -> PostQuery:
        """The query with the threshold at which its share of the best begins."""
        if query.top_share is None:
            return query
        cut = await cut_of(source, query, query.top_share)
        return replace(query, threshold=cut.threshold, rated=cut.rated)

    async def _collect(self, source: Source, query: PostQuery) -> TrainingDataBatch:
        check = await source.check(query)
        if check.missing:
            raise DataError(
                f"{source} has no column for {', '.join(check.missing)}; it has "
                f"{', '.join(check.found) or 'none at all'}.",
                mend="Name the columns in [sources.posts.columns], or mend the task's template.",
                missing=list(check.missing),
                found=list(check.found),
            )
        query = await self.chosen(source, query)
        curate = self._curator or pkgutil.resolve_name(CURATOR)
        directory = await asyncio.to_thread(self._directory)
        batch: TrainingDataBatch = await curate(
            Collected(
                pipeline=self.pipeline,
                tasks=self.tasks,
                query=query,
                source=str(source),
                chunks=source.posts(query),
                directory=directory,
                check=check,
                unread=source.unread if isinstance(source, Reporting) else dict,
            )
        )
        asked = {task.name: task.asked_by.hash for task in self.tasks if task.asked_by is not None}
        batch = replace(batch, prompts=asked, columns=dict(check.types), used=dict(check.used))
        return batch if batch.posts else replace(batch, note=_why_none(check, query))

    def _directory(self) -> Path:
        path = self._dir or self._loaded().dir
        path = path.expanduser().absolute()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def _loaded(self) -> Settings:
        if self._settings is None:
            self._settings = Settings.load()
        return self._settings

    def _own_source(self) -> Source:
        settings = self._loaded()
        described = settings.sources["posts"]
        if described.url is None:
            described = replace(described, url=settings.store.url)
        source: Source = settings.adapter("source")(described)
        return source

    def _now(self) -> datetime:
        return self._clock.now() if self._clock else datetime.now(UTC)


def _why_none(check: SourceCheck, query: PostQuery) -> str:
    window = f"{query.window.since:%Y-%m-%d %H:%M} to {query.window.until:%Y-%m-%d %H:%M} UTC"
    if check.rows == 0:
        return "The source has no posts at all: import some, or check the table's name."
    if check.newest is not None and check.newest < query.window.since:
        return (
            f"The newest post is of {check.newest:%Y-%m-%d %H:%M} UTC, before the window "
            f"{window}: set --as-of, or widen days_back."
        )
    if query.top_share is not None:
        return f"No post in the window {window} has a rate: widen days_back."
    return (
        f"No post in the window {window} has a rate of {query.threshold:g} or more: "
        "widen days_back, or lower engagement_threshold."
    )


def _check(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ConfigError(
            f"{name} is {value!r}; it must be between {least:g} and {most:g}.",
            mend=f"Set {name} within these bounds.",
            field=name,
            value=value,
        )
