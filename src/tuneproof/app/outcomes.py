"""Outcomes polled from the users' own tables, for the experiments and rollouts that want them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from tuneproof.app.core import Core
from tuneproof.errors import NotFoundError, TuneProofError
from tuneproof.experiments import Outcome
from tuneproof.rollout import Deployment
from tuneproof.settings import OutcomeSourceConfig, PipelineConfig
from tuneproof.sources.outcomes import OutcomeRow, OutcomeTable

log = logging.getLogger(__name__)

FORGET_EVERY_S = 3600.0

LOOK_EVERY_S = 5.0
"""How often the sources are looked at; each is polled when its own interval is over."""


class Outcomes(Core):
    """Keeps outcomes coming where they lie in a table instead of being sent."""

    async def _began(self) -> None:
        await super()._began()
        if self._background and self.settings.outcome_sources:
            self._polled: dict[str, datetime] = {}
            self.supervisor.every("outcomes", LOOK_EVERY_S, self._poll_due, leader="outcomes")
        if self._background and any(c.retention_days for c in self.settings.pipelines.values()):
            self.supervisor.every(
                "retention", FORGET_EVERY_S, self.forget_events, leader="retention"
            )

    async def _poll_due(self) -> None:
        """Poll the sources whose interval is over; one that fails keeps no other from its turn."""
        now, failed = self.clock.now(), []
        for config in self.settings.pipelines.values():
            source = self._source_of(config)
            if source is None:
                continue
            every = timedelta(seconds=source.poll_seconds)
            if now - self._polled.get(config.name, now - every) < every:
                continue
            self._polled[config.name] = now
            try:
                await self.poll_outcomes(config.name)
            except TuneProofError as e:
                failed.append(e)
        if failed:
            raise failed[0]

    async def forget_events(self) -> Sequence[str]:
        """Delete the raw events of what ended `retention_days` ago; whose they were.

        Rollups, looks and verdicts stay. Pipelines without `retention_days` keep all.
        """
        forgotten = []
        now = self.clock.now()
        for config in self.settings.pipelines.values():
            if config.retention_days is None:
                continue
            before = now - timedelta(days=config.retention_days)
            for subject in await self.store.retention.due(config.name, before):
                async with self.store.database.begin() as tx:
                    count = await self.store.retention.purge(subject, now, tx=tx)
                    detail = {"events": count}
                    await self.store.activity.add(
                        now, "system", "events forget", subject, "retention", detail, tx=tx
                    )
                forgotten.append(subject)
        return forgotten

    async def poll_outcomes(self, pipeline: str = "default") -> int:
        """Read what has changed since the last time and take it in; how many were new.

        Rows are read again for `overlap_hours` before the watermark, since a row can become
        visible after a later one, and its exposure can come after it; each change counts once.
        The watermark moves last, so what a kill cuts off is read again.
        Raises `NotFoundError` where the pipeline has no source, `DataError`,
        `StoreUnavailableError`.
        """
        config = self.pipeline(pipeline)
        source = self._source_of(config)
        if source is None:
            raise NotFoundError(
                f"Pipeline {pipeline} has no outcome_source.",
                mend=f"Set pipelines.{pipeline}.evaluation.outcome_source.",
            )
        subjects = await self._open_subjects(config)
        until = self.clock.now()
        if not subjects:
            return 0
        key = f"outcomes:{pipeline}:{source.name}"
        kept = await self.store.meta.get(key)
        overlap = timedelta(hours=source.overlap_hours)
        first = min(subjects.values())
        since = first if kept is None else min(datetime.fromisoformat(kept) - overlap, until)
        since = max(since, first - overlap)
        url = source.url.reveal() if source.url else self._own_url()
        new = 0
        async for rows in OutcomeTable(source, url).rows(since, until):
            new += await self._take(source, sorted(subjects), rows)
        await self.store.meta.set(key, until.isoformat())
        return new

    def _source_of(self, config: PipelineConfig) -> OutcomeSourceConfig | None:
        if config.outcome_source is None:
            return None
        return self.settings.outcome_sources[config.outcome_source]

    def _own_url(self) -> str:
        return self.store.database.url.render_as_string(hide_password=False)

    async def _open_subjects(self, config: PipelineConfig) -> Mapping[str, datetime]:
        """The experiments and rollouts of a pipeline that outcomes still count for: since when."""
        now = self.clock.now()
        page = await self.store.experiments.page(config.name, limit=100)
        tests = {t.id: t.start_at for t in page.items if t.counts(now)}
        rollouts: Sequence[Deployment] = await self.store.deployments.active(config.name)
        return {**tests, **{d.id: d.created_at for d in rollouts}}

    async def _take(
        self, source: OutcomeSourceConfig, subjects: Sequence[str], rows: Sequence[OutcomeRow]
    ) -> int:
        """Take rows in for each subject that their unit was exposed in."""
        by_unit: dict[str, list[OutcomeRow]] = {}
        for row in rows:
            by_unit.setdefault(row.unit, []).append(row)
        exposed = await self.store.events.subjects_of(list(by_unit), among=subjects)
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
        taken = await self.store.events.ingest((), outcomes, now=self.clock.now())
        self.metrics.events_ingested(0, len(outcomes))
        return taken.accepted


def _event_id(source: OutcomeSourceConfig, row: OutcomeRow) -> str:
    """The same for the same change of a row, so that one read again counts once."""
    known = f"{source.name}:{row.at.isoformat()}"
    return f"{known}:{row.item}" if row.item else known
