"""How batches are dealt out to the members of a team."""

from __future__ import annotations

import dataclasses
from itertools import zip_longest

from hypothesis import given
from hypothesis import strategies as st

from tuneproof_trainer.engines.lora.shares import AT_ONCE, MemberBatches
from tuneproof_trainer.engines.lora.team import Alone


@dataclasses.dataclass
class Member(Alone):
    """One of several."""

    rank: int = 0
    size: int = 1


def dealt(rows: int, batch: int, size: int, epoch: int = 0) -> list[MemberBatches]:
    shares = [MemberBatches(rows, batch, Member(rank, size), seed=3) for rank in range(size)]
    for one in shares:
        one.set_epoch(epoch)
    return shares


def steps(rows: int, batch: int, size: int) -> list[list[int]]:
    """The rows of each step, of all members and passes, without fillers."""
    team = dealt(rows, batch, size)
    passes = [list(one) for one in team]
    found = []
    for at in range(0, len(passes[0]), team[0].passes):
        step = [row for own in passes for part in own[at : at + team[0].passes] for row in part]
        found.append(sorted(row for row in step if row != team[0].filler))
    return found


counts = st.integers(1, 70)
sizes = st.integers(1, 9)


@given(counts, counts, sizes)
def test_any_number_of_members_takes_the_same_steps(rows: int, batch: int, size: int) -> None:
    batch = min(rows, batch)
    found = steps(rows, batch, size)
    assert found == steps(rows, batch, 1)
    assert sorted(row for step in found for row in step) == list(range(rows))
    assert [len(step) for step in found[:-1]] == [batch] * (rows // batch - (rows % batch == 0))


@given(counts, counts, sizes)
def test_members_make_equal_passes_of_bearable_width(rows: int, batch: int, size: int) -> None:
    team = dealt(rows, min(rows, batch), size)
    shapes = {tuple(len(part) for part in one) for one in team}
    assert len(shapes) == 1
    (shape,) = shapes
    assert len(shape) == len(team[0])
    assert max(shape) <= team[0].width <= AT_ONCE
    assert all(width > 0 for width in shape)


@given(counts, counts, sizes)
def test_fillers_are_fewer_than_members_in_each_step(rows: int, batch: int, size: int) -> None:
    team = dealt(rows, min(rows, batch), size)
    for parts in zip_longest(*team):
        fillers = sum(row == team[0].filler for part in parts for row in part)
        assert fillers < size


def test_each_epoch_has_an_order_of_its_own_and_no_seed_keeps_the_rows_in_place() -> None:
    first, again, second = (list(dealt(40, 8, 2, epoch)[0]) for epoch in (0, 0, 1))
    assert first == again != second
    assert list(MemberBatches(5, 2, Alone(), None)) == [[0, 1], [2, 3], [4]]
