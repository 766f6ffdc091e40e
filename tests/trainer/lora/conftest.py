"""Tests of the lora engine; without torch there is nothing to collect, which `make lora` takes
for a failure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest
from openai import OpenAI
from tests.trainer.lora.tiny import make_model

from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.engines.protocol import (
    Hyperparameters,
    Message,
    StepMetrics,
    TrainingExample,
    TrainingTask,
)
from tuneproof_trainer.settings import TrainerSettings

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}


class Recorder:
    """A Reporter that keeps what it is told, and checkpoints as folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hyperparameters: Hyperparameters | None = None
        self.told: list[StepMetrics] = []
        self.checkpoints: dict[int, Path] = {}
        self.final: StepMetrics | None = None
        self.messages: list[str] = []

    def chosen(self, hyperparameters: Hyperparameters) -> None:
        self.hyperparameters = hyperparameters

    def metrics(self, metrics: StepMetrics) -> None:
        self.told.append(metrics)

    def checkpoint(self, step: int, metrics: StepMetrics, save: Callable[[Path], None]) -> None:
        path = self.folder / f"step-{step}"
        if not path.exists():  # it is told again by a training that goes on
            path.mkdir(parents=True)
            save(path)
        self.checkpoints[step], self.final = path, metrics

    def message(self, text: str, level: Literal["info", "warn", "error"] = "info") -> None:
        self.messages.append(text)

    def losses(self) -> list[float]:
        return [metrics.train_loss for metrics in self.told]


def examples(content: bytes) -> list[TrainingExample]:
    """A training file's lines as an engine gets them."""
    return [_example(json.loads(line)) for line in content.splitlines()]


def _example(data: dict[str, Any]) -> TrainingExample:
    if "messages" in data:
        return TrainingExample(messages=messages(data["messages"]))
    return TrainingExample(
        messages=messages(data["input"]["messages"]),
        preferred=messages(data["preferred_output"]),
        rejected=messages(data["non_preferred_output"]),
    )


def messages(said: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(Message(**message) for message in said)


def task(folder: Path, content: bytes, validation: bytes | None = None, **asked: Any) -> Any:
    """A job's task in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    hyperparameters = {
        name: asked.pop(name)
        for name in ("n_epochs", "batch_size", "learning_rate_multiplier", "beta")
        if name in asked
    }
    return TrainingTask(
        **{
            "job_id": "ftjob-1",
            "model": "tiny",
            "model_path": None,
            "method": "supervised",
            "hyperparameters": Hyperparameters(**hyperparameters),
            "seed": 3,
            "training": examples(content),
            "validation": examples(validation) if validation else None,
            "folder": folder,
            **asked,
        }
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model with random weights."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def trainer(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTrainer]:
    """A server with the lora engine."""
    settings = TrainerSettings(
        dir=tmp_path_factory.mktemp("trainer"),
        engine="lora",
        models=(str(tiny),),
        training_threads=1,
    )
    with EmbeddedTrainer(settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(trainer: EmbeddedTrainer) -> OpenAI:
    return OpenAI(base_url=trainer.base_url, api_key="any", max_retries=0)
