"""Does the gate's predicted win rate come true? The demo's audience knows.

    python -m tests.simulation.predicted_wins

For each of twenty audiences' weeks of posts, models of the demo's engine are trained on the posts
that did best, on those that did worst, and on mixtures. Each answers a hundred inputs of posts
that were kept aside, beside a model of all posts, and the outcome model of that week's posts
foretells how often it does better (`evaluation.predict`, as the gate calls it). The audience says
how often it truly does: by its taste, and the luck of each post. Printed: how both go together,
and how often the interval holds the truth.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from tests.waiting import eventually

from tuneproof.collection import Post, Task
from tuneproof.demo import Audience, seeded_posts
from tuneproof.evaluation import Asked, fit_outcomes, predict
from tuneproof.evaluation.published import published_of
from tuneproof.providers import OpenAIWire, open_provider
from tuneproof.settings import BODY, HOOK, ProviderConfig
from tuneproof.training import JobRequest
from tuneproof_trainer.embedded import serve

BASE = "tuneproof-ngram-1"
UNTIL = datetime(2026, 11, 2, tzinfo=UTC)
GOOD = (1.0, 0.7, 0.5, 0.3, 0.0)
"""Of what a candidate is trained on, the share that did best; the rest did worst."""

EXAMPLES, INPUTS, ANSWERS, BODIES, DRAWS = 400, 100, 2, 4, 2
TASK = Task.of(HOOK)


class Foretold(NamedTuple):
    """What the gate expects of a candidate, its interval, and what is true."""

    good: float
    value: float
    low: float
    high: float
    true: float


def rows_of(audience: Audience) -> list[Post]:
    """A week of posts that people wrote."""
    rows = seeded_posts(audience, until=UNTIL, days=7)
    return [Post(**{k: row[k] for k in Post._fields if k in row}) for row in rows]


async def trained(provider: OpenAIWire, posts: Sequence[Post], folder: Path) -> str:
    """A model of these posts, hooks and bodies, as a run trains it."""
    path = folder / "train.jsonl"
    with path.open("w") as file:
        for post in posts:
            for asked, answer in (
                (TASK.request(post), post.hook),
                (BODY.prompt.format(hook=post.hook), post.body),
            ):
                chat = [
                    {"role": "user", "content": asked},
                    {"role": "assistant", "content": answer},
                ]
                file.write(json.dumps({"messages": chat}) + "\n")
    uploaded = await provider.upload(path, name="train.jsonl")
    job = await provider.create_job(JobRequest(model=BASE, training_file=uploaded, seed=1))

    async def over() -> bool:
        nonlocal job
        job = await provider.job(job.id)
        return job.status.final

    await eventually(over, 300)
    assert job.fine_tuned_model is not None, job.error_message
    return job.fine_tuned_model


class Truth:
    """How often one model's posts do better than another's: its hooks, and its bodies to them."""

    def __init__(self, audience: Audience, provider: OpenAIWire, chance: random.Random) -> None:
        self._audience = audience
        self._provider = provider
        self._chance = chance

    async def rates(self, model: str, hooks: Sequence[str]) -> list[float]:
        """The expected rates of posts with these hooks."""
        asked = [[{"role": "user", "content": BODY.prompt.format(hook=hook)}] for hook in hooks]
        bodies = [
            await self._provider.complete(model, one, n=BODIES, max_tokens=72) for one in asked
        ]
        return [
            self._audience.rate(hook, body.text)
            for hook, some in zip(hooks, bodies, strict=True)
            for body in some
        ]

    def wins(self, ours: Sequence[float], theirs: Sequence[float]) -> float:
        """Over all pairs, with each post's luck."""
        return statistics.fmean(
            self._lucky(a) > self._lucky(b) for a in ours for b in theirs for _ in range(DRAWS)
        )

    def _lucky(self, mean: float) -> float:
        kappa = self._audience.kappa
        return self._chance.betavariate(mean * kappa, (1 - mean) * kappa)


class Remembering:
    """A provider whose answers are remembered: truth is asked of what was judged."""

    def __init__(self, provider: OpenAIWire) -> None:
        self.name = provider.name
        self.said: dict[str, dict[str, list[str]]] = {}
        self._provider = provider
        self.score = provider.score

    async def complete(self, model, messages, **how):  # type: ignore[no-untyped-def]
        found = await self._provider.complete(model, messages, **how)
        asked = self.said.setdefault(model, {})
        asked[json.dumps(list(messages))] = [one.text for one in found]
        return found


async def foretold(seed: int, url: str, folder: Path) -> list[Foretold]:
    """All candidates of one audience."""
    audience, chance = Audience(seed), random.Random(seed)
    posts = rows_of(audience)
    chance.shuffle(posts)
    aside, known = posts[:INPUTS], posts[INPUTS:]
    published = [one for post in known if (one := published_of(post, TASK, 7)) is not None]
    outcomes = await asyncio.to_thread(fit_outcomes, published)
    best = sorted(known, key=lambda post: post.engagement_rate or 0.0)
    inputs = [[{"role": "user", "content": TASK.request(post)}] for post in aside]
    found = []
    provider = open_provider(ProviderConfig(name="trainer", base_url=url))
    assert isinstance(provider, OpenAIWire)
    try:
        truth = Truth(audience, provider, chance)
        rival = await trained(provider, chance.sample(known, EXAMPLES), folder)
        for good in GOOD:
            several = round(good * EXAMPLES)
            taught = [*best[len(best) - several :], *best[: EXAMPLES - several]]
            chance.shuffle(taught)
            model = await trained(provider, taught, folder)
            asked = Remembering(provider)
            said = await predict(
                "hook",
                outcomes,
                Asked(provider=asked, model=model),
                Asked(provider=asked, model=rival),
                inputs,
                answers=ANSWERS,
                seed=seed,
            )
            if said.win_rate is None or said.low is None or said.high is None:
                print(said.sentence())  # noqa: T201
                continue
            true = [
                truth.wins(
                    await truth.rates(model, asked.said[model][one]),
                    await truth.rates(rival, asked.said[rival][one]),
                )
                for one in sorted(asked.said[model].keys() & asked.said[rival].keys())
            ]
            found.append(Foretold(good, said.win_rate, said.low, said.high, statistics.fmean(true)))
    finally:
        await provider.close()
    return found


async def run(audiences: int, first: int) -> list[Foretold]:
    """Of so many audiences, from the first on."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        async with serve(Path(folder) / "trainer", port=0) as trainer:
            for seed in range(first, first + audiences):
                found += await foretold(seed, trainer.base_url, Path(folder))
                print(*map(shown, found[-len(GOOD) :]), sep="\n", flush=True)  # noqa: T201
    return found


def shown(one: Foretold) -> str:
    """One candidate, in a line."""
    return (
        f"{one.good:4.0%} of the best: foretold {one.value:.3f} "
        f"({one.low:.3f} to {one.high:.3f}), truly {one.true:.3f}"
    )


def main() -> None:
    """Print how foretold and true win rates go together."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.predicted_wins")
    parser.add_argument("--audiences", type=int, default=20)
    parser.add_argument("--first", type=int, default=1)
    asked = parser.parse_args()
    found = asyncio.run(run(asked.audiences, asked.first))
    foretold_, true = [one.value for one in found], [one.true for one in found]
    slope, intercept = statistics.linear_regression(foretold_, true)
    held = statistics.fmean(one.low <= one.true <= one.high for one in found)
    side = statistics.fmean((one.value > 0.5) == (one.true > 0.5) for one in found)
    print(  # noqa: T201
        f"{len(found)} candidates: correlation {statistics.correlation(foretold_, true):.3f}; "
        f"true = {intercept:+.3f} {slope:+.2f} foretold; interval (95 %) holds {held:.0%}; right "
        f"side of a half {side:.0%}; mean error "
        f"{statistics.fmean(f - t for f, t in zip(foretold_, true, strict=True)):+.3f}"
    )


if __name__ == "__main__":
    main()
