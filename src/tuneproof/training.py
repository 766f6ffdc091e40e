"""Training: from a dataset to a version, over the wire of a fine-tuning provider.

Knows what a provider can do (`Provider`), not who it is; never touches a database.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from tuneproof.errors import (
    ConfigError,
    DataError,
    NotFoundError,
    ProviderUnavailableError,
    StateError,
    TrainingFailedError,
)
from tuneproof.resilience import retrying
from tuneproof.settings import Settings
from tuneproof.workflow import Clock, SystemClock

if TYPE_CHECKING:
    from tuneproof.collection import TrainingDataBatch


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


class Provider(Protocol):
    """Who trains and answers: the OpenAI wire, whoever speaks it.

    Errors: `CredentialsError`, `TrainingNotAvailableError`, `QuotaExhaustedError`,
    `RateLimitedError`, `ProviderUnavailableError`, `NotFoundError`, `DataError`.
    """

    name: str

    async def upload(self, path: Path, *, name: str) -> str:
        """Upload a JSONL file streamed under `name` and return the provider's file id."""

    async def find_file(self, name: str) -> str | None:
        """The id of the newest file with this name, or None."""

    async def delete_file(self, file_id: str) -> bool:
        """Delete a file; False when it was gone already."""

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
    ) -> Sequence[Completion]:
        """Ask a model for `n` replies."""

    async def score(self, model: str, messages: Sequence[Mapping[str, str]]) -> Score | None:
        """How likely the model finds the last message; None where the wire cannot say."""

    async def ping(self) -> None:
        """Raise unless the provider answers an authenticated call."""

    async def close(self) -> None:
        """Give connections back."""


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """A trained model with its lineage.

    `model_id` is the provider's name of the model (None until the job has succeeded);
    `version` is semantic: minor up with each run of a task, major with a new base model.
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


RUN_KEY = "tuneproof_run"
"""The metadata key by which a run's job is found again at the provider."""

MAX_SUFFIX = 64
"""The wire's limit on a model's suffix, in characters."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A job as one poll saw it, with its last metrics."""

    job: Job
    metrics: Mapping[str, float] = field(default_factory=dict)


class ModelTrainer:
    """Fine-tunes a base model on a batch of training data at a provider.

    Usable by itself: `start_fine_tuning` uploads and creates the job, `monitor_training_job`
    waits for its end. Both find what they made before, so calling them again after a kill
    uploads nothing twice and trains nothing twice.
    """

    def __init__(
        self,
        base_model: str | None = None,
        *,
        provider: Provider | None = None,
        settings: Settings | None = None,
        clock: Clock | None = None,
        method: str = "supervised",
        hyperparameters: Mapping[str, int | float | str] | None = None,
        seed: int | None = 0,
        suffix: str | None = None,
        timeout_s: float = 1800.0,
        poll_s: float = 10.0,
        upload_timeout_s: float = 30.0,
    ) -> None:
        self.provider = provider or _default_provider(settings)
        self.base_model = base_model
        self._clock = clock or SystemClock()
        self._method = method
        self._hyperparameters = dict(hyperparameters or {})
        self._seed = seed
        self._suffix = suffix
        self.timeout_s = timeout_s
        self.poll_s = poll_s
        self._upload_timeout_s = upload_timeout_s

    async def start_fine_tuning(
        self,
        training_data: TrainingDataBatch,
        *,
        run_id: str | None = None,
        key: str | None = None,
        version_id: str | None = None,
        version: str = "1.0.0",
        parent_id: str | None = None,
    ) -> ModelVersion:
        """Upload the batch, create its job, and return the version that it will become.

        The job is found again by `key` (the run, or else the dataset and its base model).
        Raises `TrainingNotAvailableError`, `CredentialsError`, `QuotaExhaustedError` (final),
        `RetryableError`s after three tries, `DataError` where the provider refuses the request.
        """
        base = await self.base()
        training_file = await self.ensure_file(Path(training_data.train_path))
        validation_file = None
        if training_data.validation_path and Path(training_data.validation_path).stat().st_size:
            validation_file = await self.ensure_file(Path(training_data.validation_path))
        key = key or run_id or f"dataset:{training_data.hash}:{base}"
        job = await self.ensure_job(key, training_data, base, training_file, validation_file)
        return ModelVersion(
            id=version_id or new_version_id(self._clock.now()),
            pipeline=training_data.pipeline,
            run_id=run_id,
            version=version,
            model_id=job.fine_tuned_model,
            base_model=base,
            provider=self.provider.name,
            training_job_id=job.id,
            dataset_hash=training_data.hash,
            tasks=tuple(training_data.examples),
            status=VersionStatus.TRAINING,
            created_at=self._clock.now(),
            parent_id=parent_id,
        )

    async def base(self) -> str:
        """The base model to tune: the configured one, or the provider's only base model."""
        if self.base_model is not None:
            return self.base_model
        models = await self.provider.models()
        bases = [m.id for m in models if not m.id.startswith("ft:")]
        if len(bases) == 1:
            return bases[0]
        raise ConfigError(
            f"training.base_model is not set, and {self.provider.name} offers "
            f"{len(bases)} base models.",
            mend=f"Set it to one of: {', '.join(bases[:8]) or 'a model that can be tuned'}.",
        )

    async def ensure_file(self, path: Path) -> str:
        """The provider's id of this file's content: found by its name, else uploaded (3 tries)."""
        name = f"tuneproof-{await asyncio.to_thread(_digest, path)}.jsonl"

        async def once() -> str:
            found = await self.provider.find_file(name)
            if found is not None:
                return found
            upload = self.provider.upload(path, name=name)
            try:
                return await asyncio.wait_for(upload, self._upload_timeout_s)
            except TimeoutError as e:
                raise ProviderUnavailableError(
                    f"Uploading {path.name} to {self.provider.name} took more than "
                    f"{self._upload_timeout_s:g} s.",
                    mend="Check the connection; the run tries again.",
                ) from e

        return await retrying(once, attempts=3, timeout=4 * self._upload_timeout_s)

    async def ensure_job(
        self,
        key: str,
        training_data: TrainingDataBatch,
        base: str,
        training_file: str,
        validation_file: str | None,
    ) -> Job:
        """The job of this key: found by its metadata, else created."""
        request = JobRequest(
            model=base,
            training_file=training_file,
            validation_file=validation_file,
            suffix=(self._suffix or training_data.pipeline)[:MAX_SUFFIX],
            seed=self._seed,
            method=self._method,
            hyperparameters=self._hyperparameters,
            metadata={RUN_KEY: key[:512], "tuneproof_dataset": training_data.hash},
        )

        async def once() -> Job:
            return await self.provider.find_job(RUN_KEY, key[:512]) or (
                await self.provider.create_job(request)
            )

        return await retrying(once, attempts=3, timeout=120.0)

    async def poll(self, version: ModelVersion) -> Progress:
        """The version's job as it stands now, with its newest metrics."""
        job_id = _job_of(version)
        try:
            job = await self.provider.job(job_id)
        except NotFoundError as e:
            raise TrainingFailedError(
                f"Job {job_id} vanished at {self.provider.name}.",
                mend=f"tuneproof run retry {version.run_id or ''} trains again.",
                code="job_not_found",
            ) from e
        metrics: dict[str, float] = {}
        if job.status.final:
            for event in await self.provider.events(job_id):
                metrics.update({k: v for k, v in event.data.items() if isinstance(v, (int, float))})
        return Progress(job=job, metrics=metrics)

    async def monitor_training_job(self, model_version: ModelVersion) -> ModelVersion:
        """Wait for the job's end and return the trained version.

        Raises `TrainingFailedError` when the job fails, is cancelled, or outlasts `timeout_s`
        (it is cancelled then).
        """
        deadline = self._clock.now() + timedelta(seconds=self.timeout_s)
        while True:
            progress = await self.poll(model_version)
            if progress.job.status.final:
                return self.trained(model_version, progress)
            if self._clock.now() >= deadline:
                await self.cancel(model_version)
                raise self.timed_out(model_version, progress)
            await self._clock.sleep_until(self._clock.now() + timedelta(seconds=self.poll_s))

    def trained(self, version: ModelVersion, progress: Progress) -> ModelVersion:
        """The version after its job ended. Raises `TrainingFailedError` unless it succeeded."""
        job = progress.job
        if job.status is not JobStatus.SUCCEEDED or not job.fine_tuned_model:
            code = job.error_code or job.raw_status
            raise TrainingFailedError(
                f"Job {job.id} at {self.provider.name} ended as {job.raw_status} "
                f"({code}): {job.error_message or 'no message'}",
                mend=_MENDS.get(code, f"tuneproof run retry {version.run_id or ''}".rstrip()),
                code=code,
                job_id=job.id,
            )
        return replace(
            version,
            model_id=job.fine_tuned_model,
            status=VersionStatus.TRAINED,
            trained_tokens=job.trained_tokens,
        )

    def timed_out(self, version: ModelVersion, progress: Progress) -> TrainingFailedError:
        """The error of a job that outlasted `timeout_s`."""
        return TrainingFailedError(
            f"Job {progress.job.id} was still {progress.job.raw_status} after "
            f"{self.timeout_s:g} s and was cancelled.",
            mend="Raise training.timeout_seconds, then retry the run from its training.",
            code="timeout",
            job_id=progress.job.id,
        )

    async def cancel(self, version: ModelVersion) -> bool:
        """Cancel the version's job; False when it had ended already."""
        try:
            job = await self.provider.job(_job_of(version))
            if job.status.final:
                return False
            await self.provider.cancel_job(job.id)
        except NotFoundError:
            return False
        return True


_MENDS = {
    "invalid_training_file": "Mend the examples it names (tuneproof data review), then retry.",
    "invalid_n_examples": "Collect more examples: widen days_back or lower engagement_threshold.",
    "exceeded_quota": "Raise the quota at the provider, then retry the run from its training.",
}


def new_version_id(at: datetime) -> str:
    """A version id that sorts by time: `ver-` and a UUID of version 7 (RFC 9562)."""
    millis = int(at.timestamp() * 1000)
    tail = int.from_bytes(os.urandom(10), "big")
    value = (millis << 80) | tail
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return f"ver-{uuid.UUID(int=value)}"


def _default_provider(settings: Settings | None) -> Provider:
    chosen = settings or Settings.load()
    name = next(iter(chosen.providers))
    return cast(Provider, chosen.adapter("provider")(chosen.providers[name]))


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError as e:
        raise DataError(
            f"The training file {path} cannot be read: {e.strerror}.",
            mend="Retry the run from its collection; it builds the file again.",
        ) from e


def _job_of(version: ModelVersion) -> str:
    if version.training_job_id is None:
        raise StateError(
            f"Version {version.id} has no training job.",
            mend="Start one with ModelTrainer.start_fine_tuning().",
        )
    return version.training_job_id
