"""The stages that make a version: collect, curate, train, gate."""

from __future__ import annotations

import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tuneproof import workflow
from tuneproof.collection import DataCollector, TrainingDataBatch
from tuneproof.errors import DataError, RetryableError
from tuneproof.evaluation import Gate, GateReport
from tuneproof.pipeline.records import Parts, RunArguments, Stage
from tuneproof.settings import PipelineConfig
from tuneproof.training import (
    RUN_KEY,
    ModelTrainer,
    ModelVersion,
    Progress,
    VersionStatus,
    new_version_id,
)
from tuneproof.workflow import RunStatus

Wait = Callable[[datetime], Awaitable[workflow.Signal | None]]

FIRST_POLL_S = 0.5
"""A small job may be done at once: the pause between polls doubles from here to `poll_seconds`."""

FIRST_PAUSE = timedelta(minutes=1)
LONGEST_PAUSE = timedelta(hours=1)
PATIENCE = timedelta(hours=24)
"""How long a stage goes on trying while a provider is away, and how often."""


class Making:
    """From posts to a checked version. Each method is one stage, recorded step by step."""

    def __init__(
        self, parts: Parts, run_id: str, config: PipelineConfig, arguments: RunArguments
    ) -> None:
        self._parts = parts
        self._id = run_id
        self._config = config
        self._arguments = arguments
        self.stage = Stage.COLLECT
        self.seconds = 0.0
        self.memory: dict[str, float] = {}

    # --- collect and curate ---------------------------------------------------------

    async def collect(self) -> TrainingDataBatch:
        """Posts to a curated dataset; the same arguments always give the same dataset."""
        await workflow.transaction("collect.begin", self._begin, Stage.COLLECT)
        until = self._arguments.until or await workflow.now()
        async with self._timed(Stage.COLLECT):
            batch: TrainingDataBatch = await workflow.step("collect", self._collected, until)
        await workflow.transaction("collect.end", self._write_collected, batch)
        self.stage = Stage.CURATE
        self._parts.hooks.run_changed(self._id)
        return batch

    async def _collected(self, until: datetime) -> TrainingDataBatch:
        source = self._parts.source(self._config, self._arguments.posts)
        try:
            collector = DataCollector.of(
                self._config,
                source=source,
                tasks=[self._parts.tasks[name] for name in self._config.tasks],
                dir=self._parts.directory,
                clock=self._parts.clock,
            )
            return await collector.collect_training_data(until=until)
        finally:
            await source.close()

    async def _write_collected(self, tx: Any, batch: TrainingDataBatch) -> None:
        store, at = self._parts.store, self._parts.clock.now()
        found = {
            "posts": batch.posts,
            "since": batch.window.since.isoformat(),
            "until": batch.window.until.isoformat(),
            "source": batch.source,
        }
        await store.mark_stage(self._id, Stage.COLLECT, "completed", found, at, tx)
        kept = {
            "hash": batch.hash,
            "examples": dict(batch.examples),
            "total_records": batch.total_records,
            "dropped": dict(batch.dropped),
        }
        await store.mark_stage(self._id, Stage.CURATE, "completed", kept, at, tx)
        data = {
            "hash": batch.hash,
            "examples": dict(batch.examples),
            "total_records": batch.total_records,
        }
        await store.mark_run(self._id, "running", at=at, result={"training_data": data}, tx=tx)
        await self._tell(
            tx,
            "run_started",
            {
                "params": _params(self._config),
                "tags": {"tuneproof_pipeline": self._config.name},
                "at": at.isoformat(),
            },
        )
        await self._tell(tx, "dataset", {"manifest": {**kept, **found}})

    # --- train ----------------------------------------------------------------------

    async def train(self, batch: TrainingDataBatch, wait: Wait) -> ModelVersion:
        """Upload, create the job, and wait for its end; a provider that is away is waited for."""
        self.stage = Stage.TRAIN
        attempt: int = await workflow.transaction("train.begin", self._begin, Stage.TRAIN)
        base: str = await self._patiently("train.base", wait, self._trainer().base)
        declared: ModelVersion = await workflow.transaction(
            "train.version", self._declare, batch, base
        )
        async with self._timed(Stage.TRAIN):
            started: ModelVersion = await self._patiently(
                "train.start", wait, self._start, batch, declared, attempt
            )
            await workflow.transaction("train.job", self._write_job, started)
            self._parts.hooks.run_changed(self._id)
            trained, metrics = await self._monitored(started, wait)
        await workflow.transaction("train.end", self._write_trained, trained, metrics)
        self._parts.hooks.run_changed(self._id)
        return trained

    def _trainer(self) -> ModelTrainer:
        config = self._config
        chosen = {
            "n_epochs": config.n_epochs,
            "batch_size": config.batch_size,
            "learning_rate_multiplier": config.learning_rate_multiplier,
        }
        return ModelTrainer(
            config.base_model,
            provider=self._parts.provider(config.provider),
            clock=self._parts.clock,
            hyperparameters={k: v for k, v in chosen.items() if v != "auto"},
            seed=config.seed,
            suffix=config.suffix,
            timeout_s=config.timeout_seconds,
            poll_s=config.poll_seconds,
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
        self, batch: TrainingDataBatch, declared: ModelVersion, attempt: int
    ) -> ModelVersion:
        batch = await self._present(batch)
        trainer = self._trainer()
        trainer.base_model = declared.base_model
        started = await trainer.start_fine_tuning(
            batch,
            run_id=self._id,
            key=self._job_key(attempt),
            version_id=declared.id,
            version=declared.version,
            parent_id=declared.parent_id,
        )
        return replace(started, created_at=declared.created_at, provider=declared.provider)

    async def _present(self, batch: TrainingDataBatch) -> TrainingDataBatch:
        """The batch with its files on this machine: another worker may have collected it."""
        if Path(batch.train_path).exists():
            return batch
        again = await self._collected(batch.window.until)
        if again.hash != batch.hash:
            raise DataError(
                f"The posts of {batch.window.since} to {batch.window.until} changed: dataset "
                f"{batch.hash} cannot be built again, it is {again.hash} now.",
                mend=f"tuneproof run retry {self._id} --stage collect",
            )
        return again

    async def _write_job(self, tx: Any, version: ModelVersion) -> None:
        at = self._parts.clock.now()
        await self._parts.store.keep_version(version, tx)
        detail = {"job_id": version.training_job_id, "base_model": version.base_model}
        await self._parts.store.mark_stage(
            self._id, Stage.TRAIN, "in_progress", {**detail, "note": ""}, at, tx
        )
        await self._mark_version(tx, version, at)

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

    async def _monitored(
        self, version: ModelVersion, wait: Wait
    ) -> tuple[ModelVersion, Mapping[str, float]]:
        trainer = self._trainer()
        now = await workflow.now()
        deadline = now + timedelta(seconds=trainer.timeout_s)
        pause = FIRST_POLL_S
        while True:
            pause = min(2 * pause, trainer.poll_s)
            await wait(now + timedelta(seconds=pause))
            now = await workflow.now()
            progress = await self._polled(trainer, version)
            if progress is not None and progress.job.status.final:
                return trainer.trained(version, progress), progress.metrics
            if now >= deadline:
                ended = await workflow.step("train.cancel", trainer.give_up, version, progress)
                return trainer.trained(version, ended), ended.metrics

    async def _polled(self, trainer: ModelTrainer, version: ModelVersion) -> Progress | None:
        try:
            found: Progress = await workflow.step("train.poll", trainer.poll, version)
        except RetryableError:
            return None  # the provider is away; the job goes on, the next poll asks again
        return found

    async def _write_trained(
        self, tx: Any, version: ModelVersion, metrics: Mapping[str, float]
    ) -> None:
        at = self._parts.clock.now()
        await self._parts.store.keep_version(version, tx)
        detail = {
            "model_id": version.model_id,
            "trained_tokens": version.trained_tokens,
            "metrics": dict(metrics),
        }
        await self._parts.store.mark_stage(self._id, Stage.TRAIN, "completed", detail, at, tx)
        await self._mark_version(tx, version, at)
        numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float))}
        await self._tell(tx, "metrics", {"metrics": numbers, "step": 0, "at": at.isoformat()})
        await self._tell(
            tx,
            "model_version",
            {
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
            },
        )

    def _job_key(self, attempt: int) -> str:
        """What the job is found by: a retry trains again, a repeated step does not."""
        return self._id if attempt == 1 else f"{self._id}#{attempt}"

    async def cancel(self, version: ModelVersion | None) -> None:
        """Cancel the job of an aborted run, where it has one that still runs."""
        if version is not None or self.stage is not Stage.TRAIN:
            return
        self.job_cancelled = await workflow.step("train.cancel", self._cancel)

    job_cancelled = False

    async def _cancel(self) -> bool:
        trainer = self._trainer()
        attempt = await self._parts.store.attempt(self._id)
        try:
            job = await trainer.provider.find_job(RUN_KEY, self._job_key(attempt))
            if job is None or job.status.final:
                return False
            await trainer.provider.cancel_job(job.id)
        except RetryableError:
            return False
        return True

    # --- gate -----------------------------------------------------------------------

    async def gate(
        self, version: ModelVersion, batch: TrainingDataBatch
    ) -> tuple[ModelVersion, GateReport]:
        """Check a version offline; a report that fails ends the run, nothing is served."""
        self.stage = Stage.GATE
        await workflow.transaction("gate.begin", self._begin, Stage.GATE)
        async with self._timed(Stage.GATE):
            report: GateReport = await workflow.step("gate", self._checked, version, batch)
        judged: ModelVersion = await workflow.transaction(
            "gate.end", self._write_gate, version, report
        )
        self._parts.hooks.run_changed(self._id)
        return judged, report

    async def _checked(self, version: ModelVersion, batch: TrainingDataBatch) -> GateReport:
        batch = await self._present(batch)
        gate = Gate(
            self._parts.provider(self._config.provider),
            min_improvement=self._config.gate_min_improvement,
            samples=self._config.gate_samples,
            scorers=self._parts.scorers,
            seed=self._config.seed,
        )
        return await gate.check(version, batch.validation_path)

    async def _write_gate(self, tx: Any, version: ModelVersion, report: GateReport) -> ModelVersion:
        at = self._parts.clock.now()
        losses = {
            "heldout_loss": report.heldout_loss,
            "base_heldout_loss": report.base_heldout_loss,
        }
        detail = {
            **losses,
            "improvement": report.improvement,
            "heldout_examples": report.heldout_examples,
            "reason": report.reason,
            "samples": [{"prompt": s.prompt, "text": s.text} for s in report.samples[:5]],
        }
        status = "completed" if report.passed else "failed"
        await self._parts.store.mark_stage(self._id, Stage.GATE, status, detail, at, tx)
        kept = replace(
            version,
            status=VersionStatus.CANDIDATE if report.passed else VersionStatus.REJECTED,
            heldout_loss=report.heldout_loss,
            base_heldout_loss=report.base_heldout_loss,
        )
        await self._parts.store.keep_version(kept, tx)
        await self._mark_version(tx, kept, at)
        known = {**losses, "memory": self.memory}
        await self._parts.store.mark_run(self._id, "running", at=at, result=known, tx=tx)
        numbers = {k: v for k, v in losses.items() if v is not None}
        await self._tell(
            tx, "metrics", {"metrics": numbers, "step": 0, "at": at.isoformat()}, "gate"
        )
        if report.passed:
            alias = {"name": self._config.name, "alias": "candidate", "version_id": version.id}
            await self._tell(tx, "alias", alias, "candidate")
        return kept

    # --- what all stages share ------------------------------------------------------

    async def _begin(self, tx: Any, stage: Stage) -> int:
        at = self._parts.clock.now()
        await self._parts.store.mark_stage(self._id, stage, "in_progress", {}, at, tx)
        await self._parts.store.mark_run(self._id, "running", at=at, tx=tx)
        return await self._parts.store.attempt(self._id, tx)

    async def _patiently(
        self, name: str, wait: Wait, fn: Callable[..., Awaitable[Any]], *args: Any
    ) -> Any:
        """A step that goes on trying, minutes apart, while its provider is away."""
        began = await workflow.now()
        pause = FIRST_PAUSE
        while True:
            try:
                return await workflow.step(name, fn, *args)
            except RetryableError as e:
                now = await workflow.now()
                if now - began >= PATIENCE:
                    raise
                hint = timedelta(seconds=float(e.details.get("retry_after_s") or 0))
                pause = min(max(pause, hint), LONGEST_PAUSE)
                again = now + pause
                note = f"{e.message} The next try is at {again:%Y-%m-%d %H:%M} UTC."
                await workflow.transaction(f"{name}.note", self._note, note)
                await wait(again)
                pause *= 2

    async def _note(self, tx: Any, note: str) -> None:
        at = self._parts.clock.now()
        await self._parts.store.mark_stage(
            self._id, self.stage, "in_progress", {"note": note}, at, tx
        )
        await self._tell(tx, "note", {"text": note}, f"note:{at.isoformat()}")

    async def _tell(
        self, tx: Any, kind: str, payload: Mapping[str, Any], key: str | None = None
    ) -> None:
        attempt = await self._parts.store.attempt(self._id, tx)
        await self._parts.store.tell(
            f"{self._id}:{attempt}:{key or kind}", kind, {"run_id": self._id, **payload}, tx
        )

    @asynccontextmanager
    async def _timed(self, stage: Stage) -> Any:
        began = time.perf_counter()
        with self._parts.hooks.memory(self._config.memory_warning_mb) as watch:
            try:
                yield
            finally:
                seconds = time.perf_counter() - began
                self.seconds += seconds
                self._parts.hooks.stage_finished(self._id, stage, seconds)
        self._remember(watch.usage.to_dict())

    def _remember(self, usage: Mapping[str, float]) -> None:
        """Memory over the run's stages: the first's start, the highest peak, the last's end."""
        self.memory = {
            "initial_mb": self.memory.get("initial_mb", usage["initial_mb"]),
            "peak_mb": max(self.memory.get("peak_mb", 0.0), usage["peak_mb"]),
            "final_mb": usage["final_mb"],
        }

    async def clean(self, status: RunStatus) -> list[str]:
        """Remove what the run left on this machine; only what really went is named."""
        removed: list[str] = await workflow.step("clean", self._clean)
        if self.job_cancelled:
            removed.append("openai_job_cancelled")
        return removed

    def _clean(self) -> list[str]:
        temporary = self._parts.directory / "tmp" / self._id
        if temporary.exists():
            shutil.rmtree(temporary)
            return ["temporary_files"]
        return []


def _params(config: PipelineConfig) -> dict[str, str]:
    return {k: str(v) for k, v in config.to_dict().items() if v is not None}
