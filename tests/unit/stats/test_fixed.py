"""The classical read-out: equal to its peers and to answers known on public data."""

import math

import numpy as np
import pytest
from scipy import stats
from tests.unit.stats import references as ref

from tuneproof.errors import DataError, InputError
from tuneproof.stats import effects, fixed
from tuneproof.stats.aggregates import Aggregate, Stratum

RNG = np.random.default_rng(2)


def test_welch_is_scipys():
    b, c = RNG.normal(3, 1, 40), RNG.normal(3.5, 2, 25)
    found = fixed.welch(Aggregate.of(b), Aggregate.of(c))
    expected = stats.ttest_ind(c, b, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert math.isclose(found.p_value, expected.pvalue, rel_tol=1e-9)
    assert math.isclose(found.degrees, expected.df, rel_tol=1e-9)
    assert math.isclose(found.lower, interval.low, rel_tol=1e-9)
    assert math.isclose(found.upper, interval.high, rel_tol=1e-9)


def test_welch_is_gbstats_and_tea_tastings():
    found = fixed.welch(ref.BASELINE, ref.CANDIDATE)
    got = (found.effect, found.lower, found.upper)
    assert np.allclose(got, ref.GBSTATS_WELCH, rtol=1e-12, atol=0)
    assert math.isclose(found.p_value, ref.GBSTATS_WELCH_P, rel_tol=1e-10)


@pytest.mark.parametrize(
    ("metric", "expected", "tolerance"),
    [
        (effects.ENGAGEMENT, ref.TEA_TASTING_LIFT, 1e-12),
        (effects.COST_PER_ENGAGEMENT, ref.TEA_TASTING_RATIO, 1e-12),
        (effects.ENGAGEMENT_CUPED, ref.TEA_TASTING_CUPED, 1e-4),
    ],
)
def test_relative_lift_is_tea_tastings(metric, expected, tolerance):
    found = fixed.lift(ref.STRATA, metric=metric)
    assert np.allclose((found.effect, found.lower, found.upper), expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize(
    ("returned", "p"), [(ref.COOKIE_CATS_DAY_1, 0.0744), (ref.COOKIE_CATS_DAY_7, 0.0016)]
)
def test_cookie_cats_retention(returned, p):
    arms = map(ref.successes, ref.COOKIE_CATS_PLAYERS, returned)
    found = fixed.proportions(*arms)
    assert round(found.p_value, 4) == p


def test_cookie_cats_shares_and_split():
    gate_30, gate_40 = map(ref.successes, ref.COOKIE_CATS_PLAYERS, ref.COOKIE_CATS_DAY_7)
    shares = [effects.proportion(arm).value for arm in (gate_30, gate_40)]
    assert [round(s, 4) for s in shares] == [0.1902, 0.1820]
    assert round(fixed.srm_p_value(ref.COOKIE_CATS_PLAYERS, [0.5, 0.5]), 4) == 0.0086


@pytest.mark.parametrize(
    ("converted", "expected"),
    [
        (ref.UDACITY_ENROLMENTS, (-0.0206, -0.0291, -0.0120)),
        (ref.UDACITY_PAYMENTS, (-0.0049, -0.0116, 0.0019)),
    ],
)
def test_udacity_conversions(converted, expected):
    found = fixed.proportions(*map(ref.successes, ref.UDACITY_CLICKS, converted))
    assert tuple(round(v, 4) for v in (found.effect, found.lower, found.upper)) == expected


def test_unpooled_proportions_use_each_arms_own_variance():
    b, c = ref.successes(100, 10), ref.successes(100, 30)
    found = fixed.proportions(b, c, pooled=False)
    error = math.sqrt(0.1 * 0.9 / 100 + 0.3 * 0.7 / 100)
    assert math.isclose(found.statistic, 0.2 / error)


@pytest.mark.parametrize(
    ("b", "c", "reason"),
    [
        (Aggregate(), Aggregate.of([0.1, 0.2]), "not enough data"),
        (Aggregate.of([0.1, 0.1]), Aggregate.of([0.1, 0.1]), "no variance"),
    ],
)
def test_what_cannot_be_tested_has_its_reason_and_no_number(b, c, reason):
    for found in (fixed.welch(b, c), fixed.lift([Stratum(baseline=b, candidate=c)])):
        assert (found.p_value, found.lower, found.upper) == (None, None, None)
        assert found.reason
    assert reason in fixed.welch(b, c).reason


def test_proportions_without_units_or_variance_have_their_reason():
    assert "empty" in fixed.proportions(Aggregate(), ref.successes(9, 1)).reason
    assert "no variance" in fixed.proportions(ref.successes(9, 0), ref.successes(9, 0)).reason


def test_lift_of_nothing_and_of_a_flat_price_say_what_they_are():
    y = RNG.beta(2, 20, 300)
    dead = fixed.lift([Stratum(baseline=Aggregate.of(y), candidate=Aggregate.of(np.zeros(300)))])
    assert (dead.effect, dead.p_value) == (-1.0, None)
    b, c = (Aggregate.of(y, d=y * 100, c=y * 100 * p) for p in (0.5, 0.4))
    flat = fixed.lift([Stratum(baseline=b, candidate=c)], metric=effects.COST_PER_TOKEN)
    assert math.isclose(flat.effect, -0.2)
    assert (flat.method, flat.lower, flat.p_value) == ("arithmetic", flat.effect, None)


@pytest.mark.parametrize("alpha", [0, 1, math.nan])
def test_impossible_error_is_refused(alpha):
    arm = ref.successes(9, 1)
    for call in (fixed.welch, fixed.proportions):
        with pytest.raises(InputError):
            call(arm, arm, alpha=alpha)
    with pytest.raises(InputError):
        fixed.lift([], alpha=alpha)


def test_split_of_nothing_is_refused():
    with pytest.raises(DataError):
        fixed.srm_p_value([0, 0], [0.5, 0.5])
    with pytest.raises(DataError):
        fixed.srm_p_value([5, 5], [0.5, 0.4])


def test_a_split_of_other_arms_than_counted_is_refused():
    with pytest.raises(DataError, match="2 counts and 3 shares"):
        fixed.srm_p_value([1, 2], [0.5, 0.25, 0.25])
