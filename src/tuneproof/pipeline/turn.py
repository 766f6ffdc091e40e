"""One turn of the loop, durable: it reads like the diagram in the README."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from tuneproof import workflow
from tuneproof.collection import TrainingDataBatch
from tuneproof.errors import AbortedError, TuneProofError
from tuneproof.experiments import Verdict
from tuneproof.pipeline.collecting import CollectStage
from tuneproof.pipeline.context import RunContext
from tuneproof.pipeline.ending import EndStage
from tuneproof.pipeline.experimenting import ExperimentStage, Tested
from tuneproof.pipeline.gating import GateStage, leading
from tuneproof.pipeline.planning import PlanStage, refusal
from tuneproof.pipeline.records import Optimised, PipelineResult, RunArguments, Stage
from tuneproof.pipeline.rolling_out import RolloutStage
from tuneproof.pipeline.training import TrainStage
from tuneproof.rollout import Deployment, DeploymentState
from tuneproof.settings import PipelineConfig
from tuneproof.training import ModelVersion
from tuneproof.workflow import RunStatus

log = logging.getLogger(__name__)


@workflow.durable("run")
async def turn(run_id: str, config: PipelineConfig, arguments: RunArguments) -> PipelineResult:
    """Collect, curate, train, gate, experiment, roll out; watch; take back what does harm."""
    context = RunContext(workflow.resources(), run_id, config, arguments, wait=_wait_unless_aborted)
    try:
        return await _Turn(context).go()
    finally:
        workflow.engine().clock.ended(run_id)


@workflow.durable("experiment")
async def experiment_alone(family: str, config: PipelineConfig) -> str:
    """Look at the tests of a family that no run drives, until each has its verdict.

    The id of the test that was promoted; empty where none was.
    """
    stage = ExperimentStage(RunContext(workflow.resources(), family, config, alone=True))
    try:
        tested = await stage.follow(await stage.read(family))
        await stage.release(tested)
        return tested.test.id if tested.test.verdict is Verdict.PROMOTE else ""
    finally:
        workflow.engine().clock.ended(family)


@workflow.durable("rollout")
async def rollout_alone(deployment_id: str, config: PipelineConfig) -> str:
    """Step and watch a rollout that no run drives; the state in which it ended."""
    stage = RolloutStage(RunContext(workflow.resources(), deployment_id, config, alone=True))
    try:
        deployment = await stage.follow(await stage.read(deployment_id))
        await stage.end(deployment)
        return str(deployment.state)
    finally:
        workflow.engine().clock.ended(deployment_id)


class _Ended(Exception):
    """The run is over without an error: skipped, rejected, or asked to stop here."""

    def __init__(self, status: RunStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class _Turn:
    """The line from posts to the model in use; `_result` is what is known of it until now."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._training = TrainStage(run)
        self._result = PipelineResult(run_id=run.id, status=RunStatus.RUNNING, reason="")

    async def go(self) -> PipelineResult:
        began = await workflow.now()
        try:
            batch = await self._collect()
            await self._plan(batch)
            versions = await self._train(batch)
            candidates = await self._gate(versions, batch)
            winner, tested = await self._experiment(candidates)
            deployment = await self._roll_out(winner, tested)
        except _Ended as e:
            return await self._end(began, e.status, e.reason)
        except AbortedError as e:
            return await self._abort(began, e)
        except TuneProofError as e:
            return await self._fail(began, e)
        except workflow.EngineError:
            raise
        except Exception as e:  # a bug of ours must end in a state that says so, too
            log.exception("run %s failed", self._run.id)
            return await self._fail(began, TuneProofError(f"{type(e).__name__}: {e}"))
        if deployment.state is DeploymentState.ROLLED_BACK:
            cause = deployment.cause or "rolled back"
            return await self._end(began, RunStatus.ROLLED_BACK, cause)
        return await self._end(began, RunStatus.SUCCESS, "The version is the model in use.")

    async def _collect(self) -> TrainingDataBatch:
        config = self._run.config
        batch = await CollectStage(self._run).collect()
        self._result = replace(self._result, training_data=batch)
        self._run.parts.hooks.collected(batch)
        needed, found = config.training_data_threshold, sum(batch.examples.values())
        if found < needed and not self._run.arguments.force:
            raise _Ended(
                RunStatus.SKIPPED,
                f"{found} examples, and training_data_threshold is {needed}: nothing was spent. "
                f"{batch.note} Widen days_back, {_choosing(config)}, or wait.",
            )
        return batch

    async def _plan(self, batch: TrainingDataBatch) -> None:
        config, arguments = self._run.config, self._run.arguments
        if config.plan_gate == "off" or arguments.only is Stage.GATE:
            return
        plan = await PlanStage(self._run).plan(batch)
        self._run.units_per_hour = plan.units_per_hour
        why_not = refusal(plan, config)
        if why_not and not arguments.force:
            raise _Ended(RunStatus.SKIPPED, why_not)
        if plan.probability is not None and plan.probability < config.plan_probability:
            log.warning("run %s: %s", self._run.id, plan.sentence())

    async def _train(self, batch: TrainingDataBatch) -> tuple[ModelVersion, ...]:
        versions = await self._training.make(batch)
        if not versions:
            raise _Ended(RunStatus.SKIPPED, _nothing_made(self._training.optimised))
        self._result = replace(self._result, model_version=versions[0])
        return versions

    async def _gate(
        self, versions: Sequence[ModelVersion], batch: TrainingDataBatch
    ) -> tuple[ModelVersion, ...]:
        """Those that passed go on; the first of them stands for the run."""
        judged = await GateStage(self._run).check(versions, batch)
        version, report = leading(judged)
        self._result = replace(self._result, gate=report, model_version=version)
        if not report.passed:
            raise _Ended(RunStatus.REJECTED, f"The gate said no: {report.reason}")
        if self._run.arguments.only is Stage.GATE:
            raise _Ended(
                RunStatus.SUCCESS, f"Passed the gate, and was asked to stop there. {report.reason}"
            )
        return tuple(one.version for one in judged if one.report.passed)

    async def _experiment(self, versions: Sequence[ModelVersion]) -> tuple[ModelVersion, Tested]:
        """Test all of them at once; the one that wins goes on."""
        stage = ExperimentStage(self._run)
        tests = await stage.declare(versions)
        self._remember(Tested(tests=tests))
        tested = await stage.follow(tests)
        version, test = versions[tested.test.lane], tested.test
        self._result = replace(self._result, model_version=version)
        self._remember(tested)
        await stage.end(tested, versions)
        if test.verdict is not Verdict.PROMOTE:
            raise _Ended(RunStatus.REJECTED, tested.outcome)
        if self._run.arguments.only is Stage.EXPERIMENT:
            raise _Ended(RunStatus.SUCCESS, f"Promoted, and was asked to stop there. {test.reason}")
        return version, tested

    def _remember(self, tested: Tested) -> None:
        family = tested.tests if len(tested.tests) > 1 else ()
        self._result = replace(
            self._result, experiment=tested.test, family=family, look=tested.look
        )

    async def _roll_out(self, version: ModelVersion, tested: Tested) -> Deployment:
        assert tested.look is not None
        stage = RolloutStage(self._run)
        deployment = await stage.declare(version, tested.test, tested.look)
        self._result = replace(self._result, deployment=deployment)
        deployment = await stage.follow(deployment)
        self._result = replace(self._result, deployment=deployment)
        await stage.end(deployment)
        return deployment

    # --- the ends -----------------------------------------------------------------------

    async def _abort(self, began: datetime, error: AbortedError) -> PipelineResult:
        """End as somebody asked for; a job that still runs is cancelled."""
        trains = self._run.stage is Stage.TRAIN and self._result.model_version is None
        cancelled = await self._training.cancel() if trains else False
        return await self._end(began, RunStatus.ABORTED, error.message, cancelled=cancelled)

    async def _fail(self, began: datetime, error: TuneProofError) -> PipelineResult:
        self._result = replace(self._result, error={**error.to_dict(), "type": error.slug})
        return await self._end(began, RunStatus.FAILED, error.message)

    async def _end(
        self, began: datetime, status: RunStatus, reason: str, *, cancelled: bool = False
    ) -> PipelineResult:
        run = self._run
        result = replace(self._result, status=status, reason=reason)
        result = await EndStage(run).end(result, job_cancelled=cancelled)
        seconds = (await workflow.now() - began).total_seconds()
        run.changed()
        run.parts.hooks.run_ended(result, run.config.name, seconds)
        return result


async def _wait_unless_aborted(until: datetime) -> workflow.Signal | None:
    signal = await workflow.wait(until)
    if signal is not None and signal.kind == "abort":
        raise AbortedError(signal.reason or "Aborted.", actor=signal.actor)
    return signal


def _nothing_made(optimised: Sequence[Optimised]) -> str:
    """Why a run has no candidate."""
    said = [one.said for one in optimised if one.prompt is None]
    if said and len(said) == len(optimised):
        return f"No candidate was made. {' '.join(said)}"
    return (
        "Each candidate that the recipes name is in use, or was taken back: nothing is "
        "tested. --force tests again what was taken back."
    )


def _choosing(config: PipelineConfig) -> str:
    """What lets more posts in."""
    return "lower engagement_threshold" if config.top_share is None else "raise top_share"
