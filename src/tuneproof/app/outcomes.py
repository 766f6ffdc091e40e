"""Outcomes polled from the users' own tables, for the experiments and rollouts that want them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from tuneproof.app.histories import KEPT
from tuneproof.app.pipelines import Pipelines
from tuneproof.errors import NotFoundError, TuneProofError
from tuneproof.experiments import Outcome
from tuneproof.experiments.histories import WEEK, history_of, week_of
from tuneproof.resilience import Supervisor
from tuneproof.rollout import Deployment
from tuneproof.settings import OutcomeSourceConfig, PipelineConfig, Settings
from tuneproof.sources.outcomes import OutcomeRow, OutcomeTable
from tuneproof.store import Store
from tuneproof.telemetry import Metrics
from tuneproof.workflow import Clock

log = logging.getLogger(__name__)

FORGET_EVERY_S = 3600.0

LOOK_EVERY_S = 5.0
"""How often the sources are looked at; each is polled when its own interval is over."""


class OutcomeService:
    """Keeps outcomes coming where they lie in a table instead of being sent."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        clock: Clock,
        metrics: Metrics,
        pipelines: Pipelines,
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._pipelines = pipelines
        self._polled: dict[str, datetime] = {}

    def watch(self, supervisor: Supervisor) -> None:
        """Poll, and forget, from now on, where the settings say so."""
        if self._settings.outcome_sources:
            supervisor.every("outcomes", LOOK_EVERY_S, self._poll_due, leader="outcomes")
        supervisor.every("retention", FORGET_EVERY_S, self.forget, leader="retention")

    async def _poll_due(self) -> None:
        """Poll the sources whose interval is over; one that fails keeps no other from its turn."""
        now, failed = self._clock.now(), []
        for config in self._settings.pipelines.values():
            source = self._source_of(config)
            if source is None:
                continue
            every = timedelta(seconds=source.poll_seconds)
            if now - self._polled.get(config.name, now - every) < every:
                continue
            self._polled[config.name] = now
            try:
                await self.poll(config.name)
            except TuneProofError as e:
                failed.append(e)
        if failed:
            raise failed[0]

    async def forget(self) -> Sequence[str]:
        """Delete the raw events of what ended `retention_days` ago; whose they were.

        Rollups, looks and verdicts stay. Pipelines without `retention_days` keep all of their
        tests and rollouts. A history is kept for `KEPT` after its week, or for the shortest
        `retention_days` where that is less: it is nobody's evidence.
        """
        now = self._clock.now()
        days = [c.retention_days for c in self._settings.pipelines.values() if c.retention_days]
        kept = min([KEPT, *(timedelta(days=one) for one in days)])
        due = await self._store.histories.kept(now - kept - WEEK)
        for config in self._settings.pipelines.values():
            if config.retention_days is None:
                continue
            before = now - timedelta(days=config.retention_days)
            due += await self._store.retention.due(config.name, before)
        for subject in due:
            async with self._store.database.begin() as tx:
                count = await self._store.retention.purge(subject, now, tx=tx)
                detail = {"events": count}
                await self._store.activity.add(
                    now, "system", "events forget", subject, "retention", detail, tx=tx
                )
        return due

    async def poll(self, pipeline: str = "default") -> int:
        """Read what has changed since the last time and take it in; how many were new.

        Rows are read again for `overlap_hours` before the watermark, since a row can become
        visible after a later one, and its exposure can come after it; each change counts once.
        The watermark moves last, so what a kill cuts off is read again.
        Raises `NotFoundError` where the pipeline has no source, `DataError`,
        `StoreUnavailableError`.
        """
        config = self._pipelines.get(pipeline)
        source = self._source_of(config)
        if source is None:
            raise NotFoundError(
                f"Pipeline {pipeline} has no outcome_source.",
                mend=f"Set pipelines.{pipeline}.evaluation.outcome_source.",
            )
        subjects = await self._open_subjects(config)
        until = self._clock.now()
        if not subjects:
            return 0
        key = f"outcomes:{pipeline}:{source.name}"
        kept = await self._store.meta.get(key)
        overlap = timedelta(hours=source.overlap_hours)
        first = min(subjects.values())
        since = first if kept is None else min(datetime.fromisoformat(kept) - overlap, until)
        since = max(since, first - overlap)
        own = self._store.database.url
        url = source.url.reveal() if source.url else own.render_as_string(hide_password=False)
        new = 0
        async for rows in OutcomeTable(source, url).rows(since, until):
            new += await self._take(source, sorted(subjects), rows)
        await self._store.meta.set(key, until.isoformat())
        return new

    def _source_of(self, config: PipelineConfig) -> OutcomeSourceConfig | None:
        if config.outcome_source is None:
            return None
        return self._settings.outcome_sources[config.outcome_source]

    async def _open_subjects(self, config: PipelineConfig) -> Mapping[str, datetime]:
        """The experiments and rollouts of a pipeline that outcomes still count for: since when."""
        now = self._clock.now()
        page = await self._store.experiments.page(config.name, limit=100)
        tests = {t.id: t.start_at for t in page.items if t.counts(now)}
        rollouts: Sequence[Deployment] = await self._store.deployments.active(config.name)
        histories = await self._histories(config, now)
        return {**histories, **tests, **{d.id: d.created_at for d in rollouts}}

    async def _histories(self, config: PipelineConfig, now: datetime) -> Mapping[str, datetime]:
        """The histories of its tasks of this week and the last, as far as there are any."""
        weeks = [week_of(now), week_of(now) - WEEK]
        began = {history_of(task, at): at for task in config.tasks for at in weeks}
        there = await self._store.subjects.kinds(list(began))
        return {id: began[id] for id in there}

    async def _take(
        self, source: OutcomeSourceConfig, subjects: Sequence[str], rows: Sequence[OutcomeRow]
    ) -> int:
        """Take rows in for each subject that their unit was exposed in."""
        by_unit: dict[str, list[OutcomeRow]] = {}
        for row in rows:
            by_unit.setdefault(row.unit, []).append(row)
        exposed = await self._store.events.subjects_of(list(by_unit), among=subjects)
        outcomes = [
            Outcome(
                id=_event_id(source, row),
                subject=subject,
                unit=unit,
                at=row.at,
                value=row.value,
                quality=row.quality,
                item=row.item,
            )
            for unit, subject in exposed
            for row in by_unit[unit]
        ]
        if not outcomes:
            return 0
        taken = await self._store.events.ingest((), outcomes, now=self._clock.now())
        self._metrics.events_ingested(0, len(outcomes))
        return taken.accepted


def _event_id(source: OutcomeSourceConfig, row: OutcomeRow) -> str:
    """The same for the same change of a row, so that one read again counts once."""
    known = f"{source.name}:{row.at.isoformat()}"
    return f"{known}:{row.item}" if row.item else known
