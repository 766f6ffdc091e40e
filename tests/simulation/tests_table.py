"""The rows of the table of tests: what each one promises, tried."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from tests.simulation import vectorised as v
from tests.simulation.records import Record, Row, at_least, at_most, within
from tests.simulation.worlds import CV, Array, Sums, Week, accumulate, chunks, weeks

from tuneproof.stats import design, guardrails, spending, splits

RULE_HOURS = (72, 120, 168)
"""The declared looks of a week: 3/7, 5/7 and all of it."""
REQUIRED = math.log(1.15)


@cache
def watched_bounds() -> Array:
    """Bounds for z when the same error is spent over all hours from the second day on."""
    return np.array([math.inf] * 23 + list(spending.bounds([h / 168 for h in range(24, 169)])))


def sequence_false(runs: int, rng: np.random.Generator) -> list[Record]:
    """The sequence without an effect, looked at 168 times, beside Welch's test."""
    up = down = each_up = each_down = welch = bare = 0
    for sums in weeks(Week(), runs, rng):
        v.agree(sums, rng)
        c = v.contrasts(sums)
        low, high = v.reach(c, alpha=0.05)
        up, down = up + _ever(low > 0), down + _ever(high < 0)
        low, high = v.reach(c, alpha=0.10)
        each_up, each_down = each_up + _ever(low > 0), each_down + _ever(high < 0)
        welch += _ever(v.welch_p(sums, min_units=100) < 0.05)
        bare += _ever(v.welch_p(sums) < 0.05)
    return [
        at_most(
            "lift, no effect: ever significant (alpha 0.05)", (up + down) / runs, 0.05, runs=runs,
            careless=welch / runs, careless_said="Welch hourly, 100 units an arm: 21 %",
            also=welch / runs > 0.15,
        ),
        at_most(
            "lift, no effect: ever up (0.05 each way)", each_up / runs, 0.020, runs=runs,
            careless=bare / runs, careless_said="Welch hourly, both ways: 49 %",
            also=bare / runs > 0.40,
        ),
        at_most(
            "lift, no effect: ever down (0.05 each way)", each_down / runs, 0.027, runs=runs
        ),
    ]  # fmt: skip


def sequence_found(runs: int, rng: np.random.Generator) -> list[Record]:
    """How soon the sequence finds +20 % at 20 posts/h."""
    each, both = [], []
    for sums in weeks(Week(lift=0.2), runs, rng):
        c = v.contrasts(sums)
        each.append(_first(v.reach(c, alpha=0.10)[0] > 0))
        both.append(_first(v.reach(c, alpha=0.05)[0] > 0))
    each_h, both_h = np.concatenate(each), np.concatenate(both)
    plan = design.sequence(design.Traffic(units_per_hour=20, cv=CV), lift=0.2, optimum_n=1500)
    return [
        at_most(
            "lift +20 %, 20 posts/h: median hours to find it (0.05 each way)",
            float(np.median(each_h)), 63, runs=runs, error=_median_error(each_h),
        ),
        within(
            "lift +20 %, 20 posts/h: median hours to find it (alpha 0.05)",
            float(np.median(both_h)), 60, plan.median_h or 0.0, runs=runs,
            error=_median_error(both_h),
        ),
        at_least(
            "lift +20 %, 20 posts/h: found within the week (alpha 0.05)",
            float(np.isfinite(both_h).mean()), plan.probability, runs=runs,
        ),
    ]  # fmt: skip


def promote_spec(runs: int, rng: np.random.Generator) -> list[Record]:
    """The users' own rule at declared looks, and the same rule watched continuously."""
    out = []
    for lift, label in ((0.0, "no effect"), (0.1, "+10 %"), (0.15, "+15 %"), (0.2, "+20 %")):
        found = promoted = watched = naive = 0
        for sums in weeks(Week(lift=lift), runs, rng):
            c = v.contrasts(sums)
            crossed, point = _declared(c)
            found += int(crossed.any(1).sum())
            promoted += int((crossed & point).any(1).sum())
            watched += _ever((c.z >= watched_bounds()) & (c.d > REQUIRED))
            naive += _ever((v.welch_p(sums, min_units=100) < 0.05) & (v.lifts(sums) > 0.15))
        shares = found / runs, promoted / runs, watched / runs, naive / runs
        out += _promote_records(lift, label, shares, runs)
    return out


def _promote_records(
    lift: float, label: str, shares: tuple[float, float, float, float], runs: int
) -> list[Record]:
    found, promoted, watched, naive = shares
    if lift == 0.0:
        return [
            at_most("declared looks, no effect: significant", found, 0.025, runs=runs),
            at_most(
                "declared looks, no effect: promoted", promoted, 0.01, runs=runs, careless=naive,
                careless_said="Welch hourly, point above 15 %", also=naive > promoted,
            ),
        ]  # fmt: skip
    if lift == 0.2:
        return [
            at_least("declared looks, +20 %: significant", found, 0.97, runs=runs),
            at_least("declared looks, +20 %: promoted", promoted, 0.86, runs=runs),
        ]
    said = {0.1: 0.28, 0.15: 0.85}[lift]
    return [
        at_most(
            f"declared looks, {label}: promoted", promoted, said, runs=runs, careless=watched,
            careless_said=f"the same error, watched every hour (stated: {said:.0%})",
        )
    ]  # fmt: skip


def declared_in_a_ramp(runs: int, rng: np.random.Generator) -> list[Record]:
    """Declared looks by the calendar while the split changes, with the information they had."""
    ramp = tuple([0.1] * 84 + [0.5] * 84)
    at = [h - 1 for h in RULE_HOURS]
    fractions = [h / 168 for h in RULE_HOURS]
    error = plain = 0
    for sums in weeks(Week(share=ramp), runs, rng):
        c = v.contrasts(sums)
        information = [float(x) for x in c.n[:, at].mean(0)]
        exact = spending.bounds(fractions, information=information)
        error += _ever(c.z[:, at] >= np.array(exact))
        plain += _ever(c.z[:, at] >= np.array(spending.bounds(fractions)))
    return [
        at_most(
            "declared looks, ramp, no effect: significant", error / runs, 0.025, runs=runs,
            careless=plain / runs, careless_said="calendar for information",
        )
    ]  # fmt: skip


def heavy_tails(runs: int, rng: np.random.Generator) -> list[Record]:
    """Lognormal outcomes (σ = 1.5): 100 units are not enough for normal means, 800 are."""
    few = many = 0
    week = Week(units=100)
    for size in chunks(runs, week.hours * week.units):
        shape = (size, week.hours, week.units)
        candidate, y = rng.random(shape) < 0.1, rng.lognormal(0, 1.5, shape)
        parts = []
        for value in (np.ones_like(y), y, y * y):
            part = np.where(candidate, value, 0.0).sum(-1)
            parts.append(np.stack([value.sum(-1) - part, part], -1))
        sums = accumulate(week, (parts[0], parts[1], parts[2]))
        for minimum in (100, 800):
            low, high = v.reach(v.contrasts(sums, min_units=minimum))
            hit = _ever((low > 0) | (high < 0))
            few, many = few + hit * (minimum == 100), many + hit * (minimum == 800)
    return [
        at_most(
            "lognormal outcomes, no effect, 800 units an arm: ever significant", many / runs,
            0.05, runs=runs, careless=few / runs, careless_said="100 units an arm: 8 %",
        )
    ]  # fmt: skip


def promote_confirmed(runs: int, rng: np.random.Generator) -> list[Record]:
    """`decision="confirmed"`: the lower bound above the required lift after seven full days."""
    passed = 0
    for sums in weeks(Week(lift=0.15, hours=336), runs, rng):
        low, _ = v.reach(v.contrasts(sums), alpha=0.10, optimum_n=3360)
        passed += _ever((low > REQUIRED)[:, 167:])
    rates = {}
    few = max(runs // 10, 20)
    for units in (200, 400):
        hit = 0
        for sums in weeks(Week(lift=0.2, units=units), few, rng):
            low, _ = v.reach(v.contrasts(sums.last()), alpha=0.05, optimum_n=units * 84)
            hit += _ever(low > REQUIRED)
        rates[units] = hit / few
    return [
        at_most("confirmed, +15 %: promoted in two weeks", passed / runs, 0.014, runs=runs),
        at_least("confirmed, +20 %, 400 posts/h: decided in a week", rates[400], 0.8, runs=few),
        at_most("confirmed, +20 %, 200 posts/h: decided in a week", rates[200], 0.8, runs=few),
    ]


def guardrail_rates(runs: int, rng: np.random.Generator) -> list[Record]:
    """Error rate and slow requests, 100 requests/h, looked at hourly."""
    out = []
    trials = np.arange(1, 169) * 100.0
    for name in ("error rate", "p95 latency"):
        hour = rng.binomial(100, 0.03, (runs, 168))
        log_e = v.log_bernoulli(hour.cumsum(1).astype(float), trials, 0.05)
        false = float((log_e >= math.log(100)).any(1).mean())
        naive = float((hour > 5).any(1).mean())
        bad = rng.binomial(100, 0.20, (runs, 2)).cumsum(1).astype(float)
        fired = np.greater_equal(v.log_bernoulli(bad, trials[:2], 0.05), math.log(100))
        hours = np.where(fired.any(1), fired.argmax(1) + 1.0, np.inf)
        _agree_bernoulli(hour.cumsum(1)[0], rng)
        out += [
            at_most(
                f"{name}, true 3 % of limit 5 %: fires in a week", false, 0.005, runs=runs,
                careless=naive, careless_said="last hour's rate: 100 %", also=naive > 0.99,
            ),
            at_most(
                f"{name}, true 20 %: median hours to find it", float(np.median(hours)), 1,
                runs=runs, error=0.0,
            ),
            at_least(
                f"{name}, true 20 %: found at the first hourly look", float(fired[:, 0].mean()),
                0.9, runs=runs,
            ),
        ]  # fmt: skip
    last = rng.random((runs, 400)) < 0.05
    window = np.cumsum(last, axis=1)
    window = window[:, 20:] - window[:, :-20]
    out.append(
        at_most(
            "gross failure (10 of 20), true 5 %: fires in 400 requests",
            float(np.greater_equal(window, 10).any(1).mean()), 0.001, runs=runs,
        )
    )  # fmt: skip
    return out


def engagement_drop(runs: int, rng: np.random.Generator) -> list[Record]:
    """The rollback on engagement: false without effect, and how soon −25 % is found."""
    false = 0
    for sums in weeks(Week(), runs, rng):
        false += _ever(_dropped(sums))
    hours = [
        _first(_dropped(sums, optimum_n=1000))
        for sums in weeks(Week(lift=-0.25, units=100, hours=72), max(runs // 4, 50), rng)
    ]
    found = np.concatenate(hours)
    return [
        at_most("engagement drop, no effect: fires in a week", false / runs, 0.01, runs=runs),
        at_most(
            "engagement drop, true -25 %, 100 posts/h: median hours to find it",
            float(np.median(found)), 11, runs=len(found), error=_median_error(found),
        ),
    ]  # fmt: skip


def _dropped(sums: Sums, optimum_n: float = 1500) -> Array:
    c = v.contrasts(sums)
    _, high = v.reach(c, alpha=0.05, optimum_n=optimum_n)
    return (high < 0) & (c.d < math.log(0.85))


def split_mismatch(runs: int, rng: np.random.Generator) -> list[Record]:
    """The split check at 200 exposures/h, looked at hourly."""
    shares = np.array([0.9, 0.1])
    total = np.arange(1, 169) * 200
    good = rng.binomial(200, 0.9, (runs, 168)).cumsum(1)
    counts = np.stack([good, total - good], -1).astype(float)
    log_e = v.log_split(counts, shares, splits.SPLIT_CONCENTRATION)
    i, h = int(rng.integers(runs)), int(rng.integers(168))
    ours = splits.log_split_evalue([int(x) for x in counts[i, h]], [0.9, 0.1])
    assert math.isclose(ours, log_e[i, h], rel_tol=1e-9, abs_tol=1e-8)
    false = float((log_e >= math.log(1000)).any(1).mean())
    naive = float((v.split_p(counts, shares) < 0.01).any(1).mean())
    bad = rng.binomial(200, 0.88, (runs, 36)).cumsum(1)
    counts = np.stack([bad, total[:36] - bad], -1).astype(float)
    log_e = v.log_split(counts, shares, splits.SPLIT_CONCENTRATION)
    found = float((log_e >= math.log(1000)).any(1).mean())
    return [
        at_most(
            "split 90/10 as set: called broken in a week", false, 0.005, runs=runs,
            careless=naive, careless_said="chi-squared (p < 0.01) hourly: 12 %",
            also=naive > 0.07,
        ),
        at_least("split 88/12 for 90/10: found within 36 h", found, 0.90, runs=runs),
    ]  # fmt: skip


def no_worse(runs: int, rng: np.random.Generator) -> list[Record]:
    """Non-inferiority with a margin: a candidate worse by just the margin, looked at hourly."""
    passed = 0
    for sums in weeks(Week(lift=-0.05), runs, rng):
        low, _ = v.reach(v.contrasts(sums), alpha=0.05)
        passed += _ever(low > math.log(0.95))
    return [
        at_most("non-inferiority, true -5 % of margin 5 %: shown", passed / runs, 0.025, runs=runs)
    ]


def _declared(c: v.Contrasts) -> tuple[Array, Array]:
    at = [h - 1 for h in RULE_HOURS]
    limits = np.array(spending.bounds([h / 168 for h in RULE_HOURS]))
    return c.z[:, at] >= limits, c.d[:, at] > REQUIRED


def _agree_bernoulli(failures: Array, rng: np.random.Generator) -> None:
    h = int(rng.integers(len(failures)))
    ours = guardrails.log_bernoulli_evalue(int(failures[h]), 100 * (h + 1), 0.05)
    other = v.log_bernoulli(np.array([float(failures[h])]), np.array([100.0 * (h + 1)]), 0.05)[0]
    assert math.isclose(ours, other, rel_tol=1e-9, abs_tol=1e-8) or other == -math.inf


def _ever(fired: Array) -> int:
    return int(fired.any(1).sum())


def _first(fired: Array) -> Array:
    """The hour of the first look that fired; infinite where none did."""
    return np.where(fired.any(1), fired.argmax(1) + 1.0, np.inf)


def _median_error(hours: Array) -> float:
    """Standard error of a median: half the distance of the quantiles 1 binomial sd around it."""
    reach = 0.5 / math.sqrt(len(hours))
    low, high = np.quantile(hours, [0.5 - reach, 0.5 + reach], method="nearest")
    return float(high - low) / 2 if np.isfinite(high) else 0.0


ROWS: dict[str, tuple[Row, int]] = {
    "sequence_false": (sequence_false, 4000),
    "sequence_found": (sequence_found, 2000),
    "promote_spec": (promote_spec, 4000),
    "declared_in_a_ramp": (declared_in_a_ramp, 8000),
    "heavy_tails": (heavy_tails, 1000),
    "promote_confirmed": (promote_confirmed, 2000),
    "guardrail_rates": (guardrail_rates, 4000),
    "engagement_drop": (engagement_drop, 4000),
    "split_mismatch": (split_mismatch, 4000),
    "no_worse": (no_worse, 4000),
}
"""Each row with the runs of its whole version."""
