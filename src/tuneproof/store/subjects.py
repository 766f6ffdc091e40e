"""Subjects: what events belong to, a test or a rollout."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from tuneproof.store.tables import subjects

if TYPE_CHECKING:
    from tuneproof.store.store import Store

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
    def analysis_unit(self) -> str: ...
    @property
    def cuped(self) -> bool: ...


class Subjects:
    """The table of subjects."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def kind(self, id: str, *, tx: AsyncConnection | None = None) -> SubjectKind | None:
        """What this subject is, or None where there is none of this id."""
        async with self._store.reading(tx) as own:
            query = select(subjects.c.kind).where(subjects.c.id == id)
            found = (await own.execute(query)).scalar_one_or_none()
        return None if found is None else SubjectKind(found)


async def add_subject(tx: AsyncConnection, declared: Declaring, kind: SubjectKind) -> None:
    """Take the events of a test or rollout from now on."""
    row = {
        "id": declared.id,
        "kind": kind.value,
        "analysis_unit": declared.analysis_unit,
        "cuped": declared.cuped,
    }
    await tx.execute(insert(subjects), row)
