"""A search: several trainings one after the other, of which the one with the least loss on what
is held out wins: of preferences that of the pairs, else that of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from tuneproof import workflow
from tuneproof.collection import TrainingDataBatch
from tuneproof.errors import TrainingFailedError
from tuneproof.evaluation import Gate, HeldOut
from tuneproof.experiments import variant_of
from tuneproof.pipeline.collecting import with_files
from tuneproof.pipeline.context import RunContext
from tuneproof.pipeline.gating import answering, kept_of
from tuneproof.pipeline.jobs import JobKey, Jobs
from tuneproof.pipeline.preflight import Point
from tuneproof.pipeline.records import Stage, StageStatus
from tuneproof.pipeline.steps import StepName
from tuneproof.training import JobProgress, ModelVersion, Trial, suggest
from tuneproof.workflow import Tx

PREFERENCES = "dpo"

BETA = 0.1
"""Of a job whose provider does not say what it chose: what is usual."""


class Trained(NamedTuple):
    """A version whose job ended well, with the job as it was seen last."""

    version: ModelVersion
    progress: JobProgress


class Searched(NamedTuple):
    """What a search found: the versions, best first, and all its trials."""

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
        ended.sort(key=lambda one: (one[0].value, one[0].number))
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
        found = await self._run.patiently(
            StepName.TRAIN_SCORE, self._heldout, version, batch, progress
        )
        if not isinstance(found, HeldOut):  # as earlier releases recorded it
            found = HeldOut(loss=found)
        trial = Trial(
            number=number,
            hyperparameters=dict(point),
            job_id=version.training_job_id,
            model_id=version.model_id,
            heldout_loss=found.loss,
            cost_usd=self._jobs.spending.cost_of(progress),
            pair_loss=found.pair_loss,
            pair_accuracy=found.pair_accuracy,
            pair_margin=found.pair_margin,
            forgot=found.forgot,
        )
        self._history.append(trial)
        return trial

    async def _heldout(
        self, version: ModelVersion, batch: TrainingDataBatch, progress: JobProgress
    ) -> HeldOut:
        """How a trial does on what is held out: scored by us, else as its provider measured it."""
        batch = await with_files(self._run, batch)
        assert version.model_id is not None
        provider = await answering(self._run, variant_of(version))
        gate = Gate((await kept_of(self._run, batch)).of(provider), seed=self._run.config.seed)
        pairs = self._run.config.method == PREFERENCES
        beta = progress.job.hyperparameters.get("beta")
        beta = float(beta) if isinstance(beta, int | float) else BETA
        found = await gate.heldout(version, batch.heldout, beta=beta)
        if (found.pair_loss if pairs else found.loss) is not None:
            return found
        loss = _measured(progress)
        if loss is None:
            raise TrainingFailedError(
                f"{version.provider} neither scores held-out text nor reports a validation loss: a "
                "search has nothing to choose by.",
                mend="Leave training.search out, or train at a provider that reports valid_loss.",
                code="no_heldout_loss",
            )
        return replace(found, pair_loss=loss) if pairs else replace(found, loss=loss)

    async def _write(self, tx: Tx) -> None:
        detail = {"trials": shown_trials(self._history)}
        await self._run.mark_stage(tx, Stage.TRAIN, StageStatus.IN_PROGRESS, detail)


def _measured(progress: JobProgress) -> float | None:
    """The validation loss that a provider reports: of what the job's method lowers."""
    names = ("full_valid_loss", "valid_loss")
    return next((float(progress.metrics[n]) for n in names if n in progress.metrics), None)


def shown_trials(trials: Sequence[Trial]) -> list[Mapping[str, object]]:
    """Trials as the run's page shows them."""
    return [
        {
            "number": t.number,
            "hyperparameters": dict(t.hyperparameters),
            "heldout_loss": t.heldout_loss,
            **_of_pairs(t),
            "job_id": t.job_id,
            "cost_usd": t.cost_usd,
            "error": t.error,
        }
        for t in trials
    ]


def _of_pairs(trial: Trial) -> dict[str, object]:
    if trial.pair_loss is None:
        return {}
    return {
        "pair_loss": trial.pair_loss,
        "pair_accuracy": trial.pair_accuracy,
        "pair_margin": trial.pair_margin,
        "forgot": trial.forgot,
    }


workflow.register(HeldOut, Trial)
