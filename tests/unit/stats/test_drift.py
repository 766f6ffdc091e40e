"""A drift is told where there is one, and hardly ever where there is none, however often asked."""

from __future__ import annotations

import math
import random

import pytest

from tuneproof.errors import DataError, InputError
from tuneproof.stats.drift import drift, drift_of_kinds


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


def test_kinds_that_stay_are_told_in_at_most_their_share_however_often_asked() -> None:
    draw, level, worlds = random.Random(4), 0.05, 400
    told = 0
    for seed in range(worlds):
        kinds = draw.choices(range(6), (50, 20, 15, 10, 4, 1), k=450)
        log_e = drift_of_kinds(kinds[:100], kinds[100:], seed=seed).log_e
        told += log_e >= -math.log(level)
    assert told / worlds <= level + 2.6 * math.sqrt(level * (1 - level) / worlds)


def test_a_kind_that_grew_or_is_new_is_told_with_its_shares() -> None:
    draw = random.Random(5)
    window = draw.choices(range(4), k=300)
    grew = drift_of_kinds(window, draw.choices(range(4), (1, 1, 4, 1), k=300))
    assert (grew.fired, grew.kind) == (True, 2)
    assert (grew.before or 0) < 0.35 < (grew.after or 0)
    new = drift_of_kinds(window, draw.choices(range(5), k=300))
    assert (new.fired, new.kind, new.before) == (True, 4, 0.0)


def test_a_kind_that_hardly_moved_is_not_told_and_nothing_says_nothing() -> None:
    window = [0, 1] * 5_000
    slight = drift_of_kinds(window, ([0] * 53 + [1] * 47) * 200, alpha=0.9)
    assert (slight.log_e > 0.2, slight.fired) == (True, False)
    for empty in (drift_of_kinds([], [1, 2]), drift_of_kinds([1, 2], [])):
        assert (empty.fired, empty.p_value, empty.kind) == (False, 1.0, None)
    with pytest.raises(InputError):
        drift_of_kinds([1], [1], alpha=0)


def test_a_weeks_rhythm_is_no_drift_and_a_drift_within_it_is() -> None:
    """Seen: a window that ended on a Friday, and a weekend of twice the rate, was told."""
    draw, level, worlds = random.Random(6), 0.05, 200

    def day(number: int, times: float = 1.0) -> list[float]:
        usual = 2.0 if number % 7 >= 5 else 1.0
        return [times * usual * draw.betavariate(2, 30) for _ in range(20)]

    days = [number % 7 for number in range(21) for _ in range(20)]
    split = 12 * 20
    strata = (days[:split], days[split:])
    told, blind = 0, 0
    for seed in range(worlds):
        values = [value for number in range(21) for value in day(number)]
        found = drift(values[:split], values[split:], strata=strata, seed=seed)
        told += found.log_e >= -math.log(level)
        blind += drift(values[:split], values[split:], seed=seed).log_e >= -math.log(level)
    assert told / worlds <= level + 2.6 * math.sqrt(level * (1 - level) / worlds)
    assert blind / worlds > 0.2
    moved = [value for n in range(21) for value in day(n, times=1.0 if n < 12 else 0.6)]
    assert drift(moved[:split], moved[split:], strata=strata).fired


def test_a_day_that_the_window_did_not_have_is_compared_with_itself() -> None:
    found = drift([1.0] * 50, [2.0] * 50, strata=([0] * 50, [1] * 50))
    assert (found.fired, found.p_value > 0.5) == (False, True)
