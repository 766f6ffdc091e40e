"""What is learnt from real posts: which of two headlines of a test did readers take to?

The tests of the Upworthy archive are halved five times at random; what was learnt on one half is
asked about pairs of the other half that differ at p < .01. Standard errors are of clusters by
test. The learning curve takes a part of the tests. Needs `../shared/data/upworthy_posts.parquet`.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from tuneproof.evaluation.outcomes import Published, fit_outcomes

DATA = Path(__file__).parents[2] / "shared" / "data" / "upworthy_posts.parquet"
SEEDS = (1, 2, 3, 4, 5)
CURVE = (100, 300, 1000, 3000)
"""Pairs of posts that competed, as far as there are so many."""

CLEAR_Z = 2.5758
"""p < .01, two-sided."""

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


def records() -> list[dict[str, Any]]:
    """Measure."""
    if not DATA.exists():
        raise SystemExit(f"This benchmark needs {DATA}.")
    tests = posts()
    whole = [_learnt(tests, seed) for seed in SEEDS]
    longer = [_asked(tests, seed, lambda texts: [len(text) for text in texts]) for seed in SEEDS]
    made = [_record("learns: winners picked by the outcome model", whole, longer, 0.70)]
    for pairs in CURVE:
        part = [_learnt(tests, seed, pairs) for seed in SEEDS]
        made.append(_record(f"learns: the same after {pairs:,} pairs", part, longer, None))
    return made


def _learnt(tests: dict[str, list[Published]], seed: int, pairs: int | None = None) -> Picked:
    learn, _ = halves(list(tests), seed)
    published: list[Published] = []
    count = 0
    for test in learn:
        if pairs is not None and count >= pairs:
            break
        count += math.comb(len({post.text for post in tests[test]}), 2)
        published += tests[test]
    model = fit_outcomes(published)
    return _asked(tests, seed, lambda texts: list(model.scores(texts)))


def _asked(tests: dict[str, list[Published]], seed: int, scores: Scores) -> Picked:
    return picked(duels(tests, halves(list(tests), seed)[1]), scores)


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
