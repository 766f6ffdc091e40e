"""What the subjects of events declare: whether they count items or are adjusted, and how they count
outcomes that are absent or large.

Most do none of it, and their events never come here. Items and covariates are kept for those that
declare them; for the others they mean nothing and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import select

from tuneproof.store.tables import subjects
from tuneproof.workflow import Tx

__all__ = ["KNOWN", "NOTHING", "DeclaredKeys", "read_declared"]


@dataclass(frozen=True, kw_only=True)
class DeclaredKeys:
    """The keys of the subjects that count `items`, and of those adjusted by `covariates`.

    `absent` says for others how an absent outcome counts ("zero", "worst"), `caps` what one counts
    at most, in billionths.
    """

    items: frozenset[int] = frozenset()
    covariates: frozenset[int] = frozenset()
    absent: Mapping[int, str] = field(default_factory=dict)
    caps: Mapping[int, int] = field(default_factory=dict)

    def __contains__(self, key: int) -> bool:
        known = (self.items, self.covariates, self.absent, self.caps)
        return any(key in keys for keys in known)

    @property
    def sums_more(self) -> bool:
        """Whether there are sums of items or covariates."""
        return bool(self.items or self.covariates)

    def absent_counts(self, key: int, arm: int) -> bool:
        """Whether a unit of this arm without an outcome counts as one with 0."""
        rule = self.absent.get(key)
        return rule == "zero" or (rule == "worst" and arm == _CANDIDATE)

    def counted(self, key: int, arm: int, y: int | None) -> int | None:
        """What an outcome counts, in billionths; None: the unit is left out."""
        if y is None:
            return 0 if self.absent_counts(key, arm) else None
        cap = self.caps.get(key)
        return y if cap is None else min(y, cap)

    @classmethod
    def of(cls, rows: Iterable[Sequence[Any]]) -> DeclaredKeys:
        """What rows of `KNOWN` declare."""
        known = list(rows)
        return cls(
            items=frozenset(key for key, items, *_ in known if items),
            covariates=frozenset(key for key, _, adjusts, *_ in known if adjusts),
            absent={key: absent for key, _, _, absent, _ in known if absent},
            caps={key: cap for key, *_, cap in known if cap is not None},
        )


KNOWN: Final = (
    subjects.c.key,
    subjects.c.counts_items,
    subjects.c.adjusts,
    subjects.c.absent,
    subjects.c.cap,
)
"""The columns that say it."""

_CANDIDATE: Final = 1
"""The arm's number in the tables."""

NOTHING: Final = DeclaredKeys()
"""No subject declares anything."""


async def read_declared(tx: Tx, key: int) -> DeclaredKeys:
    """What one subject declares."""
    found = await tx.execute(select(*KNOWN).where(subjects.c.key == key))
    return DeclaredKeys.of(found)
