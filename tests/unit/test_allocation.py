"""Adaptive shares: what the next phase gets, and estimates that stay valid under it."""

from __future__ import annotations

import numpy as np
import pytest

from tuneproof.experiments.allocation import (
    CEILING,
    FLOOR,
    phase_counts,
    reweighted_lift,
    thompson_share,
)
from tuneproof.stats import fixed
from tuneproof.stats.aggregates import Aggregate, Stratum


def arm(rng: np.random.Generator, mean: float, n: int) -> Aggregate:
    return Aggregate.of(rng.beta(mean * 20, (1 - mean) * 20, n).tolist())


@pytest.mark.parametrize(
    ("lift", "low", "high"), [(1.0, CEILING, CEILING), (-0.6, FLOOR, FLOOR), (0.0, FLOOR, CEILING)]
)
def test_share_follows_the_probability_that_the_candidate_is_better(lift, low, high):
    rng = np.random.default_rng(3)
    strata = [Stratum(baseline=arm(rng, 0.07, 2000), candidate=arm(rng, 0.07 * (1 + lift), 300))]
    assert low <= thompson_share(strata, 0.2) <= high


def test_share_stays_while_nothing_is_known_or_little_would_change():
    rng = np.random.default_rng(3)
    few = [Stratum(baseline=arm(rng, 0.07, 30), candidate=arm(rng, 0.14, 10))]
    assert thompson_share(few, 0.1) == 0.1
    sure = [Stratum(baseline=arm(rng, 0.07, 2000), candidate=arm(rng, 0.2, 300))]
    assert thompson_share(sure, CEILING - 0.01) == CEILING - 0.01


def test_reweighted_lift_is_the_plain_one_where_there_is_one_phase():
    rng = np.random.default_rng(5)
    strata = [Stratum(baseline=arm(rng, 0.07, 900), candidate=arm(rng, 0.08, 100))]
    plain, ours = fixed.lift(strata), reweighted_lift(strata)
    assert ours is not None
    assert ours.lift == pytest.approx(plain.effect)
    assert (ours.lower, ours.upper) == pytest.approx((plain.lower, plain.upper), abs=1e-6)


def test_reweighted_lift_has_no_answer_for_an_empty_arm():
    assert reweighted_lift([]) is None
    assert (
        reweighted_lift([Stratum(baseline=Aggregate.of([0.1] * 9), candidate=Aggregate())]) is None
    )


def test_phase_counts_once_both_arms_have_enough():
    rng = np.random.default_rng(5)
    many, few = arm(rng, 0.07, 50), arm(rng, 0.07, 49)
    assert phase_counts(Stratum(baseline=many, candidate=many))
    assert not phase_counts(Stratum(baseline=many, candidate=few))
    assert phase_counts(Stratum(baseline=many, candidate=few), min_units_phase=49)
