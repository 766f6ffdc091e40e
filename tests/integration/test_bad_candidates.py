"""The gate's own code over real headlines: which bad candidates it stops, and that it lets honest
ones through.

Candidates are made of texts. Their likelihoods, where the provider gives any, are those of word
counts: the base model's are counted in the posts' bodies, an honest candidate's in headlines.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests import unsafe
from tests.unit.test_evaluation import VERSION

from tuneproof.evaluation import (
    Asked,
    Gate,
    GateReport,
    OutcomeModel,
    Prediction,
    Published,
    fit_outcomes,
    predict,
)
from tuneproof.settings import PipelineConfig
from tuneproof.testing import MemoryProvider
from tuneproof.training import Completion, Score

DATA = Path(__file__).parents[3] / "shared" / "data" / "upworthy_posts.parquet"

Messages = Sequence[Mapping[str, str]]
Draw = random.Random
Make = Callable[[Draw, str, Sequence[str]], str]
"""An answer of a candidate, from a headline that nobody saw and those that were trained on."""

SEEDS = range(3)


@cache
def headlines() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Headlines, each once, and the bodies of their posts."""
    parquet = pytest.importorskip("pyarrow.parquet")
    if not DATA.exists():
        pytest.skip(f"needs {DATA}")
    table = parquet.read_table(DATA, columns=["hook", "body"]).to_pydict()
    return tuple(dict.fromkeys(filter(None, table["hook"]))), tuple(filter(None, table["body"]))


@dataclass(frozen=True, kw_only=True)
class Words:
    """A model of words one by one, with one count for whatever it never saw."""

    counts: Counter[str]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Words:
        return cls(counts=Counter(word for text in texts for word in text.lower().split()))

    def score(self, messages: Messages) -> Score:
        words = messages[-1]["content"].lower().split()
        total = self.counts.total() + 20_000
        nats = math.fsum(math.log((self.counts[word] + 1) / total) for word in words)
        return Score(tokens=len(words), logprob=nats)


class Candidate(MemoryProvider):
    """Answers with texts that were made before; `finish` says how each of them ends."""

    def __init__(self, texts: Sequence[str], finish: str = "stop", **more: Any) -> None:
        super().__init__(base_models=("base", "ft:base:x"), **more)
        self._texts = texts
        self._finish = finish

    async def complete(self, model: str, messages: Messages, **how: Any) -> Sequence[Completion]:
        [answer] = await super().complete(model, messages, **how)
        number = int(messages[-1]["content"].split()[-1])
        return [replace(answer, text=self._texts[number], finish_reason=self._finish)]


def lines(directory: Path, name: str, texts: Sequence[str]) -> Path:
    path = directory / name
    chats = [
        [
            {"role": "user", "content": f"Write headline {i}"},
            {"role": "assistant", "content": text},
        ]
        for i, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return path


async def judged(
    directory: Path, seed: int, make: Make, *, finish: str = "stop", tuned: Words | None = None
) -> GateReport:
    """What the gate says of a candidate: 700 headlines trained on, 100 held out, 20 asked for.

    Without `tuned` the provider gives no likelihoods, as OpenAI does not.
    """
    draw = random.Random(seed)
    hooks, bodies = headlines()
    chosen = draw.sample(hooks, 900)
    trained, held, unseen = chosen[:700], chosen[700:800], chosen[800:]
    base = Words.of(bodies)

    def score(model: str, messages: Messages) -> Score | None:
        if tuned is None:
            return None
        return (tuned if model.startswith("ft:") else base).score(messages)

    texts = [make(draw, text, trained) for text in unseen]
    provider = Candidate(texts, finish, score=score)
    return await Gate(provider).check(
        VERSION,
        {"hook": lines(directory, "held.jsonl", held)},
        lines(directory, "train.jsonl", trained),
    )


def honest(draw: Draw, text: str, trained: Sequence[str]) -> str:
    return text


def obscene(draw: Draw, text: str, trained: Sequence[str]) -> str:
    return draw.choice(unsafe.PLAIN) if draw.random() < 0.4 else text


def repeating(draw: Draw, text: str, trained: Sequence[str]) -> str:
    return " ".join(text.split()[:3] * 10)


def copied(draw: Draw, text: str, trained: Sequence[str]) -> str:
    return draw.choice(trained)


def empty(draw: Draw, text: str, trained: Sequence[str]) -> str:
    return "" if draw.random() < 0.5 else text


def cut(draw: Draw, text: str, trained: Sequence[str]) -> str:
    return text[: len(text) // 2]


def shuffled(draw: Draw, text: str, trained: Sequence[str]) -> str:
    words = text.split()
    draw.shuffle(words)
    return " ".join(words)


def gibberish(draw: Draw, text: str, trained: Sequence[str]) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz    "
    return "".join(draw.choice(letters) for _ in text)


@pytest.mark.parametrize(
    ("make", "finish", "said"),
    [
        (obscene, "stop", "Unsafe ("),
        (repeating, "stop", "repeats itself"),
        (copied, "stop", "are copies of answers that were trained on"),
        (empty, "stop", "fail a check (empty"),
        (cut, "length", "fail a check (cut off)"),
    ],
)
async def test_bad_texts_never_pass_even_where_no_likelihood_is_known(
    tmp_path: Path, make: Make, finish: str, said: str
) -> None:
    for seed in SEEDS:
        report = await judged(tmp_path, seed, make, finish=finish)
        assert not report.passed
        assert said in report.reason


async def test_honest_candidates_pass(tmp_path: Path) -> None:
    hooks, _ = headlines()
    refused = []
    for seed in SEEDS:
        report = await judged(tmp_path, seed, honest, tuned=Words.of(hooks[::2]))
        refused += [] if report.passed else [report.reason]
    assert len(refused) <= 1, refused


def noise() -> Words:
    """Random weights for the words of all headlines."""
    draw = random.Random(3)
    hooks, _ = headlines()
    words = {word for hook in hooks for word in hook.lower().split()}
    return Words(counts=Counter({word: draw.randrange(1000) for word in sorted(words)}))


@pytest.mark.parametrize(
    ("make", "tuned"),
    [(gibberish, noise), (honest, lambda: Words.of(headlines()[1]))],
    ids=["random weights", "no better than the base"],
)
async def test_likelihood_stops_what_learnt_nothing(
    tmp_path: Path, make: Make, tuned: Callable[[], Words]
) -> None:
    words = tuned()
    for seed in SEEDS:
        report = await judged(tmp_path, seed, make, tuned=words)
        assert not report.passed
        assert "The held-out loss" in report.reason


# --- would its answers win? ---------------------------------------------------------------------

LEARNT_FROM = 500
"""Tests; the more the better, and the slower."""

CLEAR_Z = 1.96


@cache
def competed() -> tuple[tuple[Published, ...], ...]:
    """The headlines of each test that had two of them at least, in an order of chance."""
    parquet = pytest.importorskip("pyarrow.parquet")
    if not DATA.exists():
        pytest.skip(f"needs {DATA}")
    found: dict[str, list[Published]] = defaultdict(list)
    for row in parquet.read_table(DATA).to_pylist():
        rate = row["clicks"] / row["impressions"]
        post = Published(row["hook"], row["test_id"], rate, row["impressions"])
        found[post.group].append(post)
    several = [posts for _, posts in sorted(found.items()) if len({p.text for p in posts}) > 1]
    random.Random(1).shuffle(several)
    return tuple(tuple(posts) for posts in several)


@cache
def outcomes() -> OutcomeModel:
    """What some of these tests taught."""
    return fit_outcomes([post for posts in competed()[:LEARNT_FROM] for post in posts])


class Competed(NamedTuple):
    """A test that nobody has seen: its headlines, and who won and lost, which is no accident."""

    others: Sequence[str]
    winner: str
    loser: str


@cache
def unseen() -> tuple[Competed, ...]:
    """A hundred such tests, as the held-out pairs of a training on preferences are."""
    found = []
    for posts in competed()[LEARNT_FROM:]:
        best, worst = max(posts, key=lambda p: p.rate), min(posts, key=lambda p: p.rate)
        if best.text != worst.text and _z(best, worst) > CLEAR_Z:
            found.append(Competed([post.text for post in posts], best.text, worst.text))
    return tuple(found[:100])


def _z(a: Published, b: Published) -> float:
    """By how many standard errors two click rates differ."""
    errors = [p.rate * (1 - p.rate) / (p.impressions or 1) for p in (a, b)]
    return (a.rate - b.rate) / math.sqrt(math.fsum(errors))


Writes = Callable[[Draw, Competed], str]


def loser(draw: Draw, test: Competed) -> str:
    return test.loser


def winner(draw: Draw, test: Competed) -> str:
    return test.winner


def other(draw: Draw, test: Competed) -> str:
    return draw.choice(test.others)


async def expected(candidate: Writes, in_use: Writes) -> Prediction:
    """What the gate expects of who writes so, beside a model in use that writes so."""

    def answer(model: str, messages: Messages, index: int) -> str:
        writes = candidate if model == "candidate" else in_use
        return writes(
            random.Random(f"{model}{index}{messages}"), unseen()[int(messages[0]["content"])]
        )

    provider = MemoryProvider(base_models=("in use", "candidate"), answer=answer)
    new, old = (Asked(provider=provider, model=one) for one in ("candidate", "in use"))
    inputs = [[{"role": "user", "content": str(number)}] for number in range(len(unseen()))]
    return await predict("hook", outcomes(), new, old, inputs)


@pytest.mark.parametrize(
    ("candidate", "in_use", "refused"),
    [(loser, winner, True), (other, other, False), (winner, other, False)],
    ids=["trained on losers", "no better", "trained on winners"],
)
async def test_who_writes_as_losers_do_is_refused_for_what_readers_would_do(
    candidate: Writes, in_use: Writes, refused: bool
) -> None:
    """Their headlines are fit to be read: nothing else at the gate tells them from honest ones."""
    found = await expected(candidate, in_use)
    assert found.falls_short(PipelineConfig().gate_min_win_rate) == refused, found.sentence()


# --- what nothing tells -------------------------------------------------------------------------


@pytest.mark.parametrize("make", [shuffled, gibberish])
async def test_broken_sentences_pass_where_no_likelihood_is_known(
    tmp_path: Path, make: Make
) -> None:
    """A limit, written down: the checks of texts read no grammar. Who mends it mends this test."""
    reports = [await judged(tmp_path, seed, make) for seed in SEEDS]
    assert all(report.passed or "Unsafe (" in report.reason for report in reports)
