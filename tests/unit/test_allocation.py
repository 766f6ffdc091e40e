"""Adaptive shares: what the next phase gets, and estimates that stay valid under it."""

from __future__ import annotations

import numpy as np
import pytest

from tuneproof.experiments.allocation import CEILING, FLOOR, reweighted_lift, thompson_share
from tuneproof.stats import fixed, sequential
from tuneproof.stats.aggregates import Aggregate, Stratum

RUNS = 300


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


def adapted(rng: np.random.Generator, lift: float) -> tuple[list[Stratum], bool]:
    """Two weeks of daily phases under drift, whose shares adapt; was it ever significant?"""
    strata: list[Stratum] = []
    share, found = 0.1, False
    for day in range(14):
        mean = 0.05 * (1 + 0.1 * day)
        n = rng.binomial(960, share)
        strata.append(
            Stratum(
                baseline=arm(rng, mean, 960 - n),
                candidate=arm(rng, mean * (1 + lift), n),
                phase=str(day),
            )
        )
        found = found or sequential.lift(strata).significant
        share = thompson_share(strata, share)
    return strata, found


def test_adapted_shares_find_nothing_where_nothing_is_though_the_level_drifts():
    rng = np.random.default_rng(20250120)
    seen = [adapted(rng, 0.0) for _ in range(RUNS)]
    ever = np.mean([found for _, found in seen])
    covered = np.mean([_holds(strata, 0.0) for strata, _ in seen])
    pooled = np.mean([_pooled_finds(strata) for strata, _ in seen])
    error = np.sqrt(0.05 * 0.95 / RUNS)
    assert ever <= 0.05
    assert covered >= 0.95 - 2 * error
    assert pooled > 0.2, "the careless answer: means over all phases together"


def test_reweighted_lift_covers_a_true_effect_under_adapted_shares():
    rng = np.random.default_rng(7)
    seen = [adapted(rng, 0.15)[0] for _ in range(RUNS)]
    covered = np.mean([_holds(strata, 0.15) for strata in seen])
    assert covered >= 0.95 - 2 * np.sqrt(0.05 * 0.95 / RUNS)


def _holds(strata: list[Stratum], truth: float) -> bool:
    part = reweighted_lift(strata)
    assert part is not None
    assert part.lower is not None
    assert part.upper is not None
    return part.lower <= truth <= part.upper


def _pooled_finds(strata: list[Stratum]) -> bool:
    total = strata[0]
    for s in strata[1:]:
        total = Stratum(
            baseline=total.baseline + s.baseline, candidate=total.candidate + s.candidate
        )
    p_value = fixed.lift([total]).p_value
    return p_value is not None and p_value < 0.05
