"""Candidates that are no better, judged by the code that judges production, every hour.

A week at 20 posts an hour, split 90/10, Beta-distributed engagement of mean 0.068 and κ = 20,
outcomes after a day: 168 hours of enrolment and the looks up to one maturation window later.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from tuneproof.experiments import (
    ABTest,
    Arm,
    Cell,
    Evidence,
    ExperimentStatus,
    Variant,
    Verdict,
    judge,
)
from tuneproof.experiments.evaluator import declared_look
from tuneproof.experiments.view import DeclaredLook
from tuneproof.settings import Declaration
from tuneproof.stats.aggregates import Aggregate

pytestmark = pytest.mark.slow

T0 = datetime(2025, 1, 20, tzinfo=UTC)
HOURS, MATURATION, PER_HOUR, SPLIT = 168, 24, 20, 0.1
WEEKS = int(os.environ.get("TUNEPROOF_WEEKS", "400"))
LIMIT = 0.05


def week() -> ABTest:
    return ABTest(
        id="ab-test-20250120-001",
        run_id=None,
        pipeline="default",
        tasks=("hook",),
        baseline=Variant(model_id="base", prompt="a" * 16),
        candidate=Variant(model_id="base", prompt="b" * 16),
        declaration=Declaration(
            traffic_split=SPLIT, a_b_test_duration_hours=HOURS, maturation_hours=MATURATION
        ),
        family="s",
        status=ExperimentStatus.RUNNING,
        start_at=T0,
        end_at=T0 + timedelta(hours=HOURS),
    )


@dataclass
class Arms:
    """Sums of each arm over the hours of one simulated week."""

    n: np.ndarray
    y: np.ndarray
    yy: np.ndarray

    @classmethod
    def drawn(cls, rng: np.random.Generator, lift: float) -> Arms:
        hour = np.repeat(np.arange(HOURS), PER_HOUR)
        candidate = rng.random(hour.size) < SPLIT
        mean = 0.068 * np.where(candidate, 1 + lift, 1.0)
        rate = rng.beta(mean * 20, (1 - mean) * 20)
        sums = []
        for weights in (np.ones_like(rate), rate, rate**2):
            both = [
                np.bincount(hour[m], weights[m], minlength=HOURS) for m in (~candidate, candidate)
            ]
            sums.append(np.cumsum(np.stack(both), axis=1))
        return cls(*sums)

    def evidence(self, matured: int) -> Evidence:
        cells, exposed = [], {}
        for index, arm in enumerate((Arm.BASELINE, Arm.CANDIDATE)):
            n = int(self.n[index, matured - 1])
            units = Aggregate(
                n=n,
                sum_y=float(self.y[index, matured - 1]),
                sum_yy=float(self.yy[index, matured - 1]),
            )
            cells.append(Cell(phase=1, arm=arm, units=units, exposed=n))
            exposed[1, arm] = n
        return Evidence(cells=tuple(cells), exposed=exposed, shares={1: SPLIT})


def verdict_of(arms: Arms) -> Verdict:
    test = week()
    declared: list[DeclaredLook] = []
    for hour in range(MATURATION + 1, HOURS + MATURATION + 1):
        look = judge(
            test,
            arms.evidence(hour - MATURATION),
            at=T0 + timedelta(hours=hour),
            number=hour,
            declared_before=declared,
        )
        if look.declared:
            declared.append(declared_look(look))
        if look.verdict is not Verdict.CONTINUE:
            return look.verdict
    return Verdict.CONTINUE


def promoted(lift: float, weeks: int, seed: int) -> tuple[float, float]:
    """The share of weeks that promote, and its standard error."""
    rng = np.random.default_rng(seed)
    verdicts = [verdict_of(Arms.drawn(rng, lift)) for _ in range(weeks)]
    assert Verdict.CONTINUE not in verdicts
    share = sum(v is Verdict.PROMOTE for v in verdicts) / weeks
    return share, math.sqrt(max(share * (1 - share), 1 / weeks) / weeks)


def test_at_most_five_percent_of_equal_candidates_are_promoted() -> None:
    share, error = promoted(0.0, WEEKS, seed=1)
    print(f"false promotions {share:.2%} ± {error:.2%} of {WEEKS} weeks")
    assert share <= LIMIT


def test_most_candidates_that_are_a_fifth_better_are_promoted() -> None:
    share, error = promoted(0.2, WEEKS // 2, seed=2)
    print(f"promoted at +20 %: {share:.2%} ± {error:.2%}")
    assert share >= 0.86 - 2 * error
