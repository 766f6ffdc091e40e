"""Watches: the tests and rollouts under way, and when each was last looked at."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select, update

from tuneproof.experiments import ExperimentStatus
from tuneproof.store.database import Database
from tuneproof.store.subjects import SubjectKind
from tuneproof.store.tables import deployments, experiments, meta, subjects
from tuneproof.store.upserts import upsert
from tuneproof.workflow import Tx

__all__ = ["WatchedSubject", "Watches"]

_FAILED = "look_failed:"
"""Under which key, with the id behind, it is kept that a look failed."""


@dataclass(frozen=True, kw_only=True)
class WatchedSubject:
    """A running test, or a rollout that is not over, whose candidate users meet."""

    subject: str
    kind: SubjectKind
    pipeline: str
    tasks: tuple[str, ...]
    family: str
    """The tests that are looked at together; a rollout's own id."""
    run_id: str | None
    since: datetime
    looked_at: datetime | None
    """The last look that succeeded."""
    failure: str = ""
    """Why the newest look raised; empty where it did not."""
    failed_at: datetime | None = None

    @property
    def workflow(self) -> str:
        """The id of the durable function that looks."""
        return self.run_id or self.family


class Watches:
    """Which watches there are."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def looked(self, ids: Sequence[str], at: datetime, *, tx: Tx | None = None) -> None:
        """A look at these succeeded."""
        async with self._database.writing(tx) as own:
            await own.execute(update(subjects).where(subjects.c.id.in_(ids)).values(looked_at=at))

    async def failed(self, id: str, why: str, at: datetime, *, tx: Tx | None = None) -> None:
        """A look of a family or rollout raised; an empty `why`: the one after it succeeded."""
        async with self._database.writing(tx) as own:
            if why:
                failure = {"why": why.replace("\0", ""), "at": at.isoformat()}
                await upsert(own, meta, {"key": _FAILED + id, "value": failure})
            else:
                await own.execute(delete(meta).where(meta.c.key == _FAILED + id))

    async def under_way(self, *, tx: Tx | None = None) -> list[WatchedSubject]:
        """All of them, oldest first."""
        tests = (
            select(
                subjects.c.id,
                subjects.c.kind,
                subjects.c.looked_at,
                experiments.c.pipeline,
                experiments.c.tasks,
                experiments.c.family,
                experiments.c.run_id,
                experiments.c.start_at.label("since"),
            )
            .join(experiments, experiments.c.id == subjects.c.id)
            .where(experiments.c.status == str(ExperimentStatus.RUNNING))
        )
        rollouts = (
            select(
                subjects.c.id,
                subjects.c.kind,
                subjects.c.looked_at,
                deployments.c.pipeline,
                deployments.c.tasks,
                subjects.c.id.label("family"),
                deployments.c.run_id,
                deployments.c.created_at.label("since"),
            )
            .join(deployments, deployments.c.id == subjects.c.id)
            .where(deployments.c.ended_at.is_(None))
        )
        async with self._database.reading(tx) as own:
            rows = [*(await own.execute(tests)), *(await own.execute(rollouts))]
            failures = await _failures(own, {row.family or row.id for row in rows})
        found = [
            WatchedSubject(
                subject=row.id,
                kind=SubjectKind(row.kind),
                pipeline=row.pipeline,
                tasks=tuple(row.tasks),
                family=row.family or row.id,
                run_id=row.run_id,
                since=row.since,
                looked_at=row.looked_at,
                **failures.get(row.family or row.id, {}),
            )
            for row in rows
        ]
        return sorted(found, key=lambda watch: (watch.since, watch.subject))


async def _failures(tx: Tx, ids: Set[str]) -> dict[str, dict[str, Any]]:
    """Why and when the newest looks of these failed, where they did."""
    query = select(meta.c.key, meta.c.value).where(meta.c.key.in_([_FAILED + id for id in ids]))
    return {
        row.key.removeprefix(_FAILED): {
            "failure": row.value["why"],
            "failed_at": datetime.fromisoformat(row.value["at"]),
        }
        for row in await tx.execute(query)
    }
