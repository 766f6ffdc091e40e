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

__all__ = ["KNOWN", "NOTHING", "DeclaredKeys", "read_declared"]


@dataclass(frozen=True, kw_only=True)
class DeclaredKeys:
    """The keys of the subjects that count `items`, and of those adjusted by `covariates`."""

    items: frozenset[int] = frozenset()
    covariates: frozenset[int] = frozenset()

    def __contains__(self, key: int) -> bool:
        return key in self.items or key in self.covariates

    def __bool__(self) -> bool:
        return bool(self.items or self.covariates)

    @classmethod
    def of(cls, rows: Iterable[tuple[int, bool, bool]]) -> DeclaredKeys:
        """What rows of `KNOWN` declare."""
        known = list(rows)
        return cls(
            items=frozenset(key for key, items, _ in known if items),
            covariates=frozenset(key for key, _, adjusts in known if adjusts),
        )


KNOWN: Final = (subjects.c.key, subjects.c.counts_items, subjects.c.adjusts)
"""The columns that say it."""

NOTHING: Final = DeclaredKeys()
"""No subject declares anything."""


async def read_declared(tx: Tx, key: int) -> DeclaredKeys:
    """What one subject declares."""
    found = await tx.execute(select(*KNOWN).where(subjects.c.key == key))
    return DeclaredKeys.of((key, items, adjusts) for key, items, adjusts in found)
