"""A model fine-tuned on what did well imitates it, so the demo's candidate truly wins."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.waiting import eventually

from tuneproof.demo import Audience, seeded_posts
from tuneproof.demo.drafts import Drafts
from tuneproof.providers import OpenAIWire, open_provider
from tuneproof.settings import BODY, HOOK
from tuneproof.training import JobRequest
from tuneproof_trainer.embedded import serve

BASE = "tuneproof-ngram-1"
UNTIL = datetime(2026, 11, 2, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = "trainer"
    kind: str = "compatible"
    base_url: str | None = None
    api_key: str | None = None
    organization: str | None = None


def _file(audience: Audience, path: Path) -> Path:
    with path.open("w") as file:
        for post in seeded_posts(audience, until=UNTIL, days=7):
            if post["engagement_rate"] < 0.06:
                continue
            prompt = post["original_input"] or HOOK.empty_prompt
            for asked, answer in (
                (prompt, post["hook"]),
                (BODY.prompt.format(hook=post["hook"]), post["body"]),
            ):
                user, reply = {"role": "user"}, {"role": "assistant"}
                messages = [{**user, "content": asked}, {**reply, "content": answer}]
                file.write(json.dumps({"messages": messages}) + "\n")
    return path


async def _trained(provider: OpenAIWire, path: Path) -> str:
    uploaded = await provider.upload(path, name="train.jsonl")
    job = await provider.create_job(JobRequest(model=BASE, training_file=uploaded, seed=1))

    async def over() -> bool:
        nonlocal job
        job = await provider.job(job.id)
        return job.status.final

    await eventually(over)
    assert job.fine_tuned_model is not None, job.error_message
    return job.fine_tuned_model


async def _posts(drafts: Drafts, model: str, count: int = 240) -> list[tuple[str, str]]:
    written = [
        await drafts.draft(f"p{i}", slot=0, hook_model=model, body_model=model)
        for i in range(count)
    ]
    return [(draft.hook, draft.body) for draft in written]


async def test_tuned_model_truly_wins_and_costs_no_more(tmp_path: Path) -> None:
    audience = Audience(7)
    async with serve(tmp_path / "trainer", port=0) as trainer:
        provider = open_provider(Config(base_url=trainer.base_url))
        model = await _trained(provider, _file(audience, tmp_path / "train.jsonl"))
        drafts = Drafts(provider, seed=7)
        base, tuned = await _posts(drafts, BASE), await _posts(drafts, model)
        await provider.close()
    assert 0.3 < audience.true_effect(base, tuned) < 0.75
    lengths = [sum(len(hook) + len(body) for hook, body in posts) for posts in (base, tuned)]
    assert lengths[1] < 1.15 * lengths[0]
