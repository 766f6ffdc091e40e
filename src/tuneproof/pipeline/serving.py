"""The stages that users meet: the experiment and the rollout."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from tuneproof import workflow
from tuneproof.experiments import (
    ABTest,
    EvaluationResult,
    ExperimentStatus,
    Look,
    ModelEvaluator,
    ModelRef,
    Verdict,
    model_ref,
)
from tuneproof.pipeline.records import Parts, Stage
from tuneproof.rollout import Deployment, DeploymentManager, DeploymentState, Watch, plan
from tuneproof.settings import PipelineConfig
from tuneproof.training import ModelVersion

Wait = Callable[[datetime], Awaitable[workflow.Signal | None]]


class Serving:
    """From a checked version to the model in use, or back."""

    def __init__(self, parts: Parts, run_id: str, config: PipelineConfig) -> None:
        self._parts = parts
        self._id = run_id
        self.config = config
        self.stage: Stage | None = None
        self._subjects: list[str] = []
        self._evaluator = ModelEvaluator(store=parts.store, clock=parts.clock, config=config)

    def _manager(self) -> DeploymentManager:
        return DeploymentManager(
            store=self._parts.store,
            provider=self._parts.provider(self.config.provider),
            targets=self._parts.targets,
            clock=self._parts.clock,
            config=self.config,
            serves=self._parts.serves,
        )

    # --- experiment -----------------------------------------------------------------

    async def start_experiment(self, version: ModelVersion) -> ABTest:
        """Declare the test; a share of the units gets the candidate from now on."""
        await self.make_room()
        test: ABTest = await workflow.transaction("experiment.create", self._create, version)
        self._subjects.append(test.id)
        await self.apply_routing("experiment.apply")
        self._parts.hooks.run_changed(self._id)
        return test

    async def make_room(self) -> None:
        """Complete the rollouts that only hold: an experiment takes their tasks."""
        self.stage = Stage.EXPERIMENT
        woken: list[str] = await workflow.transaction("experiment.supersede", self._supersede)
        for run_id in woken:
            await workflow.step("experiment.wake", self._wake, run_id)

    async def _supersede(self, tx: Any) -> list[str]:
        return await self._parts.store.supersede_holds(
            self.config.name, self._parts.clock.now(), tx
        )

    async def _wake(self, run_id: str) -> None:
        await workflow.engine().send(
            run_id, workflow.Signal(kind="wake", reason=f"superseded by {self._id}")
        )

    async def _create(self, tx: Any, version: ModelVersion) -> ABTest:
        at = self._parts.clock.now()
        baseline = await self._baseline(tx, version)
        test = await self._evaluator.create_a_b_test(
            baseline, version, run_id=self._id, at=at, tx=tx
        )
        detail = {
            "ab_test_id": test.id,
            "baseline": baseline.model_id,
            "ends": test.last_look_at.isoformat(),
        }
        await self._parts.store.mark_stage(
            self._id, Stage.EXPERIMENT, "in_progress", detail, at, tx
        )
        await self._parts.store.mark_run(
            self._id,
            "running",
            at=at,
            result={
                "ab_test_id": test.id,
                "estimated_completion": completion(test, self.config).isoformat(),
            },
            tx=tx,
        )
        return test

    async def _baseline(self, tx: Any, version: ModelVersion) -> ModelRef:
        for task in self.config.tasks:
            routing = await self._parts.store.routing_of(task, tx=tx)
            if routing is not None:
                return routing.baseline
        named = (self._parts.models_in_use.get(task) for task in self.config.tasks)
        found = next((m for m in named if m), ModelRef(model_id=version.base_model))
        place = self._parts.place(found.provider or self.config.provider)
        return replace(found, provider=place)

    async def read_test(self, test_id: str) -> ABTest:
        """The test as it stands."""
        self._subjects.append(test_id)
        return await self._parts.store.test(test_id)

    async def look(self, test: ABTest) -> tuple[ABTest, Look]:
        """One look, kept in one commit with what follows from it."""
        found: tuple[ABTest, Look] = await workflow.transaction(
            "experiment.look", self._looked, test.id
        )
        self._parts.hooks.experiment_looked(*found)
        if "next_share" in found[1].inputs:
            await self.apply_routing("experiment.share")
        return found

    async def _looked(self, tx: Any, test_id: str) -> tuple[ABTest, Look]:
        look = await self._evaluator.look(test_id, at=self._parts.clock.now(), tx=tx)
        test = await self._parts.store.test(test_id, tx=tx)
        await self._tell_look(tx, test, look)
        return test, look

    async def _tell_look(self, tx: Any, test: ABTest, look: Look) -> None:
        """Tell the tracking server of a declared or last look of a run's test."""
        if test.run_id is None or not (look.declared or look.verdict is not Verdict.CONTINUE):
            return
        lane = "" if test.family is None else f"candidate_{test.lane + 1}_"
        numbers = {
            "lift": look.lift,
            "lift_lower": look.lower,
            "lift_upper": look.upper,
            "units": look.baseline.sample_size + look.candidate.sample_size,
        }
        payload = {
            "run_id": test.run_id,
            "metrics": {f"{lane}{k}": float(v) for k, v in numbers.items() if v is not None},
            "step": look.number,
            "at": look.at.isoformat(),
        }
        await self._parts.store.tell(f"{test.id}:look:{look.number}", "metrics", payload, tx)

    async def end_experiment(self, test: ABTest, look: Look) -> None:
        """Write the verdict down; a candidate that did not win loses its traffic in `finish`."""
        await workflow.transaction("experiment.end", self._write_verdict, test, look)
        self._parts.hooks.run_changed(self._id)

    async def _write_verdict(self, tx: Any, test: ABTest, look: Look) -> None:
        detail, at = self._verdict_detail(test, look), self._parts.clock.now()
        await self._parts.store.mark_stage(self._id, Stage.EXPERIMENT, "completed", detail, at, tx)

    @staticmethod
    def _verdict_detail(test: ABTest, look: Look) -> dict[str, Any]:
        return {
            "ab_test_id": test.id,
            "verdict": str(test.verdict),
            "reason": test.reason,
            "lift": look.lift,
            "lower": look.lower,
            "upper": look.upper,
            "looks": look.number,
        }

    async def release(self, tx: Any, subject: str, cause: str) -> None:
        """Give the traffic of a test that no run drives back to its baseline."""
        await self._parts.store.withdraw([subject], self._parts.clock.now(), cause, tx)

    # --- rollout --------------------------------------------------------------------

    async def start_rollout(self, version: ModelVersion, test: ABTest, look: Look) -> Deployment:
        """Check, declare, take the first step."""
        self.stage = Stage.ROLLOUT
        await workflow.transaction("rollout.begin", self._mark_rollout)
        await workflow.step("rollout.check", self._check, version, test, look)
        deployment: Deployment = await workflow.transaction(
            "rollout.start", self._start, version, test
        )
        self._subjects.append(deployment.id)
        await self.apply_routing("rollout.apply")
        self._parts.hooks.rollout_moved(deployment)
        return deployment

    async def _mark_rollout(self, tx: Any) -> None:
        at = self._parts.clock.now()
        await self._parts.store.mark_stage(self._id, Stage.ROLLOUT, "in_progress", {}, at, tx)

    async def _check(self, version: ModelVersion, test: ABTest, look: Look) -> int:
        evaluation = EvaluationResult(
            ab_test_id=test.id,
            status=ExperimentStatus.COMPLETED,
            look=look,
            recommendation=look.verdict,
            reason=look.reason,
            looks=look.number,
        )
        checks = await self._manager().ensure_safe(model_ref(version), test.baseline, evaluation)
        return len(checks)

    async def _start(self, tx: Any, version: ModelVersion, test: ABTest) -> Deployment:
        manager, at = self._manager(), self._parts.clock.now()
        declared = await manager.declare(
            model_ref(version),
            test.baseline,
            ab_test_id=test.id,
            salt=test.salt,
            run_id=self._id,
            at=at,
            tx=tx,
        )
        begun = await manager.begin(declared.id, at=at, tx=tx)
        await self._mark_step(tx, begun, at)
        return begun

    async def _mark_step(self, tx: Any, deployment: Deployment, at: datetime) -> None:
        if deployment.run_id is None:
            return
        detail = {
            "deployment_id": deployment.id,
            "state": str(deployment.state),
            "share": deployment.share,
            "cause": deployment.cause,
        }
        await self._parts.store.mark_stage(
            deployment.run_id, Stage.ROLLOUT, "in_progress", detail, at, tx
        )
        holding = deployment.state is DeploymentState.HOLDING
        await self._parts.store.mark_run(
            deployment.run_id,
            "holding" if holding else "running",
            at=at,
            result={"deployment_id": deployment.id},
            tx=tx,
        )

    async def watch(self, deployment_id: str) -> tuple[Deployment, Watch]:
        """One look at the rollout's guardrails, and the step that follows from it."""
        found: tuple[Deployment, Watch] = await workflow.transaction(
            "rollout.look", self._watched, deployment_id
        )
        return found

    async def _watched(self, tx: Any, deployment_id: str) -> tuple[Deployment, Watch]:
        at = self._parts.clock.now()
        before = await self._parts.store.deployment(deployment_id, tx=tx)
        deployment, seen = await self._manager().look(deployment_id, at=at, tx=tx)
        if deployment.version != before.version or deployment.state.final:
            await self._mark_step(tx, deployment, at)
        return deployment, seen

    def moved(self, deployment: Deployment) -> None:
        """Tell who listens that a rollout is at another step, or waits for a person."""
        self._parts.hooks.rollout_moved(deployment)

    async def end_rollout(self, deployment: Deployment) -> None:
        """A completed version is the model in use; one rolled back is never tried by itself."""
        await workflow.transaction("rollout.end", self._write_end, deployment)
        await self.apply_routing("rollout.settle")
        self._parts.hooks.rollout_moved(deployment)

    async def _write_end(self, tx: Any, deployment: Deployment) -> None:
        store, at = self._parts.store, self._parts.clock.now()
        complete = deployment.state is DeploymentState.COMPLETE
        if complete:
            await store.put_live(deployment.version_id, deployment.pipeline, tx)
        if deployment.run_id is None:
            return
        detail = {"state": str(deployment.state), "cause": deployment.cause}
        await store.mark_stage(
            deployment.run_id,
            Stage.ROLLOUT,
            "completed" if complete else "failed",
            detail,
            at,
            tx,
        )
        if complete and deployment.version_id is not None:
            alias = {
                "run_id": deployment.run_id,
                "name": deployment.pipeline,
                "alias": "champion",
                "version_id": deployment.version_id,
            }
            await store.tell(f"{deployment.id}:champion", "alias", alias, tx)

    # --- both -----------------------------------------------------------------------

    async def apply_routing(self, name: str = "targets.apply") -> None:
        """Tell clients and the targets outside our router; who does not answer delays nothing."""
        self._parts.hooks.routing_changed(self.config.tasks)
        if self._parts.targets:
            await workflow.step(name, self._apply)

    async def _apply(self) -> list[str]:
        return await self._manager().apply_tasks(self.config.tasks)

    async def withdraw(self, tx: Any, at: datetime, cause: str) -> None:
        """Take the candidate of this run away from users, wherever it still serves."""
        await self._parts.store.withdraw(self._subjects, at, cause, tx)


async def follow_experiment(serving: Serving, test: ABTest, wait: Wait) -> tuple[ABTest, Look]:
    """Look every hour until there is a verdict; looks that were missed coalesce into one."""
    interval = timedelta(hours=serving.config.look_interval_hours)
    while True:
        now = await workflow.now()
        if now < test.last_look_at:
            due = test.start_at + ((now - test.start_at) // interval + 1) * interval
            await wait(min(due, test.last_look_at))
        test, look = await serving.look(test)
        if test.status is not ExperimentStatus.RUNNING:
            return test, look


async def follow_rollout(serving: Serving, deployment: Deployment, wait: Wait) -> Deployment:
    """Watch every hour and step on, until it is complete or rolled back."""
    interval = timedelta(hours=serving.config.look_interval_hours)
    while not deployment.state.final:
        now = await workflow.now()
        due = deployment.created_at + ((now - deployment.created_at) // interval + 1) * interval
        await wait(due)
        moved, _ = await serving.watch(deployment.id)
        if moved.version != deployment.version and not moved.state.final:
            serving.moved(moved)
            await serving.apply_routing("rollout.apply")
        deployment = moved
    return deployment


def completion(test: ABTest, config: PipelineConfig) -> datetime:
    """When a run with this test is over, if nothing goes wrong."""
    steps = plan(config)
    hours = steps.interval_hours * (len(steps.steps) - bool(steps.holdback))
    return test.last_look_at + timedelta(hours=hours, days=steps.holdback_days)
