"""The rows about adapted shares: Thompson's rule by day, and what stays valid under it.

Two weeks of 960 posts a day, the share looked at once a day; outcomes count at once. The propensity
of a unit is the share of the phase of its first exposure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tests.simulation.records import Record, Row, at_most, share_error, within
from tests.simulation.worlds import MEAN, Array, beta, chunks

from tuneproof.experiments.allocation import phase_counts, reweighted_lift, thompson_share
from tuneproof.stats import fixed, sequential
from tuneproof.stats.aggregates import Aggregate, Stratum

DAYS = 14
UNITS = 960
DECLARED = {6: 3 / 7, 10: 5 / 7, 14: 1.0}
"""The declared looks: after so many days, at which fraction."""
DRIFT = 0.1
"""By how much of the first day's level the level rises each day."""


@dataclass(frozen=True, kw_only=True)
class Test:
    """One adapted test as it was found by each of the ways to read it."""

    ever: bool
    declared: bool
    reweighted: tuple[float, float, float]
    pooled: tuple[float, float, float]


def adapted(runs: int, rng: np.random.Generator) -> list[Record]:
    """Without an effect and with +15 %, with the level drifting and without."""
    still = _tests(runs, rng, lift=0.0, drift=0.0)
    drifting = _tests(runs, rng, lift=0.0, drift=DRIFT)
    better = _tests(runs, rng, lift=0.15, drift=DRIFT)
    pooled = float(np.mean([not _covers(t.pooled, 0.0) for t in drifting]))
    said = "all phases thrown together, one look"
    return [
        at_most(
            "adapted shares, no effect: ever significant", _share(t.ever for t in still), 0.05,
            runs=runs,
        ),
        at_most(
            "adapted shares, drift, no effect: ever significant",
            _share(t.ever for t in drifting), 0.05, runs=runs, careless=pooled, careless_said=said,
            also=pooled > 0.5,
        ),
        at_most(
            "adapted shares, no effect: significant at a declared look",
            _share(t.declared for t in still), 0.025, runs=runs,
        ),
        at_most(
            "adapted shares, drift, no effect: significant at a declared look",
            _share(t.declared for t in drifting), 0.025, runs=runs,
        ),
        *_estimated("adapted shares, no effect", still, 0.0, runs),
        *_estimated("adapted shares, drift, no effect", drifting, 0.0, runs),
        *_estimated("adapted shares, drift, +15 %", better, 0.15, runs),
    ]  # fmt: skip


def _estimated(name: str, tests: list[Test], lift: float, runs: int) -> list[Record]:
    truth = math.log1p(lift)
    gaps = np.array([math.log1p(t.reweighted[0]) - truth for t in tests])
    pooled = np.array([math.log1p(t.pooled[0]) - truth for t in tests])
    covered = _share(_covers(t.reweighted, lift) for t in tests)
    careless = _share(_covers(t.pooled, lift) for t in tests)
    said = "all phases thrown together, one look"
    return [
        within(
            f"{name}: reweighted minus true log-lift", float(gaps.mean()), -0.003, 0.003,
            runs=runs, error=float(gaps.std() / math.sqrt(runs)), careless=float(pooled.mean()),
            careless_said=said,
        ),
        within(
            f"{name}: reweighted interval covers", covered, 0.94, 0.96, runs=runs,
            error=share_error(covered, runs), careless=careless, careless_said=said,
        ),
    ]  # fmt: skip


def _tests(runs: int, rng: np.random.Generator, *, lift: float, drift: float) -> list[Test]:
    levels = MEAN * (1 + drift * np.arange(DAYS)) / (1 + drift * (DAYS - 1) / 2)
    return [
        _test(outcomes, rng)
        for size in chunks(runs, DAYS * UNITS)
        for outcomes in _outcomes(size, levels, lift, rng)
    ]


def _outcomes(
    runs: int, levels: Array, lift: float, rng: np.random.Generator
) -> Iterator[tuple[Array, Array]]:
    """What each unit would do under either arm; shapes (days, units)."""
    level = np.broadcast_to(levels[None, :, None], (runs, DAYS, UNITS))
    yield from zip(beta(rng, level), beta(rng, level * (1 + lift)), strict=True)


def _test(outcomes: tuple[Array, Array], rng: np.random.Generator) -> Test:
    """One test: a phase ends where its share changes, and only once both of its arms count."""
    strata: list[Stratum] = []
    phase = Stratum(baseline=Aggregate(), candidate=Aggregate())
    share, ever, found = 0.1, False, False
    fractions: list[float] = []
    information: list[float] = []
    for day, (under_baseline, under_candidate) in enumerate(zip(*outcomes, strict=True), 1):
        chosen = rng.random(UNITS) < share
        phase = Stratum(
            baseline=phase.baseline + Aggregate.of(under_baseline[~chosen]),
            candidate=phase.candidate + Aggregate.of(under_candidate[chosen]),
            phase=str(len(strata)),
        )
        seen = [*strata, phase]
        ever = ever or sequential.lift(seen).significant
        if day in DECLARED:
            fractions.append(DECLARED[day])
            look = sequential.group_sequential(
                seen, fractions=fractions, information_before=information
            )
            found = found or look.significant
            information.append(look.information or 0.0)
        wanted = thompson_share(seen, share)
        if wanted != share and phase_counts(phase):
            strata, share = seen, wanted
            phase = Stratum(baseline=Aggregate(), candidate=Aggregate())
    strata = [*strata, phase] if phase.baseline.n else strata
    weighted, pooled = reweighted_lift(strata), fixed.lift([_together(strata)])
    assert weighted is not None
    return Test(
        ever=ever,
        declared=found,
        reweighted=_interval(weighted.lift, weighted.lower, weighted.upper),
        pooled=_interval(pooled.effect, pooled.lower, pooled.upper),
    )


def _together(strata: list[Stratum]) -> Stratum:
    baseline = candidate = Aggregate()
    for s in strata:
        baseline, candidate = baseline + s.baseline, candidate + s.candidate
    return Stratum(baseline=baseline, candidate=candidate)


def _interval(
    lift: float | None, lower: float | None, upper: float | None
) -> tuple[float, float, float]:
    assert lift is not None
    assert lower is not None
    assert upper is not None
    return lift, lower, upper


def _covers(interval: tuple[float, float, float], lift: float) -> bool:
    return interval[1] <= lift <= interval[2]


def _share(found: Iterator[bool]) -> float:
    return float(np.mean(list(found)))


ROWS: dict[str, tuple[Row, int]] = {"adapted": (adapted, 4000)}
"""Each row with the runs of its whole version."""
