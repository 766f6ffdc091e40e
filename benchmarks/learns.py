"""What is learnt from real posts: which of two headlines of a test did readers take to?

The tests of the Upworthy archive are halved five times at random; what was learnt on one half is
asked about pairs of the other half that differ at p < .01. Standard errors are of clusters by
test. The learning curve takes a part of the tests. And of two or four headlines of a test, as of
several answers: how many more clicks has the one that is picked than one at random? And does the
gate refuse a candidate that writes as the losers of tests that nobody has seen, and let one pass
that writes as others do? Needs `../shared/data/upworthy_posts.parquet`.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from tuneproof.evaluation.comparing import Asked, Prediction, predict
from tuneproof.evaluation.outcomes import OutcomeModel, Published, fit_outcomes
from tuneproof.settings import PipelineConfig
from tuneproof.testing import MemoryProvider

DATA = Path(__file__).parents[2] / "shared" / "data" / "upworthy_posts.parquet"
SEEDS = (1, 2, 3, 4, 5)
CURVE = (100, 300, 1000, 3000)
"""Pairs of posts that competed, as far as there are so many."""

CLEAR_Z = 2.5758
"""p < .01, two-sided."""

SEVERAL = (2, 4)
"""Of how many headlines one is picked."""

PAIRED_Z = 1.96
"""p < .05, two-sided."""

WRITERS = {
    ("losers", "winners"): "all",
    ("losers", "others"): "",
    ("others", "others"): "none",
    ("winners", "others"): "none",
}
"""As whom a candidate writes, and the model in use; how many of the candidates should be refused,
where that can be said."""

COMPARED = 100
"""`gate.compared`, where it is switched on."""

Scores = Callable[[Sequence[str]], Sequence[float]]


class Duel(NamedTuple):
    """Two headlines of a test, the winner first."""

    test: str
    winner: str
    loser: str


class Picked(NamedTuple):
    """The share of winners that were picked, its standard error, of how many duels."""

    share: float
    error: float
    duels: int


def posts() -> dict[str, list[Published]]:
    """The headlines of each test that had two of them at least."""
    found: dict[str, list[Published]] = defaultdict(list)
    for row in pq.read_table(DATA).to_pylist():
        rate = row["clicks"] / row["impressions"]
        found[row["test_id"]].append(
            Published(row["hook"], row["test_id"], rate, row["impressions"])
        )
    return {test: made for test, made in found.items() if len({p.text for p in made}) > 1}


def halves(tests: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """The tests to learn from, and those to be asked about."""
    drawn = random.Random(seed).sample(sorted(tests), len(tests))
    return drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]


def duels(tests: dict[str, list[Published]], chosen: Sequence[str]) -> list[Duel]:
    """The pairs of headlines of these tests that differ at p < .01."""
    found = []
    for test in chosen:
        for a, b in combinations(tests[test], 2):
            if a.text != b.text and abs(z := _z(a, b)) > CLEAR_Z:
                winner, loser = (a, b) if z > 0 else (b, a)
                found.append(Duel(test, winner.text, loser.text))
    return found


def picked(asked: Sequence[Duel], scores: Scores) -> Picked:
    """How many winners have the higher score."""
    ours, theirs = scores([d.winner for d in asked]), scores([d.loser for d in asked])
    right = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(ours, theirs, strict=True)]
    share = statistics.fmean(right)
    sums: dict[str, float] = defaultdict(float)
    for duel, value in zip(asked, right, strict=True):
        sums[duel.test] += value - share
    error = math.sqrt(math.fsum(v * v for v in sums.values())) / len(right)
    return Picked(share, error, len(right))


class Lift(NamedTuple):
    """By what share the picked ones' rates are above those of all that they are picked among, in
    the mean over tests; its standard error, and how many tests."""

    share: float
    error: float
    tests: int


def lifted(tests: dict[str, list[Published]], seed: int, model: OutcomeModel, several: int) -> Lift:
    """What picking one of `several` headlines of a test gains, in tests that it has not seen.

    A ratio of two means; its error by the delta method.
    """
    draw, best, usual = random.Random(seed), [], []
    for test in sorted(halves(list(tests), seed)[1]):
        rates = _rates(tests[test])
        if len(rates) >= several:
            chosen = draw.sample(sorted(rates), several)
            best.append(rates[chosen[int(model.scores(chosen).argmax())]])
            usual.append(statistics.fmean(rates[text] for text in chosen))
    ratio = sum(best) / sum(usual)
    left = [ours - ratio * mean for ours, mean in zip(best, usual, strict=True)]
    error = statistics.stdev(left) / math.sqrt(len(left)) / statistics.fmean(usual)
    return Lift(ratio - 1, error, len(usual))


def _rates(published: Sequence[Published]) -> dict[str, float]:
    """Of each text, all its clicks over all its impressions."""
    clicks: dict[str, float] = defaultdict(float)
    shown: dict[str, int] = defaultdict(int)
    for post in published:
        assert post.impressions
        clicks[post.text] += post.rate * post.impressions
        shown[post.text] += post.impressions
    return {text: clicks[text] / shown[text] for text in shown}


def competing(tests: dict[str, list[Published]], seed: int) -> dict[str, Duel]:
    """Of each test that nobody has seen, the pair that differs most clearly, where one differs at
    p < .05: what preference data is made of (`pair_confidence`)."""
    found = {}
    for test in halves(list(tests), seed)[1]:
        pairs = [(_z(a, b), a, b) for a in tests[test] for b in tests[test] if a.text != b.text]
        z, winner, loser = max(pairs, key=lambda pair: pair[0])
        if z > PAIRED_Z:
            found[test] = Duel(test, winner.text, loser.text)
    return found


def gated(
    tests: dict[str, list[Published]],
    asked: Mapping[str, Duel],
    seed: int,
    model: OutcomeModel,
    writers: tuple[str, str],
) -> Prediction:
    """What the gate expects of a candidate beside the model in use, in tests that nobody has seen.

    Asked for a headline of a test, a model gives the one that lost or won in it, or any.
    """
    drawn = random.Random(seed).sample(sorted(asked), COMPARED)

    def answer(name: str, messages: Sequence[Mapping[str, str]], index: int) -> str:
        duel, writer = asked[messages[-1]["content"]], name.partition(" ")[2]
        if writer != "others":
            return duel.loser if writer == "losers" else duel.winner
        draw = random.Random(f"{seed}{name}{index}{duel.test}")
        return draw.choice(tests[duel.test]).text

    names = tuple(f"{of} {writer}" for of, writer in zip(("new", "old"), writers, strict=True))
    provider = MemoryProvider(base_models=names, answer=answer)
    candidate, in_use = (Asked(provider=provider, model=name) for name in names)
    inputs = [[{"role": "user", "content": test}] for test in drawn]
    return asyncio.run(predict("hook", model, candidate, in_use, inputs))


def records() -> list[dict[str, Any]]:
    """Measure."""
    if not DATA.exists():
        raise SystemExit(f"This benchmark needs {DATA}.")
    tests = posts()
    models = [_learnt(tests, seed) for seed in SEEDS]
    whole = [_judged(tests, seed, model) for seed, model in zip(SEEDS, models, strict=True)]
    longer = [asked(tests, seed, lambda texts: [len(text) for text in texts]) for seed in SEEDS]
    made = [_record("learns: winners picked by the outcome model", whole, longer, 0.70)]
    for several in SEVERAL:
        lifts = [
            lifted(tests, seed, model, several) for seed, model in zip(SEEDS, models, strict=True)
        ]
        made.append(_gain(several, lifts))
    asked = [competing(tests, seed) for seed in SEEDS]
    for writers, goal in WRITERS.items():
        expected = [
            gated(tests, duels, seed, model, writers)
            for duels, seed, model in zip(asked, SEEDS, models, strict=True)
        ]
        made.append(_expected(writers, goal, expected))
    for pairs in CURVE:
        part = [_judged(tests, seed, _learnt(tests, seed, pairs)) for seed in SEEDS]
        made.append(_record(f"learns: the same after {pairs:,} pairs", part, longer, None))
    return made


def taught(
    tests: dict[str, list[Published]], seed: int, pairs: int | None = None
) -> list[Published]:
    """The headlines of one half, of as many tests as have so many pairs."""
    learn, _ = halves(list(tests), seed)
    published: list[Published] = []
    count = 0
    for test in learn:
        if pairs is not None and count >= pairs:
            break
        count += math.comb(len({post.text for post in tests[test]}), 2)
        published += tests[test]
    return published


def _learnt(tests: dict[str, list[Published]], seed: int, pairs: int | None = None) -> OutcomeModel:
    return fit_outcomes(taught(tests, seed, pairs))


def _judged(tests: dict[str, list[Published]], seed: int, model: OutcomeModel) -> Picked:
    return asked(tests, seed, lambda texts: list(model.scores(texts)))


def asked(tests: dict[str, list[Published]], seed: int, scores: Scores) -> Picked:
    return picked(duels(tests, halves(list(tests), seed)[1]), scores)


def _gain(several: int, found: Sequence[Lift]) -> dict[str, Any]:
    share = statistics.fmean(one.share for one in found)
    return {
        "name": f"learns: clicks of the one that is picked of {several} headlines",
        "ours": round(1 + share, 3),
        "unit": "of the mean",
        "peer": "one at random",
        "peer_value": 1,
        "ratio": round(1 + share, 2),
        "goal": "",
        "met": None,
        "standard_error": round(statistics.fmean(one.error for one in found), 3),
        "seeds": [round(1 + one.share, 3) for one in found],
        "tests": round(statistics.fmean(one.tests for one in found)),
    }


def _expected(writers: tuple[str, str], goal: str, found: Sequence[Prediction]) -> dict[str, Any]:
    """What share of such candidates is refused, and how often they are expected to do better."""
    least = PipelineConfig().gate_min_win_rate
    refused = statistics.fmean(one.falls_short(least) for one in found)
    wanted = {"all": 1.0, "none": 0.0}.get(goal)
    return {
        "name": f"learns: who writes as {writers[0]} refused beside {writers[1]}",
        "ours": refused,
        "unit": "share",
        "peer": "expected to do better in",
        "peer_value": round(statistics.fmean(one.win_rate or 0.0 for one in found), 3),
        "ratio": None,
        "goal": goal,
        "met": None if wanted is None else refused == wanted,
        "intervals": [[round(one.low or 0.0, 3), round(one.high or 0.0, 3)] for one in found],
    }


def _record(
    name: str, ours: Sequence[Picked], peer: Sequence[Picked], goal: float | None
) -> dict[str, Any]:
    share, other = (statistics.fmean(p.share for p in found) for found in (ours, peer))
    error = statistics.fmean(p.error for p in ours)
    return {
        "name": name,
        "ours": round(share, 3),
        "unit": "share",
        "peer": "the longer headline",
        "peer_value": round(other, 3),
        "ratio": round(share / other, 2),
        "goal": "" if goal is None else f"≥ {goal:g}",
        "met": None if goal is None else share >= goal,
        "standard_error": round(error, 3),
        "seeds": [round(p.share, 3) for p in ours],
        "duels": round(statistics.fmean(p.duels for p in ours)),
    }


def _z(a: Published, b: Published) -> float:
    na, nb = a.impressions or 1, b.impressions or 1
    variance = a.rate * (1 - a.rate) / na + b.rate * (1 - b.rate) / nb
    return (a.rate - b.rate) / math.sqrt(variance) if variance else 0.0
