"""The whole life of a fine-tune through the official SDK, and the types of all that it sees."""

from __future__ import annotations

import base64
import csv
import io
from typing import Any

import pytest
from openai import AsyncOpenAI, NotFoundError, OpenAI
from openai.types import FileObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from pydantic import BaseModel, TypeAdapter, ValidationError
from tests.trainer.integration.conftest import BASE, ended, lines, upload
from tests.waiting import eventually

from tuneproof_trainer.embedded import EmbeddedTrainer

ABSENT = {
    "FileObject": {"expires_at", "status_details"},
    "Metrics": {
        "full_valid_loss",
        "full_valid_mean_token_accuracy",
        "valid_loss",
        "valid_mean_token_accuracy",
    },
    "ChatCompletionMessage": {"audio", "function_call", "tool_calls"},
    "ChoiceDelta": {"audio", "content", "function_call", "refusal", "role", "tool_calls"},
    "ChatCompletionChunk": {"obfuscation"},
    "Method": {"dpo", "reinforcement"},
}
"""Fields that belong to other methods or to what these models cannot do, and the parts of a
message, of which each chunk has its own."""


def assert_complete(value: Any) -> None:
    """Every field that the SDK's type names was sent, with the right type, at every depth."""
    if isinstance(value, list):
        for item in value:
            assert_complete(item)
    if not isinstance(value, BaseModel):
        return
    name = type(value).__name__
    for field, info in type(value).model_fields.items():
        if field in ABSENT.get(name, set()) and field not in value.model_fields_set:
            continue
        assert field in value.model_fields_set, f"{name}.{field} is missing"
        inner = getattr(value, field)
        TypeAdapter(info.annotation).validate_python(inner, strict=True)
        assert_complete(inner)


def test_the_check_of_fields_notices_what_is_missing_or_of_another_type() -> None:
    sent: dict[str, Any] = {"id": "m", "created": 1, "object": "model", "owned_by": "x"}
    assert_complete(Model.construct(**sent, shutdown_date=None))
    for wrong in (sent, sent | {"shutdown_date": 5}, sent | {"shutdown_date": "", "created": "1"}):
        with pytest.raises((AssertionError, ValidationError)):
            assert_complete(Model.construct(**wrong))


def test_a_life_with_the_synchronous_client(client: OpenAI) -> None:
    training, validation = lines("question", 80), lines("question", 20, seed=9)
    file = client.files.create(file=("hash-1.jsonl", training), purpose="fine-tune")
    assert (file.filename, file.bytes, file.status) == ("hash-1.jsonl", len(training), "processed")
    assert_complete(file)
    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=file.id,
        validation_file=upload(client, validation),
        suffix="demo",
        seed=7,
        metadata={"tuneproof_run": "run-1"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
    )
    assert job.status == "validating_files"
    assert job.error is None
    job = ended(client, job)
    assert job.status == "succeeded", job
    _check_ended(client, job)
    _check_events(client, job)
    _check_checkpoints(client, job)
    _check_result_file(client, job)
    _check_model(client, job)
    deleted = client.files.delete(file.id)
    assert deleted.deleted
    assert_complete(deleted)
    with pytest.raises(NotFoundError):
        client.files.retrieve(file.id)


def _check_ended(client: OpenAI, job: FineTuningJob) -> None:
    assert_complete(job)
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith(f"ft:{BASE}:local:demo:")
    assert (job.seed, job.metadata) == (7, {"tuneproof_run": "run-1"})
    assert job.hyperparameters.n_epochs == 2
    assert isinstance(job.hyperparameters.batch_size, int)
    assert job.trained_tokens is not None
    assert job.trained_tokens > 1000
    assert job.finished_at is not None
    assert job.finished_at >= job.created_at
    found = client.fine_tuning.jobs.list(metadata={"tuneproof_run": "run-1"})
    assert [one.id for one in found] == [job.id]


def _check_events(client: OpenAI, job: FineTuningJob) -> None:
    events: list[FineTuningJobEvent] = list(client.fine_tuning.jobs.list_events(job.id))
    assert_complete(events)
    assert len({event.id for event in events}) == len(events)
    assert events[0].message == "The job has successfully completed"
    assert events[-1].message == f"Created fine-tuning job: {job.id}"
    data: list[Any] = [event.data for event in events if event.type == "metrics"]
    assert [row["step"] for row in data] == list(range(len(data), 0, -1))
    assert data[0]["step"] == data[0]["total_steps"]
    assert data[0]["full_valid_loss"] > 0
    assert all(0 <= row["valid_mean_token_accuracy"] <= 1 for row in data)
    assert data[0]["train_loss"] < data[-1]["train_loss"]


def _check_checkpoints(client: OpenAI, job: FineTuningJob) -> None:
    found: list[FineTuningJobCheckpoint] = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert_complete(found)
    assert found[0].fine_tuned_model_checkpoint == job.fine_tuned_model
    step = found[1].step_number
    assert found[1].fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-{step}"
    answer = client.chat.completions.create(
        model=found[1].fine_tuned_model_checkpoint, messages=[{"role": "user", "content": "Hi"}]
    )
    assert answer.choices[0].message.content


def _check_result_file(client: OpenAI, job: FineTuningJob) -> None:
    file = client.files.retrieve(job.result_files[0])
    assert (file.purpose, file.filename) == ("fine-tune-results", "step_metrics.csv")
    text = base64.b64decode(client.files.content(file.id).read()).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    names = ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    assert list(rows[0]) == names
    assert float(rows[-1]["valid_loss"]) > 0


def _check_model(client: OpenAI, job: FineTuningJob) -> None:
    assert job.fine_tuned_model is not None
    models: list[Model] = list(client.models.list())
    assert {BASE, job.fine_tuned_model} <= {model.id for model in models}
    assert_complete(models)
    assert client.models.retrieve(BASE).shutdown_date is None
    answer: ChatCompletion = client.chat.completions.create(
        model=job.fine_tuned_model,
        messages=[{"role": "user", "content": "night trains"}],
        logprobs=True,
        top_logprobs=2,
        seed=1,
    )
    assert_complete(answer)
    _check_stream(client, job.fine_tuned_model)
    deleted = client.models.delete(job.fine_tuned_model)
    assert deleted.deleted
    assert_complete(deleted)
    with pytest.raises(NotFoundError) as gone:
        client.models.retrieve(job.fine_tuned_model)
    assert gone.value.code == "model_not_found"


def _check_stream(client: OpenAI, model: str) -> None:
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "night trains"}],
        logprobs=True,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks: list[ChatCompletionChunk] = list(stream)
    assert_complete(chunks)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


def test_uploads_pages_and_failed_jobs_have_every_field_too(client: OpenAI) -> None:
    made = client.uploads.create(bytes=3, filename="f", mime_type="text/plain", purpose="fine-tune")
    part = client.uploads.parts.create(made.id, data=b"abc")
    done = client.uploads.complete(made.id, part_ids=[part.id])
    assert done.file is not None
    job = client.fine_tuning.jobs.create(model=BASE, training_file=done.file.id)
    failed = ended(client, job)
    assert failed.error is not None
    assert failed.error.code == "invalid_file_format"
    pages = (client.files.list(limit=1), client.fine_tuning.jobs.list(limit=1))
    assert_complete([made, part, done, failed, *pages, client.models.list()])


async def test_a_life_with_the_asynchronous_client(trainer: EmbeddedTrainer) -> None:
    async with AsyncOpenAI(base_url=trainer.base_url, api_key="any", max_retries=0) as client:
        file = await _in_parts(client, lines("list"))
        job = await client.fine_tuning.jobs.create(model=BASE, training_file=file.id)
        job = await _reached(client, job.id, "succeeded")
        assert_complete(job)
        events = [event async for event in client.fine_tuning.jobs.list_events(job.id)]
        assert len(events) > 20
        checkpoints = [c async for c in client.fine_tuning.jobs.checkpoints.list(job.id)]
        assert len(checkpoints) == 3
        assert_complete([*events, *checkpoints])
        assert job.fine_tuned_model is not None
        assert (await client.models.retrieve(job.fine_tuned_model)).id == job.fine_tuned_model
        await _answers(client, job.fine_tuned_model)
        await _pauses_resumes_and_cancels(client)
        assert (await client.models.delete(job.fine_tuned_model)).deleted
        assert (await client.files.delete(file.id)).deleted


async def _reached(client: AsyncOpenAI, job_id: str, *states: str) -> FineTuningJob:
    async def reached() -> FineTuningJob | None:
        job = await client.fine_tuning.jobs.retrieve(job_id)
        if job.status in states:
            return job
        assert job.status not in ("succeeded", "failed", "cancelled"), job
        return None

    return await eventually(reached)


async def _in_parts(client: AsyncOpenAI, content: bytes) -> FileObject:
    made = await client.uploads.create(
        bytes=len(content), filename="list.jsonl", mime_type="text/plain", purpose="fine-tune"
    )
    pieces = (content[:100], content[100:])
    parts = [(await client.uploads.parts.create(made.id, data=piece)).id for piece in pieces]
    done = await client.uploads.complete(made.id, part_ids=parts)
    assert_complete([made, done])
    assert done.file is not None
    return done.file


async def _answers(client: AsyncOpenAI, model: str) -> None:
    messages: Any = [{"role": "user", "content": "budgeting"}]
    whole = await client.chat.completions.create(model=model, messages=messages, seed=3)
    stream = await client.chat.completions.create(
        model=model, messages=messages, seed=3, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert_complete([whole, *chunks])
    said = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


async def _pauses_resumes_and_cancels(client: AsyncOpenAI) -> None:
    jobs = client.fine_tuning.jobs
    content = lines(None, count=15_000)
    file = await client.files.create(file=("large.jsonl", content), purpose="fine-tune")
    job = await jobs.create(model=BASE, training_file=file.id)
    await _reached(client, job.id, "running")
    await jobs.pause(job.id)
    await _reached(client, job.id, "paused")
    assert (await jobs.resume(job.id)).status == "queued"
    assert (await jobs.cancel(job.id)).status == "cancelled"
