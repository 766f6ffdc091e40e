"""The stages from posts to a dataset: collect and curate."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from tuneproof import workflow
from tuneproof.collection import DataCollector, Source, TrainingDataBatch
from tuneproof.curation.pairs import PairOptions, pairs_curator
from tuneproof.errors import DataError
from tuneproof.pipeline.records import Stage
from tuneproof.pipeline.steps import Steps
from tuneproof.settings import PipelineConfig


class Collecting(Steps):
    """From posts to a dataset."""

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
            return await self._collector(source).collect_training_data(until=until)
        finally:
            await source.close()

    def _collector(self, source: Source) -> DataCollector:
        """What collects for this method: preferences also need the posts that did badly."""
        config = self._config
        pairs = config.method == "dpo"
        if pairs:
            config = replace(config, engagement_threshold=0.0, max_records=None)
        options = PairOptions(margin=config.pair_margin, confidence=config.pair_confidence)
        return DataCollector.of(
            config,
            source=source,
            tasks=[self._parts.tasks[name] for name in config.tasks],
            dir=self._parts.directory,
            clock=self._parts.clock,
            curator=pairs_curator(options) if pairs else None,
        )

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


def _params(config: PipelineConfig) -> dict[str, str]:
    return {k: str(v) for k, v in config.to_dict().items() if v is not None}
