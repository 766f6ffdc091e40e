"""What a SIGKILL in the middle leaves: every file, every job, and nothing done twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import APIConnectionError, OpenAI
from tests.trainer.integration.conftest import BASE, ended, lines, reached, upload
from tests.trainer.integration.process import Process
from tests.waiting import until


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    running = Process(tmp_path / "trainer")
    running.start()
    yield running
    running.stop()


def steps(client: OpenAI, job_id: str) -> list[dict[str, Any]]:
    events = client.fine_tuning.jobs.list_events(job_id, limit=100)
    found: list[Any] = [event.data for event in events if event.type == "metrics"]
    return found[::-1]


def test_a_killed_training_goes_on_from_its_snapshot_to_the_same_end(process: Process) -> None:
    client = process.client
    training = upload(client, lines(None, count=20_000))
    validation = upload(client, lines(count=30, seed=4))
    asked: dict[str, Any] = {
        "model": BASE,
        "training_file": training,
        "validation_file": validation,
        "seed": 3,
        "hyperparameters": {"n_epochs": 10},
    }
    job = client.fine_tuning.jobs.create(**asked)
    snapshot = process.folder / "models" / job.id / "work" / "snapshot.npz"
    for _ in range(2):
        _until_newer(snapshot)
        process.kill()
        process.start()
    job = ended(client, job, timeout_s=120)
    assert job.status == "succeeded"
    told = [e.message for e in client.fine_tuning.jobs.list_events(job.id)]
    assert sum("goes on from its last snapshot" in message for message in told) == 2
    assert sum("New fine-tuned model" in message for message in told) == 1
    whole = ended(client, client.fine_tuning.jobs.create(**asked), timeout_s=120)
    assert steps(client, job.id) == steps(client, whole.id)
    assert job.trained_tokens == whole.trained_tokens
    assert len(client.fine_tuning.jobs.checkpoints.list(job.id).data) == 3
    assert not snapshot.exists()


def _until_newer(path: Path) -> None:
    begun = path.stat().st_mtime_ns if path.exists() else 0
    until(lambda: path.exists() and path.stat().st_mtime_ns != begun, every_s=0.005)


def test_files_that_were_acknowledged_survive_kills_at_any_moment(process: Process) -> None:
    client = process.client
    kept: dict[str, bytes] = {}
    for turn in range(6):
        for number in range(turn + 2):
            content = f"{turn} {number} ".encode() * 1000
            kept[upload(client, content, f"{turn}-{number}")] = content
        process.kill()
        process.start()
    assert {file.id for file in client.files.list()} == set(kept)
    for file_id, content in kept.items():
        assert client.files.content(file_id).read() == content


def test_a_kill_during_an_upload_leaves_no_half_file(process: Process) -> None:
    def body() -> Iterator[bytes]:
        yield (
            b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
            b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
        )
        yield b"x" * 3_000_000
        process.kill()
        yield b"x" * 3_000_000

    with pytest.raises(httpx2.HTTPError):
        httpx2.post(
            f"http://127.0.0.1:{process.port}/v1/files",
            content=body(),
            headers={"content-type": "multipart/form-data; boundary=b"},
        )
    process.start()
    assert list(process.client.files.list()) == []
    files = process.folder / "files"
    assert [path for path in files.rglob("*") if path.is_file()] == []


def test_jobs_in_every_state_are_taken_up_after_a_kill(process: Process) -> None:
    client = process.client
    large = upload(client, lines(None, count=8_000))
    jobs = [
        client.fine_tuning.jobs.create(model=BASE, training_file=large, metadata={"n": str(n)})
        for n in range(3)
    ]
    reached(client, jobs[0], ("running",))
    reached(client, jobs[2], ("queued",))
    client.fine_tuning.jobs.pause(jobs[2].id)
    process.kill()
    process.start()
    assert client.fine_tuning.jobs.retrieve(jobs[2].id).status == "paused"
    for job in jobs[:2]:
        done = ended(client, job, timeout_s=120)
        assert done.status == "succeeded"
        told = [e.message for e in client.fine_tuning.jobs.list_events(job.id)]
        assert sum("New fine-tuned model" in message for message in told) == 1
    client.fine_tuning.jobs.resume(jobs[2].id)
    assert ended(client, jobs[2], timeout_s=120).status == "succeeded"


def test_a_stop_saves_the_training_and_is_quick(process: Process) -> None:
    client = process.client
    job = client.fine_tuning.jobs.create(
        model=BASE, training_file=upload(client, lines(None, count=20_000))
    )
    reached(client, job, ("running",))
    assert process.stop() < 30
    with pytest.raises(APIConnectionError):
        client.models.list()
    process.start()
    assert ended(client, job, timeout_s=120).status == "succeeded"
