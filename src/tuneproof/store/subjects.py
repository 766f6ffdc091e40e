"""Subjects: what events belong to, a test, a rollout or a history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Protocol

from sqlalchemy import insert, select

from tuneproof.settings import Declaration
from tuneproof.stats.effects import Metric
from tuneproof.store.database import Database
from tuneproof.store.sums import NANO
from tuneproof.store.tables import subjects
from tuneproof.workflow import Tx

__all__ = ["SubjectKind", "Subjects", "add_subject"]


class SubjectKind(Enum):
    """What a subject of events is."""

    TEST = "test"
    """One candidate's test against a baseline."""
    ROLLOUT = "rollout"
    """The stepwise move of traffic to a promoted version."""
    HISTORY = "history"
    """What a task's baseline did in a week while nothing was tested: no evidence of anything."""
    SHADOW = "shadow"
    """What a model answered to copies of a task's requests in a week, beside what users got: no
    evidence either."""


class Declaring(Protocol):
    """What events need to know of the test or rollout that they belong to."""

    @property
    def id(self) -> str: ...
    @property
    def metric(self) -> Metric: ...
    @property
    def declaration(self) -> Declaration: ...


class Subjects:
    """The table of subjects."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def kind(self, id: str, *, tx: Tx | None = None) -> SubjectKind | None:
        """What this subject is, or None where there is none of this id."""
        return (await self.kinds([id], tx=tx)).get(id)

    async def kinds(self, ids: Sequence[str], *, tx: Tx | None = None) -> Mapping[str, SubjectKind]:
        """What these subjects are, without those that never were."""
        found: dict[str, SubjectKind] = {}
        async with self._database.reading(tx) as own:
            for start in range(0, len(ids), 1000):
                query = select(subjects.c.id, subjects.c.kind)
                part = query.where(subjects.c.id.in_(ids[start : start + 1000]))
                found.update((id, SubjectKind(kind)) for id, kind in await own.execute(part))
        return found


async def add_subject(tx: Tx, declared: Declaring, kind: SubjectKind) -> None:
    """Take the events of a test or rollout from now on."""
    told = declared.declaration
    row = {
        "id": declared.id,
        "kind": kind.value,
        "counts_items": declared.metric.denominator is not None,
        "adjusts": declared.metric.adjusted,
        "absent": None if told.missing == "exclude" else told.missing,
        "cap": None if told.cap is None else round(told.cap * NANO),
    }
    await tx.execute(insert(subjects), row)
