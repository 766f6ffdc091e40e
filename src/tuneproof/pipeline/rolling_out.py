"""The rollout stage: checked, declared, stepped and watched, until complete or taken back."""

from __future__ import annotations

from datetime import timedelta

from tuneproof import workflow
from tuneproof.experiments import (
    ABTest,
    EvaluationResult,
    ExperimentStatus,
    Look,
    variant_of,
)
from tuneproof.pipeline.context import RunContext
from tuneproof.pipeline.prompting import tracked_prompt
from tuneproof.pipeline.records import Stage, StageStatus
from tuneproof.pipeline.routing import manager_of, route
from tuneproof.pipeline.steps import StepName
from tuneproof.rollout import Deployment, DeploymentState
from tuneproof.training import ModelVersion
from tuneproof.workflow import RunStatus, Tx


class RolloutStage:
    """From a promoted version to the model in use, or back. Also follows what no run drives."""

    def __init__(self, run: RunContext) -> None:
        self._run = run

    # --- declare ------------------------------------------------------------------------

    async def declare(self, version: ModelVersion, test: ABTest, look: Look) -> Deployment:
        """Check, declare, take the first step. Raises `SafetyCheckError`."""
        run = self._run
        await run.begin(Stage.ROLLOUT)
        await workflow.step(StepName.ROLLOUT_CHECK, self._check, version, test, look)
        deployment = await workflow.transaction(
            StepName.ROLLOUT_DECLARE, self._declare, version, test
        )
        run.subjects.append(deployment.id)
        await route(run, StepName.ROLLOUT_ROUTE)
        run.parts.hooks.rollout_moved(deployment)
        return deployment

    async def _check(self, version: ModelVersion, test: ABTest, look: Look) -> int:
        evaluation = EvaluationResult(
            ab_test_id=test.id,
            status=ExperimentStatus.COMPLETED,
            look=look,
            recommendation=look.verdict,
            reason=look.reason,
            looks=look.number,
        )
        checks = await manager_of(self._run).ensure_safe(
            variant_of(version), test.baseline, evaluation
        )
        return len(checks)

    async def _declare(self, tx: Tx, version: ModelVersion, test: ABTest) -> Deployment:
        run = self._run
        manager, at = manager_of(run), run.now
        declared = await manager.declare(
            variant_of(version),
            test.baseline,
            ab_test_id=test.id,
            salt=test.salt,
            run_id=run.id,
            at=at,
            tx=tx,
        )
        begun = await manager.begin(declared.id, at=at, tx=tx)
        await self._mark(tx, begun)
        return begun

    async def _mark(self, tx: Tx, deployment: Deployment) -> None:
        detail = {
            "deployment_id": deployment.id,
            "state": str(deployment.state),
            "share": deployment.share,
            "cause": deployment.cause,
        }
        await self._run.mark_stage(tx, Stage.ROLLOUT, StageStatus.IN_PROGRESS, detail)
        holding = deployment.state is DeploymentState.HOLDING
        status = RunStatus.HOLDING if holding else RunStatus.RUNNING
        await self._run.mark_run(tx, {"deployment_id": deployment.id}, status)

    # --- follow -------------------------------------------------------------------------

    async def read(self, deployment_id: str) -> Deployment:
        """A rollout that was declared outside a run, as it stands. Raises `NotFoundError`."""
        self._run.stage = Stage.ROLLOUT
        read = self._run.parts.store.deployments.get
        deployment = await workflow.step(StepName.ROLLOUT_READ, read, deployment_id)
        self._run.subjects.append(deployment.id)
        return deployment

    async def follow(self, deployment: Deployment) -> Deployment:
        """Watch every hour and step on, until it is complete or rolled back.

        A look that raises is kept and told; the next one is tried an interval later.
        """
        run = self._run
        interval = timedelta(hours=run.config.look_interval_hours)
        while not deployment.state.final:
            now = await workflow.now()
            since = now - deployment.created_at
            due = deployment.created_at + (since // interval + 1) * interval
            await run.wait(due)
            looked = await run.attempt(deployment.id, due, self._look, deployment)
            deployment = looked or deployment
        return deployment

    async def _look(self, before: Deployment) -> Deployment:
        """One look at the guardrails, and the step that follows from it."""
        moved = await workflow.transaction(StepName.ROLLOUT_LOOK, self._looked, before.id)
        if moved.version != before.version and not moved.state.final:
            self._run.parts.hooks.rollout_moved(moved)
            await route(self._run, StepName.ROLLOUT_ROUTE)
        return moved

    async def _looked(self, tx: Tx, deployment_id: str) -> Deployment:
        before = await self._run.parts.store.deployments.get(deployment_id, tx=tx)
        moved, _ = await manager_of(self._run).look(deployment_id, at=self._run.now, tx=tx)
        await self._run.parts.store.watches.looked([deployment_id], self._run.now, tx=tx)
        if moved.version != before.version or moved.state.final:
            await self._mark(tx, moved)
        return moved

    # --- end ----------------------------------------------------------------------------

    async def end(self, deployment: Deployment) -> None:
        """A completed version is the model in use; one rolled back is never tried by itself."""
        await workflow.transaction(StepName.ROLLOUT_END, self._write, deployment)
        await route(self._run, StepName.ROLLOUT_ROUTE)
        self._run.parts.hooks.rollout_moved(deployment)

    async def _write(self, tx: Tx, deployment: Deployment) -> None:
        run = self._run
        # As it stands now: a version that was taken back since is not the model in use.
        deployment = await run.parts.store.deployments.get(deployment.id, lock=True, tx=tx)
        complete = deployment.state is DeploymentState.COMPLETE
        if complete:
            await run.parts.store.versions.put_live(
                deployment.version_id, deployment.pipeline, tx=tx
            )
        detail = {"state": str(deployment.state), "cause": deployment.cause}
        status = StageStatus.COMPLETED if complete else StageStatus.FAILED
        await run.mark_stage(tx, Stage.ROLLOUT, status, detail)
        if complete and deployment.version_id is not None:
            version = await run.parts.store.versions.find(deployment.version_id, tx=tx)
            prompted = version is not None and version.prompt is not None
            alias: dict[str, object] = {
                "name": deployment.pipeline,
                "alias": "champion",
                "version_id": deployment.version_id,
                **({"prompt": tracked_prompt(version)} if version and prompted else {}),
            }
            await run.tell_once(tx, f"{deployment.id}:champion", "alias", alias)
