"""Comments: what people said of answers in words. They are read by people, and by no look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, delete, select

from tuneproof.experiments import Arm, Comment
from tuneproof.store.database import Database
from tuneproof.store.tables import comments, subjects, units
from tuneproof.store.types import from_micros, to_micros
from tuneproof.store.upserts import insert_or_ignore_all
from tuneproof.workflow import Tx

__all__ = ["Comments", "HeardComment", "forget_comments"]


@dataclass(frozen=True, kw_only=True)
class HeardComment:
    """A comment, and the arm that served its unit first; None where no exposure came yet."""

    comment: Comment
    arm: Arm | None


class Comments:
    """The table of comments."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, said: Sequence[Comment], *, tx: Tx | None = None) -> int:
        """Keep comments, each once by subject, unit and id; how many were new.

        Those of unknown subjects, and of those whose raw events are gone, are left out.
        """
        async with self._database.writing(tx) as own:
            query = select(subjects.c.id, subjects.c.key).where(
                subjects.c.id.in_({one.subject for one in said}), subjects.c.purged_at.is_(None)
            )
            held = query.with_for_update(read=True)
            keys: dict[str, int] = dict((await own.execute(held)).tuples().all())
            rows = [_row(keys[one.subject], one) for one in said if one.subject in keys]
            # In one order everywhere, so that two writers cannot wait for each other.
            rows.sort(key=lambda row: (row["subject"], row["unit"], row["id"]))
            return await insert_or_ignore_all(own, comments, rows)

    async def newest(
        self, subject: str, *, limit: int = 100, tx: Tx | None = None
    ) -> list[HeardComment]:
        """The last comments of a subject, oldest first; none where there is no such subject."""
        of_unit = and_(units.c.subject == comments.c.subject, units.c.unit == comments.c.unit)
        query = (
            select(comments, units.c.b_at, units.c.b_id, units.c.c_at, units.c.c_id)
            .join(subjects, subjects.c.key == comments.c.subject)
            .outerjoin(units, of_unit)
            .where(subjects.c.id == subject)
            .order_by(comments.c.at.desc(), comments.c.unit.desc(), comments.c.id.desc())
            .limit(limit)
        )
        async with self._database.reading(tx) as own:
            rows = (await own.execute(query)).all()
        return [HeardComment(comment=_comment(subject, row), arm=_arm(row)) for row in rows[::-1]]


async def forget_comments(tx: Tx, subject: int) -> None:
    """Delete what was said of a subject."""
    await tx.execute(delete(comments).where(comments.c.subject == subject))


def _row(subject: int, said: Comment) -> dict[str, Any]:
    return {
        "subject": subject,
        "unit": said.unit,
        "id": said.id,
        "at": to_micros(said.at),
        "text": said.text,
    }


def _comment(subject: str, row: Any) -> Comment:
    return Comment(id=row.id, subject=subject, unit=row.unit, at=from_micros(row.at), text=row.text)


def _arm(row: Any) -> Arm | None:
    """The arm that a unit counts in, as `sums.arm_of` has it."""
    served = [
        (at, id, arm)
        for at, id, arm in (
            (row.b_at, row.b_id, Arm.BASELINE),
            (row.c_at, row.c_id, Arm.CANDIDATE),
        )
        if at is not None
    ]
    return min(served)[2] if served else None
