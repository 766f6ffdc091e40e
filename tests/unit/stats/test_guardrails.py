"""Guardrails: exact from counts, valid at every look, and calm where nothing is wrong."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta as beta_distribution
from scipy.stats import fisher_exact

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


@pytest.mark.parametrize("limit", [0, 1.01, -1, math.nan])
def test_impossible_limits_are_refused(limit):
    with pytest.raises(InputError, match="limit"):
        guardrails.error_rate(1, 10, limit=limit)
    with pytest.raises(InputError, match="drop"):
        guardrails.engagement_drop(sequential.lift([]), drop=limit)


@pytest.mark.parametrize("alpha", [0, 1, -1, math.nan])
def test_impossible_errors_are_refused(alpha):
    with pytest.raises(InputError, match="alpha"):
        guardrails.error_rate(1, 10, alpha=alpha)
    with pytest.raises(InputError, match="alpha"):
        guardrails.excess_failures([], 0.05, alpha=alpha)
    with pytest.raises(InputError, match="alpha"):
        guardrails.split_alpha(alpha, 2)


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


# --- to the last digit ----------------------------------------------------------------------


def exact_log_e(k, n, limit):
    """By the binomial sum that the incomplete beta function is at whole numbers, in logarithms."""
    b = round(1 / limit) - 1

    def log_above(a, b):
        """log ∫_L^1 p^(a-1) (1-p)^(b-1) dp."""
        whole = a + b - 1
        log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
        terms = [
            math.lgamma(whole + 1) - math.lgamma(j + 1) - math.lgamma(whole - j + 1)
            + j * math.log(limit) + (whole - j) * math.log1p(-limit)
            for j in range(a)
        ]  # fmt: skip
        highest = max(terms)
        return log_beta + highest + math.log(math.fsum(math.exp(t - highest) for t in terms))

    mixed, prior = log_above(1 + k, b + n - k), log_above(1, b)
    return mixed - prior - k * math.log(limit) - (n - k) * math.log1p(-limit)


@pytest.mark.parametrize(
    ("k", "n", "limit"),
    [
        (30, 200, 0.05),
        (0, 500, 0.05),
        (40, 150, 0.2),
        (800, 40_000, 0.05),
        (100, 30_000, 0.05),
        (9000, 120_000, 0.2),
    ],
)
def test_log_e_is_exact_also_where_the_integral_is_no_float(k, n, limit):
    found = guardrails.log_bernoulli_evalue(k, n, limit)
    assert math.isclose(found, exact_log_e(k, n, limit), rel_tol=1e-9)


def test_an_e_value_says_what_it_was_made_of():
    found = guardrails.bernoulli_evalue(20, 100, 0.04, alpha=0.002, name="share of odd answers")
    log_e = guardrails.log_bernoulli_evalue(20, 100, 0.04)
    assert log_e > math.log(500)
    assert found == guardrails.EValue(
        fired=True,
        e_value=math.exp(log_e),
        log_e=log_e,
        p_value=math.exp(-log_e),
        threshold=500,
        failures=20,
        trials=100,
        rate=0.2,
        limit=0.04,
        reason="share of odd answers is above its limit of 4.0%: 20 of 100 (20.0%)",
    )
    calm = guardrails.bernoulli_evalue(3, 100, 0.04)
    assert (calm.fired, calm.p_value, calm.threshold) == (False, 1.0, 100)
    assert calm.reason == "error rate is not shown to be above its limit of 4.0%: 3 of 100 (3.0%)"
    nothing = guardrails.bernoulli_evalue(0, 0, 0.04)
    assert nothing.reason.endswith("limit of 4.0%: no requests yet")
    assert guardrails.bernoulli_evalue(5000, 5000, 0.04).e_value == math.inf


def test_an_e_value_fires_from_one_over_alpha_on():
    log_e = guardrails.log_bernoulli_evalue(12, 100, 0.05)
    assert guardrails.error_rate(12, 100, alpha=math.exp(-log_e) * (1 + 1e-9)).fired
    assert not guardrails.error_rate(12, 100, alpha=math.exp(-log_e) * (1 - 1e-9)).fired
    assert guardrails.error_rate(12, 100) == guardrails.error_rate(12, 100, limit=0.05, alpha=0.01)


def test_latency_is_judged_by_the_quantile_and_the_limit_that_are_given():
    h = Histogram.of([300.0] * 800 + [900.0] * 150 + [2500.0] * 50, LATENCY_MS_EDGES)
    by_default = guardrails.latency(h)
    assert (by_default.failures, by_default.limit, by_default.threshold) == (50, 0.05, 100)
    assert by_default.reason.startswith("share of requests slower than 2000 ms is not shown")
    found = guardrails.latency(h, limit_ms=500, quantile=0.9, alpha=0.004)
    assert (found.failures, found.trials, found.limit, found.threshold) == (200, 1000, 0.1, 250)
    assert found.fired
    assert found.reason.startswith("share of requests slower than 500 ms is above its limit of 10")
    for quantile in (0, 1):
        with pytest.raises(InputError, match="quantile"):
            guardrails.latency(h, quantile=quantile)


def reference(stretches, limit):
    """Both log e-values by the formulas, with their variance inflations."""

    def typical(sizes):
        return np.dot(sizes, sizes) / sizes.sum()

    base, base_k, cand, cand_k = np.array(
        [(s.baseline, s.baseline_failures, s.candidate, s.candidate_failures) for s in stretches],
        dtype=float,
    ).T
    several = base > 1
    n, k = base[several], base_k[several]
    p = k.sum() / n.sum()
    known = len(n) - 1
    pearson = ((k - n * p) ** 2 / (n * p * (1 - p))).sum()
    rho = (known * (pearson / known - 1) / (typical(n) - 1) + 4 * 0.09) / (known + 4)
    rho = min(1.0, max(0.0, rho))
    of_candidate = 1 + (typical(cand) - 1) * rho
    of_baseline = 1 + (typical(base) - 1) * rho
    share = cand.sum() / (cand.sum() + base.sum())
    limit_e = guardrails.log_bernoulli_evalue(int(cand_k.sum()), int(cand.sum()), limit)
    ratios = []
    for odds in (1.5, 2, 3, 5, 10):
        both = cand > 0
        part = (cand / (cand + base))[both]
        failures = (cand_k + base_k)[both]
        ratios.append(
            (cand_k[both] * math.log(odds)).sum()
            - (failures * np.log(1 - part + part * odds)).sum()
        )
    mixed = np.logaddexp.reduce(ratios) - math.log(5)
    mixed_inflation = share * of_baseline + (1 - share) * of_candidate
    return limit_e / max(1, of_candidate), mixed / max(1, mixed_inflation)


SEEN = {
    "few failures": hours(9, 1, 4) + hours(3, 5, 1, each=(60, 20)),
    "alike": hours(6, 9, 5) + hours(3, 5, 4, each=(60, 20)),
    "bursts": hours(9, 0, 1) + hours(2, 40, 5) + hours(1, 3, 2, each=(40, 5)),
    "calm": hours(40, 3, 2, each=(60, 20)),
    "without the candidate at times": hours(5, 2, 0, each=(90, 0)) + hours(9, 2, 4),
    "one request": hours(9, 2, 1, each=(30, 1)) + hours(3, 1, 1, each=(1, 1)),
}


@pytest.mark.parametrize("stretches", SEEN.values(), ids=SEEN)
def test_excess_is_the_weaker_of_both_comparisons_less_what_bursts_explain(stretches):
    against_limit, against_baseline = reference(stretches, 0.05)
    found = guardrails.excess_failures(stretches, 0.05)
    assert math.isclose(found.log_e, min(against_limit, against_baseline), rel_tol=1e-9)
    n, k = sum(s.candidate for s in stretches), sum(s.candidate_failures for s in stretches)
    assert (found.failures, found.trials, found.limit) == (k, n, 0.05)


def test_both_kinds_of_deciding_are_among_what_was_compared():
    decided = {np.argmin(reference(stretches, 0.05)) for stretches in SEEN.values()}
    assert decided == {0, 1}


@pytest.mark.parametrize("name", ["few failures", "alike"])
def test_excess_fires_from_one_over_alpha_on(name):
    against_limit, against_baseline = reference(SEEN[name], 0.05)
    level = math.exp(-min(against_limit, against_baseline))
    found = guardrails.excess_failures(SEEN[name], 0.05, alpha=level * (1 + 1e-6))
    assert (found.fired, found.shared) == (True, False)
    found = guardrails.excess_failures(SEEN[name], 0.05, alpha=level * (1 - 1e-6))
    assert (found.fired, found.shared) == (False, against_baseline < against_limit)


def test_excess_is_told_with_both_rates():
    found = guardrails.excess_failures(SEEN["few failures"], 0.05, name="share of odd answers")
    assert found.reason == (
        "share of odd answers is above its limit of 5.0%: 39 of 150 (26.0%), the baseline's at "
        "the same time 2.4%"
    )
    assert guardrails.excess_failures(hours(9, 1, 0), 0.05).reason == (
        "error rate is not shown to be above its limit of 5.0%: 0 of 90 (0.0%), the baseline's at "
        "the same time 1.1%"
    )
    none = guardrails.excess_failures(hours(9, 1, 0, each=(90, 0)), 0.05)
    assert none.reason == "error rate is not shown to be above its limit of 5.0%: no requests yet"
    assert (none.fired, none.shared) == (False, False)


def test_a_single_hour_is_taken_for_a_usual_burst():
    """ρ is 0.09 until there are two hours of the baseline to read it from."""
    single = guardrails.excess_failures(hours(1, 5, 8), 0.05)
    limit_e = guardrails.log_bernoulli_evalue(8, 10, 0.05) / (1 + 9 * 0.09)
    ratios = [8 * math.log(t) - 13 * math.log(0.9 + 0.1 * t) for t in (1.5, 2, 3, 5, 10)]
    mixed = np.logaddexp.reduce(ratios) - math.log(5)
    inflation = 0.1 * (1 + 89 * 0.09) + 0.9 * (1 + 9 * 0.09)
    assert math.isclose(single.log_e, min(limit_e, mixed / inflation), rel_tol=1e-9)
    for calm in (0, 90):
        many = guardrails.excess_failures(hours(9, calm, 4, each=(90, 10)), 0.05)
        assert math.isfinite(many.log_e)
    untouched = guardrails.excess_failures(hours(9, 0, 4, each=(0, 10)), 0.05)
    alone = guardrails.log_bernoulli_evalue(36, 90, 0.05) / (1 + 9 * 0.09)
    assert math.isclose(untouched.log_e, alone, rel_tol=1e-9)


def test_a_gross_failure_is_ten_of_the_last_twenty():
    found = guardrails.gross_failure([True] * 10)
    assert found == guardrails.GrossFailure(
        fired=True,
        shared=False,
        failures=10,
        seen=10,
        reason="10 of the last 10 requests failed; the breaker opens at 10",
    )
    pushed_out = guardrails.gross_failure([True] * 10 + [False] * 11)
    assert (pushed_out.fired, pushed_out.failures, pushed_out.seen) == (False, 9, 20)
    assert guardrails.gross_failure([True] * 10 + [False] * 10).fired
    assert guardrails.gross_failure([True] * 3, failures=3, window=3).fired
    assert not guardrails.gross_failure([True, True, False, True], failures=3, window=3).fired
    for failures, window in ((0, 20), (21, 20)):
        with pytest.raises(InputError, match="cannot be"):
            guardrails.gross_failure([], failures=failures, window=window)
    assert guardrails.gross_failure([True], failures=1, window=1).fired


def test_a_gross_failure_is_shared_where_chance_may_have_dealt_the_failures_so():
    last = [True] * 14 + [False] * 6
    found = guardrails.gross_failure(last, baseline=[True] * 3 + [False] * 17)
    assert (found.fired, found.shared, found.seen) == (False, True, 20)
    assert fisher_exact([[14, 6], [3, 17]], alternative="greater").pvalue == pytest.approx(
        5.8e-4, rel=0.1
    )
    less = guardrails.gross_failure(last, baseline=[True] * 1 + [False] * 19)
    assert (less.fired, less.shared) == (True, False)
    few = guardrails.gross_failure([True] * 9, baseline=[True] * 9)
    assert (few.fired, few.shared) == (False, False)


@pytest.mark.parametrize(("n", "m"), [(20, 20), (20, 200), (12, 1), (20, 3)])
def test_the_breaker_opens_where_fishers_exact_test_says_so(n, m):
    for failed in range(10, n + 1):
        for beside in range(1, m + 1):
            table = [[failed, n - failed], [beside, m - beside]]
            expected = fisher_exact(table, alternative="greater").pvalue <= guardrails.BY_CHANCE
            last = [True] * failed + [False] * (n - failed)
            found = guardrails.gross_failure(
                last, baseline=[True] * beside + [False] * (m - beside)
            )
            assert (found.fired, found.shared) == (expected, not expected)


def test_of_a_baseline_that_was_hardly_asked_nothing_is_known():
    last = [True] * 10 + [False] * 10
    assert guardrails.gross_failure(last, baseline=[False] * 9).fired
    assert guardrails.gross_failure(last, baseline=[False] * 10).shared
    assert guardrails.gross_failure(last, baseline=[False] * 30).fired


def drop_of(lift, upper, drop=0.15):
    estimate = sequential.LiftEstimate(
        lift=lift, lower=-0.5, upper=upper, p_value=0.01, n_baseline=900, n_candidate=100,
        method="", reason="too few",
    )  # fmt: skip
    return guardrails.engagement_drop(estimate, drop=drop)


def test_a_drop_is_beyond_its_limit_and_below_zero():
    assert drop_of(-0.16, -0.01).fired is True
    assert drop_of(-0.15, -0.01).fired is False
    assert drop_of(-0.16, 0.0).fired is False
    assert drop_of(-0.16, -0.01, drop=0.2).fired is False
    assert drop_of(-1.0, -0.5, drop=1).fired is False
    assert (drop_of(None, -0.1).fired, drop_of(-0.3, None).fired) == (None, None)


def test_a_drop_is_told_with_its_bound():
    found = drop_of(-0.2, -0.05)
    assert found.reason == "engagement fell by more than 15%: -20.0%, at most -5.0%"
    assert (found.drop, found.estimate.lift) == (0.15, -0.2)
    calm = drop_of(-0.1, -0.05, drop=0.12)
    assert calm.reason == "engagement is not shown to have fallen by 12%: -10.0%, at most -5.0%"
    assert (calm.drop, calm.estimate.lift) == (0.12, -0.1)
    unknown = drop_of(None, None)
    assert (unknown.reason, unknown.drop, unknown.estimate.lift) == ("too few", 0.15, None)
    estimate = found.estimate
    assert guardrails.engagement_drop(estimate) == found


def test_one_guardrail_has_all_of_the_error():
    assert guardrails.split_alpha(0.03, 1) == 0.03
    assert guardrails.split_alpha(0.03, 4) == 0.0075
