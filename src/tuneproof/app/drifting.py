"""Whether the posts that come in still look like those of the training window: asked once a day.

What the newest dataset was made of is read again with what was published since, so nothing has to
be kept but the answer. What a drift means is for a person, or for the next training.
"""

from __future__ import annotations

import asyncio
import logging
import math
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Generic, NamedTuple, TypedDict, TypeVar

from tuneproof.app.alerting import Alerting
from tuneproof.app.live import Live
from tuneproof.app.pipelines import Pipelines
from tuneproof.app.runs import RunService
from tuneproof.app.sources import Sources
from tuneproof.collection import Source, Task, Window
from tuneproof.errors import InputError, StateError, TuneProofError
from tuneproof.evaluation.topics import LONGEST, Spelling, Topics
from tuneproof.pipeline.collecting import collector
from tuneproof.settings import PipelineConfig
from tuneproof.stats.drift import Drift, KindDrift, drift, drift_of_kinds
from tuneproof.store import Store
from tuneproof.workflow import Clock

__all__ = ["LOOK_EVERY_S", "DriftStatus", "DriftWatch"]

log = logging.getLogger(__name__)

LOOK_EVERY_S = 900.0
ASK_EVERY = timedelta(days=1)
READ_WITHIN_S = 600.0

MOST = 20_000
"""How many posts of the window are compared; of a larger one the same part of both sides."""

ALPHA = 0.01
"""How often a window is called left behind although nothing changed, all its measures together."""

TEXTS_FOR = 4
"""Of how many windows' time after the window texts are compared: who trains no more for a year does
not hold a year's texts in memory."""

LEAST_TEXTS = 50
"""Of fewer texts of half a window nothing is learnt of how they are spelt, or what about."""

ENGAGEMENT = "engagement"

Value = TypeVar("Value")


class MeasureStatus(TypedDict):
    """One measure of the posts: `chance` is that a new one is above one of the window. Of topics
    instead the one whose share moved most, by some of its words, and its shares."""

    name: str
    drifted: bool
    p_value: float
    chance: float | None
    window_posts: int
    new_posts: int
    window_median: float | None
    new_median: float | None
    topic: str | None
    window_share: float | None
    new_share: float | None


class DriftStatus(TypedDict):
    """What the last look of a pipeline found; `error` says why it found nothing."""

    asked_at: str
    since: str
    until: str
    drifted: bool
    sentence: str
    error: str
    measures: Sequence[MeasureStatus]


class _Values(NamedTuple, Generic[Value]):
    """Values of posts, oldest first, and the day of the week of each."""

    values: list[Value]
    days: list[int]


@dataclass(frozen=True)
class _Read:
    """Posts in the order of their times: numbers and texts of each, by name. `half` says in which
    half of its window each is, whatever it says."""

    order: list[tuple[datetime, str]]
    half: list[bool]
    numbers: Mapping[str, array[float]]
    texts: Mapping[str, list[str]]

    @cached_property
    def places(self) -> list[int]:
        """Oldest first."""
        return sorted(range(len(self.order)), key=self.order.__getitem__)

    def weekday(self, place: int) -> int:
        """The day of the week of a post (UTC): posts of one are compared with each other."""
        return self.order[place][0].weekday()

    def measured(self, name: str) -> _Values[float]:
        """One measure, without posts that have none."""
        found = self.numbers[name]
        known = [place for place in self.places if found[place] == found[place]]
        return _Values([found[place] for place in known], list(map(self.weekday, known)))

    def said(self, name: str, half: bool | None = None) -> _Values[str]:
        """One task's texts, of one half or both, without posts that have none."""
        texts, halves = self.texts[name], self.half
        known = [at for at in self.places if texts[at].strip() and half in (None, halves[at])]
        return _Values([texts[place] for place in known], list(map(self.weekday, known)))


@dataclass(frozen=True)
class _Found:
    """What became of a measure; of topics with their names."""

    drift: Drift | KindDrift
    topics: Sequence[str] = ()

    @property
    def topic(self) -> str | None:
        """The one whose share moved most."""
        kind = self.drift.kind if isinstance(self.drift, KindDrift) else None
        return None if kind is None else self.topics[kind]


class DriftWatch:
    """Looks, keeps what it saw, tells it, and where the settings say so trains anew."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        live: Live,
        alert: Alerting,
        pipelines: Pipelines,
        sources: Sources,
        runs: RunService,
        tasks: Mapping[str, Task],
    ) -> None:
        self._store = store
        self._clock = clock
        self._live = live
        self._alert = alert
        self._pipelines = pipelines
        self._sources = sources
        self._runs = runs
        self._tasks = tasks

    async def look(self) -> None:
        """Ask of each pipeline what was not asked for a day."""
        for config in self._pipelines.running:
            if config.on_drift == "off":
                continue
            last, now = await self.known(config), self._clock.now()
            if last is None or now - datetime.fromisoformat(last["asked_at"]) >= ASK_EVERY:
                await self.ask(config)

    async def known(self, config: PipelineConfig) -> DriftStatus | None:
        """What the last look found; None before the first."""
        found: DriftStatus | None = await self._store.meta.get(f"drift:{config.name}")
        return found

    async def ask(self, config: PipelineConfig) -> DriftStatus | None:
        """Look now; None where nothing was trained on yet."""
        window = await self._window(config)
        if window is None:
            return None
        try:
            async with asyncio.timeout(READ_WITHIN_S):
                found = await self._found(config, window)
        except (TuneProofError, TimeoutError) as error:
            log.info("the posts of %s could not be compared: %s", config.name, error)
            found = self._status(window, {}, error=str(error) or "The posts came too slowly.")
        await self._store.meta.set(f"drift:{config.name}", found)
        if found["drifted"]:
            await self._tell(config, found)
        return found

    async def _window(self, config: PipelineConfig) -> Window | None:
        """The window of the newest dataset."""
        for run in (await self._store.runs.page(config.name)).items:
            told = run.stages.get("collect", {}).get("detail", {})
            if run.result.get("training_data") and "until" in told:
                since, until = (datetime.fromisoformat(told[name]) for name in ("since", "until"))
                return Window(since=since, until=until)
        return None

    async def _found(self, config: PipelineConfig, window: Window) -> DriftStatus:
        """Posts count once their outcomes had time to come in."""
        matured = self._clock.now() - timedelta(hours=config.maturation_hours)
        source = self._sources.open(config)
        try:
            posts = await self._read(config, source, window, 1, texts_until=window.since)
            part = -(-len(posts.order) // MOST) or 1
            before = await self._read(config, source, window, part, texts_until=window.until)
            since = Window(since=window.until, until=max(window.until, matured))
            told = window.until + TEXTS_FOR * (window.until - window.since)
            after = await self._read(config, source, since, part, texts_until=told)
        finally:
            await source.close()
        return self._status(window, await asyncio.to_thread(_compared, before, after))

    async def _read(
        self,
        config: PipelineConfig,
        source: Source,
        window: Window,
        part: int,
        *,
        texts_until: datetime,
    ) -> _Read:
        """Every post of a window, or the same one of `part` of them each time; the texts of those
        from before `texts_until`."""
        tasks = [self._tasks[name] for name in config.tasks]
        collecting = collector(config, source, tasks, directory=Path(), clock=self._clock)
        days = (window.until - window.since).total_seconds() / 86_400
        asked = collecting.query(days, window.until)
        query = replace(asked, window=window, threshold=0.0, max_records=None, top_share=None)
        names = (ENGAGEMENT, *(f"{task.name}_length" for task in tasks))
        read = _Read([], [], {name: array("d") for name in names}, {t.name: [] for t in tasks})
        async for chunk in source.posts(query):
            for post in chunk:
                drawn, left = divmod(zlib.crc32(post.id.encode("utf-8", "replace")), part)
                if left:
                    continue
                read.order.append((post.ts, post.id))
                read.half.append(drawn % 2 == 1)
                read.numbers[ENGAGEMENT].append(_rate(post.engagement_rate))
                for task in tasks:
                    text = post.text(task.completion)
                    read.numbers[f"{task.name}_length"].append(_length(text))
                    read.texts[task.name].append(text[:LONGEST] if post.ts < texts_until else "")
        return read

    def _status(
        self, window: Window, measured: Mapping[str, _Found], *, error: str = ""
    ) -> DriftStatus:
        moved = [_in_words(name, found) for name, found in measured.items() if found.drift.fired]
        calm = "No measure has left the training window." if measured else ""
        return {
            "asked_at": self._clock.now().isoformat(),
            "since": window.since.isoformat(),
            "until": window.until.isoformat(),
            "drifted": bool(moved),
            "sentence": f"Since the training window {'; '.join(moved)}." if moved else calm,
            "error": error,
            "measures": [_measure(name, found) for name, found in measured.items()],
        }

    async def _tell(self, config: PipelineConfig, found: DriftStatus) -> None:
        """Once a window: to the webhook and the log; a run where the settings ask for one."""
        key, mark = f"drift_told:{config.name}", found["until"]
        if await self._store.meta.get(key) != mark:
            now, said = self._clock.now(), found["sentence"]
            async with self._store.database.begin() as tx:
                await self._store.meta.set(key, mark, tx=tx)
                await self._store.activity.add(now, "drift", "drift", config.name, said, tx=tx)
            self._live.publish("activity", config.name)
            self._alert("posts_drifted", config.name, said, once=mark)
        if config.on_drift == "train" and config.enabled:
            await self._train(config, mark)

    async def _train(self, config: PipelineConfig, mark: str) -> None:
        key = f"drift_trained:{config.name}"
        if await self._store.meta.get(key) == mark:
            return
        try:
            await self._runs.start(config.name, actor="drift")
        except StateError:
            return  # a run is under way; tomorrow's look has its window, or tries again
        except InputError as e:  # tomorrow's look tries again
            await self._runs.tell_refused(config.name, e, actor="drift", once=mark)
            return
        await self._store.meta.set(key, mark)


def _rate(rate: float | None) -> float:
    return rate if rate is not None and math.isfinite(rate) else math.nan


def _length(text: str) -> float:
    return float(len(text)) if text else math.nan


def _compared(before: _Read, after: _Read) -> dict[str, _Found]:
    """Each measure of the posts of the window and of those after it.

    How texts are spelt and what they are about is learnt from one half of the window, and the
    other half is compared: what was learnt knows neither it nor the new posts.
    """
    level = ALPHA / (len(before.numbers) + 2 * len(before.texts))
    found: dict[str, _Found] = {}
    for name in before.numbers:
        known, others = before.measured(name), after.measured(name)
        strata = (known.days, others.days)
        found[name] = _Found(drift(known.values, others.values, strata=strata, alpha=level))
    for task in before.texts:
        learnt = before.said(task, True).values
        if len(learnt) < LEAST_TEXTS:
            continue
        (window, days), (new, new_days) = before.said(task, False), after.said(task)
        strata = (days, new_days)
        spelling = Spelling.learnt(learnt)
        usual, now = ([spelling.familiarity(text) for text in texts] for texts in (window, new))
        spelt = drift(usual, now, strata=strata, alpha=level)
        found[f"{task}_spelling"] = _Found(replace(spelt, fired=spelt.fired and _below(spelt)))
        topics = Topics.learnt(learnt)
        if topics is not None:
            kinds, now_kinds = topics.of(window), topics.of(new)
            moved = drift_of_kinds(kinds, now_kinds, strata=strata, alpha=level)
            found[f"{task}_topic"] = _Found(moved, topics.names)
    return found


def _below(found: Drift) -> bool:
    """Whether new values are rather lower: texts that are more usual than usual, such as those
    that were published before, are no drift."""
    return found.chance is not None and found.chance < 0.5


def _measure(name: str, found: _Found) -> MeasureStatus:
    seen = found.drift
    nothing: tuple[float | None, float | None] = (None, None)
    moved = (seen.before, seen.after)
    chance = seen.chance if isinstance(seen, Drift) else None
    medians, shares = (moved, nothing) if isinstance(seen, Drift) else (nothing, moved)
    return {
        "name": name,
        "drifted": seen.fired,
        "p_value": seen.p_value,
        "chance": chance,
        "window_posts": seen.reference,
        "new_posts": seen.incoming,
        "window_median": medians[0],
        "new_median": medians[1],
        "topic": found.topic,
        "window_share": shares[0],
        "new_share": shares[1],
    }


def _in_words(name: str, found: _Found) -> str:
    seen, task = found.drift, name.rpartition("_")[0]
    if isinstance(seen, KindDrift):
        return (
            f"{task} texts about “{found.topic}” went from {seen.before:.0%} to {seen.after:.0%} "
            f"of {seen.incoming:,} posts"
        )
    if name.endswith("_spelling"):
        return f"{task} texts are spelt unlike those of the window (of {seen.incoming:,} posts)"
    return (
        f"{name.replace('_', ' ')} {'fell' if _below(seen) else 'rose'} (median {seen.before:.4g}, "
        f"now {seen.after:.4g}, of {seen.incoming:,} posts)"
    )
