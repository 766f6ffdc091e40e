"""A drift is told where there is one, and hardly ever where there is none, however often asked."""

from __future__ import annotations

import math
import random

import pytest

from tuneproof.errors import DataError, InputError
from tuneproof.stats.drift import drift


def test_looked_at_daily_for_ten_weeks_no_drift_is_told_in_at_most_its_share() -> None:
    """The bet keeps the most that it ever had, so one look at the end is all the daily looks."""
    draw, level, worlds = random.Random(1), 0.05, 400
    told = 0
    for seed in range(worlds):
        values = [draw.betavariate(2, 30) for _ in range(100 + 350)]
        log_e = drift(values[:100], values[100:], seed=seed).log_e
        told += log_e >= -math.log(level)  # without the least shift that is asked for besides
    assert told / worlds <= level + 2.6 * math.sqrt(level * (1 - level) / worlds)


@pytest.mark.parametrize("shift", [1.5, 0.6])
def test_outcomes_that_moved_are_told_with_where_they_went(shift: float) -> None:
    draw = random.Random(2)
    window = [draw.betavariate(2, 30) for _ in range(300)]
    found = drift(window, [shift * draw.betavariate(2, 30) for _ in range(300)])
    assert found.fired
    assert found.chance is not None
    assert (found.chance > 0.5) == (shift > 1)
    assert found.before is not None
    assert found.after is not None
    assert (found.after > found.before) == (shift > 1)


def test_more_values_go_on_where_fewer_ended() -> None:
    draw = random.Random(3)
    window = [draw.random() for _ in range(50)]
    later = [draw.random() + 0.2 for _ in range(120)]
    evidence = [drift(window, later[:n]).log_e for n in range(0, 121, 10)]
    assert evidence == sorted(evidence)
    assert drift(window, later) == drift(window, later)


def test_equal_values_are_no_drift_and_a_difference_without_weight_is_not_told() -> None:
    assert not drift([5.0] * 100, [5.0] * 500).fired
    window = [i / 1000 for i in range(1000)]
    slight = drift(window, [i % 1000 / 1000 for i in range(0, 40_000, 7)], alpha=0.9)
    assert not slight.fired
    assert abs((slight.chance or 0) - 0.5) < 0.05


def test_what_is_no_number_is_refused_and_nothing_says_nothing() -> None:
    with pytest.raises(DataError):
        drift([math.nan], [1.0])
    with pytest.raises(InputError):
        drift([1.0], [1.0], alpha=1)
    empty = drift([], [1.0, 2.0])
    assert (empty.fired, empty.p_value, empty.chance) == (False, 1.0, None)
