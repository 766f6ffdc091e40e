"""Records of training, and what a provider can do: no calls, no files, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


class JobStatus(StrEnum):
    """Where a fine-tuning job stands, in the wire's own words."""

    VALIDATING_FILES = "validating_files"  # the provider reads the files
    QUEUED = "queued"  # waits for a machine
    RUNNING = "running"  # trains
    PAUSING = "pausing"  # was asked to pause
    PAUSED = "paused"  # rests; resume answers queued
    SUCCEEDED = "succeeded"  # the model can be used
    FAILED = "failed"  # ended with an error code
    CANCELLED = "cancelled"  # somebody cancelled it
    UNKNOWN = "unknown"  # a state that the wire does not document: polled on

    @property
    def final(self) -> bool:
        """Whether the job will never change again."""
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class VersionStatus(StrEnum):
    """Where a version stands."""

    TRAINING = "training"  # its job has not ended
    TRAINED = "trained"  # the job succeeded; not yet checked
    FAILED = "failed"  # the job failed or was cancelled
    REJECTED = "rejected"  # the gate or the experiment said no
    CANDIDATE = "candidate"  # passed the gate; users may see a share of it
    LIVE = "live"  # the model in use
    RETIRED = "retired"  # was live once
    ROLLED_BACK = "rolled_back"  # taken back for harm; not tried again without a person's word


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What a job is asked to do. Hyperparameters are numbers or "auto"."""

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int | None = None
    method: str = "supervised"
    hyperparameters: Mapping[str, int | float | str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A fine-tuning job as its provider reports it. `error_code` is None on a healthy job."""

    id: str
    model: str
    status: JobStatus
    raw_status: str
    fine_tuned_model: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    trained_tokens: int | None = None
    created_at: datetime | None = None
    finished_at: datetime | None = None
    estimated_finish: datetime | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    cost_usd: float | None = None
    """What the provider itself says that the job cost; None where its wire does not say."""


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """One line of a job's log; `data` carries metrics (`train_loss`, `valid_loss`, ...)."""

    id: str
    at: datetime
    level: str
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model that a provider lists. `shutdown_at` is when it will stop answering."""

    id: str
    owned_by: str = ""
    created_at: datetime | None = None
    shutdown_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What a model answered. `latency_ms` is measured by the caller's clock."""

    text: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    latency_ms: float
    finish_reason: str = "stop"


@dataclass(frozen=True, kw_only=True)
class Score:
    """How likely a model finds one reply: its log-probability (nats) over its tokens."""

    tokens: int
    logprob: float


@runtime_checkable
class ReadsFiles(Protocol):
    """A provider that reads an uploaded file before a job may use it, which takes a while."""

    async def file_ready(self, file_id: str) -> bool:
        """Whether a job may use the file now. Raises `DataError` where it was refused."""


@runtime_checkable
class ListsNewestEvents(Protocol):
    """A provider that hands over the end of a job's log without the rest of it."""

    async def newest_events(self, job_id: str) -> Sequence[JobEvent]:
        """The newest events of the job, oldest first; as many as one answer holds."""


@runtime_checkable
class Deploys(Protocol):
    """A provider whose fine-tunes answer only once they are deployed."""

    async def ensure_deployed(self, model: str) -> None:
        """Return where the model answers. Raises `NotDeployedError`, which says how to mend it."""


class Answers(Protocol):
    """Who answers for models; the errors are those of a `Provider`."""

    name: str

    async def complete(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        n: int = 1,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Sequence[Completion]:
        """Ask a model for `n` replies; `parameters` are further ones of a prompt."""

    async def score(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        timeout_s: float | None = None,
    ) -> Score | None:
        """How likely the model finds the last message; None where the wire cannot say."""


@runtime_checkable
class Moderates(Protocol):
    """A provider with a moderation endpoint: it says which texts nobody should be shown."""

    async def moderate(self, model: str, texts: Sequence[str]) -> Sequence[tuple[str, ...]]:
        """The categories in which a moderation model flags each text; none for one that is safe.

        Raises, rather than answer for fewer texts than it was given.
        """


@runtime_checkable
class Embeds(Protocol):
    """A provider that gives texts as vectors."""

    name: str

    async def embed(
        self, model: str, texts: Sequence[str], *, timeout_s: float | None = None
    ) -> Sequence[Sequence[float]]:
        """The model's vector of each text, all of one size.

        Raises `DataError` where it refuses one of them, or makes no vectors.
        """


class Provider(Answers, Protocol):
    """Who trains and answers: the OpenAI wire, whoever speaks it.

    Errors: `CredentialsError`, `TrainingNotAvailableError`, `QuotaExhaustedError`,
    `RateLimitedError`, `ProviderUnavailableError`, `NotFoundError`, `DataError`.
    """

    async def upload(self, path: Path, *, name: str) -> str:
        """Upload a JSONL file streamed under `name` and return the provider's file id."""

    async def find_file(self, name: str) -> str | None:
        """The id of the newest file with this name, or None."""

    async def create_job(self, request: JobRequest) -> Job:
        """Start a job; never retried inside."""

    async def find_job(self, key: str, value: str) -> Job | None:
        """The newest job whose metadata has `key` = `value`, or None."""

    async def job(self, job_id: str) -> Job:
        """The job as it stands now."""

    async def cancel_job(self, job_id: str) -> Job:
        """Ask for the job's end; a job that ended already is returned as it is."""

    async def events(self, job_id: str) -> Sequence[JobEvent]:
        """All events of the job, oldest first."""

    async def models(self) -> Sequence[ModelInfo]:
        """The models that this account can call."""

    async def ping(self) -> None:
        """Raise unless the provider answers an authenticated call."""

    async def close(self) -> None:
        """Give connections back."""


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """A variant that a run made, with its lineage: mostly a trained model.

    `model_id` is the provider's name of the model (None until the job has succeeded);
    `version` is semantic: minor up with each run of a task, major with a new base model.
    `prompt` is the hash of the prompt that it is served with, None where that is the application's
    own; `recipe` is how it was made, None for what was trained before there were recipes.
    """

    id: str
    pipeline: str
    run_id: str | None
    version: str
    model_id: str | None
    base_model: str
    provider: str
    training_job_id: str | None
    dataset_hash: str | None
    tasks: tuple[str, ...]
    status: VersionStatus
    created_at: datetime
    trained_tokens: int | None = None
    heldout_loss: float | None = None
    base_heldout_loss: float | None = None
    parent_id: str | None = None
    prompt: str | None = None
    recipe: str | None = None
