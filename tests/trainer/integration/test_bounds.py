"""Keys that may not, quotas that hold, and requests that once slipped through."""

from __future__ import annotations

import os
import socket
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from openai import APIStatusError, BadRequestError, OpenAI
from tests.trainer.integration.conftest import BASE, Start, client_of, ended, lines, reached, upload
from tests.trainer.integration.process import Process
from tests.trainer.integration.test_access import made_key
from tests.trainer.integration.test_engines import Scripted, served
from tests.waiting import until

MIB = 1024 * 1024


def test_a_key_that_may_only_ask_changes_nothing(start: Start, tmp_path: Path) -> None:
    """Seen: it deleted models and cancelled jobs."""
    folder = tmp_path / "trainer"
    full, asking = made_key(folder), made_key(folder, "--no-training")
    trainer = start(dir=folder)
    mine, theirs = client_of(trainer, full), client_of(trainer, asking)
    file = upload(mine, lines())
    job = ended(mine, mine.fine_tuning.jobs.create(model=BASE, training_file=file))
    assert job.fine_tuned_model is not None
    model = job.fine_tuned_model
    jobs = theirs.fine_tuning.jobs
    tries: list[Any] = [
        lambda: jobs.create(model=BASE, training_file=file),
        lambda: jobs.cancel(job.id),
        lambda: jobs.pause(job.id),
        lambda: jobs.resume(job.id),
        lambda: theirs.models.delete(model),
        lambda: theirs.files.delete(file),
    ]
    for call in tries:
        with pytest.raises(APIStatusError) as refused:
            call()
        assert (refused.value.status_code, refused.value.code) == (403, "training_not_available")
    messages: Any = [{"role": "user", "content": "tips"}]
    assert theirs.chat.completions.create(model=model, messages=messages).choices
    assert upload(theirs, lines())


def test_jobs_at_once_share_one_quota(start: Start) -> None:
    """Seen: ten jobs at once spent 1,440 tokens of 200."""
    client = client_of(start(token_quota=200, concurrency=4))
    file = upload(client, b"\n".join([SHORT] * 12))

    def made(_: int) -> str:
        epochs: Any = {"n_epochs": 1}
        return client.fine_tuning.jobs.create(
            model=BASE, training_file=file, hyperparameters=epochs
        ).id

    with ThreadPoolExecutor(10) as pool:
        ids = list(pool.map(made, range(10)))
    jobs = [ended(client, client.fine_tuning.jobs.retrieve(one)) for one in ids]
    assert sum(job.trained_tokens or 0 for job in jobs) <= 200
    codes = [job.error.code for job in jobs if job.error and job.error.code]
    assert 1 <= len(codes) < 10
    assert set(codes) == {"exceeded_quota"}


SHORT = b'{"messages":[{"role":"user","content":"a b c"},{"role":"assistant","content":"d e f"}]}'


def test_a_cancelled_job_gives_its_tokens_back_and_says_nothing_more(tmp_path: Path) -> None:
    with served(tmp_path, engine := Scripted(), token_quota=100) as trainer:
        client = client_of(trainer)
        file = upload(client, b"\n".join([SHORT] * 12))
        jobs = client.fine_tuning.jobs
        asked: dict[str, Any] = {"model": "scripted-1", "training_file": file}
        first = jobs.create(**asked, hyperparameters={"n_epochs": 1})
        reached(client, first, ("running",))
        assert ended(client, jobs.create(**asked)).error.code == "exceeded_quota"  # type: ignore[union-attr]
        jobs.cancel(first.id)
        engine.go.set()
        second = ended(client, jobs.create(**asked, hyperparameters={"n_epochs": 1}))
        assert second.status == "succeeded"
        told = jobs.list_events(first.id).data
        assert told[0].message == "The job has been cancelled"
        assert jobs.checkpoints.list(first.id).data == []


def test_checkpoints_of_a_cancelled_job_are_gone_from_its_list(start: Start) -> None:
    client = client_of(start())
    epochs: Any = {"n_epochs": 50}
    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=upload(client, lines(None, count=20_000)),
        hyperparameters=epochs,
    )
    checkpoints = client.fine_tuning.jobs.checkpoints
    until(lambda: checkpoints.list(job.id).data, 120)
    client.fine_tuning.jobs.cancel(job.id)
    until(lambda: not checkpoints.list(job.id).data)
    last = client.fine_tuning.jobs.list_events(job.id).data[0]
    assert last.message == "The job has been cancelled"


def test_more_filters_than_a_job_has_metadata_are_refused(client: OpenAI) -> None:
    """Seen: 1,500 of them were answered by 500."""
    query = {f"metadata[{n}]": "x" for n in range(1500)}
    with pytest.raises(BadRequestError) as refused:
        client.get("/fine_tuning/jobs", cast_to=object, options={"params": query})
    assert refused.value.code == "object_above_max_properties"


@pytest.mark.parametrize("suffix", ["a\nb", "../../x", "a:b", "a/b", "x\n", "\0"])
def test_a_suffix_is_a_name(client: OpenAI, suffix: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.fine_tuning.jobs.create(model=BASE, training_file="file-x", suffix=suffix)
    assert (refused.value.code, refused.value.param) == ("invalid_value", "suffix")


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("posts.pdf", b"%PDF-1.7", "invalid_file_format"),
        ("posts.CSV", b"a,b", "invalid_file_format"),
        ("posts.jsonl", b"", "empty_file"),
    ],
)
def test_what_cannot_be_a_training_file_is_refused_at_once(
    client: OpenAI, name: str, content: bytes, code: str
) -> None:
    before = [file.id for file in client.files.list()]
    with pytest.raises(BadRequestError) as refused:
        upload(client, content, name)
    assert (refused.value.code, refused.value.param) == (code, "file")
    assert [file.id for file in client.files.list()] == before
    if content:
        with pytest.raises(BadRequestError):
            client.uploads.create(
                bytes=1, filename=name, mime_type="text/plain", purpose="fine-tune"
            )


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ("filename*=UTF-8''na%C3%AFve%20one.jsonl", "naïve one.jsonl"),
        ("filename=\"ascii.jsonl\"; filename*=UTF-8''na%C3%AFve.jsonl", "naïve.jsonl"),
        ("filename*=iso-8859-1'en'%A3.jsonl", "£.jsonl"),
        ('filename="a%2Fb.jsonl"', "a%2Fb.jsonl"),
    ],
)
def test_names_are_read_as_browsers_and_libraries_write_them(
    client: OpenAI, disposition: str, name: str
) -> None:
    head = f'--b\r\nContent-Disposition: form-data; name="file"; {disposition}\r\n\r\nx\r\n'
    purpose = '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--b--\r\n'
    answer = httpx2.post(
        f"{client.base_url}files",
        content=(head + purpose).encode(),
        headers={"content-type": "multipart/form-data; boundary=b"},
    )
    assert answer.json()["filename"] == name


def test_parts_end_where_their_upload_does(start: Start) -> None:
    client = client_of(start(max_part_bytes=MIB))
    made = client.uploads.create(
        bytes=2000, filename="a.jsonl", mime_type="text/jsonl", purpose="fine-tune"
    )
    with pytest.raises(APIStatusError) as large:
        client.uploads.parts.create(made.id, data=bytes(2001))
    assert (large.value.status_code, large.value.code) == (413, "file_too_large")
    assert large.value.param == "data"
    parts = [client.uploads.parts.create(made.id, data=bytes(1000)).id for _ in range(4)]
    with pytest.raises(BadRequestError) as refused:
        client.uploads.parts.create(made.id, data=bytes(1000))
    assert refused.value.code == "bytes_mismatch"
    assert client.uploads.complete(made.id, part_ids=parts[1:3]).status == "completed"


def test_a_body_is_sent_once_it_is_asked_for(client: OpenAI) -> None:
    address = urlsplit(str(client.base_url))
    form = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nx\r\n--b--\r\n'
    )
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(form)}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nExpect: 100-continue\r\n"
        "Connection: close\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port), timeout=60) as sock:
        sock.sendall(head.encode())
        assert sock.recv(65536).startswith(b"HTTP/1.1 100 ")
        sock.sendall(form)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_one_idempotency_key_makes_one_job(start: Start) -> None:
    """Also where both requests come at once."""
    client = client_of(start())
    file = upload(client, lines())
    headers = {"Idempotency-Key": "4f1c"}

    def made(_: int) -> str:
        return client.fine_tuning.jobs.create(
            model=BASE, training_file=file, extra_headers=headers
        ).id

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(made, range(8)))) == 1
    assert len(client.fine_tuning.jobs.list().data) == 1
    with pytest.raises(BadRequestError) as refused:
        client.fine_tuning.jobs.create(
            model=BASE, training_file=file, seed=3, extra_headers=headers
        )
    assert refused.value.code == "idempotency_key_in_use"
    assert made(0) == client.fine_tuning.jobs.list().data[0].id


def a_paused_job(client: OpenAI, file: str) -> str:
    """A job that was paused while another trained."""
    jobs = client.fine_tuning.jobs
    many: Any = {"n_epochs": 50}
    large = upload(client, lines(None, count=3000))
    first = jobs.create(model=BASE, training_file=large, hyperparameters=many)
    reached(client, first, ("running",))
    second = jobs.create(model=BASE, training_file=file)
    reached(client, second, ("queued",))
    assert jobs.pause(second.id).status == "paused"
    jobs.cancel(first.id)
    return second.id


def test_a_full_disk_still_cancels_and_deletes(tmp_path: Path) -> None:
    """Seen: 507, so that nobody could make room."""
    folder = tmp_path / "trainer"
    folder.mkdir()
    process = Process(folder, within=f"mount -t tmpfs -o size=16m tmpfs {folder}")
    process.start()
    try:
        client = process.client
        file = upload(client, lines(count=20))
        paused = a_paused_job(client, file)
        inside = Path(f"/proc/{process.pid}/root{folder}")
        with (inside / "filler").open("wb") as filler:
            status = os.statvfs(inside)
            os.posix_fallocate(filler.fileno(), 0, status.f_bavail * status.f_frsize)
        refused = None
        for _ in range(200):  # what is written already has some room left for itself
            try:
                client.fine_tuning.jobs.create(
                    model=BASE, training_file=file, metadata={"n": "0" * 512}
                )
            except APIStatusError as error:
                refused = error
                break
        assert refused is not None
        assert refused.status_code == 507
        assert client.fine_tuning.jobs.cancel(paused).status == "cancelled"
        assert client.files.delete(file).deleted
        (inside / "filler").unlink()
    finally:
        process.stop()


def test_a_database_of_an_earlier_version_is_completed(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "trainer"
    first = start(dir=folder)
    file = upload(client_of(first), lines())
    first.stop()
    with sqlite3.connect(folder / "trainer.sqlite") as database:
        database.execute("ALTER TABLE jobs DROP COLUMN charged_tokens")
    client = client_of(start(dir=folder))
    job = client.fine_tuning.jobs.create(model=BASE, training_file=file)
    assert ended(client, job).status == "succeeded"
