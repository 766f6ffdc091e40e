"""Several candidates against one baseline at once: how often the best of equals wins, and why all
lanes begin their phases together."""

from __future__ import annotations

import numpy as np
from tests.simulation import vectorised as v
from tests.simulation.records import Record, Row, at_least, at_most
from tests.simulation.tests_table import REQUIRED, RULE_HOURS
from tests.simulation.worlds import MEAN, WEEK, Array, Sums, beta, chunks

from tuneproof.stats import design, spending

CANDIDATES = 4
SHARE = 0.1
"""Of all units, for each candidate."""


def best_of_equals(runs: int, rng: np.random.Generator) -> list[Record]:
    """Four candidates that are worth nothing: is any of them ever called better?"""
    found = {"ours": 0, "undivided": 0, "hourly": 0, "hourly undivided": 0, "promoted": 0}
    for size in chunks(runs, WEEK * 20):
        looked = [v.contrasts(s) for s in _family(size, rng, lifts=(0.0,) * CANDIDATES)]
        ours = [_crossed(c, 0.05 / CANDIDATES) for c in looked]
        found["ours"] += _any(ours)
        found["promoted"] += _any([x & _large(c) for x, c in zip(ours, looked, strict=True)])
        found["undivided"] += _any([_crossed(c, 0.05) for c in looked])
        found["hourly"] += _any([v.reach(c, alpha=0.05 / CANDIDATES)[0] > 0 for c in looked])
        found["hourly undivided"] += _any([v.reach(c, alpha=0.05)[0] > 0 for c in looked])
    shares = {name: count / runs for name, count in found.items()}
    return [
        at_most(
            "best of 4 equal candidates: significant at a declared look", shares["ours"], 0.025,
            runs=runs, careless=shares["undivided"],
            careless_said="each at the undivided level: above 5 %",
            also=shares["undivided"] > 0.05,
        ),
        at_most(
            "best of 4 equal candidates: promoted", shares["promoted"], 0.025, runs=runs,
        ),
        at_most(
            "best of 4 equal candidates: ever up, looked at hourly", shares["hourly"], 0.025,
            runs=runs, careless=shares["hourly undivided"],
            careless_said="each at the undivided level",
            also=shares["hourly undivided"] > shares["hourly"],
        ),
    ]  # fmt: skip


def best_is_found(runs: int, rng: np.random.Generator) -> list[Record]:
    """One of four is worth +20 %: how often a week finds it, beside the plan and Dunnett's."""
    hit = alone = wrong = 0
    for size in chunks(runs, WEEK * 20):
        lifts = (0.2, 0.0, 0.0, 0.0)
        looked = [v.contrasts(s) for s in _family(size, rng, lifts=lifts, units=20)]
        crossed = [_crossed(c, 0.05 / CANDIDATES) for c in looked]
        hit += _any(crossed[:1])
        wrong += _any(crossed[1:])
        own = _family(size, rng, lifts=lifts, units=20, own_lane=True)
        alone += _any([_crossed(v.contrasts(own[0]), 0.05 / CANDIDATES)])
    both = 1 - (CANDIDATES - 1) * SHARE
    traffic = design.Traffic(units_per_hour=20 * both, share=SHARE / both, cv=_CV)
    plan = design.declared_looks(traffic, lift=0.2, alpha_one_sided=0.025 / CANDIDATES)
    return [
        at_least(
            "one of 4 worth +20 %, 20 posts/h: found, as planned", hit / runs,
            plan.probability - 0.01, runs=runs, careless=alone / runs,
            careless_said="against its own lane's baseline alone", also=alone < hit,
        ),
        at_most(
            "one of 4 worth +20 %: another one is called better", wrong / runs, 0.025, runs=runs
        ),
    ]  # fmt: skip


def stopped_lane(runs: int, rng: np.random.Generator) -> list[Record]:
    """One of two candidates stops half way while the level falls by a third: the other one."""
    level = np.array([1.5] * 84 + [1.0] * 84)
    ours = careless = 0
    for size in chunks(runs, WEEK * 100):
        n, s, q = _hours(size, rng, units=100, level=level, shares=(0.3, 0.3), stop=(1, 84))
        phase = (np.arange(WEEK) >= 84).astype(int)
        joint = _sums(n, s, q, candidate=0, phases=phase)
        v.agree(joint, rng)
        ours += _ever(joint)
        careless += _ever(_sums(n, s, q, candidate=0, phases=np.zeros(WEEK, dtype=int)))
    return [
        at_most(
            "a sibling stops while the level falls, no effect: ever significant", ours / runs,
            0.05, runs=runs, careless=careless / runs,
            careless_said="no new phase for the others, whose shares stay: above 50 %",
            also=careless / runs > 0.5,
        )
    ]  # fmt: skip


_CV = ((1 - MEAN) / MEAN / 21) ** 0.5


def _family(
    runs: int,
    rng: np.random.Generator,
    *,
    lifts: tuple[float, ...],
    units: int = 20,
    own_lane: bool = False,
) -> list[Sums]:
    """Each candidate's cumulative sums beside the shared baseline (or its own lane's)."""
    shares = (SHARE,) * len(lifts)
    n, s, q = _hours(runs, rng, units=units, level=np.ones(WEEK), shares=shares, lifts=lifts)
    phases = np.zeros(WEEK, dtype=int)
    return [
        _sums(n, s, q, candidate=i, phases=phases, own_lane=own_lane) for i in range(len(lifts))
    ]


def _hours(
    runs: int,
    rng: np.random.Generator,
    *,
    units: int,
    level: Array,
    shares: tuple[float, ...],
    lifts: tuple[float, ...] | None = None,
    stop: tuple[int, int] | None = None,
) -> tuple[Array, Array, Array]:
    """Hourly n, Σy, Σy² by lane and arm, shapes (R, H, lanes, 2), by the rule of assignment."""
    lanes = len(shares)
    shape = (runs, WEEK, units)
    lane = rng.integers(lanes, size=shape)
    share = np.broadcast_to(np.asarray(shares), (WEEK, lanes)).copy()
    if stop is not None:
        share[stop[1] :, stop[0]] = 0.0
    hours = np.arange(WEEK)[None, :, None]
    candidate = rng.random(shape) < share[hours, lane] * lanes
    worth = 1 + np.asarray(lifts or (0.0,) * lanes)[lane]
    mean = MEAN * np.broadcast_to(level[None, :, None], shape)
    y = beta(rng, np.where(candidate, mean * worth, mean))
    out = []
    for value in (np.ones_like(y), y, y * y):
        parts = [
            np.stack([np.where((lane == i) & (candidate == arm), value, 0.0).sum(-1)
                      for arm in (False, True)], -1)
            for i in range(lanes)
        ]  # fmt: skip
        out.append(np.stack(parts, 2))
    return out[0], out[1], out[2]


def _sums(
    n: Array, s: Array, q: Array, *, candidate: int, phases: Array, own_lane: bool = False
) -> Sums:
    """Cumulative sums of one candidate beside the baseline of all lanes, by phase."""
    inside = (phases[:, None] == np.arange(phases.max() + 1)[None, :]).astype(float)
    found = {}
    for name, value in (("n", n), ("s", s), ("q", q)):
        base = value[:, :, candidate, 0] if own_lane else value[..., 0].sum(2)
        both = np.stack([base, value[:, :, candidate, 1]], -1)
        found[name] = np.cumsum(both[:, :, None, :] * inside[None, :, :, None], axis=1)
    return Sums(**found)


def _crossed(c: v.Contrasts, alpha: float) -> Array:
    """Whether each declared look finds the candidate better, at the two-sided level `alpha`."""
    limits = spending.bounds([h / WEEK for h in RULE_HOURS], alpha_one_sided=alpha / 2)
    return np.greater_equal(c.z[:, [h - 1 for h in RULE_HOURS]], np.array(limits))


def _large(c: v.Contrasts) -> Array:
    return np.greater(c.d[:, [h - 1 for h in RULE_HOURS]], REQUIRED)


def _any(fired: list[Array]) -> int:
    """In how many runs any candidate fires at any look."""
    return int(np.logical_or.reduce([f.any(1) for f in fired]).sum())


def _ever(sums: Sums) -> int:
    low, high = v.reach(v.contrasts(sums), alpha=0.05)
    return int(((low > 0) | (high < 0)).any(1).sum())


ROWS: dict[str, tuple[Row, int]] = {
    "best_of_equals": (best_of_equals, 4000),
    "best_is_found": (best_is_found, 2000),
    "stopped_lane": (stopped_lane, 1000),
}
"""Each row with the runs of its whole version."""
