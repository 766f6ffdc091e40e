"""The stages from posts to a dataset: collect and curate."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from tuneproof import workflow
from tuneproof.collection import DataCollector, Source, Task, TimeSource, TrainingDataBatch
from tuneproof.curation.files import DATASETS
from tuneproof.curation.pairs import PairOptions, pairs_curator
from tuneproof.errors import DataError, RetryableError
from tuneproof.pipeline.context import RunContext
from tuneproof.pipeline.drifted_columns import column_changes
from tuneproof.pipeline.prompting import asked_tasks
from tuneproof.pipeline.records import Stage, StageStatus
from tuneproof.pipeline.steps import StepName
from tuneproof.resilience import in_daemon_thread
from tuneproof.settings import PipelineConfig
from tuneproof.workflow import Tx

log = logging.getLogger(__name__)


class CollectStage:
    """From posts to a dataset."""

    def __init__(self, run: RunContext) -> None:
        self._run = run

    async def collect(self) -> TrainingDataBatch:
        """Posts to a curated dataset; the same arguments always give the same dataset."""
        run = self._run
        await run.begin(Stage.COLLECT)
        until = run.arguments.until or await workflow.now()
        async with run.timed():
            batch = await self._build(until)
        await workflow.transaction(StepName.COLLECT_END, self._write, batch)
        run.stage = Stage.CURATE
        run.changed()
        return batch

    async def _build(self, until: datetime) -> TrainingDataBatch:
        """Build the dataset; a database or an object store that is away is waited for.

        The first try is the step alone: so runs recorded it before they waited here.
        """
        run = self._run
        try:
            return await workflow.step(StepName.COLLECT_BUILD, _compared, run, until)
        except RetryableError:
            return await run.patiently(StepName.COLLECT_BUILD, _compared, run, until)

    async def _write(self, tx: Tx, batch: TrainingDataBatch) -> None:
        run = self._run
        found = {
            "posts": batch.posts,
            "since": batch.window.since.isoformat(),
            "until": batch.window.until.isoformat(),
            "source": batch.source,
            "method": run.config.method,
        }
        data = {
            "hash": batch.hash,
            "examples": dict(batch.examples),
            "total_records": batch.total_records,
        }
        kept = {**data, "dropped": dict(batch.dropped), "method": run.config.method}
        columns = {
            "columns": dict(batch.columns),
            "used_columns": dict(batch.used),
            "changes": list(batch.changes),
        }
        await run.mark_stage(tx, Stage.COLLECT, StageStatus.COMPLETED, {**found, **columns})
        await run.mark_stage(tx, Stage.CURATE, StageStatus.COMPLETED, kept)
        await run.mark_run(tx, {"training_data": data})
        started = {
            "params": _params(run.config),
            "tags": {"tuneproof_pipeline": run.config.name},
            "at": run.now.isoformat(),
        }
        await run.tell(tx, "run_started", started)
        await run.tell(tx, "dataset", {"manifest": {**kept, **found}})


async def with_files(run: RunContext, batch: TrainingDataBatch) -> TrainingDataBatch:
    """The batch with its files on this machine: another worker may have collected it, or the
    data directory may have been restored elsewhere.

    Raises `DataError` where the posts have changed since, `FilesUnavailableError` where the files
    are in an object store that is away.
    """
    moved = batch.within(run.parts.directory / DATASETS / batch.hash)
    shelved = run.parts.shelved
    if shelved is not None and await in_daemon_thread(shelved.find, batch.hash) is not None:
        return moved
    for known in (batch, moved):
        if Path(known.train_path).exists():
            return known
    until = batch.window.until + timedelta(hours=run.config.min_age_hours)
    again = await _built(run, until, batch.prompt)
    if again.hash != batch.hash:
        raise DataError(
            f"The posts of {batch.window.since} to {batch.window.until} changed: dataset "
            f"{batch.hash} cannot be built again, it is {again.hash} now.",
            mend=f"tuneproof run retry {run.id} --stage collect",
        )
    return again


async def _compared(run: RunContext, until: datetime) -> TrainingDataBatch:
    """The dataset, with what changed of the source's columns since the run before.

    Raises `DataError` where a column that is needed is gone or retyped, unless that is forced.
    """
    batch = await _built(run, until)
    runs = run.parts.store.runs
    before = await runs.last_detail(run.config.name, Stage.COLLECT, but=run.id)
    if before is None or before.get("source") != batch.source:
        return batch
    types, used = _texts(before.get("columns")), _texts(before.get("used_columns"))
    if not types:  # of a version that did not write them down
        return batch
    changes = column_changes(types, used, batch)
    if not run.arguments.force:
        changes.refuse(batch.source)
    for change in (*changes.stopping, *changes.told):
        log.warning("run %s: %s: %s", run.id, batch.source, change)
    return replace(batch, changes=(*changes.stopping, *changes.told))


def _texts(value: object) -> dict[str, str]:
    pairs = value.items() if isinstance(value, Mapping) else ()
    return {str(name): str(text) for name, text in pairs}


async def _built(run: RunContext, until: datetime, prompt: str | None = None) -> TrainingDataBatch:
    """The dataset, by the prompt in use, or by the one with this hash."""
    source = run.parts.source(run.config, run.arguments.posts)
    try:
        tasks = await asked_tasks(run, prompt)
        collecting = collector(
            run.config, source, tasks, directory=run.parts.directory, clock=run.parts.clock
        )
        batch = await collecting.collect_training_data(until=until)
    finally:
        await source.close()
    if run.parts.shelved is not None:
        await in_daemon_thread(run.parts.shelved.put, batch.hash)
    return batch


def collector(
    config: PipelineConfig,
    source: Source,
    tasks: Sequence[Task],
    *,
    directory: Path,
    clock: TimeSource,
) -> DataCollector:
    """What collects for a run of this config: preferences also need the posts that did badly."""
    pairs = config.method == "dpo"
    if pairs:
        config = replace(config, engagement_threshold=0.0, top_share=None, max_records=None)
    options = PairOptions(
        margin=config.pair_margin, confidence=config.pair_confidence, days=config.pair_days
    )
    return DataCollector.of(
        config,
        source=source,
        tasks=tasks,
        dir=directory,
        clock=clock,
        curator=pairs_curator(options) if pairs else None,
    )


def _params(config: PipelineConfig) -> dict[str, str]:
    return {k: str(v) for k, v in config.to_dict().items() if v is not None}
