"""A disk that is really full, memory that really ends: the one job fails, the server stays."""

from __future__ import annotations

import json
import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from openai import APIStatusError, OpenAI
from openai.types.fine_tuning import FineTuningJob
from tests.trainer.integration.conftest import BASE, ENDED, ended, lines, upload
from tests.trainer.integration.process import Process
from tests.waiting import until

MIB = 1024 * 1024


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[Process]:
    """A trainer whose folder is a file system of 16 MiB, gone with its process."""
    folder = tmp_path / "trainer"
    folder.mkdir()
    process = Process(folder, within=f"mount -t tmpfs -o size=16m tmpfs {folder}")
    process.start()
    yield process
    process.stop()


def within(process: Process) -> Path:
    """The trainer's folder as its process sees it."""
    return Path(f"/proc/{process.pid}/root{process.folder}")


def free(process: Process) -> int:
    status = os.statvfs(within(process))
    return status.f_bavail * status.f_frsize


def trained(client: OpenAI, file_id: str, every_s: float = 0.05) -> tuple[str, str | None]:
    """How a job on this file ended, and the code of its error; asked for `every_s`."""
    job = client.fine_tuning.jobs.create(
        model=BASE, training_file=file_id, hyperparameters={"n_epochs": 1}
    )

    def over() -> FineTuningJob | None:
        now = client.fine_tuning.jobs.retrieve(job.id)
        return now if now.status in ENDED else None

    end = until(over, 120, every_s=every_s)
    assert end is not None
    return end.status, end.error.code if end.error else None


def test_a_full_disk_refuses_files_and_fails_the_one_job(cramped: Process) -> None:
    client = cramped.client
    training = upload(client, lines(None, count=3000))
    filler = upload(client, bytes(free(cramped) - MIB), "filler")
    with pytest.raises(APIStatusError) as refused:
        upload(client, bytes(2 * MIB))
    assert (refused.value.status_code, refused.value.code) == (507, "disk_full")
    assert list((within(cramped) / "files" / "incoming").iterdir()) == []
    assert trained(client, training) == ("failed", "disk_full")
    assert list((within(cramped) / "models").iterdir()) == []
    assert [model.id for model in client.models.list()] == [BASE]
    client.files.delete(filler)
    assert trained(client, training) == ("succeeded", None)


def test_a_disk_without_room_for_a_row_refuses_each_change_and_recovers(cramped: Process) -> None:
    client = cramped.client
    training = upload(client, lines(count=20))
    fill = within(cramped) / "filler"
    with fill.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free(cramped))
    refused = [r for r in (refusal(client, training, n) for n in range(200)) if r is not None]
    assert set(refused) == {(507, "disk_full")}
    assert client.models.list().data, "reading goes on"
    fill.unlink()
    jobs = list(client.fine_tuning.jobs.list(limit=100))
    assert len(jobs) == 200 - len(refused)
    assert {ended(client, job, 120).status for job in jobs} <= {"failed", "succeeded"}
    assert trained(client, training) == ("succeeded", None)


def refusal(client: OpenAI, training: str, number: int) -> tuple[int, str | None] | None:
    """How another job is refused, if it is."""
    try:
        client.fine_tuning.jobs.create(
            model=BASE, training_file=training, metadata={"n": f"{number:0512}"}
        )
    except APIStatusError as error:
        return error.status_code, error.code
    return None


@pytest.mark.slow
def test_memory_that_ends_fails_the_one_job(tmp_path: Path) -> None:
    process = Process(tmp_path / "trainer")
    process.start()
    client = process.client
    try:
        small = upload(client, lines(count=20))
        large = upload(client, many_words(20_000))
        assert trained(client, small) == ("succeeded", None)
        used = psutil.Process(process.pid).memory_info().vms
        resource.prlimit(process.pid, resource.RLIMIT_AS, (used + 24 * MIB, -1))
        assert trained(client, large, every_s=1.0) == ("failed", "out_of_memory")
        assert client.models.list().data
        assert trained(client, small) == ("succeeded", None)
        resource.prlimit(process.pid, resource.RLIMIT_AS, (-1, -1))
        assert trained(client, large) == ("succeeded", None)
    finally:
        process.stop()


def many_words(count: int) -> bytes:
    """Examples in which hardly a word occurs twice."""
    rng = random.Random(1)
    rows = []
    for _ in range(count // 40):
        words = " ".join(f"{rng.randrange(2**48):x}" for _ in range(40))
        messages = [{"role": "user", "content": "Say"}, {"role": "assistant", "content": words}]
        rows.append(json.dumps({"messages": messages}))
    return "\n".join(rows).encode()
