"""Guardrails: exact from counts, valid at every look, and calm where nothing is wrong."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta as beta_distribution

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


def test_error_is_split_over_guardrails():
    assert math.isclose(guardrails.split_alpha(0.05, 5), 0.01)
    with pytest.raises(InputError):
        guardrails.split_alpha(0.05, 0)


SHARES = {"baseline": 0.9, "candidate": 0.1}


def hours(n, baseline, candidate, *, each=(90, 10)):
    """Hours of so many requests of each arm, with these failures each."""
    one = guardrails.Stretch(
        baseline=each[0],
        baseline_failures=baseline,
        candidate=each[1],
        candidate_failures=candidate,
    )
    return [one] * n


class TestExcessFailures:
    def test_a_limit_must_be_broken_by_the_candidate_and_not_by_both(self):
        alone = guardrails.excess_failures(hours(10, 1, 4), 0.05)
        assert (alone.fired, alone.shared) == (True, False)
        alike = guardrails.excess_failures(hours(10, 36, 4), 0.05)
        assert (alike.fired, alike.shared) == (False, True)
        within = guardrails.excess_failures(hours(40, 0, 0) + hours(5, 0, 2), 0.05)
        assert (within.fired, within.shared) == (False, False)

    def test_failures_that_fall_to_the_arms_like_requests_have_an_expected_e_value_of_at_most_1(
        self,
    ):
        """Exact, over how the 7 failures of an hour may fall; many of them, so no limit holds."""
        share, mean = 0.1, 0.0
        for k in range(8):
            chance = math.comb(7, k) * share**k * (1 - share) ** (7 - k)
            found = guardrails.excess_failures(hours(1, 7 - k, k), 1e-6)
            mean += chance * math.exp(found.log_e)
        assert mean <= 1

    def test_without_a_baseline_the_limit_decides(self):
        found = guardrails.excess_failures(hours(10, 0, 4, each=(0, 10)), 0.05)
        assert found.fired
        assert "baseline" not in found.reason

    def test_bursts_of_the_baseline_ask_for_more_of_the_candidate(self):
        bad = hours(9, 3, 5)
        calm = guardrails.excess_failures(hours(24, 3, 0) + bad, 0.05)
        bursty = guardrails.excess_failures(hours(22, 0, 0) + hours(2, 36, 0) + bad, 0.05)
        assert calm.fired
        assert 0 < bursty.log_e < calm.log_e / 1.5

    def test_nothing_yet_is_no_evidence(self):
        found = guardrails.excess_failures([], 0.05)
        assert (found.fired, found.shared, found.log_e) == (False, False, 0.0)
