"""The OpenAI wire against our own trainer: what the loop does with it, over real HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.waiting import eventually

from tuneproof import errors
from tuneproof.demo import write
from tuneproof.demo.draws import draws
from tuneproof.providers import OpenAIWire, open_provider
from tuneproof.training import JobRequest, JobStatus
from tuneproof_trainer.embedded import serve

BASE = "tuneproof-ngram-1"


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = "trainer"
    kind: str = "openai"
    base_url: str | None = None
    api_key: str | None = None
    organization: str | None = None


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[OpenAIWire]:
    async with serve(tmp_path / "trainer", port=0) as trainer:
        made = open_provider(Config(base_url=trainer.base_url))
        yield made
        await made.close()


def _messages(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _file(folder: Path, count: int = 300) -> tuple[Path, list[list[dict[str, str]]]]:
    random, path = draws("trainer"), folder / "train.jsonl"
    drafts = [write(random, style="numbered list") for _ in range(count + 20)]
    examples = [_messages(d.original_input or "Create", d.hook) for d in drafts]
    lines = (json.dumps({"messages": messages}) for messages in examples[:count])
    path.write_text("".join(f"{line}\n" for line in lines))
    return path, examples[count:]


async def _trained(provider: OpenAIWire, path: Path) -> str:
    uploaded = await provider.upload(path, name="tp-abc.jsonl")
    assert await provider.find_file("tp-abc.jsonl") == uploaded
    request = JobRequest(
        model=BASE, training_file=uploaded, suffix="tp", seed=1, metadata={"tuneproof_run": "r1"}
    )
    made = await provider.create_job(request)
    found = await provider.find_job("tuneproof_run", "r1")
    assert found is not None
    assert found.id == made.id
    job = made

    async def over() -> bool:
        nonlocal job
        job = await provider.job(made.id)
        return job.status.final

    await eventually(over)
    assert job.status is JobStatus.SUCCEEDED
    assert (job.error_code, job.metadata) == (None, {"tuneproof_run": "r1"})
    events = await provider.events(job.id)
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert any("train_loss" in event.data for event in events)
    assert job.fine_tuned_model is not None
    return job.fine_tuned_model


async def test_fine_tuned_model_finds_held_out_replies_likelier(
    provider: OpenAIWire, tmp_path: Path
) -> None:
    path, held_out = _file(tmp_path)
    model = await _trained(provider, path)
    assert {BASE, model} <= {info.id for info in await provider.models()}
    losses = {}
    for name in (BASE, model):
        scores = [await provider.score(name, messages) for messages in held_out]
        assert all(score is not None and score.tokens > 3 for score in scores)
        tokens = sum(score.tokens for score in scores if score)
        losses[name] = -sum(score.logprob for score in scores if score) / tokens
    assert losses[model] < 0.8 * losses[BASE]


async def test_equal_seeds_give_equal_replies(provider: OpenAIWire) -> None:
    question = [{"role": "user", "content": "sourdough"}]
    first = await provider.complete(BASE, question, n=4, max_tokens=24, seed=5)
    again = await provider.complete(BASE, question, n=4, max_tokens=24, seed=5)
    assert [reply.text for reply in first] == [reply.text for reply in again]
    assert len({reply.text for reply in first}) > 1
    assert first[0].prompt_tokens > 0
    assert sum(reply.completion_tokens for reply in first) > 4


async def test_unknown_model_and_job_are_not_found(provider: OpenAIWire) -> None:
    with pytest.raises(errors.NotFoundError):
        await provider.complete("ft:none", [{"role": "user", "content": "x"}])
    with pytest.raises(errors.NotFoundError):
        await provider.job("ftjob-none")
