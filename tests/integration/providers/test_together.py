"""Together's wire: files that are asked for and put, jobs told by their suffix, prices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.together_wire import KEY, TogetherWire, together_server

from tuneproof.errors import (
    ConfigError,
    CredentialsError,
    DataError,
    NotFoundError,
    ProviderUnavailableError,
    QuotaExhaustedError,
)
from tuneproof.providers import Together, open_provider
from tuneproof.training import JobRequest, JobStatus, preflight
from tuneproof.workflow import SystemClock

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
NOW = SystemClock().now()


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = "together"
    kind: str = "together"
    base_url: str | None = None
    api_key: str | None = KEY
    organization: str | None = None


@pytest.fixture
def wire() -> Iterator[TogetherWire]:
    with together_server() as made:
        yield made


@pytest.fixture
def provider(wire: TogetherWire) -> Together:
    made = open_provider(Config(base_url=wire.url), timeout_s=5)
    assert isinstance(made, Together)
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text('{"messages": []}\n' * 20)
    return path


async def started(provider: Together, file: Path, **more: object) -> tuple[JobRequest, str]:
    file_id = await provider.upload(file, name="tuneproof-abc.jsonl")
    request = JobRequest(
        model=MODEL,
        training_file=file_id,
        suffix="weekly/hook",
        seed=3,
        metadata={"tuneproof_run": "ft-pipeline-20250120-001"},
        **more,  # type: ignore[arg-type]
    )
    return request, (await provider.create_job(request)).id


async def test_file_is_put_where_the_server_says_without_the_key_and_read(
    wire: TogetherWire, provider: Together, file: Path
) -> None:
    file_id = await provider.upload(file, name="tuneproof-abc.jsonl")
    assert wire.contents[file_id] == file.read_bytes()
    assert "authorization" not in wire.put_headers[0]
    assert await provider.find_file("tuneproof-abc.jsonl") == file_id  # while it is validated
    assert [await provider.file_ready(file_id) for _ in range(2)] == [False, True]
    assert await provider.find_file("tuneproof-abc.jsonl") == file_id
    assert await provider.find_file("other.jsonl") is None


async def test_file_that_was_asked_for_and_never_put_is_not_found(
    wire: TogetherWire, provider: Together, file: Path
) -> None:
    file_id = await provider.upload(file, name="tuneproof-abc.jsonl")
    wire.files[file_id]["bytes"] = 0
    assert await provider.find_file("tuneproof-abc.jsonl") is None


async def test_file_that_could_not_be_validated_is_uploaded_again(
    wire: TogetherWire, provider: Together, file: Path
) -> None:
    wire.file_states = ["FAILED"]
    file_id = await provider.upload(file, name="tuneproof-abc.jsonl")
    with pytest.raises(ProviderUnavailableError, match="could not validate"):
        await provider.file_ready(file_id)
    assert await provider.find_file("tuneproof-abc.jsonl") is None


async def test_invalid_file_is_refused_in_the_server_s_words(
    wire: TogetherWire, provider: Together, file: Path
) -> None:
    wire.file_states = ["INVALID_FORMAT"]
    file_id = await provider.upload(file, name="tuneproof-abc.jsonl")
    with pytest.raises(DataError, match="line 3 has no messages"):
        await provider.file_ready(file_id)


async def test_job_is_found_again_by_its_suffix(
    wire: TogetherWire, provider: Together, file: Path
) -> None:
    _, job_id = await started(provider, file)
    found = await provider.find_job("tuneproof_run", "ft-pipeline-20250120-001")
    assert found is not None
    assert found.id == job_id
    assert await provider.find_job("tuneproof_run", "ft-pipeline-20250120-002") is None
    suffix = wire.bodies[0]["suffix"]
    assert len(suffix) <= 40
    assert suffix.startswith("weekly-hook-")


async def test_job_walks_through_its_states_to_a_model_with_tokens_and_cost(
    wire: TogetherWire, provider: Together, file: Path
) -> None:
    _, job_id = await started(provider, file)
    seen = [(await provider.job(job_id)) for _ in range(5)]
    assert [job.status for job in seen] == [
        JobStatus.QUEUED,
        JobStatus.RUNNING,
        JobStatus.RUNNING,
        JobStatus.RUNNING,
        JobStatus.SUCCEEDED,
    ]
    done = seen[-1]
    assert (done.fine_tuned_model or "").startswith("team/Llama-3.1-8B-Instruct-weekly-hook-")
    assert (done.trained_tokens, done.cost_usd) == (123_456, 0.05925888)
    metrics: dict[str, float] = {}
    for event in await provider.events(job_id):
        metrics |= event.data
    assert (metrics["train_loss"], metrics["valid_loss"]) == (2.0, 2.1)


async def test_undocumented_state_is_passed_through(
    wire: TogetherWire, provider: Together, file: Path
) -> None:
    wire.states = ["pending", "dreaming", "completed"]
    _, job_id = await started(provider, file)
    job = await provider.job(job_id)
    assert (job.status, job.raw_status) == (JobStatus.UNKNOWN, "dreaming")


@pytest.mark.parametrize("state", ["error", "user_error"])
async def test_failed_job_says_why(
    wire: TogetherWire, provider: Together, file: Path, state: str
) -> None:
    wire.states = ["pending", state]
    _, job_id = await started(provider, file)
    job = await provider.job(job_id)
    assert job.status is JobStatus.FAILED
    assert (job.error_code, job.error_message) == (state, "the file is bad")


async def test_cancel_ends_a_job_once(wire: TogetherWire, provider: Together, file: Path) -> None:
    _, job_id = await started(provider, file)
    assert (await provider.cancel_job(job_id)).status is JobStatus.CANCELLED
    assert (await provider.cancel_job(job_id)).status is JobStatus.CANCELLED


async def test_body_of_a_preference_job(wire: TogetherWire, provider: Together, file: Path) -> None:
    await started(
        provider,
        file,
        method="dpo",
        hyperparameters={"n_epochs": 2, "learning_rate_multiplier": 0.5, "beta": 0.2},
    )
    body = wire.bodies[0]
    assert body["training_method"] == {"method": "dpo", "dpo_beta": 0.2}
    assert (body["n_epochs"], body["learning_rate"], body["random_seed"]) == (2, 5e-6, 3)


async def test_preflight_asks_the_limits_and_uploads_nothing(
    wire: TogetherWire, provider: Together
) -> None:
    found = await preflight(provider, MODEL, "supervised", now=NOW)
    assert found.tunable is True
    with pytest.raises(ConfigError, match="cannot be tuned"):
        await preflight(provider, "mistral/unknown", "supervised", now=NOW)
    assert set(wire.requests) == {"GET /fine-tunes/models/limits"}


async def test_answers_come_over_the_chat_wire(provider: Together) -> None:
    [answer] = await provider.complete(MODEL, [{"role": "user", "content": "hi"}])
    assert (answer.text, answer.completion_tokens) == (f"{MODEL} answers", 3)
    assert await provider.score(MODEL, [{"role": "assistant", "content": "hi"}]) is None


async def test_errors_are_of_our_tree(wire: TogetherWire, provider: Together, file: Path) -> None:
    with pytest.raises(CredentialsError):
        await open_provider(Config(base_url=wire.url, api_key="wrong")).ping()
    with pytest.raises(NotFoundError):
        await provider.job("ft-nothing")
    wire.fail("POST /fine-tunes", status=402, message="no credit")
    with pytest.raises(QuotaExhaustedError, match="no credit"):
        await started(provider, file)
    with pytest.raises(ProviderUnavailableError):
        await open_provider(Config(base_url="http://127.0.0.1:9/v1")).ping()
