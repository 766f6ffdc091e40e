"""What the subjects of events declare: whether they count items, and whether they are adjusted.

Most do neither, and their events never come here. Items and covariates are kept for those that
declare them; for the others they mean nothing and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select

from tuneproof.store.tables import subjects
from tuneproof.workflow import Tx

__all__ = ["NOTHING", "DeclaredKeys", "read_declared"]


@dataclass(frozen=True, kw_only=True)
class DeclaredKeys:
    """The keys of the subjects that count `items`, and of those that are `cuped`."""

    items: frozenset[int] = frozenset()
    cuped: frozenset[int] = frozenset()

    def __contains__(self, key: int) -> bool:
        return key in self.items or key in self.cuped

    def __bool__(self) -> bool:
        return bool(self.items or self.cuped)

    @classmethod
    def of(cls, rows: Iterable[tuple[int, str | None, bool | None]]) -> DeclaredKeys:
        """What rows of (key, analysis_unit, cuped) declare."""
        known = list(rows)
        return cls(
            items=frozenset(key for key, counted, _ in known if counted == "item"),
            cuped=frozenset(key for key, _, cuped in known if cuped),
        )


NOTHING: Final = DeclaredKeys()
"""No subject declares anything."""


async def read_declared(tx: Tx, key: int) -> DeclaredKeys:
    """What one subject declares."""
    query = select(subjects.c.key, subjects.c.analysis_unit, subjects.c.cuped)
    found = await tx.execute(query.where(subjects.c.key == key))
    return DeclaredKeys.of((k, counted, cuped) for k, counted, cuped in found)
