"""One training job of a run: started once, followed to its end, found again after a kill."""

from __future__ import annotations

import logging
from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tuneproof import workflow
from tuneproof.collection import TrainingDataBatch
from tuneproof.errors import RetryableError, TrainingFailedError
from tuneproof.pipeline.collecting import with_files
from tuneproof.pipeline.context import RunContext, jitter
from tuneproof.pipeline.details import VersionDetail
from tuneproof.pipeline.preflight import Cleared, Point, cost_of_trial, time_of_trial
from tuneproof.pipeline.records import Stage, StageStatus
from tuneproof.pipeline.steps import StepName
from tuneproof.training import (
    RUN_KEY,
    JobProgress,
    JobWatch,
    ModelTrainer,
    ModelVersion,
    cost_of_training,
)
from tuneproof.workflow import Tx

log = logging.getLogger(__name__)

FIRST_POLL_S = 0.5
"""A small job may be done at once: the pause between polls doubles from here to `poll_seconds`."""

UNKNOWN_PROGRESS = dict.fromkeys(("job_status", "step", "total_steps", "ends_at", "gives_up_at"))
"""What is told of a job while it trains, as long as nothing is known, and once it has ended."""

VANISHED_POLLS = 3
"""A job is gone once the provider has said so this often in a row: some lists lag behind."""


@dataclass(frozen=True, kw_only=True)
class JobKey:
    """What a job is found by: a retry trains again, a repeated step does not."""

    run_id: str
    attempt: int
    number: int | None = None

    def __str__(self) -> str:
        attempt = "" if self.attempt == 1 else f"#{self.attempt}"
        trial = "" if self.number is None else f"/trial-{self.number}"
        return f"{self.run_id}{attempt}{trial}"

    def trial(self, number: int) -> JobKey:
        """The key of one of several trials."""
        return replace(self, number=number)


class Spending:
    """What a run's training has cost until now, in USD and time, beside what was estimated.

    `seconds` is how long jobs took whose `timed_tokens` are known.
    """

    def __init__(self, cleared: Cleared) -> None:
        self.cleared = cleared
        self.usd = cleared.earlier_usd
        self.seconds = 0.0
        self.timed_tokens = 0

    def spend(self, progress: JobProgress, seconds: float | None) -> None:
        """Count a job that ended, and the time that it took, where that is known."""
        self.usd += self.cost_of(progress) or 0.0
        if seconds is not None and progress.job.trained_tokens:
            self.seconds += seconds
            self.timed_tokens += progress.job.trained_tokens

    def lose(self, point: Point) -> float | None:
        """Count a job that failed, as it was estimated."""
        lost = cost_of_trial(self.cleared, point)
        self.usd += lost or 0.0
        return lost

    def cost_of(self, progress: JobProgress) -> float | None:
        """What a job cost: as its provider says, else by its tokens, else as was estimated."""
        if progress.job.cost_usd is not None:
            return progress.job.cost_usd
        known = cost_of_training(progress.job.trained_tokens, self.cleared.price)
        return self.cleared.estimate.cost_usd if known is None else known

    def time(self, version: ModelVersion, method: str) -> dict[str, object]:
        """What the jobs took, for later estimates; empty where that is not known."""
        if not self.timed_tokens:
            return {}
        return {
            "provider": version.provider,
            "base_model": version.base_model,
            "method": method,
            "tokens": self.timed_tokens,
            "seconds": round(self.seconds, 1),
        }

    def detail(self, at: str, *, ended: bool) -> dict[str, object]:
        """What the run has spent: what is known once jobs ended, the estimate until then."""
        cleared = self.cleared
        reserved = cleared.earlier_usd + (cleared.cost_usd or 0.0)
        return {
            "estimated_usd": cleared.cost_usd,
            "spent_usd": round(self.usd if ended else max(reserved, self.usd), 6),
            "final": ended,
            "at": at,
            "price_source": cleared.estimate.price_source,
            "price_as_of": cleared.estimate.price_as_of,
        }


class Jobs:
    """The jobs of one run's training, one at a time; `key` is that of the newest."""

    def __init__(self, run: RunContext, spending: Spending) -> None:
        self._run = run
        self.spending = spending
        self.key: JobKey | None = None
        self._told: tuple[str, str] | None = None

    async def run(
        self, batch: TrainingDataBatch, declared: ModelVersion, key: JobKey, point: Point
    ) -> tuple[ModelVersion, JobProgress]:
        """One job from its upload to its end. Raises `TrainingFailedError`."""
        self.key = key
        started = await self._run.patiently(
            StepName.TRAIN_START, self._start, batch, declared, key, point
        )
        await workflow.transaction(StepName.TRAIN_RECORD, self._write, started, point)
        self._run.changed()
        progress, seconds = await self._follow(started, point)
        trained = trainer_of(self._run, point).trained(started, progress)
        self.spending.spend(progress, seconds)
        return trained, progress

    async def _start(
        self, batch: TrainingDataBatch, declared: ModelVersion, key: JobKey, point: Point
    ) -> ModelVersion:
        batch = await with_files(self._run, batch)
        trainer = trainer_of(self._run, point)
        trainer.base_model = declared.base_model
        started = await trainer.start_fine_tuning(
            batch,
            run_id=self._run.id,
            key=str(key),
            version_id=declared.id,
            version=declared.version,
            parent_id=declared.parent_id,
        )
        return replace(started, created_at=declared.created_at, provider=declared.provider)

    async def _write(self, tx: Tx, version: ModelVersion, point: Point) -> None:
        run, expected = self._run, time_of_trial(self.spending.cleared, point)
        await run.parts.store.versions.save(version, tx=tx)
        detail = {
            "job_id": version.training_job_id,
            "base_model": version.base_model,
            "provider": version.provider,
            "method": run.config.method,
            "preflight": dict(self.spending.cleared.detail),
            **UNKNOWN_PROGRESS,
            "expected_seconds": expected and round(expected),
            "note": "",
        }
        await run.mark_stage(tx, Stage.TRAIN, StageStatus.IN_PROGRESS, detail)
        known = {
            "model_version": VersionDetail.of(version).to_dict(),
            "cost": self.spending.detail(run.now.isoformat(), ended=False),
        }
        await run.mark_run(tx, known)

    async def _follow(
        self, version: ModelVersion, point: Point
    ) -> tuple[JobProgress, float | None]:
        """The job once it has ended, and how long it took; given up where it stands still."""
        trainer = trainer_of(self._run, point)
        now = await workflow.now()
        watch = trainer.watch(now, time_of_trial(self.spending.cleared, point))
        pause, polls, gone = FIRST_POLL_S, 0, 0
        seen: JobProgress | None = None
        while True:
            pause = min(2 * pause, trainer.poll_s)
            await self._run.rest(now + timedelta(seconds=pause * jitter(self._run.id, polls)))
            now, polls = await workflow.now(), polls + 1
            try:
                found = await workflow.step(
                    StepName.TRAIN_POLL, self._poll, trainer, version, watch, now
                )
            except RetryableError:
                watch.missed(now)  # the job goes on, the next poll asks again
            except TrainingFailedError:
                gone += 1
                if gone >= VANISHED_POLLS:
                    raise
            else:
                seen, gone = found, 0
                watch.saw(found, now)
                if found.job.status.final:
                    return found, watch.took_s(found, now)
            if watch.over(now):
                ended = await workflow.step(
                    StepName.TRAIN_GIVE_UP, trainer.give_up, version, seen, watch
                )
                return ended, watch.took_s(ended, now)

    async def _poll(
        self, trainer: ModelTrainer, version: ModelVersion, watch: JobWatch, now: datetime
    ) -> JobProgress:
        """Ask after the job, and record how far it is where that is news."""
        found = await trainer.poll(version)
        if found.mark and not found.job.status.final:
            await self._tell(found, copy(watch), now)
        return found

    async def _tell(self, found: JobProgress, watch: JobWatch, now: datetime) -> None:
        """Record a poll in the middle of its step; the copied watch sees it before ours does."""
        before = self._told
        watch.saw(found, now)
        self._told = (found.mark, found.job.status)
        if self._told == before:
            return
        detail: dict[str, object] = {
            "job_status": found.job.raw_status,
            "ends_at": _iso(watch.ends_at),
            "gives_up_at": _iso(watch.gives_up_at(now)),
            "hyperparameters": dict(found.job.hyperparameters),
        }
        if found.step is not None:
            detail |= {"step": found.step, "total_steps": found.total_steps}
        try:
            await self._run.progress(Stage.TRAIN, detail)
        except Exception:  # the job goes on, whoever watches
            log.exception("how far job %s is could not be kept", found.job.id)


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="seconds")


def trainer_of(run: RunContext, point: Point) -> ModelTrainer:
    """The trainer as the run's settings say, with the hyperparameters of one trial."""
    config = run.config.for_training
    return ModelTrainer.of(
        config,
        point,
        provider=run.parts.provider(config.provider),
        clock=run.parts.clock,
        waits=False,
    )


async def find_under_way(run: RunContext, attempt: int, base: str) -> JobKey:
    """The key of an earlier attempt's job that still trains this base, else a new one's.

    An attempt may have ended without its job: the key was refused meanwhile, or the job could
    not be cancelled. A second one beside it would be paid for twice.
    """
    provider = run.parts.provider(run.config.for_training.provider)
    for earlier in range(attempt - 1, 0, -1):
        key = JobKey(run_id=run.id, attempt=earlier)
        job = await provider.find_job(RUN_KEY, str(key))
        if job is not None and job.model == base and not job.status.final:
            return key
    return JobKey(run_id=run.id, attempt=attempt)


async def cancel(run: RunContext, key: JobKey) -> bool:
    """Cancel the job of this key; False where none runs or its provider is away."""
    provider = run.parts.provider(run.config.for_training.provider)
    try:
        job = await provider.find_job(RUN_KEY, str(key))
        if job is None or job.status.final:
            return False
        await provider.cancel_job(job.id)
    except RetryableError:
        return False
    return True


workflow.register(JobKey)
