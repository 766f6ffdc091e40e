"""Files and uploads: kept whole, listed, expired, refused."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import httpx2
import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI
from tests.trainer.integration.conftest import (
    BASE,
    Start,
    client_of,
    ended,
    lines,
    reached,
    upload,
)

from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.requests import CreateUpload
from tuneproof_trainer.service import TrainerService
from tuneproof_trainer.settings import TrainerSettings


def test_content_comes_back_as_it_was_sent_with_its_hash(client: OpenAI) -> None:
    content = bytes(range(256)) * 5000
    file = client.files.create(file=("päge 1.bin", content), purpose="user_data")
    assert file.filename == "päge 1.bin"
    assert client.files.content(file.id).read() == content
    raw = client.files.with_raw_response.retrieve(file.id)
    assert raw.headers["x-content-sha256"] == hashlib.sha256(content).hexdigest()


def test_lists_are_paged_ordered_and_filtered_by_purpose(start: Start) -> None:
    client = client_of(start())
    sent = [upload(client, b"{}", f"{n}.jsonl") for n in range(5)]
    other = client.files.create(file=("a.txt", b"x"), purpose="user_data")
    assert [f.id for f in client.files.list(purpose="fine-tune", limit=2)] == sent[::-1]
    first = client.files.list(purpose="fine-tune", limit=2)
    assert len(first.data) == 2
    assert first.has_more
    assert [f.id for f in client.files.list(order="asc")] == [*sent, other.id]
    after = client.files.list(order="asc", after=sent[3])
    assert [f.id for f in after] == [sent[4], other.id]


def test_files_expire_at_the_time_they_were_given(tmp_path: Path) -> None:
    now = [1_800_000_000.0]
    service = TrainerService(TrainerSettings(dir=tmp_path), clock=lambda: now[0])
    landed = service.files.land([b"abc"], 100)
    service.database.write(
        lambda c: service.files.record(
            c, landed, org="o", filename="f", purpose="fine-tune", lifetime_s=3600
        )
    )
    assert service.files.get("o", landed.id)["expires_at"] == 1_800_003_600
    now[0] += 3601
    listed = service.files.find("o", after=None, limit=9, ascending=True, purpose=None)
    assert listed == []
    with pytest.raises(Exception, match="No such File"):
        service.files.get("o", landed.id)
    now[0] += 2 * 86400 * 365
    service.collect()
    assert not service.files.path(landed.id).exists()
    service.close()


def test_old_files_abandoned_uploads_and_strays_are_collected(tmp_path: Path) -> None:
    now = [time.time()]
    service = TrainerService(
        TrainerSettings(dir=tmp_path, file_lifetime_s=86_400), clock=lambda: now[0]
    )
    old = kept(service, b"old")
    asked = CreateUpload(bytes=3, filename="f", purpose="fine-tune", mime_type="text/plain")
    upload_id = service.uploads.create("o", asked)["id"]
    landing = service.uploads.landing(6)
    landing.write(b"abc")
    service.uploads.add_part("o", upload_id, landing.finish())
    stray = service.uploads.landing(6)
    stray.write(b"no row")
    stray.finish()
    half = tmp_path / "parts" / "incoming" / "file-half"
    half.write_bytes(b"half")
    now[0] += 4000
    service.collect()
    service.uploads.clear_incoming()
    assert service.uploads.show(service.uploads.get("o", upload_id))["status"] == "expired"
    assert [path for path in (tmp_path / "parts").rglob("*") if path.is_file()] == []
    assert service.files.path(old).exists()
    now[0] += 86_400
    young = kept(service, b"young")
    service.collect()
    assert not service.files.path(old).exists()
    assert service.files.path(young).exists()
    with pytest.raises(Exception, match="No such File"):
        service.files.get("o", old)
    service.close()


def kept(service: TrainerService, content: bytes) -> str:
    landed = service.files.land([content], 100)
    service.database.write(
        lambda c: service.files.record(c, landed, org="o", filename="f", purpose="fine-tune")
    )
    return landed.id


def test_expiry_is_accepted_on_the_wire(client: OpenAI) -> None:
    file = client.files.create(
        file=("a.jsonl", b"{}"),
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert file.expires_at == file.created_at + 3600
    with pytest.raises(BadRequestError) as refused:
        client.files.create(
            file=("a.jsonl", b"{}"),
            purpose="fine-tune",
            expires_after={"anchor": "created_at", "seconds": 5},
        )
    assert refused.value.param == "expires_after"


def test_a_file_beyond_the_limit_is_refused_and_leaves_nothing(
    start: Start, tmp_path: Path
) -> None:
    client = client_of(start(max_file_bytes=1000))
    with pytest.raises(APIStatusError) as refused:
        upload(client, b"x" * 1001)
    assert (refused.value.status_code, refused.value.code) == (413, "file_too_large")
    with pytest.raises(APIStatusError) as refused:
        upload(client, b"x" * 3_000_000)
    assert refused.value.status_code == 413
    assert list(client.files.list()) == []
    assert [p.name for p in (tmp_path / "trainer" / "files").rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    ("purpose", "code"), [("nonsense", "invalid_value"), ("fine-tune-results", "invalid_value")]
)
def test_unknown_purposes_are_refused(client: OpenAI, purpose: str, code: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.files.create(file=("a", b"x"), purpose=purpose)  # type: ignore[arg-type]
    assert (refused.value.code, refused.value.param) == (code, "purpose")


def test_a_large_file_in_parts_becomes_one_file(client: OpenAI) -> None:
    content = lines(count=50)
    cut = len(content) // 3
    pieces = [content[:cut], content[cut : 2 * cut], content[2 * cut :]]
    made = client.uploads.create(
        bytes=len(content),
        filename="big.jsonl",
        mime_type="application/jsonl",
        purpose="fine-tune",
    )
    parts = [client.uploads.parts.create(made.id, data=piece).id for piece in reversed(pieces)]
    done = client.uploads.complete(
        made.id, part_ids=parts[::-1], md5=hashlib.md5(content).hexdigest()
    )
    assert done.status == "completed"
    assert done.file is not None
    assert done.file.filename == "big.jsonl"
    assert client.files.content(done.file.id).read() == content
    job = client.fine_tuning.jobs.create(model=BASE, training_file=done.file.id)
    assert ended(client, job).status == "succeeded"


def test_the_helper_of_the_sdk_uploads_in_parts(client: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "chunked.jsonl"
    path.write_bytes(lines(count=100))
    done = client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="fine-tune", part_size=2000
    )
    assert done.file is not None
    assert client.files.content(done.file.id).read() == path.read_bytes()


def test_uploads_that_do_not_add_up_are_refused(client: OpenAI) -> None:
    def fresh(size: int) -> str:
        return client.uploads.create(
            bytes=size, filename="f", mime_type="text/plain", purpose="fine-tune"
        ).id

    upload_id = fresh(3)
    part = client.uploads.parts.create(upload_id, data=b"ab").id
    for part_ids, code in (([part], "bytes_mismatch"), (["part_x"], "invalid_part")):
        with pytest.raises(BadRequestError) as refused:
            client.uploads.complete(upload_id, part_ids=part_ids)
        assert refused.value.code == code
    second = client.uploads.parts.create(upload_id, data=b"c").id
    with pytest.raises(BadRequestError) as refused:
        client.uploads.complete(upload_id, part_ids=[part, second], md5="0" * 32)
    assert refused.value.code == "md5_mismatch"
    assert client.uploads.complete(upload_id, part_ids=[part, second]).status == "completed"
    with pytest.raises(BadRequestError) as refused:
        client.uploads.cancel(upload_id)
    assert refused.value.code == "invalid_upload_state"
    cancelled = fresh(3)
    assert client.uploads.cancel(cancelled).status == "cancelled"
    with pytest.raises(BadRequestError):
        client.uploads.parts.create(cancelled, data=b"abc")


def test_a_part_beyond_the_limit_is_refused(start: Start) -> None:
    client = client_of(start(max_part_bytes=10, max_upload_bytes=100))
    made = client.uploads.create(
        bytes=50, filename="f", mime_type="text/plain", purpose="fine-tune"
    )
    with pytest.raises(APIStatusError) as refused:
        client.uploads.parts.create(made.id, data=b"x" * 11)
    assert refused.value.status_code == 413
    with pytest.raises(BadRequestError):
        client.uploads.create(bytes=101, filename="f", mime_type="text/plain", purpose="fine-tune")


def test_deleting_a_file_does_not_harm_the_job_that_reads_it(start: Start) -> None:
    client = client_of(start())
    first = upload(client, lines(None, count=10_000))
    running = client.fine_tuning.jobs.create(model=BASE, training_file=first)
    reached(client, running, ("running",))
    second = upload(client, lines("list"))
    waiting = client.fine_tuning.jobs.create(model=BASE, training_file=second)
    reached(client, waiting, ("queued",))
    client.files.delete(second)
    client.files.delete(first)
    assert ended(client, running).status == "succeeded"
    assert ended(client, waiting).status == "succeeded"
    with pytest.raises(NotFoundError):
        client.files.content(second)


def test_deleted_content_goes_when_the_last_job_has_ended(start: Start, tmp_path: Path) -> None:
    client = client_of(start())
    file_id = upload(client, lines(count=500))
    job = client.fine_tuning.jobs.create(model=BASE, training_file=file_id)
    client.files.delete(file_id)
    ended(client, job)
    path = tmp_path / "trainer" / "files" / file_id
    for _ in range(200):
        if not path.exists():
            break
        reached(client, job, ("succeeded",))
    assert not path.exists()


def test_what_a_kill_left_half_written_is_removed_at_the_next_start(
    start: Start, tmp_path: Path
) -> None:
    incoming = tmp_path / "trainer" / "files" / "incoming"
    incoming.mkdir(parents=True)
    (incoming / "file-half").write_bytes(b"half")
    start()
    assert list(incoming.iterdir()) == []


def test_a_form_without_a_file_says_what_is_missing(trainer: EmbeddedTrainer) -> None:
    url = f"{trainer.base_url}/files"
    cases = [
        ({"files": {"purpose": (None, "fine-tune")}}, "file"),
        ({"data": {"purpose": "fine-tune"}, "files": {"other": b"x"}}, "other"),
        ({"files": {"file": b"x"}}, "purpose"),
        ({"content": json.dumps({}), "headers": {"content-type": "application/json"}}, None),
    ]
    for request, param in cases:
        answer = httpx2.post(url, **request)  # type: ignore[arg-type]
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
        assert answer.headers["x-request-id"].startswith("req_")


FORM = {"content-type": "multipart/form-data; boundary=b"}
FILE = 'content-disposition: form-data; name="file"; filename="x"'
BROKEN = [
    ({"content-type": "multipart/form-data"}, b"--b--", "invalid_content_type"),
    (FORM, b"nonsense", "invalid_form"),
    (FORM, f"--b\r\n{FILE}\r\n\r\nhalf".encode(), "invalid_form"),
    (FORM, b"", "invalid_form"),
    (
        FORM,
        f"--b\r\n{FILE}\r\n\r\na\r\n--b\r\n{FILE}\r\n\r\nb\r\n--b--".encode(),
        "unexpected_file",
    ),
    (
        FORM,
        b'--b\r\ncontent-disposition: form-data; name="x"\r\n\r\n' + b"y" * 70_000 + b"\r\n--b--",
        "invalid_form",
    ),
]


@pytest.mark.parametrize(("headers", "content", "code"), BROKEN)
def test_broken_forms_are_refused_and_leave_nothing(
    trainer: EmbeddedTrainer, client: OpenAI, headers: dict[str, str], content: bytes, code: str
) -> None:
    before = len(list(client.files.list()))
    answer = httpx2.post(f"{trainer.base_url}/files", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert len(list(client.files.list())) == before
    assert trainer.app is not None
    folder = trainer.app.service.settings.dir / "files" / "incoming"
    assert list(folder.iterdir()) == []
