"""Those who train one job: one process alone, or several that each hold the whole model.

Members take shares of every batch (`shares`), and meet to add up, to agree, and to wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

__all__ = ["Alone", "ProcessGroupTeam", "Team"]

_T = TypeVar("_T")


class Team(Protocol):
    """A member's view of its team. All members call the same methods in the same order."""

    @property
    def rank(self) -> int:
        """This member's number; 0 leads: it alone decides, writes and tells."""

    @property
    def size(self) -> int:
        """How many members there are."""

    def agree(self, value: _T) -> _T:
        """The leader's value, on every member."""

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all members, of each place."""

    def gather(self, value: _T) -> list[_T]:
        """Every member's value, in the order of ranks."""


class Alone:
    """A team of one."""

    rank = 0
    size = 1

    def agree(self, value: _T) -> _T:
        """The value itself."""
        return value

    def total(self, values: Sequence[float]) -> list[float]:
        """The values themselves."""
        return list(values)

    def gather(self, value: _T) -> list[_T]:
        """The one value."""
        return [value]


class ProcessGroupTeam:
    """The members of torch's process group, which must be there."""

    def __init__(self) -> None:
        from torch import distributed

        self._group: Any = distributed
        self.rank: int = distributed.get_rank()
        self.size: int = distributed.get_world_size()
        self._device = "cuda" if distributed.get_backend() == "nccl" else "cpu"

    def agree(self, value: _T) -> _T:
        """The leader's value."""
        values = [value]
        self._group.broadcast_object_list(values, src=0, device=self._device)
        return values[0]

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums in double precision."""
        import torch

        summed = torch.tensor(list(values), dtype=torch.float64, device=self._device)
        self._group.all_reduce(summed)
        found: list[float] = summed.tolist()
        return found

    def gather(self, value: _T) -> list[_T]:
        """Every member's value."""
        found: list[Any] = [None] * self.size
        self._group.all_gather_object(found, value)
        return found
