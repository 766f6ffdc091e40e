"""What goes wrong around a test: bursts, outages, outcomes that never come, a few huge ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import numpy as np
from tests.simulation.declarations import T0, TEST
from tests.simulation.records import Record, Row, at_least, at_most, share_error, within
from tests.simulation.worlds import KAPPA, MEAN, Array, beta

from tuneproof.experiments import Arm, Cell, Evidence, Look, Verdict, judge
from tuneproof.experiments.evaluator import declared_look
from tuneproof.settings import Declaration
from tuneproof.stats import guardrails, sequential, splits
from tuneproof.stats.aggregates import Aggregate, Stratum
from tuneproof.stats.guardrails import Stretch

HOURS = 168
ALPHA = 0.01
"""Of each guardrail of a test: `experiments.judge` has two at 2 % together."""

LIMIT = 0.05

SPEC = replace(TEST, declaration=Declaration(maturation_hours=0))
"""A test as the defaults declare it, whose outcomes are there at once."""


def _first(stretches: list[Stretch]) -> tuple[float, float]:
    """The hour of the first look that fires, as the product looks; and against the limit alone."""
    careless = math.inf
    failures = trials = 0
    for hour, one in enumerate(stretches):
        failures, trials = failures + one.candidate_failures, trials + one.candidate
        if guardrails.error_rate(failures, trials, limit=LIMIT, alpha=ALPHA).fired:
            careless = min(careless, hour + 1)
            seen = stretches[: hour + 1]
            if guardrails.excess_failures(seen, LIMIT, alpha=ALPHA).fired:
                return hour + 1, careless
    return math.inf, careless


def _week(
    rng: np.random.Generator, n: int, share: float, baseline: Array, candidate: Array
) -> list[Stretch]:
    units = rng.poisson(n, HOURS)
    c = rng.binomial(units, share)
    b = units - c
    kb, kc = rng.binomial(b, baseline), rng.binomial(c, candidate)
    return [
        Stretch(
            baseline=int(w), baseline_failures=int(x), candidate=int(y), candidate_failures=int(z)
        )
        for w, x, y, z in zip(b, kb, c, kc, strict=True)
    ]


def _fires(runs: int, week: Callable[[], list[Stretch]]) -> tuple[float, float, float]:
    """The share of weeks that fire, of those that would against the limit alone, and the median
    hour of those that fire."""
    found = [_first(week()) for _ in range(runs)]
    ours = [hour for hour, _ in found if math.isfinite(hour)]
    careless = sum(math.isfinite(hour) for _, hour in found)
    return len(ours) / runs, careless / runs, float(np.median(ours)) if ours else math.inf


def bursts(runs: int, rng: np.random.Generator) -> list[Record]:
    """Errors that come in bursts (an hour's rate is beta with κ = 10, 3 % on average)."""

    def rates() -> Array:
        return rng.beta(0.3, 9.7, HOURS)

    def common() -> list[Stretch]:
        both = rates()
        return _week(rng, 200, 0.1, both, both)

    apart, alone, _ = _fires(runs, lambda: _week(rng, 200, 0.5, rates(), rates()))
    alike, _, _ = _fires(runs, common)
    harm, _, hour = _fires(
        max(runs // 4, 10), lambda: _week(rng, 200, 0.1, rates(), np.full(HOURS, 0.25))
    )
    return [
        at_most(
            "errors in bursts, each arm its own, no harm: fires in a week", apart, 0.005, runs=runs,
            careless=alone, careless_said="the limit alone: 14 %", also=alone > 0.04,
        ),
        at_most("errors in bursts of both arms, no harm: fires in a week", alike, 0.005, runs=runs),
        at_least("25 % errors beside bursts, 200 requests/h: found", harm, 0.99, runs=runs),
        at_most("25 % errors beside bursts: median hours", hour, 6, runs=runs, error=1.0),
    ]  # fmt: skip


def outage_of_both(runs: int, rng: np.random.Generator) -> list[Record]:
    """The provider of both arms answers six of ten requests with an error for three hours."""

    def week() -> list[Stretch]:
        rate = np.full(HOURS, 0.01)
        at = int(rng.integers(0, HOURS - 3))
        rate[at : at + 3] = 0.6
        return _week(rng, 200, 0.1, rate, rate)

    ours, alone, _ = _fires(runs, week)
    return [
        at_most(
            "an outage of both arms: the candidate is blamed", ours, 0.005, runs=runs,
            careless=alone, careless_said="the limit alone", also=alone > 0.05,
        )
    ]  # fmt: skip


def absent_outcomes(runs: int, rng: np.random.Generator) -> list[Record]:
    """Outcomes that never come: alike in both arms, or those of the candidate's weak posts."""

    def found(absent_b: float, absent_c: float, share: float, hours: int) -> float:
        hit = 0
        for _ in range(runs):
            n = rng.poisson(20, hours)
            c = rng.binomial(n, share)
            exposed = {"baseline": (n - c).cumsum(), "candidate": c.cumsum()}
            came = {
                "baseline": rng.binomial(n - c, 1 - absent_b).cumsum(),
                "candidate": rng.binomial(c, 1 - absent_c).cumsum(),
            }
            for hour in range(hours):
                at = [{arm: int(x[hour]) for arm, x in one.items()} for one in (exposed, came)]
                if splits.absent_outcomes({"1": at[0]}, {"1": at[1]})["1"].unlike:
                    hit += 1
                    break
        return hit / runs

    alike, third = found(0.3, 0.3, 0.1, 168), found(0.0, 1 / 3, 0.1, 72)
    twice = found(0.1, 0.2, 0.5, 168)
    return [
        at_most("absent alike (30 %), 20 posts/h: invalid in a week", alike, 0.005, runs=runs),
        at_least("a third of the candidate's absent: invalid in 3 days", third, 0.95, runs=runs),
        at_least("20 % absent against 10 %, 50/50: invalid in a week", twice, 0.9, runs=runs),
    ]


def capped_tails(runs: int, rng: np.random.Generator) -> list[Record]:
    """Outcomes like revenue, no arm better: is harm ever shown where a cap is declared?"""
    worlds: dict[str, tuple[Callable[[int], Array], float]] = {
        "lognormal, σ = 1.5": (lambda n: rng.lognormal(0, 1.5, n), 8.0),
        "Pareto, α = 1.5": (lambda n: rng.pareto(1.5, n) + 1, 8.0),
        "3 % buyers": (lambda n: (rng.random(n) < 0.03) * rng.lognormal(0, 1, n), 3.0),
    }
    out = []
    for name, (draw, cap) in worlds.items():
        hit = plain = 0
        for _ in range(runs):
            y = draw(20 * HOURS)
            candidate = rng.random(len(y)) < 0.1
            hit += _ever_below(np.minimum(y, cap), candidate)
            plain += _ever_below(y, candidate)
        out.append(
            at_most(
                f"{name}, capped at {cap:g}: ever shown to be worse", hit / runs, 0.05, runs=runs,
                careless=plain / runs, careless_said="without a cap: 6.5 to 15.9 %",
            )
        )  # fmt: skip
    return out


def _ever_below(y: Array, candidate: Array) -> bool:
    """Whether the upper bound is below 0 at any of the looks, six hours apart."""
    for end in range(120, len(y) + 1, 120):
        arms = [y[:end][~candidate[:end]], y[:end][candidate[:end]]]
        if min(map(len, arms)) < 100:
            continue
        baseline, seen = (Aggregate(n=len(a), sum_y=a.sum(), sum_yy=(a * a).sum()) for a in arms)
        found = sequential.lift([Stratum(phase="1", baseline=baseline, candidate=seen)])
        if found.upper is not None and found.upper < 0:
            return True
    return False


def novelty(runs: int, rng: np.random.Generator) -> list[Record]:
    """A lift of +60 % that fades to -5 % within the week, beside one of +20 % that stays, and none:
    through the judge, at the default rule."""
    fading = np.linspace(0.6, -0.05, HOURS)
    faded, careless = _promoted(runs, rng, fading)
    stays, would = _promoted(runs, rng, np.full(HOURS, 0.2))
    none, _ = _promoted(runs, rng, np.zeros(HOURS))
    ten, _ = _promoted(runs, rng, np.full(HOURS, 0.1))
    fifteen, _ = _promoted(runs, rng, np.full(HOURS, 0.15))
    return [
        at_most(
            "+60 % that fades to -5 %: promoted", faded, 0.85, runs=runs,
            careless=careless, careless_said="without the halves: 99.8 %", also=careless > 0.9,
        ),
        at_least(
            "+20 % that stays, 20 posts/h: promoted", stays, 0.86, runs=runs, careless=would,
            careless_said="without the halves",
        ),
        at_most("no effect: promoted", none, 0.035, runs=runs),
        within(
            "+10 % that stays: promoted", ten, 0.15, 0.3, runs=runs,
            error=share_error(ten, runs),
        ),
        within(
            "+15 % that stays: promoted", fifteen, 0.5, 0.65, runs=runs,
            error=share_error(fifteen, runs),
        ),
    ]  # fmt: skip


def _promoted(runs: int, rng: np.random.Generator, lift: Array) -> tuple[float, float]:
    """The share of weeks that end in a promotion; and of those that would if halves counted for
    nothing."""
    ours = careless = 0
    for _ in range(runs):
        hour = np.sort(rng.integers(0, HOURS, 20 * HOURS))
        candidate = rng.random(len(hour)) < 0.1
        y = beta(rng, MEAN * (1 + lift[hour] * candidate), KAPPA)
        looks: list[Look] = []
        for day in (3, 5, 7):
            seen = _evidence(y, candidate, hour, 24 * day)
            at = T0 + timedelta(days=day)
            before = [declared_look(look) for look in looks]
            looks.append(judge(SPEC, seen, at=at, declared_before=before))
            if looks[-1].verdict is not Verdict.CONTINUE:
                break
        said = looks[-1].verdict is Verdict.PROMOTE
        ours += said
        careless += said or any("the lift fades" in look.reason for look in looks)
    return ours / runs, careless / runs


def _evidence(y: Array, candidate: Array, hour: Array, until: int) -> Evidence:
    def cells(seen: Array) -> tuple[Cell, ...]:
        sides = ((Arm.BASELINE, ~candidate & seen), (Arm.CANDIDATE, candidate & seen))
        return tuple(
            Cell(phase=1, arm=arm, units=Aggregate.of(y[side]), exposed=int(side.sum()))
            for arm, side in sides
        )

    whole = cells(hour < until)
    exposed = {(1, cell.arm): cell.exposed for cell in whole}
    return Evidence(
        cells=whole, first_half=cells(hour < until / 2), exposed=exposed, shares={1: 0.1}
    )


ROWS: dict[str, tuple[Row, int]] = {
    "novelty": (novelty, 400),
    "bursts": (bursts, 300),
    "outage_of_both": (outage_of_both, 300),
    "absent_outcomes": (absent_outcomes, 300),
    "capped_tails": (capped_tails, 400),
}
"""Each row with the runs of its whole version."""
