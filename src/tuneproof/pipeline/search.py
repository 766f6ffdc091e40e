"""A search: several trainings one after the other, of which the least held-out loss wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tuneproof import workflow
from tuneproof.collection import TrainingDataBatch
from tuneproof.errors import TrainingFailedError
from tuneproof.evaluation import Gate
from tuneproof.experiments import model_ref
from tuneproof.pipeline.collecting import with_files
from tuneproof.pipeline.context import RunContext
from tuneproof.pipeline.gating import answering, kept_of
from tuneproof.pipeline.jobs import JobKey, Jobs
from tuneproof.pipeline.preflight import Point
from tuneproof.pipeline.records import Stage, StageStatus
from tuneproof.pipeline.steps import StepName
from tuneproof.training import JobProgress, ModelVersion, Trial, suggest
from tuneproof.workflow import Tx


class Trained(NamedTuple):
    """A version whose job ended well, with the job as it was seen last."""

    version: ModelVersion
    progress: JobProgress


class Searched(NamedTuple):
    """What a search found: the versions by held-out loss, and all its trials."""

    best: tuple[Trained, ...]
    trials: tuple[Trial, ...]


class TrialSearch:
    """Trains each trial that the budget has room for."""

    def __init__(self, run: RunContext, jobs: Jobs) -> None:
        self._run = run
        self._jobs = jobs
        self._history: list[Trial] = []

    async def search(
        self, batch: TrainingDataBatch, declared: ModelVersion, key: JobKey
    ) -> Searched:
        """Train each trial. Raises the last `TrainingFailedError` where none ended well."""
        ended: list[tuple[Trial, Trained]] = []
        failure: TrainingFailedError | None = None
        for number, point in enumerate(self._jobs.spending.cleared.points):
            if self._run.config.search_method == "optuna":
                point = await workflow.step(StepName.TRAIN_SUGGEST, self._suggested)
            try:
                done = Trained(*await self._jobs.run(batch, declared, key.trial(number), point))
            except TrainingFailedError as e:
                failure = e
                self._history.append(self._failed(number, point, e))
                continue
            ended.append((await self._scored(number, point, done, batch), done))
            await workflow.transaction(StepName.TRAIN_RECORD_TRIAL, self._write)
        if failure is not None and not ended:
            raise failure
        ended.sort(key=lambda one: (one[0].heldout_loss, one[0].number))
        return Searched(tuple(done for _, done in ended), tuple(self._history))

    async def _suggested(self) -> Point:
        config = self._run.config
        assert config.search is not None
        return suggest(config.search, self._history, seed=config.seed)

    def _failed(self, number: int, point: Point, error: TrainingFailedError) -> Trial:
        lost = self._jobs.spending.lose(point)  # a part of it may be billed
        return Trial(number=number, hyperparameters=dict(point), cost_usd=lost, error=error.message)

    async def _scored(
        self, number: int, point: Point, done: Trained, batch: TrainingDataBatch
    ) -> Trial:
        version, progress = done
        loss = await self._run.patiently(
            StepName.TRAIN_SCORE, self._heldout, version, batch, progress
        )
        trial = Trial(
            number=number,
            hyperparameters=dict(point),
            job_id=version.training_job_id,
            model_id=version.model_id,
            heldout_loss=loss,
            cost_usd=self._jobs.spending.cost_of(progress),
        )
        self._history.append(trial)
        return trial

    async def _heldout(
        self, version: ModelVersion, batch: TrainingDataBatch, progress: JobProgress
    ) -> float:
        """The held-out loss: scored by us, else what the provider itself measured."""
        batch = await with_files(self._run, batch)
        assert version.model_id is not None
        provider = await answering(self._run, model_ref(version))
        gate = Gate((await kept_of(self._run, batch)).of(provider), seed=self._run.config.seed)
        loss = await gate.heldout_loss(version.model_id, batch.validation_path)
        if loss is not None:
            return loss
        for name in ("full_valid_loss", "valid_loss"):
            if name in progress.metrics:
                return float(progress.metrics[name])
        raise TrainingFailedError(
            f"{version.provider} neither scores held-out text nor reports a validation loss: a "
            "search has nothing to choose by.",
            mend="Leave training.search out, or train at a provider that reports valid_loss.",
            code="no_heldout_loss",
        )

    async def _write(self, tx: Tx) -> None:
        detail = {"trials": shown_trials(self._history)}
        await self._run.mark_stage(tx, Stage.TRAIN, StageStatus.IN_PROGRESS, detail)


def shown_trials(trials: Sequence[Trial]) -> list[Mapping[str, object]]:
    """Trials as the run's page shows them."""
    return [
        {
            "number": t.number,
            "hyperparameters": dict(t.hyperparameters),
            "heldout_loss": t.heldout_loss,
            "job_id": t.job_id,
            "cost_usd": t.cost_usd,
            "error": t.error,
        }
        for t in trials
    ]


workflow.register(Trial)
