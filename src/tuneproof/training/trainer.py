"""The trainer: one upload for each content, one job for each key, clear ends."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from tuneproof.errors import (
    ConfigError,
    DataError,
    NotFoundError,
    ProviderUnavailableError,
    RetryableError,
    StateError,
    TrainingFailedError,
)
from tuneproof.resilience import retrying
from tuneproof.settings import PipelineConfig, Settings
from tuneproof.settings.recipes import TRAIN
from tuneproof.standalone import ensure_open, loaded, opened_provider, opening
from tuneproof.training.progress import JobProgress, JobWatch, progress_of
from tuneproof.training.records import (
    Job,
    JobEvent,
    JobRequest,
    JobStatus,
    ListsNewestEvents,
    ModelVersion,
    Provider,
    ReadsFiles,
    VersionStatus,
)
from tuneproof.workflow import Clock, SystemClock

if TYPE_CHECKING:
    from tuneproof.collection import TrainingDataBatch

log = logging.getLogger(__name__)

RUN_KEY = "tuneproof_run"
"""The metadata key by which a run's job is found again at the provider."""

SLOWEST_UPLOAD = 1024 * 1024
"""Bytes a second below which an upload is given up."""

READ_WITHIN_S = 24 * 3600.0
"""How long a provider may read a file, where the settings give jobs no time."""

MAX_SUFFIX = 64
"""The wire's limit on a model's suffix, in characters."""


class ModelTrainer:
    """Fine-tunes a base model on a batch of training data at a provider.

    Usable by itself: `start_fine_tuning` uploads and creates the job, `monitor_training_job`
    waits for its end. Both find what they made before, so calling them again after a kill
    uploads nothing twice and trains nothing twice. With `waits` False a file that the provider is
    still reading raises `ProviderUnavailableError` at once, for a caller with a timer.

    A job that moves on is left to go on, unless `timeout_s` says how long it may take; one that
    stands still is cancelled (`training.progress` says when).

    A provider that is left out is the settings' first, opened for each call, or for as long as
    `async with trainer.opened()`; the embedded trainer goes on with a job where the call before
    left it.
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
        timeout_s: float | None = None,
        poll_s: float = 10.0,
        upload_timeout_s: float = 30.0,
        waits: bool = True,
    ) -> None:
        self._given = provider
        self._settings = settings
        self._named: str | None = None
        self.base_model = base_model
        self._clock = clock or SystemClock()
        self._method = method
        self._hyperparameters = dict(hyperparameters or {})
        self._seed = seed
        self._suffix = suffix
        self.timeout_s = timeout_s
        self.poll_s = poll_s
        self._upload_timeout_s = upload_timeout_s
        self._waits = waits

    @classmethod
    def of(
        cls,
        config: PipelineConfig,
        point: Mapping[str, int | float | str] | None = None,
        **arguments: Any,
    ) -> ModelTrainer:
        """The trainer that a pipeline's config asks for; `point` are hyperparameters of one trial
        in place of the config's."""
        chosen: dict[str, float | int | str] = {
            "n_epochs": config.n_epochs,
            "batch_size": config.batch_size,
            "learning_rate_multiplier": config.learning_rate_multiplier,
            **({"beta": config.beta} if config.method == "dpo" else {}),
            **(point or {}),
        }
        made = cls(
            config.base_model,
            method=config.method,
            hyperparameters={k: v for k, v in chosen.items() if v != "auto"},
            seed=config.seed,
            suffix=config.suffix,
            timeout_s=config.job_limit_s,
            poll_s=config.poll_seconds,
            **arguments,
        )
        made._named = config.provider
        return made

    @property
    def provider(self) -> Provider:
        """Who trains. Raises `StateError` where none was given and none is open."""
        return ensure_open(self._given, "trainer", "provider")

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Self]:
        """This trainer with its provider open: its own, or the settings' until the block ends."""
        if self._given is not None:
            yield self
            return
        settings = await loaded(self._settings)
        name = self._named or next(iter(settings.providers))
        async with opened_provider(settings, name) as provider:
            at = copy(self)
            at._given = provider
            yield at

    @opening
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
            prompt=training_data.prompt,
            recipe=TRAIN,
        )

    @opening
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
        """The provider's id of this file's content: found by its name, else uploaded (3 tries).

        A try may take `upload_timeout_s` seconds, or as long as the file takes at 1 MiB/s.
        """
        name = f"tuneproof-{await asyncio.to_thread(_digest, path)}.jsonl"
        limit_s = max(self._upload_timeout_s, path.stat().st_size / SLOWEST_UPLOAD)

        async def once() -> str:
            found = await self.provider.find_file(name)
            if found is not None:
                return found
            upload = self.provider.upload(path, name=name)
            try:
                return await asyncio.wait_for(upload, limit_s)
            except TimeoutError as e:
                raise ProviderUnavailableError(
                    f"Uploading {path.name} to {self.provider.name} took more than {limit_s:g} s.",
                    mend="Check the connection; the run tries again.",
                ) from e

        file_id = await retrying(once, attempts=3, timeout=4 * limit_s)
        await self._read_by_provider(file_id, path)
        return file_id

    async def _read_by_provider(self, file_id: str, path: Path) -> None:
        """Return once a job may use the file."""
        if not isinstance(self.provider, ReadsFiles):
            return
        reader = cast(ReadsFiles, self.provider)
        deadline = self._clock.now() + timedelta(seconds=self.timeout_s or READ_WITHIN_S)
        while not await retrying(lambda: reader.file_ready(file_id), attempts=3):
            if not self._waits or self._clock.now() >= deadline:
                raise ProviderUnavailableError(
                    f"{self.provider.name} is still reading {path.name} ({file_id}).",
                    mend="It is asked again; nothing is uploaded twice.",
                )
            await self._clock.sleep_until(self._clock.now() + timedelta(seconds=self.poll_s))

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

    @opening
    async def poll(self, version: ModelVersion) -> JobProgress:
        """The version's job as it stands now, with its steps; its metrics once it has ended."""
        job_id = _job_of(version)
        try:
            job = await self.provider.job(job_id)
        except NotFoundError as e:
            raise TrainingFailedError(
                f"Job {job_id} vanished at {self.provider.name}.",
                mend=f"tuneproof run retry {version.run_id or ''} trains again.",
                code="job_not_found",
            ) from e
        return progress_of(job, await self._events(job))

    async def _events(self, job: Job) -> Sequence[JobEvent] | None:
        """The log of a job that has ended, else its end; empty where its provider keeps none, None
        where it cannot be read now."""
        if job.status.final:
            return await self._told(job.id, self.provider.events)
        try:
            if isinstance(self.provider, ListsNewestEvents):
                newest = cast(ListsNewestEvents, self.provider)
                return await self._told(job.id, newest.newest_events)
            return await self._told(job.id, self.provider.events)
        except RetryableError:  # that the job goes on is known; the next poll asks again
            return None

    async def _told(
        self, job_id: str, ask: Callable[[str], Awaitable[Sequence[JobEvent]]]
    ) -> Sequence[JobEvent]:
        try:
            return await ask(job_id)
        except (NotFoundError, DataError) as e:
            log.info("%s has no events of job %s: %s", self.provider.name, job_id, e)
            return ()

    @opening
    async def monitor_training_job(self, model_version: ModelVersion) -> ModelVersion:
        """Wait for the job's end and return the trained version.

        Raises `TrainingFailedError` when the job fails, is cancelled, stands still or outlasts
        `timeout_s` (it is cancelled then).
        """
        watch = self.watch(self._clock.now())
        while True:
            progress = await self.poll(model_version)
            watch.saw(progress, self._clock.now())
            if progress.job.status.final:
                return self.trained(model_version, progress)
            if watch.over(self._clock.now()):
                ended = await self.give_up(model_version, progress, watch)
                return self.trained(model_version, ended)
            await self._clock.sleep_until(self._clock.now() + timedelta(seconds=self.poll_s))

    def watch(self, at: datetime, expected_s: float | None = None) -> JobWatch:
        """What follows a job from this instant on, and says when it is to be given up."""
        return JobWatch(at, limit_s=self.timeout_s, poll_s=self.poll_s, expected_s=expected_s)

    async def give_up(
        self, version: ModelVersion, seen: JobProgress | None, watch: JobWatch
    ) -> JobProgress:
        """End a job that stands still or outlasted its time; what it came to if it succeeded
        meanwhile.

        Raises `TrainingFailedError` with code `timeout` or `stalled`, which says where the job
        was last seen and whether it was cancelled.
        """
        try:
            seen = await self.poll(version)
            cancelled = await self.cancel(version)
            ended = await self.poll(version)
        except RetryableError as e:
            ending = f"and could not be cancelled: {e.message}"
            raise self._given_up(version, seen, watch, ending) from e
        if ended.job.status is JobStatus.SUCCEEDED:
            return ended
        ending = "and was cancelled." if cancelled else "and is over."
        raise self._given_up(version, seen, watch, ending)

    def trained(self, version: ModelVersion, progress: JobProgress) -> ModelVersion:
        """The version after its job ended. Raises `TrainingFailedError` unless it succeeded."""
        job = progress.job
        if job.status is JobStatus.SUCCEEDED and not job.fine_tuned_model:
            raise TrainingFailedError(
                f"Job {job.id} at {self.provider.name} ended as {job.raw_status} but names no "
                "model.",
                mend=f"tuneproof run retry {version.run_id or ''}".rstrip(),
                code="no_model",
                job_id=job.id,
            )
        if job.status is not JobStatus.SUCCEEDED:
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

    def _given_up(
        self, version: ModelVersion, seen: JobProgress | None, watch: JobWatch, ending: str
    ) -> TrainingFailedError:
        job = seen.job if seen else None
        state = f"was still {job.raw_status}" if job else "had never been seen"
        return TrainingFailedError(
            f"Job {version.training_job_id} at {self.provider.name} {state} {watch.why()} {ending}",
            mend=_MENDS[watch.code],
            code=watch.code,
            state=job.raw_status if job else None,
            job_id=version.training_job_id,
        )

    @opening
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
    "timeout": 'Raise training.timeout_seconds, or leave it at "auto", then retry the run from its '
    "training.",
    "stalled": "See what the provider's log says of the job, then retry the run from its training; "
    "a job that may be silent for longer needs training.timeout_seconds.",
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
