"""Effects: reference values, the contrast's properties, and every edge with its reason."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.unit.stats import references as ref

from tuneproof.errors import DataError, InputError
from tuneproof.stats import effects
from tuneproof.stats.aggregates import Aggregate, Histogram, Stratum
from tuneproof.stats.contrasts import Contrast, NoContrast, contrast
from tuneproof.stats.effects import Metric

RNG = np.random.default_rng(7)
Y = RNG.beta(1.36, 18.64, 400)
X = Y * 0.8 + RNG.normal(0, 0.02, 400)
D = RNG.integers(1, 30, 400).astype(float)


def pair(b, c, **more) -> list[Stratum]:
    return [Stratum(baseline=Aggregate.of(b, **more), candidate=Aggregate.of(c, **more))]


def test_mean_and_its_variance_are_numpys():
    e = effects.mean(Aggregate.of(Y))
    assert math.isclose(e.value, Y.mean())
    assert math.isclose(e.variance, Y.var(ddof=1) / len(Y), rel_tol=1e-10)


def test_ratio_is_the_delta_method():
    e = effects.ratio(Aggregate.of(Y, d=D), "y", "d")
    r = Y.sum() / D.sum()
    expected = np.var(Y - r * D, ddof=1) / len(Y) / D.mean() ** 2
    assert math.isclose(e.value, r)
    assert math.isclose(e.variance, expected, rel_tol=1e-9)


def test_ratio_and_cuped_agree_with_gbstats():
    b, c = (effects.ratio(a, "c", "y") for a in (ref.BASELINE, ref.CANDIDATE))
    assert math.isclose(c.value - b.value, ref.GBSTATS_RATIO[0], rel_tol=1e-12)
    b, c = effects.cuped(ref.BASELINE, ref.CANDIDATE)
    assert math.isclose(c.value - b.value, ref.GBSTATS_CUPED, rel_tol=1e-4)  # theta within arms


def test_cuped_takes_out_what_the_covariate_explains():
    half = slice(0, 200), slice(200, 400)
    b, c = (Aggregate.of(Y[s], x=X[s]) for s in half)
    plain = effects.mean(b).variance
    adjusted = effects.cuped(b, c)[0].variance
    rho = np.corrcoef(X[half[0]], Y[half[0]])[0, 1]
    assert adjusted < plain
    assert math.isclose(adjusted / plain, 1 - rho**2, rel_tol=0.02)


def test_cuped_without_a_covariate_changes_nothing():
    b, c = Aggregate.of(Y[:200]), Aggregate.of(Y[200:])
    for plain, adjusted in zip(map(effects.mean, (b, c)), effects.cuped(b, c), strict=True):
        assert math.isclose(plain.value, adjusted.value)
        assert math.isclose(plain.variance, adjusted.variance)
    one, other = (contrast(pair(Y[:200], Y[200:]), m) for m in (
        effects.ENGAGEMENT, effects.ENGAGEMENT_CUPED))  # fmt: skip
    assert isinstance(one, Contrast)
    assert isinstance(other, Contrast)
    assert math.isclose(one.lift, other.lift)


def test_proportion_refuses_values_that_are_not_0_or_1():
    with pytest.raises(DataError, match="not 0 or 1"):
        effects.proportion(Aggregate.of([0.5, 0.5]))
    with pytest.raises(DataError, match="no units"):
        effects.proportion(Aggregate())


@pytest.mark.parametrize("function", [effects.mean, effects.ratio])
def test_fewer_than_two_units_have_no_variance(function):
    with pytest.raises(DataError, match="at least 2"):
        function(Aggregate.of([0.5]))


def test_ratio_over_nothing_is_refused():
    with pytest.raises(DataError, match="sums to 0"):
        effects.ratio(Aggregate.of([0.0, 0.0], c=[1.0, 2.0]))


def test_log_ratio_refuses_zero():
    zero = effects.Estimate(value=0.0, variance=0.1, n=9)
    with pytest.raises(DataError, match="positive values"):
        effects.log_ratio(zero, zero)


@pytest.mark.parametrize("pair_", [("y", "x"), ("d", "c"), ("x", "d"), ("y", "m"), ("c", "m")])
def test_metric_of_two_variables_needs_their_cross_product(pair_):
    allowed = {("d", "c"), ("y", "x"), ("y", "m")}
    if pair_ in allowed:
        Metric(name="m", numerator=pair_[0], denominator=pair_[1])
    else:
        with pytest.raises(InputError, match="no cross product"):
            Metric(name="m", numerator=pair_[0], denominator=pair_[1])


def test_cuped_adjusts_engagement_only():
    with pytest.raises(InputError, match="CUPED"):
        Metric(name="m", numerator="c", adjusted=True)


class TestQuantile:
    edges = tuple(np.linspace(0, 1, 101))

    def test_is_interpolated_within_its_bin(self):
        h = Histogram(edges=(0.0, 10.0, 20.0), counts=(0, 4, 4, 0))
        assert [effects.quantile(h, q).value for q in (0.125, 0.5, 0.75)] == [2.5, 10.0, 15.0]

    def test_is_exact_to_the_width_of_a_bin(self):
        values = RNG.random(5000)
        h = Histogram.of(values, self.edges)
        for q in (0.05, 0.5, 0.95):
            assert abs(effects.quantile(h, q).value - np.quantile(values, q)) < 0.011

    def test_interval_covers_as_often_as_it_says(self):
        hits = 0
        for _ in range(300):
            found = effects.quantile(Histogram.of(RNG.random(400), self.edges), 0.9)
            hits += found.lower <= 0.9 <= found.upper
        assert hits / 300 > 0.91

    def test_above_the_last_edge_is_open_and_says_so(self):
        found = effects.quantile(Histogram.of([5.0] * 99, (1.0, 2.0)), 0.95)
        assert (found.value, found.upper) == (2.0, math.inf)
        with pytest.raises(DataError, match="open above"):
            _ = found.estimate

    def test_arms_compare_by_their_quantiles(self):
        b = effects.quantile(Histogram.of(RNG.random(5000), self.edges), 0.5).estimate
        c = effects.quantile(Histogram.of(RNG.random(5000) * 0.8, self.edges), 0.5).estimate
        found = effects.difference(b, c)
        assert abs(found.value + 0.1) < 4 * found.standard_error

    def test_of_nothing_is_refused(self):
        with pytest.raises(DataError, match="no values"):
            effects.quantile(Histogram.empty((1.0,)), 0.5)
        with pytest.raises(InputError):
            effects.quantile(Histogram.of([1.0], (1.0,)), math.nan)


class TestContrast:
    def test_with_one_phase_is_the_plain_log_ratio(self):
        b, c = Y[:300], Y[300:] * 1.1
        found = contrast(pair(b, c), min_units=50)
        assert isinstance(found, Contrast)
        plain = effects.log_ratio(*(effects.mean(Aggregate.of(v)) for v in (b, c)))
        assert math.isclose(found.log_ratio, plain.value, rel_tol=1e-9)
        assert math.isclose(found.variance, plain.variance, rel_tol=1e-9)
        assert found.n == 400

    @given(
        st.lists(st.tuples(st.integers(50, 300), st.integers(50, 300), st.floats(0.2, 5.0)),
                 min_size=1, max_size=5),
        st.integers(0, 2**32 - 1),
    )  # fmt: skip
    @settings(max_examples=40, deadline=None)
    def test_equal_arms_give_no_lift_however_level_and_split_move(self, phases, seed):
        strata = []
        for i, (n_b, n_c, level) in enumerate(phases):
            y = np.array([0.02, 0.06, 0.1]) * level
            strata.append(
                Stratum(
                    phase=str(i),
                    baseline=Aggregate.of(np.tile(y, n_b)),
                    candidate=Aggregate.of(np.tile(y, n_c)),
                )
            )
        found = contrast(strata)
        assert isinstance(found, Contrast)
        assert abs(found.lift) < 1e-9

    def test_splitting_a_phase_keeps_its_information(self):
        y, c = np.tile(Y, 5), np.tile(Y, 2)
        whole = contrast(pair(y, c))
        halves = contrast(
            [*pair(y[:1000], c[:400]), *pair(y[1000:], c[400:])],
        )
        assert isinstance(whole, Contrast)
        assert isinstance(halves, Contrast)
        assert math.isclose(whole.n, halves.n)
        assert math.isclose(whole.variance, halves.variance, rel_tol=0.02)
        assert math.isclose(whole.lift, halves.lift, rel_tol=1e-9, abs_tol=1e-9)

    def test_order_of_phases_leaves_the_effect_alone(self):
        a, b = pair(Y[:200], Y[200:] * 1.2), pair(Y * 2, Y[:100] * 2)
        one, other = contrast([*a, *b]), contrast([*b, *a])
        assert isinstance(one, Contrast)
        assert isinstance(other, Contrast)
        assert math.isclose(one.lift, other.lift)
        assert math.isclose(one.variance, other.variance)

    @given(st.floats(0.01, 100))
    def test_unit_of_the_outcome_does_not_matter(self, scale):
        one = contrast(pair(Y[:200], Y[200:]))
        other = contrast(pair(Y[:200] * scale, Y[200:] * scale))
        assert isinstance(one, Contrast)
        assert isinstance(other, Contrast)
        assert math.isclose(one.lift, other.lift, rel_tol=1e-6)
        assert math.isclose(one.variance, other.variance, rel_tol=1e-6)

    def test_thin_phases_have_no_weight(self):
        found = contrast([*pair(Y[:200], Y[200:]), *pair(Y * 9, Y[:49])])
        assert isinstance(found, Contrast)
        assert found.phases == ("1",)
        assert found.n == 400

    @pytest.mark.parametrize(
        ("strata", "reason"),
        [
            ([], "no phase has units yet"),
            ([Stratum(baseline=Aggregate(), candidate=Aggregate())], "no phase has units yet"),
            (pair(Y, Y[:0]), "no phase has 50 matured units in both arms (0 so far)"),
            (pair(Y, Y[:60]), "60 of 100 matured units"),
            (pair(np.zeros(200), Y[:200]), "relative lift is undefined"),
            (pair(np.full(200, 0.1), Y[:200]), "all units of the baseline have the same"),
            (pair(Y[:200], np.full(200, 0.1)), "all units of the candidate have the same"),
            (pair(np.zeros(200), np.zeros(200)), "relative lift is undefined"),
        ],
    )
    def test_what_cannot_be_answered_has_its_reason(self, strata, reason):
        found = contrast(strata)
        assert isinstance(found, NoContrast)
        assert reason in found.reason

    def test_ratio_over_a_denominator_of_nothing_has_its_reason(self):
        found = contrast(pair(Y[:200], Y[200:]), effects.ENGAGEMENT_PER_ITEM)
        assert isinstance(found, NoContrast)
        assert "denominator" in found.reason

    def test_items_without_any_variance_are_no_answer(self):
        arm = Aggregate.of(np.full(200, 0.3), m=np.full(200, 3.0))
        found = contrast(
            [Stratum(baseline=arm, candidate=arm)], effects.ENGAGEMENT_PER_ITEM
        )  # fmt: skip
        assert isinstance(found, NoContrast)
        assert "no variance" in found.reason

    def test_dead_candidate_of_items_is_compared_with_the_variance_of_no_difference(self):
        items = RNG.integers(1, 9, 400).astype(float)
        baseline = Aggregate.of(Y[:300] * items[:300], m=items[:300])
        dead = Aggregate.of(np.zeros(100), m=items[300:])
        found = contrast([Stratum(baseline=baseline, candidate=dead)], effects.ENGAGEMENT_PER_ITEM)
        assert isinstance(found, Contrast)
        assert found.log_ratio is None
        assert found.lift == -1.0
        one = contrast(pair(Y[:300], np.zeros(100)))
        assert isinstance(one, Contrast)
        assert math.isclose(found.variance, one.variance, rel_tol=0.35)

    def test_one_item_a_unit_gives_the_answer_of_units(self):
        ones = np.ones(200)
        arms = [Aggregate.of(y, m=ones) for y in (Y[:200], Y[200:400] * 1.2)]
        strata = [Stratum(baseline=arms[0], candidate=arms[1])]
        items, units = contrast(strata, effects.ENGAGEMENT_PER_ITEM), contrast(strata)
        assert isinstance(items, Contrast)
        assert isinstance(units, Contrast)
        assert math.isclose(items.lift, units.lift)
        assert math.isclose(items.variance, units.variance)

    def test_covariate_narrows_the_interval_by_what_it_explains(self):
        rng = np.random.default_rng(7)
        x = rng.normal(1, 0.3, 20_000)
        y = 1 + 0.7 * (x - 1) / 0.3 * 0.2 + rng.normal(0, 0.2 * math.sqrt(1 - 0.49), 20_000)
        arms = [Aggregate.of(y[s], x=x[s]) for s in (slice(10_000), slice(10_000, 20_000))]
        strata = [Stratum(baseline=arms[0], candidate=arms[1])]
        plain, cuped = contrast(strata), contrast(strata, effects.ENGAGEMENT_CUPED)
        assert isinstance(plain, Contrast)
        assert isinstance(cuped, Contrast)
        assert plain.saved is None
        assert cuped.saved == pytest.approx(1 - cuped.variance / plain.variance)
        assert cuped.saved == pytest.approx(0.49, abs=0.02)

    @pytest.mark.parametrize("level", [0.0, 1e-4])
    def test_covariate_is_left_out_where_it_would_hide_a_dead_candidate(self, level):
        x = RNG.random(400)
        arms = [
            Aggregate.of(0.05 + 0.1 * x[:300] + 0.01 * Y[:300], x=x[:300]),
            Aggregate.of(level * (1 + Y[300:400]), x=x[300:400]),
        ]
        strata = [Stratum(baseline=arms[0], candidate=arms[1])]
        plain, cuped = contrast(strata), contrast(strata, effects.ENGAGEMENT_CUPED)
        assert isinstance(plain, Contrast)
        assert isinstance(cuped, Contrast)
        assert cuped.saved == 0.0
        assert cuped.variance == plain.variance
        assert cuped.lift == plain.lift < -0.9

    def test_dead_candidate_is_compared_with_the_variance_of_no_difference(self):
        found = contrast(pair(Y[:300], np.zeros(100)))
        assert isinstance(found, Contrast)
        assert found.log_ratio is None
        assert found.lift == -1.0
        assert found.variance > 0

    @pytest.mark.parametrize("price", [1e-9, 3.1e-6, 0.1, 1 / 3, 7e4])
    def test_constant_price_is_exact(self, price):
        arms = [Aggregate.of(Y[:200], d=D[s], c=D[s] * p) for s, p in (
            (slice(200), price), (slice(200, 400), price * 0.85))]  # fmt: skip
        found = contrast([Stratum(baseline=arms[0], candidate=arms[1])], effects.COST_PER_TOKEN)
        assert isinstance(found, Contrast)
        assert found.exact
        assert found.variance == 0.0
        assert math.isclose(found.lift, -0.15, rel_tol=1e-9)

    def test_constant_price_of_a_unit_is_exact_too(self):
        arms = [Aggregate.of(Y[:200], c=np.full(200, p)) for p in (0.3, 0.2)]
        found = contrast([Stratum(baseline=arms[0], candidate=arms[1])], effects.COST)
        assert isinstance(found, Contrast)
        assert found.exact
        assert math.isclose(found.lift, -1 / 3)

    def test_price_that_varies_a_little_is_not_taken_for_constant(self):
        c = D * (1 + RNG.normal(0, 1e-3, 400))
        found = contrast(
            [Stratum(baseline=Aggregate.of(Y[:200], d=D[:200], c=c[:200]),
                     candidate=Aggregate.of(Y[200:], d=D[200:], c=c[200:]))],
            effects.COST_PER_TOKEN,
        )  # fmt: skip
        assert isinstance(found, Contrast)
        assert not found.exact

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=30, deadline=None)
    def test_exchanging_the_arms_turns_the_sign(self, seed):
        rng = np.random.default_rng(seed)
        b, c = rng.beta(2, 20, 150), rng.beta(3, 20, 250)
        one, other = contrast(pair(b, c)), contrast(pair(c, b))
        assume(isinstance(one, Contrast) and isinstance(other, Contrast))
        assert math.isclose(one.log_ratio, -other.log_ratio)
        assert math.isclose(one.variance, other.variance)
