"""The rows about many tests: cycles, candidates, winners, and what was planned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from tests.simulation import vectorised as v
from tests.simulation.records import Record, Row, at_most, share_error, within
from tests.simulation.tests_table import REQUIRED, RULE_HOURS
from tests.simulation.worlds import CV, MEAN, Array, Sums, Week, beta, chunks, weeks

from tuneproof.stats import design, multiplicity, sequential, shrinkage, spending


def cycles(runs: int, rng: np.random.Generator) -> list[Record]:
    """Ten cycles of candidates that are no better: how many loops ever promote one."""
    loops = max(runs // 10, 20)
    # One-sided, as the evaluator takes them: only a promotion can be a false one.
    alphas = [min(multiplicity.share_of_alpha(i) * 0.05, 0.025) for i in range(1, 11)]
    limits = np.array([spending.bounds((3 / 7, 5 / 7, 1.0), alpha_one_sided=a) for a in alphas])
    z_all, d_all, naive_all = [], [], []
    for sums in weeks(Week(), loops * 10, rng):
        c = v.contrasts(sums)
        z_all.append(c.z[:, [h - 1 for h in RULE_HOURS]])
        d_all.append(c.d[:, [h - 1 for h in RULE_HOURS]])
        naive = (v.welch_p(sums) < 0.05) & (v.lifts(sums) > 0.15)
        naive_all.append(naive.any(1))
    z = np.concatenate(z_all).reshape(loops, 10, 3)
    point = np.concatenate(d_all).reshape(loops, 10, 3) > REQUIRED
    naive_loops = float(np.concatenate(naive_all).reshape(loops, 10).any(1).mean())
    better = z >= limits[None]
    fixed = z >= np.array(spending.bounds((3 / 7, 5 / 7, 1.0)))[None, None]
    return [
        at_most(
            "ten cycles, no better candidate: a loop promotes one",
            float((better & point).any((1, 2)).mean()), 0.05, runs=loops, careless=naive_loops,
            careless_said="Welch hourly and point above 15 %, fresh alpha each cycle",
            also=naive_loops > 0.5,
        ),
        at_most(
            "ten cycles, no better candidate: a loop finds one significant",
            float(better.any((1, 2)).mean()), 0.05, runs=loops,
            careless=float(fixed.any((1, 2)).mean()),
            careless_said="declared looks, fresh alpha each cycle: about 22 %",
        ),
    ]  # fmt: skip


WORLDS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "normal lifts": lambda rng, n: rng.normal(0.0, 0.1, n),
    "fat-tailed lifts": lambda rng, n: 0.1 * rng.standard_t(3, n),
    "one in five works": lambda rng, n: rng.normal(0.0, 0.25, n) * (rng.random(n) < 0.2),
}
"""True log-lifts of the candidates of a pipeline."""


def winners(runs: int, rng: np.random.Generator) -> list[Record]:
    """Winners' lifts: observed, shrunk, and true; chosen by a threshold and as best of five."""
    return [
        record
        for name, draw in WORLDS.items()
        for past in (200, 20, 5)
        for record in _winners(name, draw, past, runs, rng)
    ]


def _winners(
    name: str,
    draw: Callable[[np.random.Generator, int], Array],
    past: int,
    runs: int,
    rng: np.random.Generator,
) -> list[Record]:
    """Many pipelines with a past of their own, since with twenty experiments luck is large."""
    each = 250
    by_threshold, by_rank = [], []
    for _ in range(max(runs // each, 20)):
        _, seen, error = _observed(draw, past, rng)
        prior = shrinkage.fit_prior(list(seen), list(error))
        true, seen, error = _observed(draw, each, rng)
        won = np.flatnonzero(seen / error > 1.96)
        by_threshold.append(_judged(true[won], seen[won], error[won], prior))
        best = seen.reshape(-1, 5).argmax(1) + np.arange(0, each, 5)
        by_rank.append(_judged(true[best], seen[best], error[best], prior))
    said = f"{name}, {past} past experiments"
    return [
        *_winner_records(f"winners, {said}", by_threshold),
        *_winner_records(f"best of five, {said}", by_rank),
    ]


def _observed(
    draw: Callable[[np.random.Generator, int], Array], count: int, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    true, error = draw(rng, count), rng.uniform(0.05, 0.12, count)
    return true, rng.normal(true, error), error


def _judged(true: Array, seen: Array, error: Array, prior: shrinkage.Prior) -> Array:
    """Of each winner: shrunk minus true, observed minus true, whether the interval covers."""
    found = [shrinkage.shrink(d, s, prior) for d, s in zip(seen, error, strict=True)]
    shrunk = np.log1p([f.lift for f in found])
    lift = np.expm1(true)
    covered = [f.lower <= t <= f.upper for f, t in zip(found, lift, strict=True)]
    return np.stack([shrunk - true, seen - true, np.array(covered, float)])


def _winner_records(name: str, judged: Sequence[Array]) -> list[Record]:
    """Judged with the pipelines as the independent draws."""
    sums = np.array([[*j.sum(1), j.shape[1]] for j in judged])
    count = sums[:, 3].sum()
    gap, careless, covered = sums[:, :3].sum(0) / count
    errors = [
        float((sums[:, i] - m * sums[:, 3]).std() * math.sqrt(len(sums)) / count)
        for i, m in ((0, gap), (2, covered))
    ]
    return [
        within(
            f"{name}: shrunk minus true log-lift", float(gap), -0.02, 0.02, runs=int(count),
            error=errors[0], careless=float(careless),
            careless_said="the observed lift is too high", also=abs(careless) > abs(gap),
        ),
        within(
            f"{name}: 95 % interval covers", float(covered), 0.93, 0.98, runs=int(count),
            error=errors[1],
        ),
    ]  # fmt: skip


def planned(runs: int, rng: np.random.Generator) -> list[Record]:
    """A planned sample size at 90/10 has the power it was planned for."""
    lift = 0.2
    units = design.sample_size(lift=lift, cv=CV, share=0.1, power=0.8)
    found = 0
    for size in chunks(runs, units):
        y = beta(rng, np.full((size, units), MEAN))
        candidate = np.arange(units) < round(units * 0.1)
        arms = y[:, ~candidate], y[:, candidate] * (1 + lift)
        stacked = [
            np.stack([f(arm) for arm in arms], -1)[:, None, None, :].astype(float)
            for f in (_count, _sum, _square)
        ]
        c = v.contrasts(Sums(n=stacked[0], s=stacked[1], q=stacked[2]))
        found += int((c.z[:, 0] > 1.959964).sum())
    share = found / runs
    return [
        within(
            "planned for 80 % at 90/10: found", share, 0.79, 0.81, runs=runs,
            error=share_error(share, runs),
        )
    ]  # fmt: skip


def candidates(runs: int, rng: np.random.Generator) -> list[Record]:
    """Four candidates against one baseline, none better, looked at hourly."""
    looks = np.arange(50, 169) * 20.0
    steps = np.diff(looks, prepend=0.0)
    shared = np.cumsum(rng.normal(0, np.sqrt(steps), (runs, 1, len(looks))), -1)
    own = np.cumsum(rng.normal(0, np.sqrt(steps), (runs, 4, len(looks))), -1)
    z = (own - shared) / np.sqrt(2 * looks)
    limit = np.log(4 / (0.05 * np.arange(1, 5)))
    t = looks * sequential.tuning(0.05, 1500)
    log_e = z * z * t / (2 * (t + 1)) - 0.5 * np.log1p(t)
    log_e = np.where(z > 0, log_e, -np.inf)
    ranked = -np.sort(-log_e, axis=1)
    any_bh = np.asarray((ranked >= limit[None, :, None]).any((1, 2)))
    i = int(rng.integers(runs))
    ours = any(multiplicity.e_bh([float(x) for x in log_e[i, :, h]]) for h in range(len(looks)))
    assert ours == bool(any_bh[i])
    naive = float((np.abs(z) > 1.96).any((1, 2)).mean())
    return [
        at_most(
            "four candidates, none better: any called better", float(any_bh.mean()), 0.05,
            runs=runs, careless=naive, careless_said="each at 0.05, hourly", also=naive > 0.3,
        )
    ]  # fmt: skip


def _count(arm: Array) -> Array:
    return np.full(len(arm), arm.shape[1])


def _sum(arm: Array) -> Array:
    return np.asarray(arm.sum(1))


def _square(arm: Array) -> Array:
    return np.asarray((arm * arm).sum(1))


ROWS: dict[str, tuple[Row, int]] = {
    "cycles": (cycles, 10_000),
    "winners": (winners, 20_000),
    "planned": (planned, 4000),
    "candidates": (candidates, 4000),
}
"""Each row with the runs of its whole version."""
