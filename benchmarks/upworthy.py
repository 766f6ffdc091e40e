"""Every headline test of the Upworthy archive replayed as an experiment, and what comes of it.

Does the split check see by itself the weeks whose randomisation was broken, beside χ² at one
look? How often is there a winner, and how much of a winner's lift is real: chosen on one random
half of the impressions, measured on the other, with errors by drawing tests anew. Needs
`../shared/data/upworthy_posts.parquet`; without it, there is nothing to say.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tuneproof.stats import fixed, multiplicity, sequential, shrinkage, splits
from tuneproof.stats.aggregates import Aggregate, Stratum

DATA = Path(__file__).parents[2] / "shared" / "data" / "upworthy_posts.parquet"
BROKEN_WEEKS = range(201325, 201402)
"""25 June 2013 to 10 January 2014: the authors of the archive found the randomisation broken."""

ALPHA = 0.05
CHI_SQUARED = 0.001
SPLITS = 20
DRAWS = 2000
CONCENTRATIONS = (100, 300, 600, 1000, 3000)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One package: how often it was shown, and clicked."""

    impressions: int
    clicks: int

    def aggregate(self) -> Aggregate:
        """As units with an outcome of 0 or 1."""
        return Aggregate(n=self.impressions, sum_y=self.clicks, sum_yy=self.clicks)


@dataclass(frozen=True, kw_only=True)
class Test:
    """A test of the archive: its packages in the order of their ids; the first is the baseline."""

    week: int
    arms: tuple[Arm, ...]

    @property
    def broken_week(self) -> bool:
        """Whether it ran in the weeks that are known to be broken."""
        return self.week in BROKEN_WEEKS


@dataclass(frozen=True, kw_only=True)
class Winner:
    """A candidate that was called better, with its log-lift and standard error."""

    test: int
    arm: int
    log_lift: float
    error: float


def records() -> list[dict[str, Any]]:
    """Replay all tests."""
    if not DATA.exists():
        print(f"{DATA} is not here: nothing to replay.")
        return []
    tests = read()
    whole = [t for t in tests if not t.broken_week]
    return [*_splits(tests), *_winners(whole), *_calibration(whole)]


def read() -> list[Test]:
    """The archive's tests with two packages or more."""
    columns = ["test_id", "id", "test_week", "impressions", "clicks"]
    rows = sorted(pq.read_table(DATA, columns=columns).to_pylist(), key=lambda r: r["id"])
    grouped: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(row["test_id"], []).append(row)
    return [
        Test(
            week=int(found[0]["test_week"]),
            arms=tuple(Arm(impressions=r["impressions"], clicks=r["clicks"]) for r in found),
        )
        for found in grouped.values()
        if len(found) > 1 and all(r["impressions"] for r in found)
    ]


def _splits(tests: list[Test]) -> list[dict[str, Any]]:
    """How often the split is called broken: at one look (χ²), and by the check for any look."""
    made = []
    parts = (
        ("in weeks 201325 to 201401", [t for t in tests if t.broken_week], (0.65, 0.75), (0.5, 1)),
        ("in all other weeks", [t for t in tests if not t.broken_week], (0, 0.01), (0, 0.005)),
    )
    for where, chosen, one_goal, any_goal in parts:
        one = statistics.mean(_chi_squared(t) < CHI_SQUARED for t in chosen)
        always = statistics.mean(_broken(t) for t in chosen)
        asked = "the archive's authors, about" if where.startswith("in weeks") else "chance"
        known = 0.7 if where.startswith("in weeks") else CHI_SQUARED
        made += [
            {**_record(f"upworthy: split broken at p < .001 {where}", one, known, asked, one_goal)},
            {
                **_record(
                    f"upworthy: split called broken {where}", always, one, "χ², one look", any_goal
                ),
                "tests": len(chosen),
                "by_concentration_of_the_prior": {
                    str(k): round(statistics.mean(_broken(t, k) for t in chosen), 4)
                    for k in CONCENTRATIONS
                },
            },
        ]
    return made


def _broken(test: Test, concentration: float = splits.SPLIT_CONCENTRATION) -> bool:
    """What our own check says of a test's split, which was even."""
    counts = {str(i): a.impressions for i, a in enumerate(test.arms)}
    shares = {name: 1 / len(counts) for name in counts}
    found = splits.srm({"1": counts}, {"1": shares}, concentration=concentration)
    return found["1"].broken


def _chi_squared(test: Test) -> float:
    counts = [a.impressions for a in test.arms]
    return fixed.srm_p_value(counts, [1 / len(counts)] * len(counts))


def _winners(tests: list[Test]) -> list[dict[str, Any]]:
    sound = [t for t in tests if not _broken(t)]
    prior, winners = choose(sound)
    won = len({w.test for w in winners}) / len(sound)
    careless = statistics.mean(_careless(t) for t in sound)
    observed = statistics.mean(math.expm1(w.log_lift) for w in winners)
    shrunk = statistics.mean(shrinkage.shrink(w.log_lift, w.error, prior).lift for w in winners)
    doubled = [w for w in winners if 0.8 <= math.expm1(w.log_lift) <= 1.25]
    about = statistics.mean(math.expm1(w.log_lift) for w in doubled)
    worth = statistics.mean(shrinkage.shrink(w.log_lift, w.error, prior).lift for w in doubled)
    prior_said = {"prior_mean": round(prior.mean, 4), "prior_sd": round(prior.sd, 4)}
    careless_said = "two-sided z-test at .05 for each candidate"
    won_record = _record(
        "upworthy: tests with a winner", won, careless, careless_said, (0.0, careless)
    )
    lift_record = _record(
        "upworthy: winners' lift, shrunk", shrunk, observed, "observed", (0.0, observed)
    )
    doubled_record = _record(
        "upworthy: winners seen near +100 %, shrunk", worth, about, "observed", (0.3, 0.8)
    )
    return [
        {**won_record, "tests": len(sound)},
        {**lift_record, **prior_said, "winners": len(winners)},
        {**doubled_record, "winners": len(doubled)},
    ]


def _careless(test: Test) -> bool:
    baseline = test.arms[0].aggregate()
    found = [fixed.proportions(baseline, a.aggregate()) for a in test.arms[1:]]
    return any(f.p_value is not None and f.p_value < ALPHA and (f.effect or 0) > 0 for f in found)


def choose(tests: list[Test]) -> tuple[shrinkage.Prior, list[Winner]]:
    """The prior that all candidates support, and those that are called better.

    Each candidate against its baseline by the confidence sequence, with e-BH over the candidates
    of a test.
    """
    estimates = [_lifts(t) for t in tests]
    known = [e for found in estimates for e in found if e.standard_error]
    prior = shrinkage.fit_prior(
        [math.log1p(e.lift) for e in known if e.lift is not None and e.lift > -1],
        [e.standard_error or 0 for e in known if e.lift is not None and e.lift > -1],
    )
    winners = []
    for number, found in enumerate(estimates):
        answered = [(i, e) for i, e in enumerate(found) if e.log_e is not None]
        called = multiplicity.e_bh([e.log_e or 0.0 for _, e in answered], alpha=ALPHA)
        for place in called:
            i, e = answered[place]
            if e.lift is not None and e.lift > 0 and e.standard_error:
                winners.append(
                    Winner(
                        test=number, arm=i + 1, log_lift=math.log1p(e.lift), error=e.standard_error
                    )
                )
    return prior, winners


def _lifts(test: Test) -> list[sequential.LiftEstimate]:
    baseline = test.arms[0].aggregate()
    return [
        sequential.lift([Stratum(baseline=baseline, candidate=a.aggregate())], alpha=ALPHA)
        for a in test.arms[1:]
    ]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A winner of one half: log-lifts observed, shrunk (by ours, by one normal of the same spread)
    and held out, and lifts likewise."""

    test: int
    observed: float
    shrunk: float
    normal: float
    held: float
    observed_lift: float
    mean_lift: float
    held_lift: float


def _calibration(tests: list[Test]) -> list[dict[str, Any]]:
    """Winners of one random half of the impressions, measured on the other half, many times."""
    rng = np.random.default_rng(20250120)
    sound = [t for t in tests if not _broken(t)]
    found = [point for _ in range(SPLITS) for point in _held_out(sound, rng)]
    logs = {name: _ratio(found, "held", name, rng) for name in ("shrunk", "normal", "observed")}
    lifts = {n: _ratio(found, "held_lift", n, rng) for n in ("mean_lift", "observed_lift")}
    slope, error = _slope(found, rng)
    means = {
        f.name: round(statistics.mean(getattr(p, f.name) for p in found), 4)
        for f in fields(HeldOut)
    }
    log_record = _record(
        "upworthy: held-out log-lift of winners over the shrunk one",
        logs["shrunk"][0], logs["observed"][0], "over the observed", (0.9, 1.1),
    )  # fmt: skip
    lift_record = _record(
        "upworthy: held-out lift of winners over its posterior mean",
        lifts["mean_lift"][0], lifts["observed_lift"][0], "over the observed", (0.9, 1.1),
    )  # fmt: skip
    slope_record = _record(
        "upworthy: slope of held-out on shrunk log-lift (1 within two errors)",
        slope, 1.0, "calibrated", (1 - 2 * error, 1 + 2 * error),
    )  # fmt: skip
    more = {"winners_a_split": round(len(found) / SPLITS, 1), "means": means}
    return [
        {**log_record, "standard_error": logs["shrunk"][1], "normal": logs["normal"], **more},
        {**lift_record, "standard_error": lifts["mean_lift"][1]},
        {**slope_record, "standard_error": error},
    ]


def _ratio(
    found: list[HeldOut], above: str, below: str, rng: np.random.Generator
) -> tuple[float, float]:
    """The ratio of two means with its standard error, drawing tests anew with their winners."""
    sums = _by_test(found, lambda p: (getattr(p, above), getattr(p, below)))
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), DRAWS) @ sums
    whole = sums.sum(0)
    spread = float((drawn[:, 0] / drawn[:, 1]).std())
    return round(float(whole[0] / whole[1]), 4), round(spread, 4)


def _slope(found: list[HeldOut], rng: np.random.Generator) -> tuple[float, float]:
    """Of held-out on shrunk log-lifts by least squares, with its standard error."""
    sums = _by_test(
        found, lambda p: (1.0, p.shrunk, p.held, p.shrunk * p.shrunk, p.shrunk * p.held)
    )
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), DRAWS) @ sums

    def slope(n: Any, x: Any, y: Any, xx: Any, xy: Any) -> Any:
        return (xy - x * y / n) / (xx - x * x / n)

    return round(float(slope(*sums.sum(0))), 3), round(float(slope(*drawn.T).std()), 3)


def _by_test(found: list[HeldOut], of: Callable[[HeldOut], tuple[float, ...]]) -> Any:
    """Sums over the winners of a test, shape (tests with a winner, values)."""
    grouped: dict[int, Any] = {}
    for point in found:
        grouped[point.test] = grouped.get(point.test, 0.0) + np.array(of(point))
    return np.stack(list(grouped.values()))


def _held_out(tests: list[Test], rng: np.random.Generator) -> list[HeldOut]:
    """Each winner of one random split, shrunk by our prior and by a single normal."""
    halves = [_halved(t, rng) for t in tests]
    prior, winners = choose([first for first, _ in halves])
    normal = shrinkage.Prior.normal(mean=0.0, sd=prior.sd)
    return [_measured(w, halves[w.test][1], prior, normal) for w in winners]


def _measured(won: Winner, held: Test, prior: shrinkage.Prior, normal: shrinkage.Prior) -> HeldOut:
    baseline, arm = held.arms[0], held.arms[won.arm]
    found = shrinkage.shrink(won.log_lift, won.error, prior)
    single = shrinkage.shrink(won.log_lift, won.error, normal)
    # 1 / rate is estimated best by the impressions over one click more
    held_lift = arm.clicks / arm.impressions * baseline.impressions / (baseline.clicks + 1) - 1
    return HeldOut(
        test=won.test,
        observed=won.log_lift,
        shrunk=math.log1p(found.lift),
        normal=math.log1p(single.lift),
        held=_log_rate(arm) - _log_rate(baseline),
        observed_lift=found.observed,
        mean_lift=found.mean_lift,
        held_lift=held_lift,
    )


def _log_rate(arm: Arm) -> float:
    """The logarithm of the click rate with half a click added, which takes most of its bias."""
    return math.log((arm.clicks + 0.5) / arm.impressions)


def _halved(test: Test, rng: np.random.Generator) -> tuple[Test, Test]:
    first, second = [], []
    for arm in test.arms:
        size = arm.impressions // 2
        clicks = int(rng.hypergeometric(arm.clicks, arm.impressions - arm.clicks, size))
        first.append(Arm(impressions=size, clicks=clicks))
        second.append(Arm(impressions=arm.impressions - size, clicks=arm.clicks - clicks))
    return Test(week=test.week, arms=tuple(first)), Test(week=test.week, arms=tuple(second))


def _record(
    name: str, ours: float, theirs: float, peer: str, goal: tuple[float, float]
) -> dict[str, Any]:
    return {
        "name": name,
        "ours": round(ours, 4),
        "unit": "share",
        "peer": peer,
        "peer_value": round(theirs, 4),
        "ratio": None,
        "goal": f"{goal[0]:.3g} to {goal[1]:.3g}",
        "met": goal[0] <= ours <= goal[1],
    }


if __name__ == "__main__":
    for record in records():
        print(record)
