"""The whole life of a fine-tune through the official SDK, and the types of all that it sees."""

from __future__ import annotations

import asyncio
import base64
import csv
import io
from typing import Any

import pytest
from openai import AsyncOpenAI, NotFoundError, OpenAI
from openai.types import FileObject, Model
from openai.types.chat import ChatCompletion
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from pydantic import BaseModel, TypeAdapter
from tests.integration.trainer.conftest import BASE, ended, lines, upload

from tuneproof_trainer.embedded import EmbeddedTrainer

ABSENT = {
    "FineTuningJob": {"method"},
    "ChatCompletion": {"metadata", "moderation"},
    "ChatCompletionMessage": {"audio", "function_call", "tool_calls"},
    "CompletionUsage": set(),
    "PromptTokensDetails": {"cache_write_tokens", "image_tokens", "text_tokens"},
    "CompletionTokensDetails": {"text_tokens"},
    "Method": {"dpo", "reinforcement"},
}
"""Fields that belong to other methods or to what these models cannot do."""


def assert_complete(value: Any) -> None:
    """Every field that the SDK's type names was sent, with the right type."""
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
        if name == "FineTuningJob" and field == "error":
            continue  # {} while nothing is wrong
        if isinstance(inner, BaseModel):
            assert_complete(inner)
        else:
            TypeAdapter(info.annotation).validate_python(inner)
            assert_complete(inner)


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
    assert job.error is not None
    assert job.error.code is None
    job = ended(client, job)
    assert job.status == "succeeded", job
    _check_ended(client, job)
    _check_events(client, job)
    _check_checkpoints(client, job)
    _check_result_file(client, job)
    _check_model(client, job)
    assert client.files.delete(file.id).deleted
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
    assert client.models.delete(job.fine_tuned_model).deleted
    with pytest.raises(NotFoundError) as gone:
        client.models.retrieve(job.fine_tuned_model)
    assert gone.value.code == "model_not_found"


async def test_a_life_with_the_asynchronous_client(trainer: EmbeddedTrainer) -> None:
    async with AsyncOpenAI(base_url=trainer.base_url, api_key="any", max_retries=0) as client:
        file: FileObject = await client.files.create(
            file=("list.jsonl", lines("list")), purpose="fine-tune"
        )
        job = await client.fine_tuning.jobs.create(model=BASE, training_file=file.id)
        while job.status not in ("succeeded", "failed"):
            await asyncio.sleep(0.01)
            job = await client.fine_tuning.jobs.retrieve(job.id)
        assert job.status == "succeeded"
        events = [event async for event in client.fine_tuning.jobs.list_events(job.id)]
        assert len(events) > 20
        checkpoints = [c async for c in client.fine_tuning.jobs.checkpoints.list(job.id)]
        assert len(checkpoints) == 3
        assert job.fine_tuned_model is not None
        stream = await client.chat.completions.create(
            model=job.fine_tuned_model,
            messages=[{"role": "user", "content": "budgeting"}],
            stream=True,
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert len(text) > 5
        assert (await client.models.delete(job.fine_tuned_model)).deleted
        assert (await client.files.delete(file.id)).deleted
