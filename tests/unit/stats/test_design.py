"""Planning: closed forms that invert each other, and probabilities that drawing confirms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tuneproof.errors import DataError, InputError
from tuneproof.stats import design, sequential, spending
from tuneproof.stats.aggregates import Aggregate
from tuneproof.stats.design import Traffic

CV = 0.8078
TWENTY = Traffic(units_per_hour=20, share=0.1, cv=CV)
LIFTS = st.floats(0.02, 1.0)
SHARES = st.floats(0.02, 0.98)


@given(LIFTS, st.floats(0.1, 3.0), SHARES, st.floats(0.3, 0.99))
@settings(deadline=None)
def test_sample_size_is_the_first_that_has_the_power(lift, cv, share, wanted):
    n = design.sample_size(lift=lift, cv=cv, share=share, power=wanted)
    assert design.power(n, lift=lift, cv=cv, share=share) >= wanted - 1e-9
    if n > 1:
        assert design.power(n - 1, lift=lift, cv=cv, share=share) < wanted + 1e-9


@given(LIFTS, st.floats(0.1, 3.0), SHARES)
@settings(deadline=None)
def test_minimum_detectable_effect_inverts_the_sample_size(lift, cv, share):
    n = design.sample_size(lift=lift, cv=cv, share=share)
    found = design.minimum_detectable_effect(n, cv=cv, share=share)
    assert found <= lift * (1 + 1e-9)
    assert design.power(n, lift=found, cv=cv, share=share) == pytest.approx(0.8)


@given(SHARES)
def test_split_and_its_mirror_cost_the_same_and_half_costs_least(share):
    n = design.sample_size(lift=0.2, cv=1.0, share=share)
    assert abs(n - design.sample_size(lift=0.2, cv=1.0, share=1 - share)) <= 1
    assert n >= design.sample_size(lift=0.2, cv=1.0, share=0.5)


def test_power_is_that_of_the_normal_test():
    z = math.log(1.2) / (CV * math.sqrt(1 / 336 + 1 / 3024))
    expected = stats.norm.sf(stats.norm.ppf(0.975) - z)
    assert design.power(3360, lift=0.2, cv=CV, share=0.1) == pytest.approx(expected)


def test_size_at_ninety_ten_has_its_power_when_drawn():
    rng = np.random.default_rng(9)
    n = design.sample_size(lift=0.2, cv=0.3, share=0.1)
    n_c = round(n * 0.1)
    shape = 1 / 0.3**2
    b = rng.gamma(shape, 1 / shape, (4000, n - n_c))
    c = rng.gamma(shape, 1.2 / shape, (4000, n_c))
    d = np.log(c.mean(1) / b.mean(1))
    v = c.var(1, ddof=1) / n_c / c.mean(1) ** 2 + b.var(1, ddof=1) / (n - n_c) / b.mean(1) ** 2
    assert abs((d / np.sqrt(v) > 1.96).mean() - 0.8) < 0.03


def test_sequence_agrees_with_drawing():
    rng = np.random.default_rng(10)
    plan = design.sequence(TWENTY, lift=0.2, optimum_n=1500)
    steps = rng.normal(math.log(1.2) / CV * 0.3, 1 / math.sqrt(20), (20_000, 168)) * 20
    n = 20.0 * np.arange(1, 169)
    z = steps.cumsum(1) / np.sqrt(n)
    limit = np.array([sequential.critical_value(x, optimum_n=1500) for x in n])
    first = (z > limit)[:, 49:]
    assert abs(first.any(1).mean() - plan.probability) < 0.01
    hours = np.where(first.any(1), first.argmax(1) + 50.0, np.inf)
    assert abs(np.median(hours) - plan.median_h) <= 2
    assert abs(np.minimum(hours, 168).mean() - plan.mean_h) < 1.5


def test_without_an_effect_the_sequence_stays_within_its_error():
    plan = design.sequence(TWENTY, lift=0.0)
    assert plan.probability == pytest.approx(plan.wrong)
    assert plan.probability + plan.wrong < 0.05


def test_declared_looks_spend_their_error_and_find_what_they_promise():
    assert design.declared_looks(TWENTY, lift=0.0).probability == pytest.approx(0.025, rel=1e-6)
    assert design.declared_looks(TWENTY, lift=0.2).probability > 0.97
    assert design.plan(TWENTY, lift=0.2).probability > 0.86
    pocock = design.declared_looks(TWENTY, lift=0.2, spending="pocock")
    assert pocock.probability < design.declared_looks(TWENTY, lift=0.2).probability


def test_promotion_by_the_users_rule_is_no_promise_of_its_lift():
    assert 0.2 < design.plan(TWENTY, lift=0.10).probability < 0.35
    assert design.plan(TWENTY, lift=0.15).probability > 0.5
    assert design.plan(TWENTY, lift=0.15, decision="confirmed").probability < 0.014


def test_confirmed_decides_in_a_week_from_about_400_posts_an_hour():
    slow, fast = (
        design.plan(Traffic(units_per_hour=u, cv=CV), lift=0.2, decision="confirmed")
        for u in (20, 400)
    )
    assert slow.probability < 0.15
    assert fast.probability > 0.8


def test_duration_is_long_enough_and_not_longer():
    hours = design.duration_hours(TWENTY, lift=0.2)
    enough = design.sequence(TWENTY, lift=0.2, hours=hours, every_h=hours / 100)
    short = design.sequence(TWENTY, lift=0.2, hours=hours - 8, every_h=(hours - 8) / 100)
    assert enough.probability >= 0.8
    assert short.probability < 0.8


def test_duration_that_no_year_is_enough_for_is_none():
    assert design.duration_hours(Traffic(units_per_hour=0.1, cv=CV), lift=0.05) is None


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_mirrored_split_takes_as_long(share):
    hours = design.duration_hours(Traffic(units_per_hour=50, share=share, cv=CV), lift=0.2)
    mirror = design.duration_hours(Traffic(units_per_hour=50, share=1 - share, cv=CV), lift=0.2)
    assert hours == mirror


def test_non_inferiority_is_planned_with_the_margin_as_target():
    fast = Traffic(units_per_hour=2000, cv=CV)
    shown = design.sequence(fast, lift=0.0, above=-0.05).probability
    assert shown > 0.95
    assert design.sequence(fast, lift=-0.05, above=-0.05).probability < 0.025


def test_traffic_too_thin_for_a_single_look_says_never():
    plan = design.sequence(Traffic(units_per_hour=1, cv=CV), lift=0.2)
    assert (plan.probability, plan.median_h, plan.mean_h) == (0.0, None, 168.0)
    assert "0 %" in plan.sentence()


def test_spread_comes_from_the_history():
    y = np.random.default_rng(1).beta(1.36, 18.64, 100_000)
    assert design.coefficient_of_variation(Aggregate.of(y)) == pytest.approx(CV, rel=0.02)
    with pytest.raises(DataError):
        design.coefficient_of_variation(Aggregate.of([0.0, 0.0]))
    with pytest.raises(DataError):
        design.coefficient_of_variation(Aggregate.of([0.1]))


@pytest.mark.parametrize(
    "call",
    [
        lambda: design.sample_size(lift=0.0, cv=1.0),
        lambda: design.sample_size(lift=-1.0, cv=1.0),
        lambda: design.sample_size(lift=0.2, cv=0.0),
        lambda: design.sample_size(lift=0.2, cv=1.0, share=1.0),
        lambda: design.sample_size(lift=0.2, cv=1.0, power=1.0),
        lambda: design.sample_size(lift=math.nan, cv=1.0),
        lambda: design.power(0, lift=0.2, cv=1.0),
        lambda: design.power(100, lift=0.2, cv=1.0, alpha=0),
        lambda: design.minimum_detectable_effect(100, cv=1.0, power=0),
        lambda: Traffic(units_per_hour=0),
        lambda: Traffic(units_per_hour=math.nan),
        lambda: design.sequence(TWENTY, lift=0.2, hours=0),
        lambda: design.duration_hours(TWENTY, lift=0.0),
        lambda: design.plan(TWENTY, decision="maybe"),
    ],
)
def test_what_cannot_be_planned_is_refused(call):
    with pytest.raises(InputError):
        call()


def test_bounds_of_the_plan_are_those_of_the_test():
    assert spending.bounds(design.DECLARED_LOOKS) == spending.bounds((3 / 7, 5 / 7, 1.0))


@pytest.mark.parametrize("count", [2, 7, 1000, 100_003])
def test_equal_outcomes_have_no_spread_however_they_were_added_up(count):
    assert design.coefficient_of_variation(Aggregate.of([0.1] * count)) == 0.0


def test_duration_never_looks_beyond_what_is_allowed():
    traffic = Traffic(units_per_hour=2000, share=0.5, cv=0.8)
    assert design.duration_hours(traffic, lift=0.5, longest_h=10) <= 10
    assert design.duration_hours(traffic, lift=0.01, longest_h=2) is None
