"""The training stage: preflight, upload, job, and the wait for its end.

A search is several such jobs, one after the other, of which the one with the least held-out
loss becomes the version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from tuneproof import workflow
from tuneproof.collection import TrainingDataBatch
from tuneproof.errors import RetryableError, TrainingFailedError
from tuneproof.evaluation import Gate
from tuneproof.experiments import model_ref
from tuneproof.pipeline.collecting import Collecting
from tuneproof.pipeline.preflight import Cleared, Preflight, cost_of_trial
from tuneproof.pipeline.records import Stage
from tuneproof.pipeline.steps import Wait, jitter
from tuneproof.settings import PipelineConfig
from tuneproof.training import (
    RUN_KEY,
    ModelTrainer,
    ModelVersion,
    Progress,
    Provider,
    Trial,
    VersionStatus,
    cost_of_training,
    new_version_id,
    suggest,
)

FIRST_POLL_S = 0.5
"""A small job may be done at once: the pause between polls doubles from here to `poll_seconds`."""

VANISHED_POLLS = 3
"""A job is gone once the provider has said so this often in a row: some lists lag behind."""

Point = Mapping[str, int | float]


MENDED_BY_RETRY = (
    "provider",
    "base_model",
    "n_epochs",
    "batch_size",
    "learning_rate_multiplier",
    "timeout_seconds",
    "poll_seconds",
    "max_cost_usd",
    "max_cost_usd_month",
)
"""What a retry of the training takes from the settings as they are then."""


class Training(Collecting):
    """From a dataset to a trained version."""

    job_cancelled = False
    runners_up: tuple[ModelVersion, ...] = ()
    """Where several candidates are asked for: the versions beside the best, by held-out loss."""

    _cleared: Cleared | None = None
    _spent_usd = 0.0
    _key = ""

    async def train(self, batch: TrainingDataBatch, wait: Wait) -> ModelVersion:
        """Ask, upload, create the job, and wait for its end; who is away is waited for."""
        self.stage = Stage.TRAIN
        attempt: int = await workflow.transaction("train.begin", self._begin, Stage.TRAIN)
        if attempt > 1:
            self._config = await workflow.step("train.settings", self._mended)
        base: str = await self._patiently("train.base", wait, self._trainer({}).base)
        cleared: Cleared = await self._patiently(
            "train.preflight", wait, self._preflight, batch, base
        )
        self._cleared, self._spent_usd = cleared, cleared.earlier_usd
        declared: ModelVersion = await workflow.transaction(
            "train.version", self._declare, batch, base
        )
        async with self._timed(Stage.TRAIN):
            self._key = self._job_key(attempt)
            if attempt > 1 and self._config.search is None:
                self._key = await self._patiently("train.key", wait, self._under_way, attempt, base)
            if self._config.search is None:
                trained, progress = await self._one(batch, declared, wait, {})
                found: list[Trial] = []
                others: list[ModelVersion] = []
            else:
                tried, found = await self._searched(batch, declared, wait)
                (_, trained, progress), *rest = tried
                others = [version for _, version, _ in rest[: self._config.candidates - 1]]
        await workflow.transaction("train.end", self._write_trained, trained, progress, found)
        if others:
            self.runners_up = await workflow.transaction(
                "train.candidates", self._declare_others, tuple(others)
            )
        self._parts.hooks.run_changed(self._id)
        return trained

    async def _mended(self) -> PipelineConfig:
        """A retry trains as the settings say now: a provider that closed can be changed."""
        now = await self._parts.settings_now(self._config.name)
        if now is None:
            return self._config
        return replace(self._config, **{name: getattr(now, name) for name in MENDED_BY_RETRY})

    async def _preflight(self, batch: TrainingDataBatch, base: str) -> Cleared:
        batch = await self._present(batch)
        return await Preflight(self._parts, self._id, self._config).check(batch, base)

    async def _one(
        self, batch: TrainingDataBatch, declared: ModelVersion, wait: Wait, point: Point
    ) -> tuple[ModelVersion, Progress]:
        """One job from its upload to its end."""
        started: ModelVersion = await self._patiently(
            "train.start", wait, self._start, batch, declared, self._key, point
        )
        await workflow.transaction("train.job", self._write_job, started)
        self._parts.hooks.run_changed(self._id)
        trained, progress = await self._monitored(started, wait, point)
        self._spent_usd += self._cost_of(progress) or 0.0
        return trained, progress

    # --- search ---------------------------------------------------------------------

    async def _searched(
        self, batch: TrainingDataBatch, declared: ModelVersion, wait: Wait
    ) -> tuple[list[tuple[Trial, ModelVersion, Progress]], list[Trial]]:
        """Train each trial: those that ended well, by held-out loss, and all of them."""
        cleared = self._cleared
        assert cleared is not None
        own, tried = self._key, list[tuple[Trial, ModelVersion, Progress]]()
        history: list[Trial] = []
        failure: TrainingFailedError | None = None
        for number, point in enumerate(cleared.points):
            if self._config.search_method == "optuna":
                point = await workflow.step("search.suggest", self._suggested, history)
            self._key = f"{own}/trial-{number}"
            try:
                trained, progress = await self._one(batch, declared, wait, point)
            except TrainingFailedError as e:
                failure = e
                lost = cost_of_trial(cleared, point)  # a part of it may be billed
                self._spent_usd += lost or 0.0
                history.append(
                    Trial(
                        number=number,
                        hyperparameters=dict(point),
                        cost_usd=lost,
                        error=e.message,
                    )
                )
                continue
            loss: float = await self._patiently(
                "search.score", wait, self._heldout, trained, batch, progress
            )
            trial = Trial(
                number=number,
                hyperparameters=dict(point),
                job_id=trained.training_job_id,
                model_id=trained.model_id,
                heldout_loss=loss,
                cost_usd=self._cost_of(progress),
            )
            history.append(trial)
            tried.append((trial, trained, progress))
            await workflow.transaction("search.trial", self._write_trials, history)
        if not tried:
            assert failure is not None
            raise failure
        return sorted(tried, key=lambda t: (t[0].heldout_loss, t[0].number)), history

    async def _declare_others(
        self, tx: Any, others: tuple[ModelVersion, ...]
    ) -> tuple[ModelVersion, ...]:
        """Make versions of their own of the trials that are tested beside the best."""
        at = self._parts.clock.now()
        found = []
        for trained in others:
            version = replace(trained, id=new_version_id(at), version="0.0.0", created_at=at)
            kept = await self._parts.store.declare_version(version, tx)
            await self._tell_version(tx, kept, f"model_version:{kept.id}")
            found.append(kept)
        return tuple(found)

    async def _suggested(self, history: list[Trial]) -> Point:
        assert self._config.search is not None
        return suggest(self._config.search, history, seed=self._config.seed)

    async def _heldout(
        self, version: ModelVersion, batch: TrainingDataBatch, progress: Progress
    ) -> float:
        """The held-out loss: scored by us, else what the provider itself measured."""
        batch = await self._present(batch)
        assert version.model_id is not None
        gate = Gate(await self._answering(version), seed=self._config.seed)
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

    async def _answering(self, version: ModelVersion) -> Provider:
        """Who answers for a version: who trained it, wherever the settings point by now."""
        if self._parts.serves is None:
            return self._parts.provider(self._config.provider)
        return await self._parts.serves(model_ref(version))

    async def _write_trials(self, tx: Any, history: list[Trial]) -> None:
        at = self._parts.clock.now()
        await self._parts.store.mark_stage(
            self._id, self.stage, "in_progress", {"trials": _shown(history)}, at, tx
        )

    # --- the job --------------------------------------------------------------------

    def _trainer(self, point: Point) -> ModelTrainer:
        config = self._config
        chosen: dict[str, Any] = {
            "n_epochs": config.n_epochs,
            "batch_size": config.batch_size,
            "learning_rate_multiplier": config.learning_rate_multiplier,
            **({"beta": config.beta} if config.method == "dpo" else {}),
            **point,
        }
        return ModelTrainer(
            config.base_model,
            provider=self._parts.provider(config.provider),
            clock=self._parts.clock,
            method=config.method,
            hyperparameters={k: v for k, v in chosen.items() if v != "auto"},
            seed=config.seed,
            suffix=config.suffix,
            timeout_s=config.timeout_seconds,
            poll_s=config.poll_seconds,
            waits=False,
        )

    async def _declare(self, tx: Any, batch: TrainingDataBatch, base: str) -> ModelVersion:
        at = self._parts.clock.now()
        version = ModelVersion(
            id=new_version_id(at),
            pipeline=self._config.name,
            run_id=self._id,
            version="0.0.0",
            model_id=None,
            base_model=base,
            provider=self._config.provider,
            training_job_id=None,
            dataset_hash=batch.hash,
            tasks=tuple(batch.examples),
            status=VersionStatus.TRAINING,
            created_at=at,
        )
        return await self._parts.store.declare_version(version, tx)

    async def _start(
        self, batch: TrainingDataBatch, declared: ModelVersion, key: str, point: Point
    ) -> ModelVersion:
        batch = await self._present(batch)
        trainer = self._trainer(point)
        trainer.base_model = declared.base_model
        started = await trainer.start_fine_tuning(
            batch,
            run_id=self._id,
            key=key,
            version_id=declared.id,
            version=declared.version,
            parent_id=declared.parent_id,
        )
        return replace(started, created_at=declared.created_at, provider=declared.provider)

    async def _write_job(self, tx: Any, version: ModelVersion) -> None:
        at = self._parts.clock.now()
        await self._parts.store.keep_version(version, tx)
        detail = {
            "job_id": version.training_job_id,
            "base_model": version.base_model,
            "provider": version.provider,
            "method": self._config.method,
            "preflight": dict(self._cleared.detail) if self._cleared else {},
        }
        await self._parts.store.mark_stage(
            self._id, Stage.TRAIN, "in_progress", {**detail, "note": ""}, at, tx
        )
        await self._mark_version(tx, version, at)
        await self._mark_cost(tx, at, ended=False)

    async def _mark_version(self, tx: Any, version: ModelVersion, at: datetime) -> None:
        shown = {
            "id": version.id,
            "model_id": version.model_id,
            "version": version.version,
            "training_job_id": version.training_job_id,
            "base_model": version.base_model,
            "status": str(version.status),
        }
        await self._parts.store.mark_run(
            self._id, "running", at=at, result={"model_version": shown}, tx=tx
        )

    async def _mark_cost(self, tx: Any, at: datetime, *, ended: bool) -> None:
        """What the run has spent: what is known once jobs ended, the estimate until then."""
        cleared = self._cleared
        assert cleared is not None
        reserved = cleared.earlier_usd + (cleared.cost_usd or 0.0)
        cost = {
            "estimated_usd": cleared.cost_usd,
            "spent_usd": round(self._spent_usd if ended else max(reserved, self._spent_usd), 6),
            "final": ended,
            "at": at.isoformat(),
            "price_source": cleared.estimate.price_source,
            "price_as_of": cleared.estimate.price_as_of,
        }
        await self._parts.store.mark_run(self._id, "running", at=at, result={"cost": cost}, tx=tx)

    def _cost_of(self, progress: Progress) -> float | None:
        """What a job cost: as its provider says, else by its tokens, else as was estimated."""
        if progress.job.cost_usd is not None:
            return progress.job.cost_usd
        cleared = self._cleared
        if cleared is None:
            return None
        known = cost_of_training(progress.job.trained_tokens, cleared.price)
        return cleared.estimate.cost_usd if known is None else known

    async def _monitored(
        self, version: ModelVersion, wait: Wait, point: Point
    ) -> tuple[ModelVersion, Progress]:
        trainer = self._trainer(point)
        now = await workflow.now()
        deadline = now + timedelta(seconds=trainer.timeout_s)
        pause, polls, gone = FIRST_POLL_S, 0, 0
        seen: Progress | None = None
        while True:
            pause = min(2 * pause, trainer.poll_s)
            await self._rest(wait, now + timedelta(seconds=pause * jitter(self._id, polls)))
            now, polls = await workflow.now(), polls + 1
            try:
                found: Progress = await workflow.step("train.poll", trainer.poll, version)
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
                ended = await workflow.step("train.cancel", trainer.give_up, version, seen)
                return trainer.trained(version, ended), ended

    async def _write_trained(
        self, tx: Any, version: ModelVersion, progress: Progress, found: list[Trial]
    ) -> None:
        at = self._parts.clock.now()
        await self._parts.store.keep_version(version, tx)
        detail = {
            "model_id": version.model_id,
            "job_id": version.training_job_id,
            "trained_tokens": version.trained_tokens,
            "metrics": dict(progress.metrics),
            "cost_usd": round(self._spent_usd, 6),
            **({"trials": _shown(found)} if found else {}),
        }
        await self._parts.store.mark_stage(self._id, Stage.TRAIN, "completed", detail, at, tx)
        await self._mark_version(tx, version, at)
        await self._mark_cost(tx, at, ended=True)
        numbers = {k: float(v) for k, v in progress.metrics.items() if isinstance(v, (int, float))}
        numbers["training_cost_usd"] = round(self._spent_usd, 6)
        await self._tell(tx, "metrics", {"metrics": numbers, "step": 0, "at": at.isoformat()})
        await self._tell_version(tx, version)

    async def _tell_version(self, tx: Any, version: ModelVersion, key: str | None = None) -> None:
        payload = {
            "name": self._config.name,
            "version_id": version.id,
            "version": version.version,
            "model_id": version.model_id,
            "tags": {
                "base_model": version.base_model,
                "dataset": version.dataset_hash or "",
                "job": version.training_job_id or "",
                "provider": version.provider,
            },
        }
        await self._tell(tx, "model_version", payload, key)

    def _job_key(self, attempt: int) -> str:
        """What the job is found by: a retry trains again, a repeated step does not."""
        return self._id if attempt == 1 else f"{self._id}#{attempt}"

    async def _under_way(self, attempt: int, base: str) -> str:
        """The key of an earlier attempt's job that still trains this base, else a new one's.

        An attempt may have ended without its job: the key was refused meanwhile, or the job could
        not be cancelled. A second one beside it would be paid for twice.
        """
        provider = self._parts.provider(self._config.provider)
        for earlier in range(attempt - 1, 0, -1):
            job = await provider.find_job(RUN_KEY, self._job_key(earlier))
            if job is not None and job.model == base and not job.status.final:
                return self._job_key(earlier)
        return self._job_key(attempt)

    async def cancel(self, version: ModelVersion | None) -> None:
        """Cancel the job of an aborted run, where it has one that still runs."""
        if version is not None or self.stage is not Stage.TRAIN:
            return
        self.job_cancelled = await workflow.step("train.cancel", self._cancel)

    async def _cancel(self) -> bool:
        trainer = self._trainer({})
        attempt = await self._parts.store.attempt(self._id)
        key = self._key or self._job_key(attempt)
        try:
            job = await trainer.provider.find_job(RUN_KEY, key)
            if job is None or job.status.final:
                return False
            await trainer.provider.cancel_job(job.id)
        except RetryableError:
            return False
        return True


def _shown(history: list[Trial]) -> list[dict[str, Any]]:
    return [
        {
            "number": t.number,
            "hyperparameters": dict(t.hyperparameters),
            "heldout_loss": t.heldout_loss,
            "job_id": t.job_id,
            "cost_usd": t.cost_usd,
            "error": t.error,
        }
        for t in history
    ]


workflow.register(Trial)
