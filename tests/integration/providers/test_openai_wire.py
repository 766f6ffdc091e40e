"""The OpenAI wire against a real HTTP server that succeeds, stalls and refuses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import openai
import pytest
from tests.servers import free_port
from tests.wire import Wire, wire_server

from tuneproof import errors
from tuneproof.providers import DIALECTS, OpenAIWire, open_provider
from tuneproof.resilience import CircuitBreaker
from tuneproof.settings import ProviderConfig
from tuneproof.training import JobRequest, JobStatus
from tuneproof.workflow import SystemClock


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = "default"
    kind: str = "openai"
    base_url: str | None = None
    api_key: str | None = field(default="sk-test", repr=False)
    organization: str | None = None


@pytest.fixture
def wire() -> Iterator[Wire]:
    with wire_server() as server:
        yield server


@pytest.fixture
async def provider(wire: Wire) -> AsyncIterator[OpenAIWire]:
    made = open_provider(Config(base_url=wire.url), timeout_s=5)
    yield made
    await made.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    line = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    path.write_text("".join(json.dumps(line) + "\n" for _ in range(10)))
    return path


async def _job(provider: OpenAIWire, file: Path, **fields: object) -> JobRequest:
    uploaded = await provider.upload(file, name="train.jsonl")
    return JobRequest(model="base-model", training_file=uploaded, **fields)  # type: ignore[arg-type]


async def test_uploaded_file_arrives_whole_and_is_found_by_its_name(
    wire: Wire, provider: OpenAIWire, file: Path
) -> None:
    first = await provider.upload(file, name="tp-1.jsonl")
    second = await provider.upload(file, name="tp-1.jsonl")
    assert wire.contents[first] == file.read_bytes()
    assert await provider.find_file("tp-1.jsonl") == second
    assert await provider.find_file("other.jsonl") is None


async def test_file_is_found_beyond_the_first_page(
    wire: Wire, provider: OpenAIWire, file: Path
) -> None:
    wire.page = 2
    first = await provider.upload(file, name="first.jsonl")
    for i in range(5):
        await provider.upload(file, name=f"later-{i}.jsonl")
    assert await provider.find_file("first.jsonl") == first


async def test_file_that_the_server_could_not_read_is_not_found_again(
    wire: Wire, provider: OpenAIWire, file: Path
) -> None:
    wire.file_states = ["error"]
    await provider.upload(file, name="bad.jsonl")
    assert await provider.find_file("bad.jsonl") is None


async def test_large_file_goes_in_parts(wire: Wire, file: Path) -> None:
    dialect = replace(DIALECTS["compatible"], uploads_above=100, part_bytes=64)
    async with openai.AsyncOpenAI(base_url=wire.url, api_key="k", max_retries=0) as client:
        provider = OpenAIWire(name="p", client=client, dialect=dialect, clock=SystemClock())
        uploaded = await provider.upload(file, name="large.jsonl")
    assert wire.contents[uploaded] == file.read_bytes()
    assert len(wire.parts) == -(-file.stat().st_size // 64)


async def test_failed_part_cancels_the_upload(wire: Wire, file: Path) -> None:
    dialect = replace(DIALECTS["compatible"], uploads_above=100, part_bytes=64)
    async with openai.AsyncOpenAI(base_url=wire.url, api_key="k", max_retries=0) as client:
        provider = OpenAIWire(name="p", client=client, dialect=dialect, clock=SystemClock())
        wire.fail("POST /uploads/upload_000001/parts", status=500)
        with pytest.raises(errors.ProviderUnavailableError):
            await provider.upload(file, name="large.jsonl")
    assert [upload["status"] for upload in wire.uploads.values()] == ["cancelled"]


async def test_azure_file_is_ready_once_it_is_processed(wire: Wire, file: Path) -> None:
    wire.file_states = ["pending", "running", "processed"]
    provider = open_provider(Config(kind="azure", base_url=wire.url))
    uploaded = await provider.upload(file, name="t.jsonl")
    assert await provider.find_file("t.jsonl") == uploaded  # found while it is being read
    assert [await provider.file_ready(uploaded) for _ in range(3)] == [False, False, True]
    await provider.close()


@pytest.mark.parametrize("state", ["error", "failed"])
async def test_azure_file_that_cannot_be_read_is_refused_and_not_found_again(
    wire: Wire, file: Path, state: str
) -> None:
    wire.file_states = [state]
    provider = open_provider(Config(kind="azure", base_url=wire.url))
    uploaded = await provider.upload(file, name="t.jsonl")
    with pytest.raises(errors.DataError, match="could not read file"):
        await provider.file_ready(uploaded)
    assert await provider.find_file("t.jsonl") is None
    await provider.close()


async def test_other_servers_are_not_asked_whether_a_file_is_ready(
    wire: Wire, provider: OpenAIWire, file: Path
) -> None:
    wire.file_states = ["uploaded"]
    uploaded = await provider.upload(file, name="t.jsonl")
    assert await provider.file_ready(uploaded)
    assert not wire.count(f"GET /files/{uploaded}")


async def test_absent_and_empty_files_are_refused_before_any_call(
    wire: Wire, provider: OpenAIWire, tmp_path: Path
) -> None:
    with pytest.raises(errors.DataError, match="does not exist"):
        await provider.upload(tmp_path / "none.jsonl", name="n")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(errors.DataError, match="is empty"):
        await provider.upload(tmp_path / "empty.jsonl", name="n")
    assert wire.requests == []


async def test_healthy_job_with_an_empty_error_object_has_no_error(
    wire: Wire, provider: OpenAIWire, file: Path
) -> None:
    made = await provider.create_job(await _job(provider, file, suffix="tp", seed=7))
    states = [made.raw_status]
    while not (job := await provider.job(made.id)).status.final:
        assert job.error_code is None
        states.append(job.raw_status)
    assert states == ["validating_files", "queued", "running"]
    assert job.status is JobStatus.SUCCEEDED
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith("ft:base-model:test:tp:")
    assert job.error_code is None
    assert job.created_at is not None
    assert job.created_at.tzinfo is UTC


async def test_failed_job_carries_the_providers_code(
    wire: Wire, provider: OpenAIWire, file: Path
) -> None:
    wire.job_states = ["queued", "failed"]
    wire.job_error = {
        "code": "invalid_training_file",
        "message": "Example 3: message 2 has no content",
        "param": "training_file",
    }
    made = await provider.create_job(await _job(provider, file))
    job = await provider.job(made.id)
    assert job.status is JobStatus.FAILED
    assert job.error_code == "invalid_training_file"
    assert "Example 3" in (job.error_message or "")


async def test_unknown_state_passes_through(wire: Wire, provider: OpenAIWire, file: Path) -> None:
    wire.job_states = ["dreaming"]
    job = await provider.create_job(await _job(provider, file))
    assert (job.status, job.raw_status) == (JobStatus.UNKNOWN, "dreaming")
    assert not job.status.final


async def test_job_body_says_only_what_was_chosen(
    wire: Wire, provider: OpenAIWire, file: Path
) -> None:
    chosen = {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": "auto"}
    metadata = {"tuneproof_run": "r1"}
    await provider.create_job(await _job(provider, file, hyperparameters=chosen, metadata=metadata))
    assert wire.bodies == [
        {
            "model": "base-model",
            "training_file": "file-000001",
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
            "metadata": metadata,
        }
    ]


async def test_azure_job_names_its_training_type(wire: Wire, file: Path) -> None:
    provider = open_provider(Config(kind="azure", base_url=wire.url))
    await provider.create_job(await _job(provider, file))
    await provider.close()
    assert wire.bodies[0]["trainingType"] == "Standard"


async def test_nebius_is_not_sent_a_multiplier_as_a_rate(wire: Wire, file: Path) -> None:
    provider = open_provider(Config(kind="nebius", base_url=wire.url))
    request = await _job(provider, file, hyperparameters={"learning_rate_multiplier": 2})
    with pytest.raises(errors.ConfigError, match="reads it as the learning rate itself"):
        await provider.create_job(request)
    await provider.close()
    assert wire.count("POST /fine_tuning/jobs") == 0


@pytest.mark.parametrize("filters", [True, False])
async def test_job_is_found_by_metadata_also_where_the_server_ignores_the_filter(
    wire: Wire, provider: OpenAIWire, file: Path, filters: bool
) -> None:
    wire.filters_jobs, wire.page = filters, 2
    made = await provider.create_job(await _job(provider, file, metadata={"run": "r1"}))
    for i in range(4):
        await provider.create_job(await _job(provider, file, metadata={"run": f"other-{i}"}))
    found = await provider.find_job("run", "r1")
    assert found is not None
    assert found.id == made.id
    assert await provider.find_job("run", "r9") is None


async def test_cancel_ends_a_running_job_and_returns_an_ended_one_as_it_is(
    wire: Wire, provider: OpenAIWire, file: Path
) -> None:
    running = await provider.create_job(await _job(provider, file))
    assert (await provider.cancel_job(running.id)).status is JobStatus.CANCELLED
    wire.job_states = ["succeeded"]
    ended = await provider.create_job(await _job(provider, file))
    assert (await provider.cancel_job(ended.id)).status is JobStatus.SUCCEEDED


async def test_events_come_oldest_first_from_all_pages(
    wire: Wire, provider: OpenAIWire, file: Path
) -> None:
    wire.page = 2
    job = await provider.create_job(await _job(provider, file))
    for _ in range(3):
        await provider.job(job.id)
    events = await provider.events(job.id)
    assert [event.data["step"] for event in events] == [0, 1, 2, 3]
    newest = await provider.newest_events(job.id)
    assert [event.data["step"] for event in newest] == [2, 3]  # one page: it is asked for often


async def test_models_carry_their_shutdown_date(provider: OpenAIWire) -> None:
    (model,) = await provider.models()
    assert model.id == "base-model"
    assert model.shutdown_at == datetime(2027, 1, 14, tzinfo=UTC)


async def test_replies_share_out_the_tokens_that_were_billed(
    wire: Wire, provider: OpenAIWire
) -> None:
    wire.answer = lambda model, messages, i: "word " * (i + 1)
    replies = await provider.complete(
        "m", [{"role": "user", "content": "two words"}], n=3, max_tokens=9, temperature=0.5, seed=1
    )
    assert [reply.text for reply in replies] == ["word ", "word word ", "word word word "]
    assert [reply.completion_tokens for reply in replies] == [1, 2, 3]
    assert sum(reply.prompt_tokens for reply in replies) == 3
    assert wire.bodies[0] == {
        "model": "m",
        "messages": [{"role": "user", "content": "two words"}],
        "n": 3,
        "temperature": 0.5,
        "seed": 1,
        "max_tokens": 9,
    }


_MESSAGES = [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}]


async def test_score_sums_the_tokens_behind_the_prompt(wire: Wire, provider: OpenAIWire) -> None:
    # The prompt "one two" has 3 tokens at this server, so the 4th and 5th are the reply's.
    entry = {"17": {"logprob": -9.0, "rank": 1}}
    wire.prompt_logprobs = [None, entry, entry, {"5": {"logprob": -1.5}}, {"2": {"logprob": -0.5}}]
    score = await provider.score("m", _MESSAGES)
    assert score is not None
    assert (score.tokens, score.logprob) == (2, -2.0)


async def test_score_takes_the_last_message_from_a_server_that_gives_only_that(
    wire: Wire, provider: OpenAIWire
) -> None:
    wire.prompt_logprobs = [None, None, None, {"5": {"logprob": -1.5}}, {"2": {"logprob": -0.5}}]
    score = await provider.score("m", _MESSAGES)
    assert score is not None
    assert (score.tokens, score.logprob) == (2, -2.0)
    assert wire.count("POST /chat") == 1


async def test_score_is_none_where_the_extension_is_ignored_or_refused(
    wire: Wire, provider: OpenAIWire
) -> None:
    assert await provider.score("m", _MESSAGES) is None
    wire.fail("POST /chat", status=400, message="Unknown parameter: prompt_logprobs")
    assert await provider.score("m", _MESSAGES) is None


async def test_score_is_not_asked_of_a_server_that_cannot_answer(wire: Wire) -> None:
    provider = open_provider(Config(kind="azure", base_url=wire.url))
    assert await provider.score("m", _MESSAGES) is None
    await provider.close()
    assert wire.requests == []


async def test_closed_account_says_that_the_provider_closed_and_how_to_switch(
    wire: Wire, provider: OpenAIWire, file: Path
) -> None:
    request = await _job(provider, file)
    wire.fail("POST /fine_tuning/jobs", status=403, code="training_not_available")
    with pytest.raises(errors.TrainingNotAvailableError) as caught:
        await provider.create_job(request)
    assert "closed fine-tuning" in caught.value.message
    assert wire.url in caught.value.message
    assert "base_url" in caught.value.mend
    assert caught.value.details["request_id"] == "req_test"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "invalid_value", errors.DataError),
        (401, "invalid_api_key", errors.CredentialsError),
        (403, None, errors.CredentialsError),
        (404, "model_not_found", errors.NotFoundError),
        (409, None, errors.ConflictError),
        (422, None, errors.DataError),
        (429, "insufficient_quota", errors.QuotaExhaustedError),
        (429, "rate_limit_exceeded", errors.RateLimitedError),
        (500, None, errors.ProviderUnavailableError),
        (503, "overloaded", errors.ProviderUnavailableError),
    ],
)
async def test_each_refusal_becomes_the_error_that_says_what_to_do(
    wire: Wire,
    provider: OpenAIWire,
    status: int,
    code: str | None,
    expected: type[errors.TuneProofError],
) -> None:
    wire.fail("GET /models", status=status, code=code)
    with pytest.raises(errors.TuneProofError) as caught:
        await provider.ping()
    assert type(caught.value) is expected
    assert errors.TuneProofError.from_dict(caught.value.to_dict()).details["status"] == status
    assert wire.count("GET /models") == 1  # never repeated inside


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"retry-after": "7"}, 7.0), ({"retry-after-ms": "250"}, 0.25), ({}, None)],
)
async def test_rate_limit_says_how_long_to_wait(
    wire: Wire, provider: OpenAIWire, headers: dict[str, str], seconds: float | None
) -> None:
    wire.fail("GET /models", status=429, code="rate_limit_exceeded", headers=headers)
    with pytest.raises(errors.RateLimitedError) as caught:
        await provider.ping()
    assert caught.value.details["retry_after_s"] == seconds


async def test_silent_server_is_given_up_after_the_timeout(wire: Wire) -> None:
    wire.hang("GET /models")
    provider = open_provider(Config(base_url=wire.url), timeout_s=0.1)
    with pytest.raises(errors.ProviderUnavailableError, match="did not answer in time"):
        await provider.ping()
    await provider.close()


async def test_absent_server_cannot_be_reached() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    provider = open_provider(Config(base_url=url))
    with pytest.raises(errors.ProviderUnavailableError, match="cannot be reached") as caught:
        await provider.ping()
    await provider.close()
    assert url in caught.value.message


async def test_breaker_opens_on_outages_and_not_on_refusals(wire: Wire) -> None:
    breaker = CircuitBreaker(3, 120)
    provider = open_provider(Config(base_url=wire.url), breaker=breaker)
    wire.fail("GET /models", status=400, times=5)
    for _ in range(5):
        with pytest.raises(errors.DataError):
            await provider.ping()
    wire.fail("GET /models", status=500, times=3)
    for _ in range(3):
        with pytest.raises(errors.ProviderUnavailableError):
            await provider.ping()
    with pytest.raises(errors.CircuitBreakerError):
        await provider.ping()
    await provider.close()
    assert wire.count("GET /models") == 8


async def test_web_page_in_place_of_the_api_is_said_to_be_one() -> None:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>Welcome to the hotel</html>")

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        made = open_provider(ProviderConfig(kind="compatible", base_url=url, api_key="k"))
        with pytest.raises(errors.DataError, match="does not speak the OpenAI API") as refused:
            await made.ping()
        assert "base_url" in refused.value.mend
        await made.close()
    finally:
        server.shutdown()
