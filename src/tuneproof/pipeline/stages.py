"""The stages that make a version: collect and curate, train, gate.

`collecting` and `training` are the first three; the gate stands here, with what cleans up.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from tuneproof import workflow
from tuneproof.collection import TrainingDataBatch
from tuneproof.evaluation import Gate, GateReport, Scorer
from tuneproof.pipeline.records import Stage
from tuneproof.pipeline.steps import Wait
from tuneproof.pipeline.training import Training
from tuneproof.training import Deploys, ModelVersion, VersionStatus
from tuneproof.workflow import RunStatus

__all__ = ["Judged", "Making", "Wait"]

Judged = tuple[ModelVersion, GateReport]
"""A version after the gate, and what the gate said of it."""


class Making(Training):
    """From posts to a checked version. Each method is one stage, recorded step by step."""

    # --- gate -----------------------------------------------------------------------

    async def gate(
        self, version: ModelVersion, batch: TrainingDataBatch, wait: Wait
    ) -> tuple[ModelVersion, GateReport]:
        """Check a version offline; a report that fails ends the run, nothing is served.

        A provider that is away is waited for, and so is a version that must be deployed first.
        """
        self.stage = Stage.GATE
        await workflow.transaction("gate.begin", self._begin, Stage.GATE)
        async with self._timed(Stage.GATE):
            report: GateReport = await self._patiently("gate", wait, self._checked, version, batch)
        judged: ModelVersion = await workflow.transaction(
            "gate.end", self._write_gate, version, report
        )
        self._parts.hooks.run_changed(self._id)
        return judged, report

    async def _checked(self, version: ModelVersion, batch: TrainingDataBatch) -> GateReport:
        batch = await self._present(batch)
        provider = await self._answering(version)
        if isinstance(provider, Deploys) and version.model_id is not None:
            await cast(Deploys, provider).ensure_deployed(version.model_id)
        gate = Gate(
            provider,
            min_improvement=self._config.gate_min_improvement,
            samples=self._config.gate_samples,
            scorers=self._scorers(),
            min_scores={**self._parts.min_scores, **(self._config.gate_min_scores or {})},
            seed=self._config.seed,
        )
        return await gate.check(version, batch.validation_path)

    def _scorers(self) -> dict[str, Scorer]:
        """Those that every gate asks, and those that this pipeline names."""
        find = self._parts.scorer
        named = {} if find is None else {name: find(name) for name in self._config.gate_scorers}
        return {**self._parts.scorers, **named}

    async def gate_all(
        self, versions: Sequence[ModelVersion], batch: TrainingDataBatch, wait: Wait
    ) -> list[Judged]:
        """Check several versions, each on its own; those that fail are never served."""
        self.stage = Stage.GATE
        await workflow.transaction("gate.begin", self._begin, Stage.GATE)
        reports = []
        async with self._timed(Stage.GATE):
            for version in versions:
                report = await self._patiently("gate", wait, self._checked, version, batch)
                reports.append(report)
        judged: list[ModelVersion] = await workflow.transaction(
            "gate.end", self._write_gates, list(versions), reports
        )
        self._parts.hooks.run_changed(self._id)
        return list(zip(judged, reports, strict=True))

    async def _write_gates(
        self, tx: Any, versions: list[ModelVersion], reports: list[GateReport]
    ) -> list[ModelVersion]:
        """Keep what the gate said of each; the first that passed stands for the run."""
        both = list(zip(versions, reports, strict=True))
        lead = next((v for v, report in both if report.passed), versions[0])
        said = [
            {
                "version": version.version,
                "model_id": version.model_id,
                "passed": report.passed,
                "heldout_loss": report.heldout_loss,
                "reason": report.reason,
            }
            for version, report in both
        ]
        kept = [await self._keep_judged(tx, version, report) for version, report in both]
        place = versions.index(lead)
        await self._write_report(tx, kept[place], reports[place], {"candidates": said})
        return kept

    async def _write_gate(self, tx: Any, version: ModelVersion, report: GateReport) -> ModelVersion:
        kept = await self._keep_judged(tx, version, report)
        await self._write_report(tx, kept, report, {})
        return kept

    async def _keep_judged(
        self, tx: Any, version: ModelVersion, report: GateReport
    ) -> ModelVersion:
        kept = replace(
            version,
            status=VersionStatus.CANDIDATE if report.passed else VersionStatus.REJECTED,
            heldout_loss=report.heldout_loss,
            base_heldout_loss=report.base_heldout_loss,
        )
        await self._parts.store.keep_version(kept, tx)
        return kept

    async def _write_report(
        self, tx: Any, version: ModelVersion, report: GateReport, more: dict[str, Any]
    ) -> None:
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
            **more,
        }
        status = "completed" if report.passed else "failed"
        await self._parts.store.mark_stage(self._id, Stage.GATE, status, detail, at, tx)
        await self._mark_version(tx, version, at)
        known = {**losses, "memory": self.memory}
        await self._parts.store.mark_run(self._id, "running", at=at, result=known, tx=tx)
        numbers = {k: v for k, v in losses.items() if v is not None}
        await self._tell(
            tx, "metrics", {"metrics": numbers, "step": 0, "at": at.isoformat()}, "gate"
        )
        if report.passed:
            alias = {"name": self._config.name, "alias": "candidate", "version_id": version.id}
            await self._tell(tx, "alias", alias, "candidate")

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
