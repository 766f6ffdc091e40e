"""Fireworks' wire: ids of the caller's choosing, an account in each path, JOB_STATE_*."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.fireworks_wire import BASE, KEY, FireworksWire, fireworks_server

from tuneproof.errors import (
    ConfigError,
    CredentialsError,
    DataError,
    NotFoundError,
    TrainingNotAvailableError,
)
from tuneproof.providers import Fireworks, open_provider
from tuneproof.providers import fireworks as module
from tuneproof.training import JobRequest, JobStatus, find_model, preflight

NOW = datetime(2026, 11, 20, tzinfo=UTC)
RUN = {"tuneproof_run": "ft-pipeline-20250120-001"}


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = "fireworks"
    kind: str = "fireworks"
    base_url: str | None = None
    api_key: str | None = KEY
    organization: str | None = None


@pytest.fixture
def wire() -> Iterator[FireworksWire]:
    with fireworks_server() as made:
        yield made


@pytest.fixture
def provider(wire: FireworksWire) -> Fireworks:
    made = open_provider(Config(base_url=wire.url), timeout_s=5)
    assert isinstance(made, Fireworks)
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text('{"messages": []}\n' * 20)
    return path


def request(file_id: str, **more: object) -> JobRequest:
    return JobRequest(model=BASE, training_file=file_id, metadata=RUN, **more)  # type: ignore[arg-type]


async def test_account_is_asked_for_once_and_the_file_becomes_a_dataset(
    wire: FireworksWire, provider: Fireworks, file: Path
) -> None:
    file_id = await provider.upload(file, name="tuneproof-0abc.jsonl")
    assert file_id == "accounts/acme/datasets/tuneproof-0abc"
    assert wire.contents[file_id] == file.read_bytes()
    assert wire.datasets[file_id]["exampleCount"] == "20"
    assert [await provider.file_ready(file_id) for _ in range(2)] == [False, True]
    assert await provider.find_file("tuneproof-0abc.jsonl") == file_id
    assert await provider.find_file("other.jsonl") is None
    assert wire.count("GET /accounts") == 1


async def test_two_accounts_ask_for_a_choice(wire: FireworksWire, provider: Fireworks) -> None:
    wire.accounts.append("accounts/other")
    with pytest.raises(ConfigError, match="can see 2 accounts"):
        await provider.find_file("x.jsonl")
    chosen = open_provider(Config(base_url=wire.url, organization="other"))
    assert await chosen.find_file("x.jsonl") is None


async def test_upload_that_was_cut_off_is_taken_up_again(
    wire: FireworksWire, provider: Fireworks, file: Path
) -> None:
    name = "accounts/acme/datasets/tuneproof-0abc"
    wire.datasets[name] = {"name": name, "state": "UPLOADING", "status": {"code": "OK"}}
    assert await provider.find_file("tuneproof-0abc.jsonl") is None
    assert await provider.upload(file, name="tuneproof-0abc.jsonl") == name
    assert wire.contents[name] == file.read_bytes()


async def test_large_file_goes_to_a_signed_address_without_the_key(
    wire: FireworksWire, provider: Fireworks, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POSTED_UP_TO", 10)
    file_id = await provider.upload(file, name="tuneproof-0abc.jsonl")
    assert wire.contents[file_id] == file.read_bytes()


async def test_refused_dataset_says_why(
    wire: FireworksWire, provider: Fireworks, file: Path
) -> None:
    wire.dataset_states = ["UPLOADING"]
    wire.dataset_status = {"code": "INVALID_ARGUMENT", "message": "line 2 is no chat"}
    file_id = await provider.upload(file, name="tuneproof-0abc.jsonl")
    with pytest.raises(DataError, match="line 2 is no chat"):
        await provider.file_ready(file_id)
    assert await provider.find_file("tuneproof-0abc.jsonl") is None


async def test_dataset_that_is_being_read_is_found_by_who_uploaded_it(
    wire: FireworksWire, provider: Fireworks, file: Path
) -> None:
    wire.dataset_states = ["UPLOADING"]
    file_id = await provider.upload(file, name="tuneproof-0abc.jsonl")
    assert await provider.find_file("tuneproof-0abc.jsonl") == file_id
    assert not await provider.file_ready(file_id)
    other = open_provider(Config(base_url=wire.url))  # a process that cannot know it is whole
    assert await other.find_file("tuneproof-0abc.jsonl") is None


async def test_same_run_never_makes_a_second_job(
    wire: FireworksWire, provider: Fireworks, file: Path
) -> None:
    file_id = await provider.upload(file, name="tuneproof-0abc.jsonl")
    assert await provider.find_job(*next(iter(RUN.items()))) is None
    made = await provider.create_job(request(file_id))
    again = await provider.create_job(request(file_id))
    found = await provider.find_job(*next(iter(RUN.items())))
    assert found is not None
    assert made.id == again.id == found.id
    assert len(wire.jobs) == 1


async def test_job_walks_through_its_states_to_a_model_and_its_cost(
    wire: FireworksWire, provider: Fireworks, file: Path
) -> None:
    file_id = await provider.upload(file, name="tuneproof-0abc.jsonl")
    made = await provider.create_job(request(file_id, hyperparameters={"n_epochs": 2}))
    seen = [await provider.job(made.id) for _ in range(3)]
    assert [job.status for job in seen] == [
        JobStatus.VALIDATING_FILES,
        JobStatus.RUNNING,
        JobStatus.SUCCEEDED,
    ]
    assert (seen[-1].fine_tuned_model or "").startswith("accounts/acme/models/tp-")
    assert (seen[-1].cost_usd, seen[-1].trained_tokens) == (1.25, 1000)
    assert seen[-1].hyperparameters == {"n_epochs": 2}
    [event] = await provider.events(made.id)
    assert event.message == "JOB_STATE_COMPLETED"


async def test_early_stop_is_success_and_expiry_is_failure(
    wire: FireworksWire, provider: Fireworks, file: Path
) -> None:
    file_id = await provider.upload(file, name="tuneproof-0abc.jsonl")
    wire.states = ["JOB_STATE_CREATING", "JOB_STATE_EARLY_STOPPED"]
    made = await provider.create_job(request(file_id))
    assert (await provider.job(made.id)).status is JobStatus.SUCCEEDED
    wire.jobs.clear()
    wire.states = ["JOB_STATE_CREATING", "JOB_STATE_FAILED"]
    wire.status = {"code": "RESOURCE_EXHAUSTED", "message": "no machines"}
    made = await provider.create_job(request(file_id))
    job = await provider.job(made.id)
    assert (job.error_code, job.error_message) == ("RESOURCE_EXHAUSTED", "no machines")
    wire.jobs.clear()
    wire.states = ["JOB_STATE_CREATING", "JOB_STATE_BEYOND"]
    made = await provider.create_job(request(file_id))
    job = await provider.job(made.id)
    assert (job.status, job.raw_status) == (JobStatus.UNKNOWN, "JOB_STATE_BEYOND")


async def test_preference_job_has_its_own_collection(
    wire: FireworksWire, provider: Fireworks, file: Path
) -> None:
    file_id = await provider.upload(file, name="tuneproof-0abc.jsonl")
    asked = request(
        file_id, method="dpo", hyperparameters={"beta": 0.1, "learning_rate_multiplier": 2}
    )
    made = await provider.create_job(asked)
    assert made.id.startswith("accounts/acme/dpoJobs/")
    body = wire.bodies[0]
    assert body["lossConfig"] == {"method": "DPO", "dpo": {"beta": 0.1}}
    assert body["trainingConfig"] == {"baseModel": BASE, "learningRate": 2e-4}
    assert (await provider.cancel_job(made.id)).status is JobStatus.CANCELLED
    assert (await provider.cancel_job(made.id)).status is JobStatus.CANCELLED


async def test_preflight_looks_at_account_and_model_and_uploads_nothing(
    wire: FireworksWire, provider: Fireworks
) -> None:
    found = await preflight(provider, BASE, "supervised", now=NOW)
    assert (found.account, found.tunable) == (True, True)
    assert found.shutdown_at == datetime(2027, 3, 1, tzinfo=UTC)
    with pytest.raises(ConfigError, match="not tunable"):
        await preflight(provider, "frozen", "supervised", now=NOW)
    with pytest.raises(ConfigError, match="no such model"):
        await preflight(provider, "nothing", "supervised", now=NOW)
    wire.suspended = "CREDIT_DEPLETED"
    with pytest.raises(TrainingNotAvailableError, match="CREDIT_DEPLETED"):
        await preflight(provider, BASE, "supervised", now=NOW)
    assert not any(r.startswith("POST") for r in wire.requests)


async def test_models_are_paged_and_others_are_asked_for_by_name(provider: Fireworks) -> None:
    assert [m.id.rpartition("/")[2] for m in await provider.models()] == ["own-1", "own-2"]
    found = await find_model(provider, BASE)
    assert found is not None
    assert found.shutdown_at == datetime(2027, 3, 1, tzinfo=UTC)
    assert await find_model(provider, "nothing") is None


async def test_answers_come_from_the_inference_side(
    wire: FireworksWire, provider: Fireworks
) -> None:
    [answer] = await provider.complete(BASE, [{"role": "user", "content": "hi"}])
    assert answer.text == f"{BASE} answers"
    assert wire.requests[-1] == "POST /inference/v1/chat/completions"


async def test_errors_are_of_our_tree(wire: FireworksWire, provider: Fireworks) -> None:
    with pytest.raises(CredentialsError):
        await open_provider(Config(base_url=wire.url, api_key="wrong")).ping()
    with pytest.raises(NotFoundError):
        await provider.job("accounts/acme/supervisedFineTuningJobs/nothing")
