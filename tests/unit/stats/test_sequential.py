"""The confidence sequence: equal to its peers, to its paper, and honest at its edges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.stats import references as ref

from tuneproof.errors import DataError, InputError
from tuneproof.stats import effects, fixed, sequential, spending
from tuneproof.stats.aggregates import Aggregate, Stratum

RNG = np.random.default_rng(11)
Y = RNG.beta(1.36, 18.64, 4000)


def pair(b, c, **more) -> list[Stratum]:
    return [Stratum(baseline=Aggregate.of(b, **more), candidate=Aggregate.of(c, **more))]


@pytest.mark.parametrize(("alpha", "optimum_n"), ref.GBSTATS_SEQUENTIAL)
def test_equation_9_is_gbstats_to_the_last_digits(alpha, optimum_n):
    lower, upper, p = ref.GBSTATS_SEQUENTIAL[alpha, optimum_n]
    found = sequential.difference(ref.STRATA, alpha=alpha, optimum_n=optimum_n)
    assert abs(found.lower - lower) < 2e-16
    assert abs(found.upper - upper) < 2e-16
    assert abs(found.p_value - p) < 2e-15


def test_ratio_metric_is_gbstats():
    found = sequential.difference(ref.STRATA, metric=effects.COST_PER_ENGAGEMENT, optimum_n=1500.0)
    assert math.isclose(found.lift, ref.GBSTATS_RATIO[0], rel_tol=1e-12)
    assert math.isclose(found.lower, ref.GBSTATS_RATIO[1], rel_tol=1e-12)
    assert math.isclose(found.upper, ref.GBSTATS_RATIO[2], rel_tol=1e-12)
    assert math.isclose(found.p_value, ref.GBSTATS_RATIO_P, rel_tol=1e-11)


@given(st.floats(10, 1e7), st.floats(0.001, 0.5), st.floats(10, 1e6))
def test_critical_value_is_the_normal_mixture_of_howard_et_al(n, alpha, optimum_n):
    # Howard, Ramdas, McAuliffe, Sekhon 2021 (Annals of Statistics 49:1055), equation 14, which is
    # what confseq's `normal_mixture_bound` computes: sqrt((v + r) log((v + r) / (r alpha²))).
    r = 1 / sequential.tuning(alpha, optimum_n)
    bound = math.sqrt((n + r) * math.log((n + r) / (r * alpha**2)))
    ours = sequential.critical_value(n, alpha=alpha, optimum_n=optimum_n)
    assert math.isclose(ours, bound / math.sqrt(n), rel_tol=1e-9)


def test_sequence_is_tightest_about_its_optimum():
    def width(n, optimum_n):
        return sequential.critical_value(n, optimum_n=optimum_n) / math.sqrt(n)

    widths = {o: width(2000, o) for o in (20, 200, 2000, 20_000, 200_000)}
    assert min(widths, key=widths.__getitem__) == 2000


@given(st.floats(-6, 6), st.floats(100, 1e6), st.floats(0.005, 0.2))
def test_p_value_interval_and_e_value_tell_the_same(z, n, alpha):
    c = sequential.critical_value(n, alpha=alpha)
    p = sequential.anytime_p_value(z, n, alpha=alpha)
    e = sequential.log_e_value(z, n, alpha=alpha)
    if abs(abs(z) - c) > 1e-6:
        assert (p < alpha) == (abs(z) > c) == (e > -math.log(alpha))


@given(st.floats(-0.3, 0.3), st.integers(100, 1500))
def test_interval_holds_the_estimate_and_significance_is_its_exclusion_of_zero(shift, n):
    found = sequential.lift(pair(Y[:2000], Y[2000 : 2000 + n] * (1 + shift)))
    assert found.lower < found.lift < found.upper
    assert found.significant == (found.p_value < 0.05)


def test_is_wider_than_one_look_and_narrower_with_more_data():
    few, many = pair(Y[:500], Y[500:1000]), pair(Y[:2000], Y[2000:])
    one, other = sequential.lift(few), sequential.lift(many)
    once = fixed.lift(few)
    assert one.lower < once.lower < once.upper < one.upper
    assert other.upper - other.lower < one.upper - one.lower


@pytest.mark.parametrize("n", [0, 1, 49])
def test_without_enough_units_there_is_a_reason_and_no_number(n):
    found = sequential.lift(pair(Y[:500], Y[:n]))
    assert (found.lift, found.lower, found.upper, found.p_value) == (None, None, None, None)
    assert "50 matured units" in found.reason
    assert not found.significant
    assert (found.n_baseline, found.n_candidate) == (500, n)


def test_dead_candidate_is_seen_although_it_has_no_logarithm():
    found = sequential.lift(pair(Y[:2000], np.zeros(200)))
    assert found.lift == -1.0
    assert found.upper < 0
    assert found.significant
    assert found.method == "score confidence sequence"
    assert found.lower == -1.0


def test_constant_price_is_arithmetic_and_not_a_test():
    tokens = RNG.integers(10, 500, 400).astype(float)
    b = Aggregate.of(Y[:200], d=tokens[:200], c=tokens[:200] * 3e-6)
    c = Aggregate.of(Y[200:400], d=tokens[200:], c=tokens[200:] * 2.7e-6)
    found = sequential.lift([Stratum(baseline=b, candidate=c)], metric=effects.COST_PER_TOKEN)
    assert found.lower == found.upper == found.lift
    assert math.isclose(found.lift, -0.1, rel_tol=1e-12)
    assert (found.p_value, found.method) == (None, "arithmetic")


def test_ramp_with_drift_shows_nothing_by_phase_and_a_winner_when_pooled():
    first = pair(np.tile(Y[:900], 10), np.tile(Y[:900], 1))
    second = pair(np.tile(Y[:900] * 1.5, 5), np.tile(Y[:900] * 1.5, 5))
    by_phase = sequential.lift([*first, *second])
    pooled = sequential.lift(
        [
            Stratum(
                baseline=first[0].baseline + second[0].baseline,
                candidate=first[0].candidate + second[0].candidate,
            )
        ]
    )
    assert abs(by_phase.lift) < 1e-9
    assert pooled.lower > 0.1


@pytest.mark.parametrize("alpha", [0, 1, -0.1, math.nan])
def test_impossible_error_is_refused(alpha):
    with pytest.raises(InputError, match="outside"):
        sequential.lift([], alpha=alpha)
    with pytest.raises(InputError):
        sequential.difference([], alpha=alpha)


@pytest.mark.parametrize("optimum_n", [0, -5, math.inf, math.nan])
def test_impossible_optimum_is_refused(optimum_n):
    with pytest.raises(InputError, match="positive number"):
        sequential.lift([], optimum_n=optimum_n)


def test_critical_value_without_units_is_refused():
    with pytest.raises(InputError, match="not a positive"):
        sequential.critical_value(0)


class TestNonInferiority:
    def test_equal_arms_are_no_worse_once_there_is_enough(self):
        y = np.tile(Y, 20)
        found = sequential.non_inferiority(pair(y, y), margin=0.05)
        assert found.holds is True
        assert found.p_value < 0.05

    def test_is_open_while_the_interval_holds_the_margin(self):
        found = sequential.non_inferiority(pair(Y[:500], Y[500:1000]), margin=0.05)
        assert found.holds is None
        assert found.p_value > 0.05

    def test_is_refuted_when_the_whole_interval_is_beyond(self):
        found = sequential.non_inferiority(pair(Y[:2000], Y[2000:] * 0.5), margin=0.05)
        assert found.holds is False
        assert found.p_value == 1.0

    def test_lower_is_better_looks_at_the_other_end(self):
        cost = RNG.gamma(20, 1, 4000)
        same = Aggregate.of(Y[:2000], c=cost[:2000])
        arms = [Stratum(baseline=same, candidate=same)]
        found = sequential.non_inferiority(
            arms, margin=0.05, metric=effects.COST, higher_is_better=False
        )
        assert found.holds is True
        dear = [
            Stratum(
                baseline=arms[0].baseline,
                candidate=Aggregate.of(Y[:2000], c=cost[:2000] * 1.2),
            )
        ]
        assert (
            sequential.non_inferiority(
                dear, margin=0.05, metric=effects.COST, higher_is_better=False
            ).holds
            is False
        )

    @given(st.floats(-0.2, 0.2))
    def test_p_value_and_bound_tell_the_same(self, shift):
        found = sequential.non_inferiority(pair(Y[:2000], Y[2000:] * (1 + shift)), margin=0.1)
        assert (found.holds is True) == (found.p_value < 0.05)

    def test_without_data_there_is_a_reason(self):
        found = sequential.non_inferiority([], margin=0.05)
        assert (found.holds, found.p_value) == (None, None)
        assert found.reason == "no phase has units yet"

    @pytest.mark.parametrize("margin", [0, 1, -0.1, math.nan])
    def test_impossible_margin_is_refused(self, margin):
        with pytest.raises(InputError, match="margin"):
            sequential.non_inferiority([], margin=margin)


class TestGroupSequential:
    LOOKS = (3 / 7, 5 / 7, 1.0)

    def test_significant_exactly_above_its_bound(self):
        for shift in np.linspace(0.8, 1.4, 30):
            found = sequential.group_sequential(
                pair(Y[:2000], Y[2000:3000] * shift), fractions=self.LOOKS
            )
            assert found.significant == (found.z >= found.bound)
            assert found.significant == (found.p_value <= 0.025)
            assert found.significant == (found.lower >= 0)

    def test_early_looks_ask_for_more(self):
        strata = pair(Y[:2000], Y[2000:3000])
        found = [
            sequential.group_sequential(strata, fractions=self.LOOKS[: k + 1]) for k in range(3)
        ]
        assert [f.look for f in found] == [1, 2, 3]
        assert found[0].bound > found[1].bound > found[2].bound > 1.96

    def test_without_enough_units_there_is_a_reason_and_no_number(self):
        found = sequential.group_sequential(pair(Y[:500], Y[:20]), fractions=[3 / 7])
        assert (found.lift, found.lower, found.p_value, found.z) == (None, None, None, None)
        assert not found.significant
        assert "not enough data" in found.reason

    def test_information_of_earlier_looks_makes_the_bounds_exact(self):
        early, late = pair(Y[:500], Y[500:1000]), pair(Y[:2000], Y[2000:])
        first = sequential.group_sequential(early, fractions=[0.5])
        assert first.information == 1000
        plain = sequential.group_sequential(late, fractions=[0.5, 1.0])
        exact = sequential.group_sequential(
            late, fractions=[0.5, 1.0], information_before=[first.information]
        )
        assert exact.bound > plain.bound  # a quarter of the information, not half
        assert exact.bound == spending.bounds([0.5, 1.0], information=[1000, 4000])[1]
        even = spending.bounds([0.5, 1.0], information=[2000, 4000])
        assert np.allclose(even, spending.bounds([0.5, 1.0]))
        with pytest.raises(InputError, match="information at"):
            spending.bounds([0.5, 1.0], information=[1.0])

    @pytest.mark.parametrize("kept", [1000, 900])
    def test_look_without_new_information_keeps_to_the_calendar(self, kept):
        first = sequential.group_sequential(pair(Y[:1000], Y[1000:2000]), fractions=[3 / 7])
        again = sequential.group_sequential(
            pair(Y[:kept], Y[1000 : 1000 + kept]),
            fractions=[3 / 7, 5 / 7],
            information_before=[first.information],
        )
        assert again.bound == spending.bounds([3 / 7, 5 / 7])[1]
        assert again.p_value is not None

    def test_arithmetic_needs_no_bound(self):
        tokens = np.arange(1.0, 201.0)
        b, c = (Aggregate.of(tokens, d=tokens, c=tokens * p) for p in (0.5, 0.6))
        found = sequential.group_sequential(
            [Stratum(baseline=b, candidate=c)], fractions=[1.0], metric=effects.COST_PER_TOKEN
        )
        assert found.significant
        assert (found.z, found.p_value, found.method) == (None, None, "arithmetic")

    @pytest.mark.parametrize("fractions", [[], [0.5, 0.5], [0.9, 0.4], [0.0], [1.2], [math.nan]])
    def test_impossible_looks_are_refused(self, fractions):
        with pytest.raises(InputError):
            sequential.group_sequential(pair(Y[:500], Y[500:]), fractions=fractions)


def test_an_e_value_of_no_number_or_fewer_units_than_none_is_refused():
    with pytest.raises(DataError):
        sequential.log_e_value(math.nan, 100)
    with pytest.raises(InputError):
        sequential.log_e_value(1.0, -1)
    assert sequential.log_e_value(3.0, 0) == 0.0
