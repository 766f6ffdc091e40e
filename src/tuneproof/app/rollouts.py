"""Use cases of rollouts: start, follow, pause, resume, advance, take back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Literal

from tuneproof import workflow
from tuneproof.app.alerting import Alerting
from tuneproof.app.experiments import ExperimentService
from tuneproof.app.managers import Managers
from tuneproof.app.pipelines import Pipelines
from tuneproof.app.routing import RoutingService
from tuneproof.app.waking import wake
from tuneproof.errors import ConflictError, InputError, NotFoundError, StateError
from tuneproof.experiments import ExperimentStatus, Variant
from tuneproof.pipeline import rollout_alone
from tuneproof.rollout import Deployment, DeploymentState, RollbackResult, Routing
from tuneproof.store import Claim, HistoryEntry, Store, SubjectKind
from tuneproof.workflow import Clock, Tx

__all__ = ["RolloutService"]


class RolloutService:
    """What can be asked of rollouts."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        engine: workflow.Engine,
        alert: Alerting,
        pipelines: Pipelines,
        managers: Managers,
        routing: RoutingService,
        experiments: ExperimentService,
    ) -> None:
        self._store = store
        self._clock = clock
        self._engine = engine
        self._alert = alert
        self._pipelines = pipelines
        self._managers = managers
        self._routing = routing
        self._experiments = experiments

    async def deploy(
        self,
        *,
        model: Variant,
        ab_test_id: str,
        strategy: str | None = None,
        rollout: Mapping[str, object] | None = None,
        pipeline: str | None = None,
        actor: str = "system",
        claim: Claim | None = None,
    ) -> Deployment:
        """Roll a model out that its experiment promoted. The experiment is looked up, not believed.

        `claim` is told the rollout. Raises `SafetyCheckError`, which names each check that failed.
        """
        test = await self._store.experiments.get(ab_test_id)
        config = self._pipelines.get(pipeline or test.pipeline).override(**(rollout or {}))
        config = replace(
            config,
            tasks=test.tasks,
            deployment_strategy=strategy or config.deployment_strategy,
        )
        manager = self._managers.of(config)
        evaluation = await self._experiments.evaluation(ab_test_id)
        if not model.same_as(test.candidate):
            raise InputError(
                f"Experiment {ab_test_id} tested {test.candidate}, not {model}.",
                mend="Deploy the model that was tested.",
            )
        await manager.ensure_safe(test.candidate, test.baseline, evaluation)
        async with self._store.database.begin() as tx:
            at = self._clock.now()
            await self._refuse_second(config.name, tx)
            declared = await manager.declare(
                test.candidate, test.baseline, ab_test_id=ab_test_id, salt=test.salt, at=at, tx=tx
            )
            begun = await manager.begin(declared.id, at=at, tx=tx)
            await self._store.activity.add(at, actor, "rollout start", begun.id, tx=tx)
            if claim is not None:
                await claim.made(begun.id, tx=tx)
        await manager.apply(begun.tasks)
        await self._engine.start(rollout_alone, begun.id, config)
        await self._routing.board.refresh_if_possible()
        if begun.state is DeploymentState.PAUSED:
            self._tell("paused", begun)
        return begun

    async def _refuse_second(self, pipeline: str, tx: Tx) -> None:
        active = await self._store.deployments.active(pipeline, tx=tx)
        if active:
            raise ConflictError(
                f"Rollout {active[0].id} of {pipeline} is {active[0].state}: one at a time.",
                mend=f"tuneproof rollout show {active[0].id}",
            )

    async def history(self, id: str) -> Sequence[HistoryEntry]:
        """What happened to a rollout, oldest first, automatic and human alike."""
        await self._store.deployments.get(id)
        return await self._store.deployments.history(id)

    async def rollback(
        self,
        target: str,
        *,
        reason: str,
        actor: str = "system",
        expected_version: int | None = None,
    ) -> RollbackResult:
        """Give all traffic back to the model before, at once.

        `target` is a rollout's id or a task's name; a task whose baseline was replaced since its
        last rollout returns to the one before. Needs the database only: neither the
        engine nor a provider, MLflow or cache.
        """
        deployment = await self._target(target)
        if isinstance(deployment, Routing):
            return await self._return_to_previous(deployment, reason, actor)
        tested = await self._tested(deployment.tasks)
        manager = self._managers.for_rollout(deployment)
        async with self._naming_who(deployment.id):
            result = await manager.rollback_model(
                deployment.id, reason, actor=actor, expected_version=expected_version
            )
        result = replace(result, overtook=await self._overtaken(deployment))
        await self._tell_of_rollback(deployment.id)
        await self._routing.board.refresh_if_possible()
        await wake(self._engine, deployment.run_id or deployment.id)
        await self._wake_ended(tested)
        return result

    async def _tested(self, tasks: Sequence[str]) -> set[str]:
        """The tests that these tasks serve."""
        found = [await self._store.routing.get(task) for task in tasks]
        subjects = {subject for r in found if r is not None for subject in r.subjects}
        kind = self._store.subjects.kind
        return {s for s in subjects if await kind(s) is SubjectKind.TEST}

    async def _wake_ended(self, subjects: Collection[str]) -> None:
        """Whoever looks at those of these that have ended finds it out at once."""
        for id in sorted(subjects):
            if await self._store.subjects.kind(id) is SubjectKind.ROLLOUT:
                rollout = await self._store.deployments.get(id)
                if rollout.state.final:
                    await wake(self._engine, rollout.run_id or rollout.id)
                continue
            test = await self._store.experiments.get(id)
            if test.status is not ExperimentStatus.RUNNING:
                await wake(self._engine, test.run_id or test.family)

    async def _tell_of_rollback(self, id: str) -> None:
        self._tell("rolled_back", await self._store.deployments.get(id))

    def _tell(self, kind: str, deployment: Deployment) -> None:
        once, said = str(deployment.version), deployment.cause or kind.replace("_", " ")
        self._alert(kind, deployment.id, said, once=once, pipeline=deployment.pipeline)

    async def _return_to_previous(
        self, routing: Routing, reason: str, actor: str
    ) -> RollbackResult:
        """Give a task back the baseline that another took the place of; its test ends."""
        began = time.perf_counter()
        assert routing.previous is not None
        task, back = routing.task, routing.previous
        async with self._store.database.begin() as tx:
            now = self._clock.now()
            tests = await self._store.withdrawal.withdraw(routing.subjects, now, reason, tx)
            for one in sorted({task, *tests}):
                current = await self._store.routing.get(one, lock=True, tx=tx)
                assert current is not None
                same = current.baseline.same_as(routing.baseline)
                if current.subjects or (one == task and not same):
                    raise _busy(current)
                if not same or current.previous is None:
                    continue  # it had its baseline before
                old = Routing(task=one, baseline=current.previous, updated_at=now, cause=reason)
                await self._store.routing.set(old, current.version, taken_back=True, tx=tx)
            said = f"{reason} ({routing.baseline.model_id} gives way to {back.model_id})"
            await self._store.activity.add(now, actor, "baseline rollback", task, said, tx=tx)
        seconds = time.perf_counter() - began
        await self._managers.of(next(iter(self._pipelines.known.values()))).apply(
            sorted({task, *tests})
        )
        self._alert("rolled_back", task, reason, once=now.isoformat())
        await self._routing.board.refresh_if_possible()
        await self._wake_ended(routing.subjects)
        return RollbackResult(
            deployment_id=task,
            status=DeploymentState.ROLLED_BACK,
            restored_model=back.model_id,
            reason=reason,
            seconds=seconds,
        )

    async def _target(self, target: str) -> Deployment | Routing:
        if await self._store.subjects.kind(target) is SubjectKind.ROLLOUT:
            return await self._store.deployments.get(target)
        # Read before the rollouts: one that begins in between is found among them.
        routing = await self._store.routing.get(target)
        active = [d for d in await self._store.deployments.active() if target in d.tasks]
        if active:
            return active[-1]
        if routing is not None and (done := await self._completed(routing)):
            return done
        if routing is None or routing.previous is None:
            raise _nothing_to_take_back(target, routing)
        return routing

    async def _completed(self, routing: Routing) -> Deployment | None:
        """The rollout that made a task's model the one in use, if that is how it came there."""
        cursor: str | None = None
        while True:
            page = await self._store.deployments.page(cursor=cursor, limit=100)
            for one in page.items:
                if routing.task in one.tasks and one.state is DeploymentState.COMPLETE:
                    return one if one.candidate.same_as(routing.baseline) else None
            cursor = page.next_cursor
            if cursor is None:
                return None

    @asynccontextmanager
    async def _naming_who(self, id: str) -> AsyncIterator[None]:
        """Have who is refused, since a rollout was moved, told by whom, how and when."""
        try:
            yield
        except (ConflictError, StateError) as error:
            moves = await self._store.deployments.history(id)
            if "state" not in error.details or not moves:
                raise
            last = moves[-1]
            raise type(error)(
                f"{error.message} {_sentence(last)}",
                mend=error.mend,
                **error.details,
                changed={
                    "kind": last.kind,
                    "who": last.who,
                    "at": last.at.isoformat(),
                    "reason": last.reason,
                },
            ) from error

    async def _overtaken(self, seen: Deployment) -> str:
        """What moved a rollout after it was seen and before it was rolled back."""
        moves = await self._store.deployments.history(seen.id)
        back = str(DeploymentState.ROLLED_BACK)
        between = [one for one in moves[seen.version :] if one.detail["state"] != back]
        return _sentence(between[-1]) if between else ""

    async def act(
        self,
        id: str,
        verb: Literal["pause", "resume", "advance"],
        *,
        reason: str,
        actor: str = "system",
        expected_version: int | None = None,
    ) -> Deployment:
        """Stay at this share until somebody resumes, go on, or take the next step now.

        A step's time starts anew where it goes on. It is done to the rollout as it is when this
        is called, or at `expected_version`: of two who act at once the second gets
        `ConflictError`, which says what the first did.
        """
        deployment = await self._store.deployments.get(id)
        seen = deployment.version if expected_version is None else expected_version
        manager = self._managers.for_rollout(deployment)
        async with self._naming_who(id):
            moved = await manager.act(id, verb, actor=actor, reason=reason, expected_version=seen)
        await manager.apply(moved.tasks)
        await self._routing.board.refresh_if_possible()
        await wake(self._engine, moved.run_id or moved.id)
        return moved


def _nothing_to_take_back(target: str, routing: Routing | None) -> NotFoundError:
    subjects = routing.subjects if routing is not None else ()
    ends = f"tuneproof experiment end {subjects[0]}" if subjects else "tuneproof status"
    return NotFoundError(f"No rollout serves {target!r}: there is nothing to take back.", mend=ends)


def _sentence(move: HistoryEntry) -> str:
    return f"{move.who} did {move.kind} at {move.at.isoformat(timespec='seconds')}: {move.reason}"


def _busy(routing: Routing) -> ConflictError:
    names = ", ".join(routing.subjects) or routing.baseline.model_id
    return ConflictError(
        f"{routing.task} began to serve {names} meanwhile.",
        mend="Look at what it serves now, then decide: tuneproof status.",
    )
