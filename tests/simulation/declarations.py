"""The rows about what a test declares: items of its units, and a covariate.

What is declared is all that differs: the same events go to both tests, through the judge.
"""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
from tests.simulation.records import Record, Row, at_least, at_most, within
from tests.simulation.worlds import KAPPA, MEAN, WEEK, Array, beta

from tuneproof.experiments import (
    ABTest,
    Arm,
    Cell,
    Evidence,
    ExperimentStatus,
    Variant,
    judge,
)
from tuneproof.settings import Declaration
from tuneproof.stats import fixed, sequential
from tuneproof.stats.aggregates import Aggregate, Stratum

AUTHORS, POSTS = 400, 20
ICC = 0.1
CORRELATION = 0.7
UNKNOWN = 0.2
"""The share of units whose covariate nobody knows."""

T0 = datetime(2026, 1, 1, tzinfo=UTC)
TEST = ABTest(
    id="ab-test-20260101-001", run_id=None, pipeline="default", tasks=("hook",),
    baseline=Variant(model_id="base"), candidate=Variant(model_id="candidate"),
    declaration=Declaration(
        traffic_split=0.5, a_b_test_duration_hours=WEEK, decision="confirmed", maturation_hours=0
    ),
    family="s", status=ExperimentStatus.RUNNING, start_at=T0,
    end_at=T0 + timedelta(hours=WEEK),
)  # fmt: skip
BY_ITEM = replace(TEST, declaration=replace(TEST.declaration, analysis_unit="item"))
ADJUSTED = replace(TEST, declaration=replace(TEST.declaration, cuped=True))


def items(runs: int, rng: np.random.Generator) -> list[Record]:
    """Authors are randomised and their posts measured: by declaration, and with unit = post."""
    declared = careless = 0
    for _ in range(runs):
        level = beta(rng, np.full(AUTHORS, MEAN), (KAPPA + 1) / ICC - 1)
        y = beta(rng, level[:, None].repeat(POSTS, 1), (KAPPA + 1) / (1 - ICC) - 1)
        candidate = rng.random(AUTHORS) < 0.5
        hour = rng.integers(WEEK, size=(AUTHORS, POSTS))
        declared += any(
            _found(_authors(y, hour < at, candidate), at) for at in range(6, WEEK + 1, 6)
        )
        careless += _by_post(y, candidate)
    return [
        at_most(
            f"authors' posts, declared items, ICC {ICC:g}, no effect: ever significant",
            declared / runs, 0.05, runs=runs, careless=careless / runs,
            careless_said="the same events with unit = post, one look at the end: 25 %",
            also=abs(careless / runs - 0.25) < 0.05 + 2 / math.sqrt(runs),
        )
    ]  # fmt: skip


def _authors(y: Array, shown: Array, candidate: Array) -> dict[Arm, Aggregate]:
    counted = shown.sum(1)
    whole = (y * shown).sum(1)
    return {
        arm: Aggregate.of(whole[mask & (counted > 0)], m=counted[mask & (counted > 0)])
        for arm, mask in ((Arm.BASELINE, ~candidate), (Arm.CANDIDATE, candidate))
    }


def _found(arms: dict[Arm, Aggregate], hour: int) -> bool:
    """Whether the judge of the declared test calls the lift anything but 0."""
    evidence = Evidence(
        cells=tuple(Cell(phase=0, arm=arm, units=units) for arm, units in arms.items())
    )
    look = judge(BY_ITEM, evidence, at=T0 + timedelta(hours=hour))
    return look.lower is not None and look.upper is not None and not look.lower <= 0 <= look.upper


def _by_post(y: Array, candidate: Array) -> bool:
    arms = [Aggregate.of(y[mask].ravel()) for mask in (~candidate, candidate)]
    found = fixed.lift([Stratum(baseline=arms[0], candidate=arms[1])], metric=TEST.metric)
    return found.p_value is not None and found.p_value < 0.05


def cuped(runs: int, rng: np.random.Generator) -> list[Record]:
    """A covariate from before the experiment that correlates with the outcome at 0.7."""
    false = 0
    widths = []
    for _ in range(runs):
        y, x, candidate = _week(rng, lift=0.0)
        known = np.where(rng.random(len(x)) < UNKNOWN, 0.0, x)
        false += any(_call(y[:n], known[:n], candidate[:n])[1] for n in range(1000, len(y) + 1, 20))
        adjusted, _ = _call(y, x, candidate)
        plain, _ = _call(y, x, candidate, TEST)
        widths.append(_width(adjusted) / _width(plain))
    return [
        at_most(
            f"CUPED, {UNKNOWN:.0%} of the covariates unknown, no effect: ever significant",
            false / runs, 0.05, runs=runs,
        ),
        within(
            f"CUPED, correlation {CORRELATION:g}: width of the interval to that without",
            float(np.mean(widths)), 0.70, 0.73, runs=runs,
            error=float(np.std(widths) / math.sqrt(runs)),
        ),
    ]  # fmt: skip


def cuped_power(runs: int, rng: np.random.Generator) -> list[Record]:
    """A true +10 %: found with the covariate and without; and with one from after the arm."""
    found = plainly = 0
    lifts, spoilt = [], []
    for _ in range(runs):
        y, x, candidate = _week(rng, lift=0.1)
        adjusted, called = _call(y, x, candidate)
        found += called
        plainly += _call(y, x, candidate, TEST)[1]
        lifts.append(adjusted.lift or 0.0)
        # "Engagement in the first hour": half of what the outcome will be.
        after = 0.5 * y + 0.5 * rng.permutation(y)
        spoilt.append(_call(y, after, candidate)[0].lift or 0.0)
    lift, wrong = float(np.mean(lifts)), float(np.mean(spoilt))
    return [
        at_least(
            "CUPED, lift +10 %, 20 posts/h: significant at the end of the week", found / runs, 0.83,
            runs=runs, careless=plainly / runs, careless_said="without the covariate",
            also=found > plainly,
        ),
        within(
            "CUPED, lift +10 %: mean lift reported", lift, 0.095, 0.105, runs=runs,
            error=float(np.std(lifts) / math.sqrt(runs)), careless=wrong,
            careless_said="a covariate from after the exposure takes part of the effect away",
            also=wrong < 0.075,
        ),
    ]  # fmt: skip


def _week(rng: np.random.Generator, *, lift: float) -> tuple[Array, Array, Array]:
    """A week of 20 posts an hour, 10 % to the candidate: outcomes, covariates, arms."""
    size = 20 * WEEK
    x, own = (beta(rng, np.full(size, MEAN)) for _ in range(2))
    # The weights that give y this correlation with x, and the mean of either.
    shared = CORRELATION / (CORRELATION + math.sqrt(1 - CORRELATION**2))
    candidate = rng.random(size) < 0.1
    y = (shared * x + (1 - shared) * own) * np.where(candidate, 1 + lift, 1.0)
    return y, x, candidate


def _call(
    y: Array, x: Array, candidate: Array, test: ABTest = ADJUSTED
) -> tuple[sequential.LiftEstimate, bool]:
    arms = [Aggregate.of(y[mask], x=x[mask]) for mask in (~candidate, candidate)]
    strata = [Stratum(baseline=arms[0], candidate=arms[1])]
    found = sequential.lift(strata, metric=test.metric)
    return found, found.significant


def _width(estimate: sequential.LiftEstimate) -> float:
    assert estimate.lower is not None
    assert estimate.upper is not None
    return math.log1p(estimate.upper) - math.log1p(estimate.lower)


ROWS: dict[str, tuple[Row, int]] = {
    "items": (items, 2000),
    "cuped": (cuped, 2000),
    "cuped_power": (cuped_power, 2000),
}
"""Each row with the runs of its whole version."""
