"""Subjects: what events belong to, a test or a rollout."""

from __future__ import annotations

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
        async with self._database.reading(tx) as own:
            query = select(subjects.c.kind).where(subjects.c.id == id)
            found = (await own.execute(query)).scalar_one_or_none()
        return None if found is None else SubjectKind(found)


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
