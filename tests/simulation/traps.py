"""The rows of the table of traps: the careless answer fails as said, ours does not."""

from __future__ import annotations

import math

import numpy as np
from tests.simulation import vectorised as v
from tests.simulation.records import Record, Row, at_most, exactly
from tests.simulation.worlds import (
    KAPPA,
    MEAN,
    WEEK,
    Array,
    Sums,
    Week,
    accumulate,
    beta,
    chunks,
    hourly,
    weeks,
)

from tuneproof.stats import contrasts, effects, fixed, sequential
from tuneproof.stats.aggregates import Aggregate, Stratum

RAMP = tuple([0.1] * 84 + [0.5] * 84)
"""The candidate's share of a week whose split changes half way."""


def ramp_and_drift(runs: int, rng: np.random.Generator) -> list[Record]:
    """The split goes from 10 to 50 % while the baseline rises by half."""
    week = Week(units=100, share=RAMP, drift=tuple([1.0] * 84 + [1.5] * 84))
    false = promoted = 0
    point = []
    for sums in weeks(week, runs, rng):
        v.agree(sums, rng)
        false += _ever_significant(sums)
        pooled = sums.pooled()
        naive = (v.welch_p(pooled) < 0.05) & (v.lifts(pooled) > 0.15)
        promoted += int(naive.any(1).sum())
        point.append(v.lifts(pooled)[:, -1])
    lift = float(np.concatenate(point).mean())
    return [
        at_most(
            "ramp 10 to 50 % and drift, no effect: ever significant", false / runs, 0.05,
            runs=runs, careless=promoted / runs,
            careless_said=f"pooled: +19 %, promotes 100 % (here {lift:+.0%})",
            also=promoted / runs > 0.97 and 0.15 < lift < 0.23,
        )
    ]  # fmt: skip


def ramp_alone(runs: int, rng: np.random.Generator) -> list[Record]:
    """A ramp without drift, and a drift (a day's rhythm and a trend) without a ramp."""
    rhythm = tuple(1 + 0.3 * math.sin(h / 24 * 2 * math.pi) + h / 400 for h in range(WEEK))
    out = []
    for name, week in (
        ("ramp, no drift", Week(share=RAMP)),
        ("drift, no ramp", Week(drift=rhythm)),
        ("ramp and daily rhythm", Week(share=RAMP, drift=rhythm)),
    ):
        false = sum(_ever_significant(sums) for sums in weeks(week, runs, rng))
        out.append(at_most(f"{name}, no effect: ever significant", false / runs, 0.05, runs=runs))
    return out


def slow_outcomes(runs: int, rng: np.random.Generator) -> list[Record]:
    """Outcomes that grow over 24 h, during a ramp; ours looks only at matured units."""
    week = Week(units=100, share=RAMP)
    false = 0
    early: list[Array] = []
    for size in chunks(runs, week.hours * week.units):
        parts = hourly(week, size, rng)
        false += _ever_significant(accumulate(week, parts).delayed(24))
        early.append(_immature_lift(parts).mean(0) * size)
    seen = sum(early) / runs
    worst = float(np.min(seen))
    return [
        at_most(
            "outcomes mature over 24 h during a ramp, no effect: ever significant", false / runs,
            0.05, runs=runs, careless=worst, careless_said="all units at once: -27 %",
            also=worst < -0.2,
        )
    ]  # fmt: skip


def _immature_lift(parts: tuple[Array, Array, Array]) -> Array:
    """The pooled lift at each look when a unit of age a hours shows a/24 of its outcome."""
    n, s, _ = parts
    kernel = np.minimum(np.arange(1, WEEK + 1) / 24, 1.0)
    seen = np.empty_like(s)
    for look in range(WEEK):
        seen[:, look] = (s[:, : look + 1] * kernel[look::-1][None, :, None]).sum(1)
    mean = seen / np.maximum(n.cumsum(1), 1)
    return np.where(mean[..., 0] > 0, mean[..., 1] / np.maximum(mean[..., 0], 1e-12) - 1, 0.0)


def clustered(runs: int, rng: np.random.Generator) -> list[Record]:
    """Randomised by author, 20 posts each; analysed by post, or by author as declared."""
    out = []
    for icc, said in ((0.02, 0.11), (0.1, 0.25), (0.3, 0.44)):
        naive = false = 0
        for size in chunks(runs, 400 * 20 * 6):
            ends, looks = _authors(size, icc, rng)
            naive += ends
            false += looks
        out.append(
            at_most(
                f"authors of 20 posts, ICC {icc:g}, no effect: ever significant", false / runs,
                0.05, runs=runs, careless=naive / runs,
                careless_said=f"by post, one look at the end: {said:.0%}",
                also=abs(naive / runs - said) < 0.05 + 2 / math.sqrt(runs),
            )
        )  # fmt: skip
    return out


def _authors(runs: int, icc: float, rng: np.random.Generator) -> tuple[int, int]:
    """How many runs the by-post test calls significant, and the by-author sequence ever."""
    authors, posts, looks = 400, 20, 56
    level = beta(rng, np.full((runs, authors), MEAN), (KAPPA + 1) / icc - 1)
    y = beta(rng, level[..., None].repeat(posts, -1), (KAPPA + 1) / (1 - icc) - 1)
    candidate = rng.random((runs, authors)) < 0.5
    look = rng.integers(looks, size=(runs, authors, posts))
    flat = Sums(**_arm_sums(y.reshape(runs, -1), candidate.repeat(posts, -1)))
    naive = int((v.welch_p(flat)[:, 0] < 0.05).sum())
    ever = np.zeros(runs, dtype=bool)
    for at in range(8, looks):
        shown = look <= at
        z, n, ok = _ratio_contrast((y * shown).sum(-1), shown.sum(-1).astype(float), candidate)
        bound = v.critical(n, alpha=0.05, optimum_n=200)
        ever |= ok & (np.abs(z) > bound)
        if at == looks - 1:
            _agree_ratio(y, shown, candidate, z, rng)
    return naive, int(ever.sum())


def _arm_sums(y: Array, candidate: Array) -> dict[str, Array]:
    out = {}
    for name, value in (("n", np.ones_like(y)), ("s", y), ("q", y * y)):
        part = np.where(candidate, value, 0.0).sum(-1)
        out[name] = np.stack([value.sum(-1) - part, part], -1)[:, None, None, :]
    return out


def _ratio_contrast(y: Array, d: Array, candidate: Array) -> tuple[Array, Array, Array]:
    """The log-ratio of Σy/Σd by the delta method: z, number of authors, and whether answered."""
    total: list[Array] = []
    for arm in (~candidate, candidate):
        here = arm & (d > 0)
        n = here.sum(-1)
        yy, dd = np.where(here, y, 0.0), np.where(here, d, 0.0)
        r = yy.sum(-1) / dd.sum(-1)
        resid = np.where(here, yy - r[:, None] * dd, 0.0)
        spread = (resid**2).sum(-1) / (n - 1) / n / (yy.sum(-1) / n) ** 2
        total += [r, spread, n]
    b, vb, nb, c, vc, nc = total
    ok = np.minimum(nb, nc) >= 100
    return np.log(c / b) / np.sqrt(vb + vc), (nb + nc).astype(float), ok


def _agree_ratio(
    y: Array, shown: Array, candidate: Array, z: Array, rng: np.random.Generator
) -> None:
    i = int(rng.integers(len(y)))
    arms = [
        Aggregate.of((y * shown).sum(-1)[i][mask], m=shown.sum(-1)[i][mask].astype(float))
        for mask in (~candidate[i] & shown[i].any(-1), candidate[i] & shown[i].any(-1))
    ]
    found = contrasts.contrast(
        [Stratum(baseline=arms[0], candidate=arms[1])], effects.ENGAGEMENT_PER_ITEM
    )
    assert isinstance(found, contrasts.Contrast)
    assert found.log_ratio is not None
    assert math.isclose(found.log_ratio / math.sqrt(found.variance), z[i], rel_tol=1e-9)


def pooled_clicks(runs: int, rng: np.random.Generator) -> list[Record]:
    """The z-test on all clicks and impressions, as if impressions were independent."""
    naive = false = 0
    for size in chunks(runs, 168 * 20 * 4):
        shape = (size, 168, 20)
        candidate = rng.random(shape) < 0.1
        p = beta(rng, np.full(shape, MEAN))
        shown = np.ceil(rng.lognormal(math.log(1000) - 0.5, 1.0, shape)).astype(np.int64)
        clicks = rng.binomial(shown, p)
        naive += _z_tests(clicks, shown, candidate)
        parts = []
        rate = clicks / shown
        for value in (np.ones_like(rate), rate, rate * rate):
            part = np.where(candidate, value, 0.0).sum(-1)
            parts.append(np.stack([value.sum(-1) - part, part], -1))
        false += _ever_significant(accumulate(Week(), (parts[0], parts[1], parts[2])))
    return [
        at_most(
            "posts with 1000 impressions, no effect: ever significant", false / runs, 0.05,
            runs=runs, careless=naive / runs,
            careless_said="z-test on pooled clicks and impressions, one look: 86 %",
            also=naive / runs > 0.75,
        )
    ]  # fmt: skip


def _z_tests(clicks: Array, shown: Array, candidate: Array) -> int:
    total: list[Array] = []
    for mask in (~candidate, candidate):
        total += [(clicks * mask).sum((1, 2)), (shown * mask).sum((1, 2))]
    kb, nb, kc, nc = (np.asarray(x, dtype=float) for x in total)
    share = (kb + kc) / (nb + nc)
    z = (kc / nc - kb / nb) / np.sqrt(share * (1 - share) * (1 / nb + 1 / nc))
    b, c = (Aggregate(n=int(n), sum_y=k, sum_yy=k) for n, k in ((nb[0], kb[0]), (nc[0], kc[0])))
    assert math.isclose(fixed.proportions(b, c).statistic or 0.0, z[0], rel_tol=1e-9)
    return int((np.abs(z) > 1.959964).sum())


def no_minimum(runs: int, rng: np.random.Generator) -> list[Record]:
    """Looking from the first units on."""
    ours = naive = bare = 0
    for sums in weeks(Week(), runs, rng):
        ours += _ever_significant(sums)
        naive += int((v.welch_p(sums) < 0.05).any(1).sum())
        bare += _ever_significant(sums, min_units=2, min_units_phase=2)
    return [
        at_most(
            "minimum of 100 units an arm, no effect: ever significant", ours / runs, 0.05,
            runs=runs, careless=naive / runs, careless_said="no minimum, Welch: 45 to 49 %",
            also=naive / runs > 0.40 and bare > ours,
        )
    ]  # fmt: skip


def constant_price(runs: int, rng: np.random.Generator) -> list[Record]:
    """A flat price per token: the ratio is arithmetic, and its variance rounds below zero."""
    failed = wrong = 0
    for _ in range(runs):
        arms, prices = [], rng.uniform(1e-7, 1e-4, 2)
        for price in prices:
            tokens = np.round(rng.lognormal(5, 1, 500))
            arms.append(Aggregate.of(np.ones(500), d=tokens, c=price * tokens))
        found = sequential.lift(
            [Stratum(baseline=arms[0], candidate=arms[1])], metric=effects.COST_PER_TOKEN
        )
        exact = prices[1] / prices[0] - 1
        right = found.method == "arithmetic" and found.lower == found.upper == found.lift
        wrong += not (right and math.isclose(found.lift or 0.0, exact, rel_tol=1e-9))
        failed += any(_careless_variance(arm) < 0 for arm in arms)
    return [
        exactly(
            "constant price per token: not exact", wrong / runs, 0.0, careless=failed / runs,
            careless_said="square root of a variance below 0: math domain error", runs=runs,
        )
    ]  # fmt: skip


def _careless_variance(arm: Aggregate) -> float:
    """The delta method's variance of Σc/Σd as it is usually written down."""
    n, r = arm.n, arm.sum_c / arm.sum_d
    var_c = (arm.sum_cc - arm.sum_c**2 / n) / (n - 1)
    var_d = (arm.sum_dd - arm.sum_d**2 / n) / (n - 1)
    cov = (arm.sum_cd - arm.sum_c * arm.sum_d / n) / (n - 1)
    return var_c - 2 * r * cov + r * r * var_d


def _ever_significant(sums: Sums, *, min_units: int = 100, min_units_phase: int = 50) -> int:
    c = v.contrasts(sums, min_units=min_units, min_units_phase=min_units_phase)
    low, high = v.reach(c, alpha=0.05)
    return int(((low > 0) | (high < 0)).any(1).sum())


ROWS: dict[str, tuple[Row, int]] = {
    "ramp_and_drift": (ramp_and_drift, 2000),
    "ramp_alone": (ramp_alone, 4000),
    "slow_outcomes": (slow_outcomes, 2000),
    "clustered": (clustered, 2000),
    "pooled_clicks": (pooled_clicks, 2000),
    "no_minimum": (no_minimum, 4000),
    "constant_price": (constant_price, 500),
}
"""Each trap with the runs of its whole version."""
