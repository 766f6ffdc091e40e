"""Do honest fine-tunes keep the form that the gate asks for?

    python -m tests.simulation.honest_forms

Of each audience of the demo, models of its engine are trained on posts that did best. Each answers
the inputs of posts that were kept aside, hooks and bodies, beside the untuned base, as a first run
finds it, and beside a model of any posts, as later ones do. Printed: what drifted, and how near to
its bound each figure came. No candidate should be refused.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.simulation.predicted_wins import BASE, TASK, rows_of, trained

from tuneproof.collection import Post
from tuneproof.demo import Audience
from tuneproof.evaluation import Asked, Form, Kept, form_of
from tuneproof.providers import OpenAIWire, open_provider
from tuneproof.settings import BODY, ProviderConfig
from tuneproof_trainer.embedded import serve

BEST = 0.3
"""Candidates learn from posts of this best share."""


@dataclass(frozen=True, kw_only=True)
class OneAudience:
    """Its posts, best last, and a trainer."""

    posts: Sequence[Post]
    aside: Sequence[Post]
    provider: OpenAIWire
    folder: Path
    before: dict[int, str] = field(default_factory=dict)

    async def forms(self, number: int, *, examples: int, inputs: int) -> list[Form]:
        """Of the candidate of this number: beside the base and a model of any posts, each task."""
        draw = random.Random(number)
        best = self.posts[-int(BEST * len(self.posts)) :]
        candidate = await trained(self.provider, draw.sample(best, examples), self.folder)
        if examples not in self.before:
            taught = draw.sample(self.posts, examples)
            self.before[examples] = await trained(self.provider, taught, self.folder)
        kept = Kept(self.folder / "answers.jsonl").of(self.provider)
        return [
            await form_of(
                task,
                Asked(provider=kept, model=candidate),
                Asked(provider=kept, model=baseline),
                chats,
            )
            for baseline in (BASE, self.before[examples])
            for task, chats in self._chats(inputs).items()
        ]

    def _chats(self, inputs: int) -> dict[str, list[list[dict[str, str]]]]:
        posts = self.aside[:inputs]
        return {
            "hook": [_chat(TASK.request(post), post.hook) for post in posts],
            "body": [_chat(BODY.prompt.format(hook=post.hook), post.body) for post in posts],
        }


def _chat(asked: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


@asynccontextmanager
async def trained_of_one_audience(seed: int, folder: Path) -> AsyncIterator[OneAudience]:
    """An audience with its week of posts, 200 of them kept aside."""
    posts = rows_of(Audience(seed))
    random.Random(seed).shuffle(posts)
    known = sorted(posts[200:], key=lambda post: post.engagement_rate or 0.0)
    async with serve(folder / "trainer", port=0) as trainer:
        provider = open_provider(ProviderConfig(name="trainer", base_url=trainer.base_url))
        assert isinstance(provider, OpenAIWire)
        try:
            yield OneAudience(posts=known, aside=posts[:200], provider=provider, folder=folder)
        finally:
            await provider.close()


async def run(audiences: int, candidates: int, examples: int, inputs: int) -> None:
    """Print each candidate that drifted, and the sum."""
    asked = drifted = 0
    for seed in range(1, audiences + 1):
        with tempfile.TemporaryDirectory() as folder:
            async with trained_of_one_audience(seed, Path(folder)) as made:
                for number in range(candidates):
                    for form in await made.forms(number, examples=examples, inputs=inputs):
                        asked += len(form.figures)
                        drifted += len(form.drifted())
                        print(seed, number, form.sentence(), flush=True)  # noqa: T201
    print(f"{drifted} of {asked} figures drifted")  # noqa: T201


def main() -> None:
    """Print how honest fine-tunes write."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.honest_forms")
    parser.add_argument("--audiences", type=int, default=10)
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--inputs", type=int, default=100)
    asked = parser.parse_args()
    asyncio.run(run(asked.audiences, asked.candidates, asked.examples, asked.inputs))


if __name__ == "__main__":
    main()
