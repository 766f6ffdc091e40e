"""Which rows each member of a team takes in each pass.

All members draw the same order. Each batch of the job is dealt out to them, so that a job has the
same batches, and up to rounding the same losses, whatever the size of its team. Where a batch
does not divide, shares are filled up with the row number `filler`, from which nothing is learned:
members must make equally many passes over equally many rows, for they add up after each.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from tuneproof_trainer.engines.lora.team import Team

__all__ = ["MemberBatches"]

AT_ONCE = 8
"""Rows that a device holds at once; larger shares are gathered over several passes."""


class MemberBatches:
    """A batch sampler for one member; `rows` are numbered from 0, and the next is the filler."""

    def __init__(self, rows: int, batch: int, team: Team, seed: int | None) -> None:
        self._rows, self._batch, self._team, self._seed = rows, batch, team, seed
        self.epoch = 0
        share = _parts(batch, team.size)
        self.passes = _parts(share, AT_ONCE)
        """Passes over one whole batch."""

        self.width = _parts(share, self.passes)
        """Rows of one pass."""

    @property
    def filler(self) -> int:
        """The number of the row that fills shares up."""
        return self._rows

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has an order of its own."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self._rows, self._batch)
        return whole * self.passes + _parts(_parts(rest, self._team.size), self.width)

    def __iter__(self) -> Iterator[list[int]]:
        """The rows of each pass; as they stand where there is no seed."""
        order = list(range(self._rows))
        if self._seed is not None:
            random.Random(f"{self._seed}/{self.epoch}").shuffle(order)
        for at in range(0, self._rows, self._batch):
            batch = order[at : at + self._batch]
            share = _parts(len(batch), self._team.size)
            batch += [self.filler] * (share * self._team.size - len(batch))
            own = batch[self._team.rank :: self._team.size]
            for start in range(0, share, self.width):
                yield own[start : start + self.width]


def _parts(count: int, size: int) -> int:
    """How many parts of at most `size` make `count`."""
    return -(-count // size)
