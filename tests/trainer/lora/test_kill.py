"""A server with the lora engine that is killed in the middle of a training, twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.integration.conftest import ended, upload
from tests.trainer.lora.killing import Server, told, until_more
from tests.trainer.lora.tiny import lines

pytestmark = pytest.mark.lora


@pytest.fixture
def server(tmp_path: Path, tiny: Path) -> Iterator[Server]:
    running = Server(tmp_path / "trainer", tiny, "--engine", "lora")
    running.start()
    yield running
    running.stop()


def test_killed_twice_it_ends_with_the_same_losses(server: Server) -> None:
    client = server.client
    asked: dict[str, Any] = {
        "model": "tiny",
        "training_file": upload(client, lines(160, 1)),
        "validation_file": upload(client, lines(16, 2)),
        "seed": 3,
        "hyperparameters": {"n_epochs": 5, "batch_size": 8},
    }
    job = client.fine_tuning.jobs.create(**asked)
    done = 0
    for _ in range(2):
        done = until_more(client, job.id, done)
        server.kill()
        server.start()
    job = ended(client, job, timeout_s=120)
    assert job.status == "succeeded", job.error
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert sum("goes on from its last snapshot" in message for message in messages) == 2
    assert sum("New fine-tuned model" in message for message in messages) == 1
    whole = ended(client, client.fine_tuning.jobs.create(**asked), timeout_s=120)
    assert [row["step"] for row in told(client, job.id)] == list(range(1, 101))
    assert told(client, job.id) == told(client, whole.id)
    assert job.trained_tokens == whole.trained_tokens
    assert len(client.fine_tuning.jobs.checkpoints.list(job.id).data) == 3
    assert not (server.folder / "models" / job.id / "work").exists()
