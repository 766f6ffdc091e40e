"""Guardrails: exact from counts, valid at every look, and calm where nothing is wrong."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta as beta_distribution
from tests.unit.stats import references as ref

from tuneproof.errors import DataError, InputError
from tuneproof.stats import guardrails, sequential
from tuneproof.stats.aggregates import LATENCY_MS_EDGES, Aggregate, Histogram, Stratum


@pytest.mark.parametrize(("k", "n", "limit"), [(3, 40, 0.05), (12, 60, 0.05), (9, 30, 0.2)])
def test_bernoulli_e_value_is_its_integral(k, n, limit):
    prior = beta_distribution(1, 1 / limit - 1)

    def integrand(p):
        return (p / limit) ** k * ((1 - p) / (1 - limit)) ** (n - k) * prior.pdf(p)

    expected = quad(integrand, limit, 1)[0] / prior.sf(limit)
    assert math.isclose(guardrails.bernoulli_evalue(k, n, limit).e_value, expected, rel_tol=1e-7)


@given(st.floats(0.01, 0.5), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_one_more_request_never_raises_the_expected_e_value(limit, share):
    # the supermartingale property itself: E[e_{n+1} | counts] <= e_n at any true rate <= limit
    n = 40
    k = round(share * n)
    rate = limit * 0.999
    now = guardrails.log_bernoulli_evalue(k, n, limit)
    failed = guardrails.log_bernoulli_evalue(k + 1, n + 1, limit)
    passed = guardrails.log_bernoulli_evalue(k, n + 1, limit)
    expected = rate * math.exp(failed - now) + (1 - rate) * math.exp(passed - now)
    assert expected <= 1 + 1e-9


def test_series_and_library_agree_where_both_work():
    from scipy.special import betaincc, betaln

    for a, b, x in [(1.0, 2000.0, 0.05), (40.0, 3000.0, 0.05), (5.0, 300.0, 0.1)]:
        direct = float(betaln(a, b)) + math.log(float(betaincc(a, b, x)))
        term = total = 1.0
        for i in range(10_000):
            term *= (a + b + i) / (b + 1 + i) * (1 - x)
            total += term
        series = a * math.log(x) + b * math.log1p(-x) - math.log(b) + math.log(total)
        assert math.isclose(direct, series, rel_tol=1e-10)


def test_e_value_is_continuous_where_floats_end():
    values = [guardrails.log_bernoulli_evalue(n // 50, n, 0.05) for n in range(20_000, 90_000, 500)]
    steps = np.diff(values)
    assert np.isfinite(values).all()
    assert (np.abs(steps) < 0.2).all()


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0.001, 0.999))
@settings(max_examples=100, deadline=None)
def test_any_counts_give_a_finite_answer(n, share, limit):
    k = round(n * share)
    found = guardrails.bernoulli_evalue(k, n, limit)
    assert math.isfinite(found.log_e)
    assert found.e_value >= 0
    assert 0 <= found.p_value <= 1
    assert found.fired == (found.log_e >= math.log(100))


@given(st.integers(1, 2000), st.floats(0.01, 0.5))
@settings(max_examples=50, deadline=None)
def test_more_failures_are_more_evidence(n, limit):
    values = [
        guardrails.log_bernoulli_evalue(k, n, limit) for k in range(0, n + 1, max(n // 20, 1))
    ]
    assert values == sorted(values)


def test_harm_is_found_within_an_hour_and_health_is_left_alone():
    assert guardrails.error_rate(20, 100).fired
    assert not guardrails.error_rate(3, 100).fired
    assert not guardrails.error_rate(30_000, 10**6).fired
    assert "20 of 100 (20.0%)" in guardrails.error_rate(20, 100).reason


def test_no_requests_are_no_evidence():
    found = guardrails.error_rate(0, 0)
    assert (found.e_value, found.p_value, found.fired, found.rate) == (1.0, 1.0, False, None)
    assert "no requests yet" in found.reason


@pytest.mark.parametrize(("k", "n"), [(-1, 10), (11, 10)])
def test_counts_that_cannot_be_are_refused(k, n):
    with pytest.raises(DataError, match="cannot be"):
        guardrails.error_rate(k, n)


@pytest.mark.parametrize("limit", [0, 1, -1, math.nan])
def test_impossible_limits_are_refused(limit):
    with pytest.raises(InputError):
        guardrails.error_rate(1, 10, limit=limit)
    with pytest.raises(InputError):
        guardrails.error_rate(1, 10, alpha=limit)


def test_latency_is_the_share_above_its_limit():
    h = Histogram.of([2000.0] * 940 + [2000.1] * 60, LATENCY_MS_EDGES)
    found = guardrails.latency(h)
    assert (found.failures, found.trials, found.limit) == (60, 1000, 0.05)
    assert found.log_e == guardrails.error_rate(60, 1000).log_e
    with pytest.raises(DataError, match="not an edge"):
        guardrails.latency(h, limit_ms=2100)
    with pytest.raises(InputError, match="quantile"):
        guardrails.latency(h, quantile=95)


class TestEngagementDrop:
    rng = np.random.default_rng(5)
    y = rng.beta(1.36, 18.64, 6000)

    def seen(self, factor):
        return sequential.lift(
            [
                Stratum(
                    baseline=Aggregate.of(self.y[:4000]),
                    candidate=Aggregate.of(self.y[4000:] * factor),
                )
            ]
        )

    def test_fires_on_a_large_drop_only(self):
        assert guardrails.engagement_drop(self.seen(0.6)).fired is True
        assert guardrails.engagement_drop(self.seen(0.88)).fired is False
        assert guardrails.engagement_drop(self.seen(1.0)).fired is False

    def test_large_drop_on_little_data_waits(self):
        estimate = sequential.lift(
            [
                Stratum(
                    baseline=Aggregate.of([0.02, 0.12] * 75),
                    candidate=Aggregate.of([0.01, 0.10] * 55),
                )
            ]
        )
        assert estimate.lift < -0.15
        assert estimate.upper > 0
        assert guardrails.engagement_drop(estimate).fired is False

    def test_says_so_while_there_is_no_estimate(self):
        found = guardrails.engagement_drop(sequential.lift([]))
        assert found.fired is None
        assert found.reason == "no phase has units yet"

    def test_candidate_without_any_engagement_fires(self):
        estimate = sequential.lift(
            [Stratum(baseline=Aggregate.of(self.y), candidate=Aggregate.of(np.zeros(200)))]
        )
        assert guardrails.engagement_drop(estimate).fired is True


def test_gross_failure_reads_the_last_requests_only():
    assert guardrails.gross_failure([True] * 10 + [False] * 20).fired is False
    assert guardrails.gross_failure([False] * 10 + [True] * 10).fired is True
    assert guardrails.gross_failure([]).fired is False
    with pytest.raises(InputError):
        guardrails.gross_failure([], failures=21)


@pytest.mark.parametrize(
    ("concentration", "slight", "gross"),
    [(100, 4400, 90), (300, 4300, 130), (1000, 4600, 210), (3000, 5500, 340)],
)
def test_concentration_of_300_is_the_soonest_to_see_a_slight_mismatch(concentration, slight, gross):
    assert _called_from(0.12, 100, concentration) == slight
    assert _called_from(0.30, 10, concentration) == gross


def _called_from(share, step, concentration):
    n = step
    while True:
        counts = [round(n * (1 - share)), round(n * share)]
        log_e = guardrails.log_split_evalue(counts, [0.9, 0.1], concentration=concentration)
        if log_e >= math.log(guardrails.SRM_THRESHOLD):
            return n
        n += step


def test_error_is_split_over_guardrails():
    assert math.isclose(guardrails.split_alpha(0.05, 5), 0.01)
    with pytest.raises(InputError):
        guardrails.split_alpha(0.05, 0)


SHARES = {"baseline": 0.9, "candidate": 0.1}


class TestSplit:
    @pytest.mark.parametrize(("k", "counts"), ref.SAVVI_ODDS)
    def test_odds_are_savvis_to_eleven_digits(self, k, counts):
        ours = math.exp(guardrails.log_split_evalue(counts, [0.9, 0.1], concentration=k))
        assert math.isclose(ours, ref.SAVVI_ODDS[k, counts], rel_tol=2e-10)

    def test_three_arms_are_savvis_too(self):
        ours = guardrails.log_split_evalue([520, 230, 250], [0.5, 0.25, 0.25], concentration=100)
        assert math.isclose(math.exp(ours), ref.SAVVI_THREE_ARMS, rel_tol=1e-10)

    @given(st.integers(0, 400), st.integers(0, 100))
    def test_is_a_martingale_under_the_set_shares(self, b, c):
        now = guardrails.log_split_evalue([b, c], [0.9, 0.1])
        after = [guardrails.log_split_evalue(x, [0.9, 0.1]) for x in ([b + 1, c], [b, c + 1])]
        expected = 0.9 * math.exp(after[0] - now) + 0.1 * math.exp(after[1] - now)
        assert math.isclose(expected, 1.0, rel_tol=1e-6)

    def test_each_phase_is_judged_by_itself(self):
        found = guardrails.srm(
            {
                "1": {"baseline": 9000, "candidate": 1000},
                "2": {"baseline": 5400, "candidate": 4600},
            },
            {"1": SHARES, "2": {"baseline": 0.5, "candidate": 0.5}},
        )
        assert (found["1"].broken, found["2"].broken) == (False, True)
        assert "phase 2: the split is broken" in found["2"].reason
        assert "54.00%, set 50.00%" in found["2"].reason

    def test_no_exposures_are_no_evidence(self):
        found = guardrails.srm({"1": {}}, {"1": SHARES})["1"]
        assert (found.e_value, found.broken, found.observed_shares) == (1.0, False, {})

    def test_exposures_of_an_arm_without_share_are_proof(self):
        found = guardrails.srm(
            {"1": {"baseline": 5, "candidate": 1}}, {"1": {"baseline": 1.0, "candidate": 0.0}}
        )["1"]
        assert found.broken
        assert found.e_value == math.inf

    def test_all_as_set_with_a_share_of_zero_is_fine(self):
        found = guardrails.srm({"1": {"baseline": 500}}, {"1": {"baseline": 1, "candidate": 0}})
        assert not found["1"].broken

    @pytest.mark.parametrize(
        ("counts", "shares"),
        [
            ({"1": {"baseline": -1}}, {"1": {"baseline": 1.0}}),
            ({"1": {"other": 1}}, {"1": {"baseline": 1.0}}),
            ({"2": {"baseline": 1}}, {"1": {"baseline": 1.0}}),
            ({"1": {"baseline": 1}}, {"1": {"baseline": 0.9}}),
            ({"1": {"baseline": 1}}, {"1": {"baseline": math.nan}}),
        ],
    )
    def test_what_does_not_fit_is_refused(self, counts, shares):
        with pytest.raises(DataError):
            guardrails.srm(counts, shares)

    def test_impossible_settings_are_refused(self):
        with pytest.raises(InputError, match="threshold"):
            guardrails.srm({}, {}, threshold=1.0)
        for concentration in (0, math.nan, math.inf):
            with pytest.raises(InputError, match="concentration"):
                guardrails.log_split_evalue([1], [1.0], concentration=concentration)
        with pytest.raises(DataError, match="2 arms have exposures and 1 have shares"):
            guardrails.log_split_evalue([1, 2], [1.0])
