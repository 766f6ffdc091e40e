"""The end of a run, whatever it was: cleaned up, written down, nothing left that serves."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace

from tuneproof import workflow
from tuneproof.pipeline.context import RunContext
from tuneproof.pipeline.records import PipelineResult, StageStatus
from tuneproof.pipeline.routing import route, withdraw
from tuneproof.pipeline.steps import StepName
from tuneproof.training import VersionStatus
from tuneproof.workflow import RunStatus, Tx

_VERSION_ENDS = {
    RunStatus.REJECTED: VersionStatus.REJECTED,
    RunStatus.ROLLED_BACK: VersionStatus.ROLLED_BACK,
}

_STAGE_ENDS = {
    RunStatus.FAILED: StageStatus.FAILED,
    RunStatus.ABORTED: StageStatus.FAILED,
    RunStatus.SKIPPED: StageStatus.SKIPPED,
}


class EndStage:
    """What each run does last."""

    def __init__(self, run: RunContext) -> None:
        self._run = run

    async def end(self, result: PipelineResult, *, job_cancelled: bool) -> PipelineResult:
        """Clean up and write the end down; a candidate that did not win serves nobody."""
        run = self._run
        cleaned = await workflow.step(StepName.RUN_CLEAN, self._clean)
        if job_cancelled:
            cleaned = [*cleaned, "openai_job_cancelled"]
        ended = replace(result, seconds=run.seconds, memory_peak_mb=run.memory.get("peak_mb"))
        await workflow.transaction(StepName.RUN_END, self._write, ended, cleaned)
        if self._leaves_nothing(result):
            await route(run, StepName.RUN_ROUTE)
        return ended

    def _leaves_nothing(self, result: PipelineResult) -> bool:
        """Whether the run put no version in use: it did not succeed, or stopped before."""
        return result.status is not RunStatus.SUCCESS or self._run.arguments.only is not None

    async def _clean(self) -> list[str]:
        """Remove what the run left on this machine; only what really went is named."""
        temporary = self._run.parts.directory / "tmp" / self._run.id
        if not temporary.exists():
            return []
        await asyncio.to_thread(shutil.rmtree, temporary)
        return ["temporary_files"]

    async def _write(self, tx: Tx, result: PipelineResult, cleaned: list[str]) -> None:
        run, store = self._run, self._run.parts.store
        status, reason, stage = result.status, result.reason, run.stage
        if self._leaves_nothing(result):
            await withdraw(run, tx, reason)
            version = result.model_version
            if version is not None and status in _VERSION_ENDS:
                await store.versions.save(replace(version, status=_VERSION_ENDS[status]), tx=tx)
        if status in _STAGE_ENDS:
            await run.mark_stage(tx, stage, _STAGE_ENDS[status], {"reason": reason})
        await store.runs.mark(
            run.id,
            status,
            at=run.now,
            reason=reason,
            error={**result.error, "stage": str(stage)} if result.error else None,
            result={
                "resources_cleaned": cleaned,
                "execution_time_seconds": run.seconds,
                "memory": run.memory,
            },
            tx=tx,
        )
        ended = {"status": str(status), "reason": reason, "at": run.now.isoformat()}
        await run.tell(tx, "run_ended", ended, "ended")
