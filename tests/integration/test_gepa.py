"""A prompt that is looked for: found, tested, paid from one budget; refused where it must be."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from tests.integration.loop import Loop, posts
from tests.integration.providing import Provider, open_providers

from tuneproof.collection import Post, Task
from tuneproof.evaluation import Scored
from tuneproof.settings import ScorerConfig, TaskConfig
from tuneproof.store import RunStatus
from tuneproof.training import Completion

HOOK = TaskConfig(
    name="hook",
    prompt="A hook about {original_input}.",
    system="You write.",
    completion="hook",
    prompt_owner="variant",
)
FIRST = Task.of(HOOK).first_prompt
RECIPE = {
    "make": "prompt",
    "optimise": "taste",
    "reflection": "thinker@own",
    "budget_usd": "0.5",
    "calls": "120",
}
COST = 0.0001
"""What the scorer takes for a text."""


async def taste(messages: Sequence[Mapping[str, str]], text: str) -> Scored:
    """Likes the sun."""
    return Scored(value=float(text.count("sun")), cost_usd=COST)


async def whim(messages: Sequence[Mapping[str, str]], text: str) -> Scored:
    """Likes what readers care nothing for."""
    return Scored(value=float(sum(map(ord, text)) % 7), cost_usd=COST)


def sunny() -> list[Post]:
    """Posts that do the better the more of the sun is in them."""
    return [
        replace_hook(post, f"Hook {n} {'sun ' * (n // 40)}on topic {n}: a thing worth knowing now")
        for n, post in enumerate(posts())
    ]


def replace_hook(post: Post, hook: str) -> Post:
    return post._replace(hook=hook)


class Writer(Provider):
    """Writes of the sun where the prompt says so; as `thinker` it proposes these texts."""

    def __init__(self, *proposals: str) -> None:
        super().__init__(name="own", base_models=("base", "thinker"))
        self.proposals = list(proposals)
        self.asked: list[str] = []
        self.spent = 0.0
        self.breaks: Exception | None = None

    async def complete(self, model: str, messages: Any, **how: Any) -> Sequence[Completion]:
        said = " ".join(one["content"] for one in messages)
        if model == "thinker":
            if self.breaks is not None:
                error, self.breaks = self.breaks, None
                self.asked.append(said)
                raise error
            self.asked.append(said)
            number = min(len(self.asked), len(self.proposals)) - 1
            text = f"Well.\n<message>{self.proposals[number]}</message>"
        else:
            topic = re.findall(r"topic number \d+", said)[-1:] or ["all"]
            text = f"{'The sun, the sun' if 'sunny' in said else 'Rain'} and {topic[0]} for you"
        tokens = len(said.split()), len(text.split())
        self.spent += (tokens[0] * 1.0 + tokens[1] * 2.0) / 1e6
        return [
            Completion(
                text=text,
                model=model,
                prompt_tokens=tokens[0],
                completion_tokens=tokens[1],
                latency_ms=10,
            )
        ] * how.get("n", 1)


def opened(
    folder: Path, database: str, writer: Writer, recipe: Mapping[str, str] = RECIPE
) -> AbstractAsyncContextManager[Loop]:
    changes = {"recipes": (recipe,), "tasks": ("hook",), "base_model": "base", "traffic_split": 0.5}
    return open_providers(
        folder,
        database,
        writer,
        changes=changes,
        source=sunny(),
        more={"prices": {"base": (1.0, 2.0), "thinker": (1.0, 2.0)}},
        tasks={"hook": HOOK},
        scorers={
            name: ScorerConfig(name=name, kind=f"tests.integration.test_gepa:{name}")
            for name in ("taste", "whim")
        },
    )


async def test_a_better_prompt_is_found_tested_and_promoted(
    tmp_path: Path, database_url: str
) -> None:
    writer = Writer("A sunny hook about {original_input}.", "You write of all that is sunny.")
    async with opened(tmp_path, database_url, writer) as loop:
        loop.traffic.lift = 0.8
        run = await loop.turn()
        assert run.status is RunStatus.SUCCESS, (run.reason, run.stages["train"])
        [version] = await loop.app.store.versions.list(run_id=run.id)
        assert version.model_id == "base"
        kept = await loop.app.store.prompts.get(version.prompt or "")
        assert (kept.origin, kept.parent) == ("proposal", FIRST.hash)
        assert any("sunny" in content for _, content in kept.prompt.messages)
        print(run.stages["train"]["detail"], len(writer.asked), writer.asked[:1])
