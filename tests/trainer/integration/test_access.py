"""Keys, organisations, rate limits, and the shape of every error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import APIStatusError, AuthenticationError, NotFoundError, OpenAI, RateLimitError
from tests.trainer.integration.conftest import BASE, Start, client_of, lines, upload

from tuneproof_trainer.access import Access, ApiCaller, KeyStore
from tuneproof_trainer.database import TrainerDatabase
from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.errors import ApiError, ServerError
from tuneproof_trainer.settings import TrainerSettings


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from tuneproof_trainer.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def made_key(folder: Path, *arguments: str) -> str:
    done = command("keys", "create", "--dir", str(folder), "--name", "test", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_keys_are_made_listed_and_revoked_by_the_command(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "trainer"
    key, other = made_key(folder, "--org", "acme"), made_key(folder, "--org", "beta")
    trainer = start(dir=folder)
    mine, theirs = client_of(trainer, key), client_of(trainer, other)
    file_id = upload(mine, lines())
    with pytest.raises(NotFoundError):
        theirs.files.retrieve(file_id)
    with pytest.raises(AuthenticationError) as refused:
        client_of(trainer, "sk-wrong-0123456789").models.list()
    assert refused.value.code == "invalid_api_key"
    assert "sk-wro…6789" in refused.value.message
    listed = command("keys", "list", "--dir", str(folder)).stdout
    assert "acme" in listed
    assert key not in listed
    key_id = next(line.split()[0] for line in listed.splitlines() if "beta" in line)
    assert command("keys", "revoke", key_id, "--dir", str(folder)).returncode == 0
    again = command("keys", "revoke", key_id, "--dir", str(folder))
    assert again.returncode == 1
    assert "keys list" in again.stderr


def test_what_one_organisation_polls_is_never_shown_to_another(
    start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "trainer"
    keys = made_key(folder, "--org", "acme"), made_key(folder, "--org", "beta")
    trainer = start(dir=folder)
    mine, theirs = (client_of(trainer, key) for key in keys)
    job = mine.fine_tuning.jobs.create(model=BASE, training_file=upload(mine, lines()))
    for _ in range(2):
        assert mine.fine_tuning.jobs.retrieve(job.id).id == job.id
        assert mine.fine_tuning.jobs.list_events(job.id, limit=1).data
        assert [one.id for one in mine.fine_tuning.jobs.list()] == [job.id]
        assert list(theirs.fine_tuning.jobs.list()) == []
        for call in (theirs.fine_tuning.jobs.retrieve, theirs.fine_tuning.jobs.list_events):
            with pytest.raises(NotFoundError):
                call(job.id)


def test_a_change_is_seen_by_the_next_poll(client: OpenAI) -> None:
    jobs = client.fine_tuning.jobs
    for _ in range(20):
        job = jobs.create(model=BASE, training_file=upload(client, lines(None, count=2000)))
        assert jobs.retrieve(job.id).id == job.id
        assert jobs.list(limit=1).data[0].id == job.id
        jobs.cancel(job.id)
        assert jobs.retrieve(job.id).status == "cancelled"
        assert jobs.list(limit=1).data[0].status == "cancelled"
        told = jobs.list_events(job.id).data
        assert "The job has been cancelled" in [event.message for event in told]


def test_a_key_without_training_uploads_but_does_not_train(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "trainer"
    key = made_key(folder, "--no-training")
    client = client_of(start(dir=folder), key)
    file_id = upload(client, lines())
    with pytest.raises(APIStatusError) as refused:
        client.fine_tuning.jobs.create(model=BASE, training_file=file_id)
    assert (refused.value.status_code, refused.value.code) == (403, "training_not_available")


def test_another_organisation_in_the_header_is_refused(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "trainer"
    key = made_key(folder, "--org", "acme")
    trainer = start(dir=folder)
    with pytest.raises(AuthenticationError) as refused:
        client_of(trainer, key).with_options(organization="other").models.list()
    assert refused.value.code == "mismatched_organization"
    assert client_of(trainer, key).with_options(organization="acme").models.list().data


def test_beyond_loopback_every_request_needs_a_key(start: Start) -> None:
    trainer = start(open_without_keys=False)
    with pytest.raises(AuthenticationError):
        client_of(trainer).models.list()
    answer = httpx2.get(f"{trainer.base_url}/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "missing_api_key")
    health = httpx2.get(trainer.base_url.replace("/v1", "/health"))
    assert health.json() == {"status": "ok"}


def test_too_many_requests_are_told_when_to_come_back(start: Start) -> None:
    client = client_of(start(requests_per_minute=3))
    raw = client.models.with_raw_response.list()
    assert raw.headers["x-ratelimit-limit-requests"] == "3"
    assert raw.headers["x-ratelimit-remaining-requests"] == "2"
    client.models.list()
    client.models.list()
    with pytest.raises(RateLimitError) as refused:
        client.models.list()
    assert refused.value.code == "rate_limit_exceeded"
    headers = refused.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 21
    assert 0 < int(headers["retry-after-ms"]) <= 20_001


def test_the_limit_refills_evenly_and_each_key_has_its_own(tmp_path: Path) -> None:
    now = [0.0]
    database = TrainerDatabase(tmp_path / "x.sqlite")
    settings = TrainerSettings(dir=tmp_path, requests_per_minute=60)
    access = Access(settings, KeyStore(database, lambda: 0.0), monotonic=lambda: now[0])
    ann, bob = ApiCaller(org="a", key_id="ann"), ApiCaller(org="a", key_id="bob")
    for _ in range(60):
        access.admit(ann)
    with pytest.raises(ApiError) as refused:
        access.admit(ann)
    assert refused.value.headers["retry-after"] == "2"
    access.admit(bob)
    now[0] += 1.0
    access.admit(ann)
    with pytest.raises(ApiError):
        access.admit(ann)
    database.close()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("PUT", "/v1/files", 405, "method_not_supported"),
        ("DELETE", "/v1/models/tuneproof-ngram-1", 403, "model_not_deletable"),
        ("GET", "/v1/models/ft:a:b::c", 404, "model_not_found"),
        ("GET", "/v1/files?limit=x", 400, "invalid_type"),
        ("GET", "/v1/files?limit=10001", 400, "invalid_value"),
        ("GET", "/v1/files?order=up", 400, "invalid_value"),
        ("GET", "/v1/files?after=file-x", 400, "invalid_value"),
        ("GET", "/v1/fine_tuning/jobs?metadata=x", 400, "invalid_value"),
        ("GET", "/v1/fine_tuning/jobs?metadata[a][b]=x", 400, "invalid_value"),
        ("GET", "/v1/fine_tuning/jobs?metadata[]=x", 400, "invalid_value"),
        ("POST", "/v1/fine_tuning/jobs", 415, "unsupported_content_type"),
    ],
)
def test_errors_have_the_shape_of_the_original(
    trainer: EmbeddedTrainer, method: str, path: str, status: int, code: str
) -> None:
    answer = httpx2.request(method, trainer.base_url.removesuffix("/v1") + path)
    assert answer.status_code == status
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert answer.headers["x-request-id"].startswith("req_")


def test_a_second_trainer_on_the_same_folder_is_refused(start: Start, tmp_path: Path) -> None:
    start()
    with pytest.raises(ServerError, match="Another trainer uses"):
        EmbeddedTrainer(TrainerSettings(dir=tmp_path / "trainer")).start()


def test_a_port_in_use_is_told(start: Start, tmp_path: Path) -> None:
    port = int(start().base_url.rsplit(":", 1)[1].removesuffix("/v1"))
    with pytest.raises(ServerError, match="cannot listen"):
        EmbeddedTrainer(TrainerSettings(dir=tmp_path / "other"), port=port).start()
