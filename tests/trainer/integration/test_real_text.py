"""Headlines of real A/B tests: the engine learns from those that did well."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from tests.trainer.integration.conftest import BASE, ended, upload

DATA = Path(__file__).parents[4] / "shared" / "data" / "upworthy_posts.parquet"


@pytest.fixture(scope="module")
def posts() -> list[dict[str, Any]]:
    parquet = pytest.importorskip("pyarrow.parquet")
    if not DATA.exists():
        pytest.skip(f"needs {DATA}")
    rows: list[dict[str, Any]] = parquet.read_table(DATA).to_pylist()
    return [row for row in rows if row["engagement_rate"] >= 0.03]


def messages(post: dict[str, Any]) -> list[dict[str, str]]:
    prompt = post["original_input"] or "Create engaging content"
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": post["hook"]}]


def loss(client: OpenAI, model: str, posts: list[dict[str, Any]]) -> float:
    """Nats per token of the headlines, ends included, by the wire's own scores."""
    total, count = 0.0, 0
    for post in posts:
        answer: Any = client.chat.completions.create(
            model=model,
            messages=messages(post),  # type: ignore[arg-type]
            max_tokens=1,
            extra_body={"prompt_logprobs": 1, "add_generation_prompt": False},
        )
        for entry in filter(None, answer.prompt_logprobs):
            total -= next(iter(entry.values()))["logprob"]
            count += 1
    return total / count


def test_held_out_perplexity_of_headlines_falls_by_fifteen_percent(
    client: OpenAI, posts: list[dict[str, Any]], record_property: Any
) -> None:
    """Held out by A/B test, so no headline of a held-out test was trained on."""
    held_out = [p for p in posts if zlib.crc32(p["test_id"].encode()) % 5 == 0]
    training = [p for p in posts if zlib.crc32(p["test_id"].encode()) % 5]
    content = "\n".join(json.dumps({"messages": messages(p)}) for p in training).encode()
    job = client.fine_tuning.jobs.create(model=BASE, training_file=upload(client, content), seed=1)
    job = ended(client, job, timeout_s=120)
    assert job.fine_tuned_model is not None, job.error
    unique = list({p["hook"]: p for p in held_out}.values())
    before, after = loss(client, BASE, unique), loss(client, job.fine_tuned_model, unique)
    record_property("base_perplexity", round(math.exp(before), 1))
    record_property("fine_tuned_perplexity", round(math.exp(after), 1))
    print(f"perplexity {math.exp(before):.4g} -> {math.exp(after):.4g}")  # noqa: T201
    assert math.exp(after) < 0.85 * math.exp(before)
