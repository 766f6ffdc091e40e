"""One training job of a run: started once, followed to its end, found again after a kill."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from tuneproof import workflow
from tuneproof.collection import TrainingDataBatch
from tuneproof.errors import RetryableError, TrainingFailedError
from tuneproof.pipeline.collecting import with_files
from tuneproof.pipeline.context import RunContext, jitter
from tuneproof.pipeline.details import VersionDetail
from tuneproof.pipeline.preflight import Cleared, Point, cost_of_trial
from tuneproof.pipeline.records import Stage, StageStatus
from tuneproof.pipeline.steps import StepName
from tuneproof.training import (
    RUN_KEY,
    JobProgress,
    ModelTrainer,
    ModelVersion,
    cost_of_training,
)
from tuneproof.workflow import Tx

FIRST_POLL_S = 0.5
"""A small job may be done at once: the pause between polls doubles from here to `poll_seconds`."""

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
    """What a run's training has cost until now, in USD, beside what was estimated."""

    def __init__(self, cleared: Cleared) -> None:
        self.cleared = cleared
        self.usd = cleared.earlier_usd

    def spend(self, progress: JobProgress) -> None:
        """Count a job that ended."""
        self.usd += self.cost_of(progress) or 0.0

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

    async def run(
        self, batch: TrainingDataBatch, declared: ModelVersion, key: JobKey, point: Point
    ) -> tuple[ModelVersion, JobProgress]:
        """One job from its upload to its end. Raises `TrainingFailedError`."""
        self.key = key
        started = await self._run.patiently(
            StepName.TRAIN_START, self._start, batch, declared, key, point
        )
        await workflow.transaction(StepName.TRAIN_RECORD, self._write, started)
        self._run.changed()
        trained, progress = await self._follow(started, point)
        self.spending.spend(progress)
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

    async def _write(self, tx: Tx, version: ModelVersion) -> None:
        run = self._run
        await run.parts.store.versions.save(version, tx=tx)
        detail = {
            "job_id": version.training_job_id,
            "base_model": version.base_model,
            "provider": version.provider,
            "method": run.config.method,
            "preflight": dict(self.spending.cleared.detail),
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
    ) -> tuple[ModelVersion, JobProgress]:
        trainer = trainer_of(self._run, point)
        now = await workflow.now()
        deadline = now + timedelta(seconds=trainer.timeout_s)
        pause, polls, gone = FIRST_POLL_S, 0, 0
        seen: JobProgress | None = None
        while True:
            pause = min(2 * pause, trainer.poll_s)
            await self._run.rest(now + timedelta(seconds=pause * jitter(self._run.id, polls)))
            now, polls = await workflow.now(), polls + 1
            try:
                found = await workflow.step(StepName.TRAIN_POLL, trainer.poll, version)
            except RetryableError:
                pass  # the provider is away; the job goes on, the next poll asks again
            except TrainingFailedError:
                gone += 1
                if gone >= VANISHED_POLLS:
                    raise
            else:
                seen, gone = found, 0
                if found.job.status.final:
                    return trainer.trained(version, found), found
            if now >= deadline:
                ended = await workflow.step(StepName.TRAIN_GIVE_UP, trainer.give_up, version, seen)
                return trainer.trained(version, ended), ended


def trainer_of(run: RunContext, point: Point) -> ModelTrainer:
    """The trainer as the run's settings say, with the hyperparameters of one trial."""
    return ModelTrainer.of(
        run.config,
        point,
        provider=run.parts.provider(run.config.provider),
        clock=run.parts.clock,
        waits=False,
    )


async def find_under_way(run: RunContext, attempt: int, base: str) -> JobKey:
    """The key of an earlier attempt's job that still trains this base, else a new one's.

    An attempt may have ended without its job: the key was refused meanwhile, or the job could
    not be cancelled. A second one beside it would be paid for twice.
    """
    provider = run.parts.provider(run.config.provider)
    for earlier in range(attempt - 1, 0, -1):
        key = JobKey(run_id=run.id, attempt=earlier)
        job = await provider.find_job(RUN_KEY, str(key))
        if job is not None and job.model == base and not job.status.final:
            return key
    return JobKey(run_id=run.id, attempt=attempt)


async def cancel(run: RunContext, key: JobKey) -> bool:
    """Cancel the job of this key; False where none runs or its provider is away."""
    provider = run.parts.provider(run.config.provider)
    try:
        job = await provider.find_job(RUN_KEY, str(key))
        if job is None or job.status.final:
            return False
        await provider.cancel_job(job.id)
    except RetryableError:
        return False
    return True


workflow.register(JobKey)
