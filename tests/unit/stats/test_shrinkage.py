"""Shrinkage: what selection adds, the prior takes away."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneproof.errors import DataError, InputError
from tuneproof.stats import sequential, shrinkage
from tuneproof.stats.aggregates import Aggregate, Stratum
from tuneproof.stats.shrinkage import DEFAULT_PRIOR, NormalPrior

RNG = np.random.default_rng(8)


def test_prior_is_recovered_from_many_experiments():
    errors = RNG.uniform(0.05, 0.2, 4000)
    seen = RNG.normal(RNG.normal(0.03, 0.12, 4000), errors)
    prior = shrinkage.fit_prior(list(seen), list(errors))
    assert abs(prior.mean - 0.03) < 0.01
    assert abs(prior.sd - 0.12) < 0.01
    assert prior.experiments == 4000


def test_spread_of_mere_noise_is_no_spread():
    errors = [0.1] * 50
    seen = list(RNG.normal(0, 0.05, 50))
    assert shrinkage.fit_prior(seen, errors).sd == 0.0


def test_few_exact_experiments_give_their_sample_deviation():
    seen = [0.1, -0.2, 0.3, 0.05]
    prior = shrinkage.fit_prior(seen, [1e-6] * 4)
    assert prior.sd == pytest.approx(np.std(seen, ddof=1), rel=1e-6)
    assert prior.mean == pytest.approx(np.mean(seen))


def test_without_history_the_default_is_used():
    assert shrinkage.fit_prior([], []) is DEFAULT_PRIOR
    assert shrinkage.fit_prior([0.1, 0.2], [0.1, 0.1]) is DEFAULT_PRIOR


@given(st.floats(-1, 1), st.floats(0.001, 2), st.floats(-0.2, 0.2), st.floats(0, 1))
def test_lands_between_the_prior_and_the_observed(log_lift, error, mean, sd):
    found = shrinkage.shrink(log_lift, error, NormalPrior(mean=mean, sd=sd))
    low, high = sorted([mean, log_lift])
    assert low - 1e-9 <= math.log1p(found.lift) <= high + 1e-9
    assert found.lower <= found.lift + 1e-12
    assert found.lift <= found.upper + 1e-12
    assert 0 <= found.weight <= 1


def test_more_certain_figures_are_kept_more():
    kept = [shrinkage.shrink(0.2, e).weight for e in (0.01, 0.1, 0.5)]
    assert kept == sorted(kept, reverse=True)
    assert shrinkage.shrink(0.2, 0.0).lift == pytest.approx(math.expm1(0.2))


def test_interval_covers_winners_too():
    prior = NormalPrior(mean=0.0, sd=0.1)
    true = RNG.normal(0, 0.1, 20_000)
    seen = RNG.normal(true, 0.1)
    won = seen > 0.2
    hits = 0
    for t, s in zip(true[won], seen[won], strict=True):
        found = shrinkage.shrink(s, 0.1, prior)
        hits += found.lower <= math.expm1(t) <= found.upper
    assert abs(hits / won.sum() - 0.95) < 4 * math.sqrt(0.05 * 0.95 / won.sum())


def test_estimate_is_shrunk_and_none_stays_none():
    y = RNG.beta(2, 20, 2000)
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
    with pytest.raises(InputError):
        NormalPrior(mean=0.0, sd=-1.0)
