"""Evidence: its totals stay what they are however phases and halves are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tuneproof.experiments import Arm, Cell, Evidence, strata_of
from tuneproof.stats.aggregates import Aggregate, merge

# Multiples of 1/1024: their sums and squares are exact, so equal means equal.
units = st.lists(
    st.tuples(st.sampled_from(Arm), st.integers(1, 4), st.integers(0, 1024), st.booleans()),
    max_size=60,
)


def cells(rows: list[tuple[Arm, int, float]]) -> tuple[Cell, ...]:
    """One cell for each phase and arm."""
    found: dict[tuple[int, Arm], list[float]] = {}
    for arm, phase, y in rows:
        found.setdefault((phase, arm), []).append(y)
    return tuple(
        Cell(phase=phase, arm=arm, units=Aggregate.of(ys), exposed=len(ys))
        for (phase, arm), ys in sorted(found.items())
    )


@given(units, st.integers(1, 4))
def test_splitting_a_phase_never_changes_its_own_totals(rows, split):
    whole = cells([(arm, phase, y / 1024) for arm, phase, y, _ in rows])
    parted = cells(
        [
            (arm, 10 if later and phase == split else phase, y / 1024)
            for arm, phase, y, later in rows
        ]
    )
    for arm in Arm:
        before = merge(c.units for c in whole if c.arm is arm and c.phase == split)
        after = merge(c.units for c in parted if c.arm is arm and c.phase in (split, 10))
        assert before == after
        others = [
            [c for c in part if c.arm is arm and c.phase not in (split, 10)]
            for part in (whole, parted)
        ]
        assert others[0] == others[1]
        assert Evidence(cells=whole).arm(arm) == Evidence(cells=parted).arm(arm)


@given(units)
def test_the_two_halves_are_the_whole(rows):
    whole = cells([(arm, phase, y / 1024) for arm, phase, y, _ in rows])
    early = cells([(arm, phase, y / 1024) for arm, phase, y, later in rows if not later])
    evidence = Evidence(cells=whole, first_half=early)
    for arm in Arm:
        halves = (*early, *evidence.second_half())
        assert merge(c.units for c in halves if c.arm is arm) == merge(
            c.units for c in whole if c.arm is arm
        )


@given(units, st.randoms())
def test_strata_do_not_depend_on_the_order_of_cells(rows, random):
    made = list(cells([(arm, phase, y / 1024) for arm, phase, y, _ in rows]))
    shuffled = made.copy()
    random.shuffle(shuffled)
    assert strata_of(made) == strata_of(shuffled)
