"""A trainer on a loopback port, the official client of it, and files to train on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from tests.waiting import until

from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.engines.ngram.corpus import base_posts
from tuneproof_trainer.settings import TrainerSettings

BASE = "tuneproof-ngram-1"
Start = Callable[..., EmbeddedTrainer]
ENDED = ("succeeded", "failed", "cancelled")


def lines(style: str | None = "question", count: int = 60, seed: int = 5) -> bytes:
    """A training file of hooks in one style, or in all."""
    made_posts = base_posts(count * 20 if style else count, seed)
    posts = (post for post in made_posts if style in (None, post[3]))
    made = []
    for (given, hook, _, _), _number in zip(posts, range(count), strict=False):
        messages = [
            {"role": "user", "content": given},
            {"role": "assistant", "content": hook},
        ]
        made.append(json.dumps({"messages": messages}))
    return "\n".join(made).encode()


def upload(client: OpenAI, content: bytes, name: str = "train.jsonl") -> str:
    return client.files.create(file=(name, content), purpose="fine-tune").id


def ended(client: OpenAI, job: FineTuningJob, timeout_s: float = 180) -> FineTuningJob:
    """The job once it has ended."""
    return reached(client, job, ENDED, timeout_s)


def reached(
    client: OpenAI, job: FineTuningJob, states: tuple[str, ...], timeout_s: float = 180
) -> FineTuningJob:
    """The job once it is in one of `states`."""

    def there() -> FineTuningJob | None:
        nonlocal job
        if job.status in states:
            return job
        assert job.status not in ENDED, wrong()
        job = client.fine_tuning.jobs.retrieve(job.id)
        return job if job.status in states else None

    def wrong() -> str:
        return f"{job.id} is {job.status}, not one of {states}: {job.error}"

    return until(there, timeout_s, otherwise=wrong)


def client_of(trainer: EmbeddedTrainer, key: str = "any") -> OpenAI:
    return OpenAI(base_url=trainer.base_url, api_key=key, max_retries=0)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts trainers and stops them at the end."""
    running: list[EmbeddedTrainer] = []

    def run(**settings: Any) -> EmbeddedTrainer:
        folder = settings.pop("dir", tmp_path / "trainer")
        trainer = EmbeddedTrainer(TrainerSettings(dir=folder, **settings)).start()
        running.append(trainer)
        return trainer

    yield run
    for trainer in running:
        trainer.stop()


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTrainer]:
    """One trainer for tests that leave each other alone."""
    with EmbeddedTrainer(TrainerSettings(dir=tmp_path_factory.mktemp("trainer"))) as running:
        yield running


@pytest.fixture(scope="module")
def client(trainer: EmbeddedTrainer) -> OpenAI:
    return client_of(trainer)
