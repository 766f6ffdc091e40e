"""Bounds of declared looks: published values, and the error that they spend."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.stats import references as ref

from tuneproof.errors import InputError
from tuneproof.stats import brownian, spending

FIVE = [0.2, 0.4, 0.6, 0.8, 1.0]


def test_obrien_fleming_bounds_at_five_looks_are_the_published_ones():
    found = spending.bounds(FIVE, alpha_one_sided=0.025)
    assert [round(b, 3) for b in found] == list(ref.OBRIEN_FLEMING_FIVE)


def test_pocock_bounds_at_five_looks_are_the_published_ones():
    found = spending.bounds(FIVE, alpha_one_sided=0.025, spending="pocock")
    assert np.allclose(found, ref.POCOCK_FIVE, atol=0.0011)


def test_one_look_is_the_fixed_test():
    assert math.isclose(spending.bounds([1.0])[0], 1.959963984540054, rel_tol=1e-9)


fractions = st.lists(st.floats(0.02, 1.0), min_size=1, max_size=8, unique=True).map(sorted)


@given(fractions, st.sampled_from(["obrien_fleming", "pocock"]), st.floats(0.001, 0.1))
@settings(max_examples=30, deadline=None)
def test_bounds_spend_exactly_the_error(looks, name, alpha):
    if np.min(np.diff([0.0, *looks])) < 0.01:
        return
    found = spending.bounds(looks, alpha_one_sided=alpha, spending=name)
    spent = brownian.first_crossing(looks, found).ever_above
    assert math.isclose(spent, spending.spent(looks[-1], alpha, name), rel_tol=1e-6, abs_tol=1e-14)


def test_bounds_do_not_depend_on_looks_to_come():
    assert np.allclose(spending.bounds(FIVE)[:3], spending.bounds(FIVE[:3]))


def test_looks_too_early_to_spend_anything_have_no_finite_bound():
    assert spending.bounds([0.005, 1.0])[0] == math.inf


def test_stagewise_p_is_uniform_without_an_effect():
    rng = np.random.default_rng(3)
    steps = rng.normal(0, math.sqrt(1 / 3), (4000, 3)).cumsum(1)
    looks = [1 / 3, 2 / 3, 1.0]
    limits = spending.bounds(looks)
    p = []
    for path in steps[:1500]:
        z = path / np.sqrt(looks)
        stop = next((k for k in range(3) if z[k] >= limits[k]), 2)
        p.append(spending.stagewise_p_value(float(z[stop]), looks[: stop + 1]))
    assert abs(np.mean(np.array(p) < 0.5) - 0.5) < 4 * 0.5 / math.sqrt(1500)
    assert abs(np.mean(np.array(p) < 0.025) - 0.025) < 4 * math.sqrt(0.025 / 1500)


def test_two_sided_crossing_agrees_with_drawing():
    rng = np.random.default_rng(4)
    looks = np.arange(1, 11) / 10
    paths = rng.normal(0.2, math.sqrt(0.1), (200_000, 10)).cumsum(1) / np.sqrt(looks)
    up, down = paths >= 2.2, paths <= -2.0
    first_up = np.where(up.any(1), up.argmax(1), 99)
    first_down = np.where(down.any(1), down.argmax(1), 99)
    found = brownian.first_crossing(looks, [2.2] * 10, [-2.0] * 10, drift=2.0)
    assert abs((first_up < first_down).mean() - found.ever_above) < 0.005
    assert abs((first_down < first_up).mean() - found.ever_below) < 0.001


def test_nothing_is_lost_between_bounds():
    walk = brownian.Walk(drift=0.5)
    out = 0.0
    for t in FIVE:
        out += walk.exit_above(t, 2 * math.sqrt(t)) + walk.exit_below(t, -2 * math.sqrt(t))
        walk.advance(t, -2 * math.sqrt(t), 2 * math.sqrt(t))
    assert math.isclose(out + walk.mass, 1.0, rel_tol=1e-9)


def test_bounds_that_leave_nothing_end_the_walk():
    found = brownian.first_crossing([0.5, 1.0], [-20.0, -20.0])
    assert found.above[0] == 1.0
    assert found.above[1] == 0.0


@pytest.mark.parametrize("looks", [[0.5, 0.2], [0.0, 1.0], [math.nan], [-1.0]])
def test_looks_that_do_not_rise_are_refused(looks):
    with pytest.raises(InputError, match="does not rise"):
        spending.bounds(looks)


def test_unknown_words_and_numbers_are_refused():
    with pytest.raises(InputError, match="unknown"):
        spending.spent(0.5, 0.025, "linear")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="alpha"):
        spending.pocock(0.5, 0)
    with pytest.raises(InputError, match="above 1"):
        spending.bounds([0.5, 1.5])
    with pytest.raises(InputError, match="finite"):
        spending.stagewise_p_value(math.nan, [1.0])
    with pytest.raises(InputError, match="one bound"):
        brownian.first_crossing([1.0], [1.0, 2.0])
