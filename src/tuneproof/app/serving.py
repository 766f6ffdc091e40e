"""Use cases of rollouts, routing and events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from tuneproof.app.endpoints import ChatEndpoint
from tuneproof.app.experiments import Experiments
from tuneproof.errors import ConflictError, InputError, NotFoundError
from tuneproof.experiments import (
    Arm,
    ExperimentStatus,
    Exposure,
    Ingested,
    ModelRef,
    Outcome,
)
from tuneproof.pipeline import rollout_alone
from tuneproof.rollout import Deployment, RollbackResult, Routing
from tuneproof.settings import PipelineConfig
from tuneproof.stats import guardrails
from tuneproof.store import Page, SubjectKind

GROSS_WINDOW = 20
"""The breaker for gross failure reads this many of the candidate's last requests."""


class Serving(Experiments):
    """What can be asked of rollouts, routing and events."""

    # --- rollouts -------------------------------------------------------------------

    async def deploy(
        self,
        *,
        model: ModelRef,
        ab_test_id: str,
        strategy: str | None = None,
        rollout: Mapping[str, Any] | None = None,
        pipeline: str | None = None,
        actor: str = "system",
    ) -> Deployment:
        """Roll a model out that its experiment promoted. The experiment is looked up, not believed.

        Raises `SafetyCheckError`, which names each check that failed.
        """
        test = await self.experiment(ab_test_id)
        config = self.pipeline(pipeline or test.pipeline).override(**(rollout or {}))
        config = replace(
            config,
            tasks=test.tasks,
            deployment_strategy=strategy or config.deployment_strategy,
        )
        manager = self.manager_of(config)
        evaluation = await self.evaluation(ab_test_id)
        if model.model_id != test.candidate.model_id:
            raise InputError(
                f"Experiment {ab_test_id} tested {test.candidate.model_id}, not {model.model_id}.",
                mend="Deploy the model that was tested.",
            )
        await manager.ensure_safe(test.candidate, test.baseline, evaluation)
        async with self.store.database.begin() as tx:
            at = self.clock.now()
            await self._refuse_second(config.name, tx)
            declared = await manager.declare(
                test.candidate, test.baseline, ab_test_id=ab_test_id, salt=test.salt, at=at, tx=tx
            )
            begun = await manager.begin(declared.id, at=at, tx=tx)
            await self.store.activity.add(at, actor, "rollout start", begun.id, tx=tx)
        await manager.apply(begun)
        await self.engine.start(rollout_alone, begun.id, config)
        await self._routing_changed()
        return begun

    async def _refuse_second(self, pipeline: str, tx: Any) -> None:
        active = await self.store.deployments.active(pipeline, tx=tx)
        if active:
            raise ConflictError(
                f"Rollout {active[0].id} of {pipeline} is {active[0].state}: one at a time.",
                mend=f"tuneproof rollout show {active[0].id}",
            )

    async def deployment(self, id: str) -> Deployment:
        """The rollout of this id. Raises `NotFoundError`."""
        return await self.store.deployments.get(id)

    async def deployments(
        self, *, pipeline: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> Page[Deployment]:
        """Rollouts, newest first."""
        return await self.store.deployments.page(pipeline, cursor, limit)

    async def deployment_history(self, id: str) -> Sequence[Mapping[str, Any]]:
        """What happened to a rollout, oldest first, automatic and human alike."""
        await self.deployment(id)
        return [asdict(entry) for entry in await self.store.deployments.history(id)]

    async def rollback(
        self,
        target: str,
        *,
        reason: str,
        actor: str = "system",
        expected_version: int | None = None,
    ) -> RollbackResult:
        """Give all traffic back to the model before, at once.

        `target` is a rollout's id or a task's name. Needs the database only: neither the
        engine nor a provider, MLflow or cache.
        """
        deployment = await self._target(target)
        await self._expect(deployment, expected_version)
        result = await self.manager(deployment).rollback_model(deployment.id, reason, actor=actor)
        await self._tell_of_rollback(deployment.id)
        await self._routing_changed()
        await self._wake(deployment.run_id or deployment.id)
        return result

    async def _tell_of_rollback(self, id: str) -> None:
        done = await self.deployment(id)
        once, said = str(done.version), done.cause or "rolled back"
        self.alert("rolled_back", id, said, once=once, pipeline=done.pipeline)

    async def _target(self, target: str) -> Deployment:
        if await self.store.subjects.kind(target) is SubjectKind.ROLLOUT:
            return await self.deployment(target)
        active = [d for d in await self.store.deployments.active() if target in d.tasks]
        if active:
            return active[-1]
        page = await self.store.deployments.page(limit=100)
        done = [d for d in page.items if target in d.tasks and str(d.state) == "complete"]
        if not done:
            raise NotFoundError(
                f"No rollout serves {target!r}: there is nothing to take back.",
                mend="tuneproof status",
            )
        return done[0]

    async def _expect(self, deployment: Deployment, version: int | None) -> None:
        if version is not None and version != deployment.version:
            raise ConflictError(
                f"Rollout {deployment.id} is at version {deployment.version}, not {version}.",
                mend="Read it again, then decide.",
                version=deployment.version,
                state=str(deployment.state),
                share=deployment.share,
            )

    async def pause_rollout(
        self, id: str, *, reason: str, actor: str = "system", expected_version: int | None = None
    ) -> Deployment:
        """Stay at this share until somebody resumes."""
        return await self._act(id, "pause", reason, actor, expected_version)

    async def resume_rollout(
        self, id: str, *, reason: str, actor: str = "system", expected_version: int | None = None
    ) -> Deployment:
        """Go on; the step's time starts anew."""
        return await self._act(id, "resume", reason, actor, expected_version)

    async def advance_rollout(
        self, id: str, *, reason: str, actor: str = "system", expected_version: int | None = None
    ) -> Deployment:
        """Take the next step now."""
        return await self._act(id, "advance", reason, actor, expected_version)

    async def _act(
        self, id: str, verb: str, reason: str, actor: str, expected_version: int | None
    ) -> Deployment:
        deployment = await self.deployment(id)
        await self._expect(deployment, expected_version)
        manager = self.manager(deployment)
        moved = await manager.act(id, verb, actor=actor, reason=reason)
        await manager.apply(moved)
        await self._routing_changed()
        await self._wake(moved.run_id or moved.id)
        return moved

    # --- routing and events -----------------------------------------------------------

    async def routing(self) -> Sequence[Routing]:
        """Which model serves each task; as last known while the database is away."""
        return list((await self.board.refresh_if_possible()).routing)

    async def record_events(
        self, *, exposures: Sequence[Exposure] = (), outcomes: Sequence[Outcome] = ()
    ) -> Ingested:
        """Take events in, each once; late and out of order is fine.

        A candidate whose requests fail grossly is taken back at once. Texts that are to be scored
        are queued in the same transaction.
        """
        texts = await self.texts_of(exposures)
        if texts:
            async with self.store.database.begin() as tx:
                taken = await self.store.events.ingest(exposures, outcomes, tx=tx)
                await self.store.scores.add(texts, self.clock.now(), tx=tx)
        else:
            taken = await self.store.events.ingest(exposures, outcomes, now=self.clock.now())
        self.metrics.events_ingested(len(exposures), len(outcomes))
        failing = {e.subject for e in exposures if e.error and e.arm is Arm.CANDIDATE}
        for subject in failing - set(taken.unknown):
            await self._stop_gross_failure(subject)
        return taken

    async def recent_events(
        self, *, subject: str | None = None, since: datetime | None = None, limit: int = 100
    ) -> Sequence[Exposure]:
        """The newest exposures, oldest first: of one subject, or of all that routing serves."""
        routed = {subject for r in self.board.snapshot.routing for subject in r.subjects}
        subjects = routed if subject is None else {subject}
        found = [
            event
            for name in sorted(subjects)
            for event in await self.store.events.newest(name, since=since, limit=limit)
        ]
        return sorted(found, key=lambda e: (e.at, e.id))[-limit:]

    async def _stop_gross_failure(self, subject: str) -> None:
        recent = await self.store.events.recent(subject, Arm.CANDIDATE, limit=GROSS_WINDOW)
        found = guardrails.gross_failure([r.error for r in recent])
        if not found.fired:
            return
        if await self.store.subjects.kind(subject) is SubjectKind.ROLLOUT:
            deployment = await self.deployment(subject)
            if not deployment.state.final:
                await self.rollback(subject, reason=found.reason, actor="guardrail")
        else:
            test = await self.experiment(subject)
            if test.status is ExperimentStatus.RUNNING:
                await self.end_experiment(subject, reason=found.reason, actor="guardrail")

    # --- the gateway's ----------------------------------------------------------------

    async def chat_endpoint(self, model: ModelRef) -> ChatEndpoint:
        """Which provider serves this model: the one that trained it or on it, else the default.

        Raises `ConfigError` where it left the settings: no other one is sent the request.
        """
        return await self.endpoints.of(model)

    def cost_usd(self, model: ModelRef, *, prompt_tokens: int, completion_tokens: int) -> float:
        """What a request cost: by the settings' prices, else by the dated table; 0 without one."""
        return self.endpoints.cost_usd(
            model, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
        )

    def config_of(self, deployment: Deployment) -> PipelineConfig:
        """The settings of a rollout's pipeline."""
        return self.pipeline(deployment.pipeline)
