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
from pathlib import Path
from typing import TypedDict

from tuneproof.app.alerting import Alerting
from tuneproof.app.live import Live
from tuneproof.app.pipelines import Pipelines
from tuneproof.app.runs import RunService
from tuneproof.app.sources import Sources
from tuneproof.collection import Source, Task, Window
from tuneproof.errors import StateError, TuneProofError
from tuneproof.pipeline.collecting import collector
from tuneproof.settings import PipelineConfig
from tuneproof.stats.drift import Drift, drift
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

ENGAGEMENT = "engagement"


class MeasureStatus(TypedDict):
    """One measure of the posts: `chance` is that a new one is above one of the window."""

    name: str
    drifted: bool
    p_value: float
    chance: float | None
    window_posts: int
    new_posts: int
    window_median: float | None
    new_median: float | None


class DriftStatus(TypedDict):
    """What the last look of a pipeline found; `error` says why it found nothing."""

    asked_at: str
    since: str
    until: str
    drifted: bool
    sentence: str
    error: str
    measures: Sequence[MeasureStatus]


@dataclass(frozen=True)
class _Measured:
    """Posts in the order of their times: what is measured of each, by name."""

    order: list[tuple[datetime, str]]
    values: Mapping[str, array[float]]

    def of(self, name: str) -> list[float]:
        """One measure, oldest first, without posts that have none."""
        found = self.values[name]
        places = sorted(range(len(self.order)), key=self.order.__getitem__)
        return [found[place] for place in places if found[place] == found[place]]


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
            before = await self._read(config, source, window, 1)
            part = -(-len(before.order) // MOST) or 1
            if part > 1:
                before = await self._read(config, source, window, part)
            since = Window(since=window.until, until=max(window.until, matured))
            after = await self._read(config, source, since, part)
        finally:
            await source.close()
        level = ALPHA / len(before.values)
        measured = {
            name: await asyncio.to_thread(drift, before.of(name), after.of(name), alpha=level)
            for name in before.values
        }
        return self._status(window, measured)

    async def _read(
        self, config: PipelineConfig, source: Source, window: Window, part: int
    ) -> _Measured:
        """Every post of a window, or the same one of `part` of them each time."""
        tasks = [self._tasks[name] for name in config.tasks]
        collecting = collector(config, source, tasks, directory=Path(), clock=self._clock)
        days = (window.until - window.since).total_seconds() / 86_400
        asked = collecting.query(days, window.until)
        query = replace(asked, window=window, threshold=0.0, max_records=None, top_share=None)
        order: list[tuple[datetime, str]] = []
        names = (ENGAGEMENT, *(f"{task.name}_length" for task in tasks))
        values: dict[str, array[float]] = {name: array("d") for name in names}
        async for chunk in source.posts(query):
            for post in chunk:
                if zlib.crc32(post.id.encode("utf-8", "replace")) % part == 0:
                    order.append((post.ts, post.id))
                    values[ENGAGEMENT].append(_rate(post.engagement_rate))
                    for task in tasks:
                        length = _length(post.text(task.completion))
                        values[f"{task.name}_length"].append(length)
        return _Measured(order, values)

    def _status(
        self, window: Window, measured: Mapping[str, Drift], *, error: str = ""
    ) -> DriftStatus:
        moved = [_in_words(name, found) for name, found in measured.items() if found.fired]
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
        await self._store.meta.set(key, mark)


def _rate(rate: float | None) -> float:
    return rate if rate is not None and math.isfinite(rate) else math.nan


def _length(text: str) -> float:
    return float(len(text)) if text else math.nan


def _measure(name: str, found: Drift) -> MeasureStatus:
    return {
        "name": name,
        "drifted": found.fired,
        "p_value": found.p_value,
        "chance": found.chance,
        "window_posts": found.reference,
        "new_posts": found.incoming,
        "window_median": found.before,
        "new_median": found.after,
    }


def _in_words(name: str, found: Drift) -> str:
    way = "rose" if (found.chance or 0) > 0.5 else "fell"
    return (
        f"{name.replace('_', ' ')} {way} (median {found.before:.4g}, now {found.after:.4g}, of "
        f"{found.incoming:,} posts)"
    )
