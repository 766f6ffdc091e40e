"""How long raw events are kept: rollups, looks and verdicts stay for ever, raw events by policy.

Only what has ended loses its raw events. From then on its events are refused as unknown: without
the raw ones nobody could tell a repeated event from a new one.

On PostgreSQL a day that only they have events of is dropped whole: that costs the same for a row
and for a million. From the days that others still need, their rows are deleted.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, or_, select, update

from tuneproof.experiments import ExperimentStatus
from tuneproof.store.comments import forget_comments
from tuneproof.store.database import Database
from tuneproof.store.partitions import forget_days
from tuneproof.store.scores import forget_scores
from tuneproof.store.tables import deployments, experiments, exposures, outcomes, subjects, units
from tuneproof.workflow import Tx

__all__ = ["Retention"]


class Retention:
    """Finds what may lose its raw events, and takes them away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due(self, pipeline: str, before: datetime, *, tx: Tx | None = None) -> list[str]:
        """The experiments and rollouts of a pipeline that ended before this instant, unpurged.

        One of a family is kept while any of its family runs: its baseline still counts.
        """
        running = select(experiments.c.family).where(
            experiments.c.status == str(ExperimentStatus.RUNNING)
        )
        tests = select(experiments.c.id).where(
            experiments.c.pipeline == pipeline,
            experiments.c.status != str(ExperimentStatus.RUNNING),
            experiments.c.end_at < before,
            experiments.c.family.not_in(running),
        )
        rollouts = select(deployments.c.id).where(
            deployments.c.pipeline == pipeline, deployments.c.ended_at < before
        )
        query = (
            select(subjects.c.id)
            .where(
                subjects.c.purged_at.is_(None),
                or_(subjects.c.id.in_(tests), subjects.c.id.in_(rollouts)),
            )
            .order_by(subjects.c.id)
        )
        async with self._database.reading(tx) as own:
            return [row.id for row in await own.execute(query)]

    async def purge(self, subject: str, at: datetime, *, tx: Tx | None = None) -> int:
        """Delete a subject's raw events, units, scores and comments; how many raw events.

        Again it changes nothing. What was summed up from them stays.
        Raises `StoreUnavailableError` where a day to be dropped is read for more than 10 s.
        """
        async with self._database.writing(tx) as own:
            closed = await own.execute(
                update(subjects)
                .where(subjects.c.id == subject, subjects.c.purged_at.is_(None))
                .values(purged_at=at)
                .returning(subjects.c.key)
            )
            key = closed.scalar_one_or_none()
            if key is None:
                return 0
            if own.dialect.name == "postgresql":
                gone = await forget_days(own, key)
            else:
                gone = 0
                for table in (exposures, outcomes):
                    found = await own.execute(delete(table).where(table.c.subject == key))
                    gone += found.rowcount
            await own.execute(delete(units).where(units.c.subject == key))
            await forget_scores(own, key)
            await forget_comments(own, key)
        return gone
