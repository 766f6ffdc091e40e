"""Shrinkage: what selection adds, the prior takes away."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.stats import references as known

from tuneproof.errors import DataError, InputError
from tuneproof.stats import sequential, shrinkage
from tuneproof.stats.aggregates import Aggregate, Stratum
from tuneproof.stats.shrinkage import Prior, default_prior


def history(seed: int, count: int, draw) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(seed)
    errors = rng.uniform(0.05, 0.12, count)
    return list(rng.normal(draw(rng, count), errors)), list(errors)


def test_prior_is_that_of_the_same_sum_in_r():
    prior = shrinkage.fit_prior(*known.PAST_EXPERIMENTS)
    assert prior.weights == pytest.approx(known.R_PRIOR, rel=1e-11)
    assert (prior.mode, prior.experiments) == (0.0, 14)


@pytest.mark.parametrize(("seen", "error", "mean", "lift", "lower", "upper"), known.R_POSTERIORS)
def test_posterior_is_that_of_integration_without_mixture_algebra(
    seen, error, mean, lift, lower, upper
):
    found = shrinkage.shrink(seen, error, shrinkage.fit_prior(*known.PAST_EXPERIMENTS))
    assert math.log1p(found.lift) == pytest.approx(mean, abs=1e-9)
    assert found.mean_lift == pytest.approx(lift, abs=1e-9)
    assert math.log1p(found.lower) == pytest.approx(lower, abs=1e-9)
    assert math.log1p(found.upper) == pytest.approx(upper, abs=1e-9)


@pytest.mark.parametrize(
    ("draw", "share_within_10_percent"),
    [
        (lambda rng, n: rng.normal(0, 0.12, n), 0.595),
        (lambda rng, n: rng.normal(0, 0.25, n) * (rng.random(n) < 0.2), 0.862),
        (lambda rng, n: 0.1 * rng.standard_t(3, n), 0.609),
    ],
    ids=["normal", "most are nothing", "fat tails"],
)
def test_prior_is_recovered_from_many_experiments(draw, share_within_10_percent):
    prior = shrinkage.fit_prior(*history(1, 4000, draw))
    within = sum(
        w * math.erf(0.1 / (s * math.sqrt(2)))
        for s, w in zip(prior.scales, prior.weights, strict=True)
    )
    assert within == pytest.approx(share_within_10_percent, abs=0.04)


def test_without_history_the_default_is_used_and_each_experiment_moves_it():
    assert shrinkage.fit_prior([], []) == default_prior()
    spreads = [shrinkage.fit_prior([0.01] * n, [0.02] * n).sd for n in (0, 1, 3, 10, 50)]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 0.1 < spreads[0]


def test_default_is_as_described():
    prior = default_prior()
    rng = np.random.default_rng(1)
    scales = rng.choice(prior.scales, 200_000, p=np.array(prior.weights) / sum(prior.weights))
    lifts = np.abs(rng.normal(0, scales))
    assert np.mean(lifts < math.log(1.15)) == pytest.approx(0.8, abs=0.01)
    assert np.mean(lifts > math.log(1.5)) == pytest.approx(0.05, abs=0.01)


@given(
    st.lists(st.tuples(st.floats(-2, 2), st.floats(1e-4, 1)), min_size=1, max_size=12),
    st.randoms(),
)
def test_order_and_sign_of_the_past_do_not_matter(past, random):
    prior = shrinkage.fit_prior([d for d, _ in past], [s for _, s in past])
    turned = shrinkage.fit_prior([-d for d, _ in past], [s for _, s in past])
    random.shuffle(past)
    mixed = shrinkage.fit_prior([d for d, _ in past], [s for _, s in past])
    assert mixed.weights == pytest.approx(prior.weights)
    assert turned.weights == prior.weights
    assert sum(prior.weights) == pytest.approx(1)


def test_exact_and_contradicting_experiments_have_a_prior():
    prior = shrinkage.fit_prior([0.3, -0.2, 0.0, 5.0], [1e-9] * 4)
    assert 0.5 < prior.sd < 3
    assert shrinkage.fit_prior([0.3] * 3000, [1e-9] * 3000).sd == pytest.approx(0.32, abs=0.01)


@given(st.floats(-1, 1), st.floats(0.001, 2), st.floats(-0.2, 0.2), st.floats(0, 1))
def test_lands_between_the_prior_and_the_observed(log_lift, error, mean, sd):
    for prior in (Prior.normal(mean=mean, sd=sd), shifted(mean)):
        found = shrinkage.shrink(log_lift, error, prior)
        low, high = sorted([mean, log_lift])
        assert low - 1e-9 <= math.log1p(found.lift) <= high + 1e-9
        assert found.lower <= found.lift + 1e-9
        assert found.lift <= found.upper + 1e-9
        assert found.lift <= found.mean_lift + 1e-12
        assert 0 <= found.weight <= 1 + 1e-12


def shifted(mode: float) -> Prior:
    prior = default_prior()
    return Prior(mode=mode, scales=prior.scales, weights=prior.weights)


@given(st.floats(-3, 3), st.floats(0.001, 3), st.floats(0.01, 1))
def test_higher_figures_are_expected_to_be_higher(log_lift, step, error):
    low, high = shrinkage.shrink(log_lift, error), shrinkage.shrink(log_lift + step, error)
    assert low.lift < high.lift
    assert low.lower <= high.lower + 1e-9


@given(st.floats(-3, 3), st.floats(0.01, 2))
def test_expected_lift_is_the_same_whichever_arm_is_called_the_baseline(log_lift, error):
    there, back = shrinkage.shrink(log_lift, error), shrinkage.shrink(-log_lift, error)
    assert (1 + there.lift) * (1 + back.lift) == pytest.approx(1)
    assert (1 + there.lower) * (1 + back.upper) == pytest.approx(1, rel=1e-6)


def test_strong_figures_are_left_alone_and_moderate_ones_drawn_in():
    kept = [shrinkage.shrink(d, 0.1).weight for d in (0.1, 0.3, 1.0)]
    assert kept[0] < 0.7
    assert kept[-1] > 0.95
    normal = Prior.normal(mean=0.0, sd=0.15)
    assert shrinkage.shrink(0.1, 0.1, normal).weight == shrinkage.shrink(1.0, 0.1, normal).weight


def test_more_certain_figures_are_kept_more():
    kept = [shrinkage.shrink(0.2, e).weight for e in (0.01, 0.1, 0.5)]
    assert kept == sorted(kept, reverse=True)
    exact = shrinkage.shrink(0.2, 0.0)
    assert (exact.lift, exact.lower, exact.upper) == pytest.approx((math.expm1(0.2),) * 3)


def test_one_normal_is_the_conjugate_answer():
    found = shrinkage.shrink(0.4, 0.1, Prior.normal(mean=0.1, sd=0.2))
    assert math.log1p(found.lift) == pytest.approx(0.1 + 0.8 * 0.3)
    sd = 0.1 * math.sqrt(0.8)
    assert math.log1p(found.upper) - math.log1p(found.lift) == pytest.approx(
        1.959964 * sd, rel=1e-6
    )
    assert math.log1p(found.mean_lift) == pytest.approx(0.34 + sd * sd / 2)


def test_a_point_mass_at_the_mode_may_hold_the_interval():
    nothing = Prior(mode=0.0, scales=(0.0, 0.2), weights=(0.99, 0.01))
    found = shrinkage.shrink(0.05, 0.1, nothing)
    assert found.lower == pytest.approx(0.0, abs=1e-8)
    assert found.upper == pytest.approx(0.0, abs=1e-8)
    assert shrinkage.shrink(0.7, 0.1, nothing).lower > 0.1


def test_figures_beyond_any_float_are_infinite_not_errors():
    assert shrinkage.shrink(800.0, 1e-9).lift == math.inf
    assert shrinkage.shrink(-800.0, 1e-9).lift == -1.0


@pytest.mark.parametrize("best_of", [1, 5])
def test_interval_covers_winners_too(best_of):
    prior = Prior(mode=0.0, scales=(0.05, 0.3), weights=(0.8, 0.2))
    rng = np.random.default_rng(8)
    shape = (6000 if best_of == 1 else 1200, best_of)
    true = rng.normal(0, rng.choice(prior.scales, shape, p=prior.weights))
    seen = rng.normal(true, 0.1)
    best = seen.argmax(1)[:, None]
    true, seen = (np.take_along_axis(a, best, 1)[:, 0] for a in (true, seen))
    won = seen > (0.2 if best_of == 1 else -math.inf)
    found = [shrinkage.shrink(s, 0.1, prior) for s in seen[won]]
    hits = [f.lower <= math.expm1(t) <= f.upper for f, t in zip(found, true[won], strict=True)]
    assert abs(np.mean(hits) - 0.95) < 4 * math.sqrt(0.05 * 0.95 / won.sum())
    gap = np.array([math.log1p(f.lift) for f in found]) - true[won]
    assert abs(gap.mean()) < 4 * gap.std() / math.sqrt(won.sum())


def test_estimate_is_shrunk_and_none_stays_none():
    y = np.random.default_rng(8).beta(2, 20, 2000)
    strata = [Stratum(baseline=Aggregate.of(y), candidate=Aggregate.of(y[:500] * 1.3))]
    estimate = sequential.lift(strata)
    found = shrinkage.shrink_estimate(estimate)
    assert found.observed == pytest.approx(estimate.lift)
    assert 0 < found.lift < estimate.lift
    assert shrinkage.shrink_estimate(sequential.lift([])) is None
    dead = sequential.lift([Stratum(baseline=Aggregate.of(y), candidate=Aggregate.of(y * 0))])
    assert shrinkage.shrink_estimate(dead) is None
    with pytest.raises(InputError, match="difference"):
        shrinkage.shrink_estimate(sequential.difference(strata))


@pytest.mark.parametrize(
    ("lifts", "errors"),
    [([0.1], []), ([math.nan] * 3, [0.1] * 3), ([0.1] * 3, [0.0] * 3), ([0.1] * 3, [math.nan] * 3)],
)
def test_history_that_cannot_be_is_refused(lifts, errors):
    with pytest.raises(DataError):
        shrinkage.fit_prior(lifts, errors)


def test_impossible_numbers_are_refused():
    with pytest.raises(DataError):
        shrinkage.shrink(math.nan, 0.1)
    with pytest.raises(InputError):
        shrinkage.shrink(0.1, 0.1, alpha=0)


@pytest.mark.parametrize(
    ("scales", "weights"),
    [
        ((-1.0,), (1.0,)),
        ((0.1, 0.2), (1.0,)),
        ((0.1,), (0.9,)),
        ((0.1, 0.2), (1.5, -0.5)),
        ((), ()),
    ],
)
def test_impossible_priors_are_refused(scales, weights):
    with pytest.raises(InputError):
        Prior(mode=0.0, scales=scales, weights=weights)
