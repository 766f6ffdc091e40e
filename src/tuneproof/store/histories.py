"""Histories and shadows: subjects of events a week that are no evidence."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import or_, select

from tuneproof.experiments import ExperimentStatus
from tuneproof.experiments.histories import HISTORY_PHASE, shadow_of
from tuneproof.store.database import Database
from tuneproof.store.subjects import SubjectKind
from tuneproof.store.tables import deployments, experiments, phases, requests, subjects
from tuneproof.store.upserts import insert_or_ignore
from tuneproof.workflow import Tx

__all__ = ["Histories"]


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Histories:
    """The histories and shadows among the subjects, and when histories stood still."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(
        self,
        id: str,
        began: datetime,
        *,
        kind: SubjectKind = SubjectKind.HISTORY,
        tx: Tx | None = None,
    ) -> None:
        """Take the events of a history or shadow from now on; one that is open stays as it is."""
        subject = {
            "id": id,
            "kind": kind.value,
            "counts_items": False,
            "adjusts": False,
        }
        phase = {"subject": id, "number": HISTORY_PHASE, "share": 0.0, "at": began}
        async with self._database.writing(tx) as own:
            await insert_or_ignore(own, subjects, subject)
            await insert_or_ignore(own, phases, phase)

    async def kept(self, before: datetime, *, tx: Tx | None = None) -> list[str]:
        """The histories and shadows whose week began before then and that have raw events."""
        query = (
            select(subjects.c.id)
            .join(phases, phases.c.subject == subjects.c.id)
            .where(
                subjects.c.kind.in_((SubjectKind.HISTORY.value, SubjectKind.SHADOW.value)),
                subjects.c.purged_at.is_(None),
                phases.c.at < before,
            )
            .order_by(subjects.c.id)
        )
        async with self._database.reading(tx) as own:
            return list((await own.execute(query)).scalars())

    async def shadows(
        self, task: str, since: datetime, *, tx: Tx | None = None
    ) -> list[tuple[str, datetime]]:
        """The shadows of a task whose week began since then, and when; the newest first."""
        query = (
            select(subjects.c.id, phases.c.at)
            .join(phases, phases.c.subject == subjects.c.id)
            .where(
                subjects.c.kind == SubjectKind.SHADOW.value,
                subjects.c.id.startswith(f"shadow-{task}-", autoescape=True),
                phases.c.at >= since,
            )
            .order_by(phases.c.at.desc(), subjects.c.id)
        )
        async with self._database.reading(tx) as own:
            found = [(id, at) for id, at in await own.execute(query)]
        return [(id, at) for id, at in found if id.startswith(shadow_of(task, "", at))]

    async def hours(self, ids: Sequence[str], *, tx: Tx | None = None) -> list[datetime]:
        """When each hour began in which one of these histories had a request, oldest first."""
        query = (
            select(requests.c.hour)
            .join(subjects, subjects.c.key == requests.c.subject)
            .where(subjects.c.id.in_(ids), requests.c.hour >= 0)
            .distinct()
            .order_by(requests.c.hour)
        )
        async with self._database.reading(tx) as own:
            found = (await own.execute(query)).scalars().all()
        return [EPOCH + timedelta(hours=hour) for hour in found]

    async def served(
        self, task: str, since: datetime, until: datetime, *, tx: Tx | None = None
    ) -> list[tuple[datetime, datetime]]:
        """The stretches within these instants for which the task had a test or a rollout.

        Of a test that ended early, as it was declared: to its end.
        """
        runs = experiments.c.status == str(ExperimentStatus.RUNNING)
        tests = select(experiments.c.tasks, experiments.c.start_at, experiments.c.end_at, runs)
        tests = tests.where(experiments.c.start_at < until, or_(runs, experiments.c.end_at > since))
        ended = deployments.c.ended_at
        rollouts = select(deployments.c.tasks, deployments.c.created_at, ended, ended.is_(None))
        rollouts = rollouts.where(
            deployments.c.created_at < until, or_(ended.is_(None), ended > since)
        )
        async with self._database.reading(tx) as own:
            found = [*await own.execute(tests), *await own.execute(rollouts)]
        return [
            (max(began, since), until if goes_on else min(over, until))
            for tasks, began, over, goes_on in found
            if task in tasks
        ]
