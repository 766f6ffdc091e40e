"""One turn of the loop, durable: it reads like the diagram in the README."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime
from typing import Any

from tuneproof import workflow
from tuneproof.collection import TrainingDataBatch
from tuneproof.errors import AbortedError, StateError, TuneProofError
from tuneproof.experiments import Verdict
from tuneproof.pipeline.families import Families, ending, follow_family, leading
from tuneproof.pipeline.planning import Planning
from tuneproof.pipeline.records import Parts, PipelineResult, RunArguments, Stage
from tuneproof.pipeline.serving import Serving, follow_experiment, follow_rollout
from tuneproof.pipeline.stages import Judged, Making
from tuneproof.rollout import DeploymentState
from tuneproof.settings import PipelineConfig
from tuneproof.training import ModelVersion, VersionStatus
from tuneproof.workflow import RunStatus

log = logging.getLogger(__name__)


class _Ended(Exception):
    """The run is over without an error: skipped, rejected, or asked to stop here."""

    def __init__(self, status: RunStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@workflow.durable("run")
async def turn(run_id: str, config: PipelineConfig, arguments: RunArguments) -> PipelineResult:
    """Collect, curate, train, gate, experiment, roll out; watch; take back what does harm."""
    run = _Turn(workflow.resources(), run_id, config, arguments)
    try:
        return await run.go()
    finally:
        workflow.engine().clock.ended(run_id)


class _Turn:
    """The state of one turn between its stages; rebuilt by replay after a kill."""

    def __init__(
        self, parts: Parts, run_id: str, config: PipelineConfig, arguments: RunArguments
    ) -> None:
        self._parts = parts
        self._config = config
        self._arguments = arguments
        self._making = Making(parts, run_id, config, arguments)
        self._planning = Planning(parts, run_id, config, arguments)
        self._serving = Families(parts, run_id, config)
        self._versions: tuple[ModelVersion, ...] = ()
        self._result = PipelineResult(run_id=run_id, status=RunStatus.RUNNING, reason="")
        self._id = run_id

    async def go(self) -> PipelineResult:
        self._began = await workflow.now()
        try:
            batch = await self._collect()
            await self._plan(batch)
            await self._train(batch)
            await self._gate(batch)
            await self._experiment()
            await self._roll_out()
        except _Ended as e:
            return await self._finish(e.status, e.reason)
        except AbortedError as e:
            await self._making.cancel(self._result.model_version)
            return await self._finish(RunStatus.ABORTED, e.message)
        except TuneProofError as e:
            return await self._fail(e)
        except Exception as e:  # a bug of ours must end in a state that says so, too
            if isinstance(e, workflow.EngineError):
                raise
            log.exception("run %s failed", self._id)
            return await self._fail(TuneProofError(f"{type(e).__name__}: {e}"))
        state = self._result.deployment.state if self._result.deployment else None
        if state is DeploymentState.ROLLED_BACK:
            cause = self._result.deployment.cause if self._result.deployment else ""
            return await self._finish(RunStatus.ROLLED_BACK, cause or "rolled back")
        return await self._finish(RunStatus.SUCCESS, "The version is the model in use.")

    async def _collect(self) -> TrainingDataBatch:
        batch = await self._making.collect()
        self._result = replace(self._result, training_data=batch)
        self._parts.hooks.collected(batch)
        needed = self._config.training_data_threshold
        found = sum(batch.examples.values())
        if found < needed and not self._arguments.force:
            raise _Ended(
                RunStatus.SKIPPED,
                f"{found} examples, and training_data_threshold is {needed}: nothing was spent. "
                f"{batch.note} Widen days_back, lower engagement_threshold, or wait.",
            )
        return batch

    async def _plan(self, batch: TrainingDataBatch) -> None:
        if self._config.plan_gate == "off" or self._arguments.only is Stage.GATE:
            return
        plan = await self._planning.plan(batch)
        refusal = self._planning.refusal(plan)
        if refusal and not self._arguments.force:
            raise _Ended(RunStatus.SKIPPED, refusal)
        if plan.probability is not None and plan.probability < self._config.plan_probability:
            log.warning("run %s: %s", self._id, plan.sentence())

    async def _train(self, batch: TrainingDataBatch) -> None:
        version = await self._making.train(batch, self._abortable_wait)
        self._serving.config = self._making.config
        self._result = replace(self._result, model_version=version)
        self._versions = (version, *self._making.runners_up)

    async def _gate(self, batch: TrainingDataBatch) -> None:
        if len(self._versions) > 1:
            version, report = await self._gate_all(batch)
        else:
            version, report = await self._making.gate(
                self._versions[0], batch, self._abortable_wait
            )
        self._result = replace(self._result, gate=report, model_version=version)
        if not report.passed:
            raise _Ended(RunStatus.REJECTED, f"The gate said no: {report.reason}")
        if self._arguments.only is Stage.GATE:
            raise _Ended(
                RunStatus.SUCCESS, f"Passed the gate, and was asked to stop there. {report.reason}"
            )

    async def _gate_all(self, batch: TrainingDataBatch) -> Judged:
        """Check each candidate; those that pass go on, and the best of them stands for the run."""
        judged = await self._making.gate_all(self._versions, batch, self._abortable_wait)
        passed = [one for one in judged if one[1].passed]
        self._versions = tuple(version for version, _ in passed)
        return (passed or judged)[0]

    async def _experiment(self) -> None:
        if len(self._versions) > 1:
            await self._family()
            return
        assert self._result.model_version is not None
        test = await self._serving.start_experiment(self._result.model_version)
        self._result = replace(self._result, experiment=test)
        test, look = await follow_experiment(self._serving, test, self._abortable_wait)
        self._result = replace(self._result, experiment=test, look=look)
        await self._serving.end_experiment(test, look)
        if test.verdict is not Verdict.PROMOTE:
            raise _Ended(RunStatus.REJECTED, f"The experiment says {test.verdict}: {test.reason}")
        if self._arguments.only is Stage.EXPERIMENT:
            raise _Ended(RunStatus.SUCCESS, f"Promoted, and was asked to stop there. {test.reason}")

    async def _family(self) -> None:
        """Test several candidates at once; the one that wins goes on."""
        tests = await self._serving.start_family(self._versions)
        self._result = replace(self._result, experiment=tests[0], family=tests)
        tests, looks = await follow_family(self._serving, tests, self._abortable_wait)
        look = leading(looks)
        test = next((t for t in tests if look and t.id == look.experiment_id), tests[0])
        version = self._versions[test.lane]
        self._result = replace(
            self._result, model_version=version, experiment=test, family=tests, look=look
        )
        lost = [other for other in self._versions if other is not version]
        await self._serving.end_family(tests, looks, lost)
        if test.verdict is not Verdict.PROMOTE:
            raise _Ended(RunStatus.REJECTED, ending(tests))
        if self._arguments.only is Stage.EXPERIMENT:
            raise _Ended(RunStatus.SUCCESS, f"Promoted, and was asked to stop there. {test.reason}")

    async def _roll_out(self) -> None:
        version, test, look = self._result.model_version, self._result.experiment, self._result.look
        assert version is not None
        assert test is not None
        assert look is not None
        deployment = await self._serving.start_rollout(version, test, look)
        self._result = replace(self._result, deployment=deployment)
        deployment = await follow_rollout(self._serving, deployment, self._abortable_wait)
        self._result = replace(self._result, deployment=deployment)
        await self._serving.end_rollout(deployment)

    async def _abortable_wait(self, until: datetime) -> workflow.Signal | None:
        signal = await workflow.wait(until)
        if signal is not None and signal.kind == "abort":
            raise AbortedError(signal.reason or "Aborted.", actor=signal.actor)
        return signal

    async def _fail(self, error: TuneProofError) -> PipelineResult:
        described = {**error.to_dict(), "type": error.slug}
        self._result = replace(self._result, error=described)
        return await self._finish(RunStatus.FAILED, error.message, described)

    async def _finish(
        self, status: RunStatus, reason: str, error: dict[str, Any] | None = None
    ) -> PipelineResult:
        cleaned = await self._making.clean(status)
        self._result = replace(
            self._result,
            status=status,
            reason=reason,
            seconds=self._making.seconds,
            memory_peak_mb=self._making.memory.get("peak_mb"),
        )
        await workflow.transaction("finish", self._write_end, status, reason, error, cleaned)
        if status is not RunStatus.SUCCESS or self._arguments.only is not None:
            await self._serving.apply_routing()
        self._parts.hooks.run_changed(self._id)
        seconds = (await workflow.now() - self._began).total_seconds()
        self._parts.hooks.run_ended(self._result, self._config.name, seconds)
        return self._result

    async def _write_end(
        self,
        tx: Any,
        status: RunStatus,
        reason: str,
        error: dict[str, Any] | None,
        cleaned: list[str],
    ) -> None:
        store, at = self._parts.store, self._parts.clock.now()
        if status is not RunStatus.SUCCESS or self._arguments.only is not None:
            await self._serving.withdraw(tx, at, reason)
            version = self._result.model_version
            if version is not None and status in _VERSION_ENDS:
                await store.keep_version(replace(version, status=_VERSION_ENDS[status]), tx)
        stage = self._making.stage if self._serving.stage is None else self._serving.stage
        if status in (RunStatus.FAILED, RunStatus.ABORTED, RunStatus.SKIPPED):
            mark = "skipped" if status is RunStatus.SKIPPED else "failed"
            await store.mark_stage(self._id, str(stage), mark, {"reason": reason}, at, tx)
        await store.mark_run(
            self._id,
            str(status),
            at=at,
            reason=reason,
            error={**error, "stage": str(stage)} if error else None,
            result={
                "resources_cleaned": cleaned,
                "execution_time_seconds": self._making.seconds,
                "memory": self._making.memory,
            },
            tx=tx,
        )
        attempt = await store.attempt(self._id, tx)
        await store.tell(
            f"{self._id}:{attempt}:ended",
            "run_ended",
            {
                "run_id": self._id,
                "status": str(status),
                "reason": reason,
                "at": at.isoformat(),
            },
            tx,
        )


_VERSION_ENDS = {
    RunStatus.REJECTED: VersionStatus.REJECTED,
    RunStatus.ROLLED_BACK: VersionStatus.ROLLED_BACK,
}


@workflow.durable("experiment")
async def experiment_alone(test_id: str, config: PipelineConfig) -> str:
    """Look at an experiment that no run drives, until it has its verdict."""
    serving = Serving(workflow.resources(), test_id, config)
    try:
        test = await workflow.step("experiment.read", serving.read_test, test_id)
        test, look = await follow_experiment(serving, test, workflow.wait)
        await workflow.transaction("experiment.release", serving.release, test.id, look.reason)
        await serving.apply_routing()
        return str(look.verdict)
    finally:
        workflow.engine().clock.ended(test_id)


@workflow.durable("family")
async def family_alone(family: str, config: PipelineConfig) -> str:
    """Look at a family of experiments that no run drives, until all have their verdict."""
    serving = Families(workflow.resources(), family, config)
    try:
        tests = await workflow.step("experiment.read", serving.read_family, family)
        tests, _ = await follow_family(serving, tests, workflow.wait)
        await workflow.transaction("experiment.release", serving.release_family, tests)
        await serving.apply_routing()
        promoted = [test.id for test in tests if test.verdict is Verdict.PROMOTE]
        return promoted[0] if promoted else ""
    finally:
        workflow.engine().clock.ended(family)


@workflow.durable("rollout")
async def rollout_alone(deployment_id: str, config: PipelineConfig) -> str:
    """Step and watch a rollout that no run drives."""
    serving = Serving(workflow.resources(), deployment_id, config)
    try:
        deployment = await workflow.step(
            "rollout.read", workflow.resources().store.deployment, deployment_id
        )
        if deployment is None:
            raise StateError(f"Rollout {deployment_id} is gone.")
        deployment = await follow_rollout(serving, deployment, workflow.wait)
        await serving.end_rollout(deployment)
        return str(deployment.state)
    finally:
        workflow.engine().clock.ended(deployment_id)
