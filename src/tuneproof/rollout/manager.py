"""The deployment manager: checks before, steps during, the way back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Self

from tuneproof.errors import (
    ConflictError,
    InputError,
    RetryableError,
    SafetyCheckError,
    StateError,
    TuneProofError,
)
from tuneproof.experiments import (
    ABTest,
    EvaluationResult,
    Variant,
    Verdict,
    variant_of,
)
from tuneproof.rollout import machine
from tuneproof.rollout.machine import (
    Deployment,
    DeploymentResult,
    DeploymentState,
    RollbackResult,
    TakesPrompts,
    Target,
)
from tuneproof.rollout.routing import Routing
from tuneproof.rollout.store import RolloutStore
from tuneproof.rollout.watch import Advice, Watch, request_harm, watch
from tuneproof.settings import PipelineConfig, Settings
from tuneproof.standalone import (
    ensure_open,
    loaded,
    opened_provider,
    opened_store,
    opened_targets,
    opening,
)
from tuneproof.training import Completion, ModelVersion, Provider
from tuneproof.workflow import Clock, SystemClock, Tx

log = logging.getLogger(__name__)

FLAPPING = 3
"""So many changes of a task within a day, this one too, and a rollout waits for a person."""

CHECK_TIMEOUT_S = 30.0
"""How long a model may take to answer the safety check's call."""


_Serves = Callable[[Variant], Awaitable[Provider]]


@dataclass(frozen=True, kw_only=True)
class SafetyCheck:
    """One check before a rollout, and what it found."""

    name: str
    passed: bool
    detail: str


class DeploymentManager:
    """Moves traffic to a promoted version step by step, and takes it back.

    Usable by itself: it needs a store, the provider that serves the models, targets and its
    config. With no store given all that is left out is the settings', opened for each call or for
    as long as `async with manager.opened()`; the provider only where a model is asked. A rollout
    that is begun so is watched by the next service on this database.

    `serves` says which provider answers for a model, where baseline and candidate are not at the
    same one.
    `asks=False`: the application alone can ask the models, so no check does.
    """

    def __init__(
        self,
        *,
        store: RolloutStore | None = None,
        provider: Provider | None = None,
        targets: Sequence[Target] = (),
        clock: Clock | None = None,
        config: PipelineConfig | None = None,
        serves: _Serves | None = None,
        settings: Settings | None = None,
        asks: bool = True,
    ) -> None:
        self._given = store
        self._provider = provider
        self._serves = serves
        self._asks = asks
        self._targets = tuple(targets)
        self._clock = clock or SystemClock()
        self._told = config
        self._settings = settings

    @property
    def _store(self) -> RolloutStore:
        return ensure_open(self._given, "manager", "store")

    @property
    def _config(self) -> PipelineConfig:
        return self._told or PipelineConfig()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Self]:
        """This manager with its store open: its own, or the settings' until the block ends."""
        if self._given is not None:
            yield self
            return
        settings = await loaded(self._settings)
        async with opened_store(settings, self._clock) as store:
            yield type(self)(
                store=store,
                provider=self._provider,
                targets=self._targets or opened_targets(settings),
                clock=self._clock,
                config=self._told or next(iter(settings.pipelines.values())),
                serves=self._serves,
                settings=settings,
                asks=self._asks,
            )

    @property
    def triggers(self) -> tuple[str, ...]:
        """What rolls back by itself, in words."""
        config = self._config
        return (
            f"engagement_rate_drop_{config.max_engagement_drop * 100:g}_percent",
            f"error_rate_above_{config.max_error_rate * 100:g}_percent",
            f"response_time_above_{config.max_p95_latency_ms:g}ms",
        )

    @opening
    async def check_safety(
        self,
        candidate: Variant,
        previous: Variant,
        evaluation: EvaluationResult | None,
    ) -> list[SafetyCheck]:
        """Performance, significance, resources, and the way back: each really looked at."""
        found = [_performance(evaluation), _significance(evaluation)]
        async with self._answering() as serves:
            found += await asyncio.gather(
                self._answers("candidate answers", candidate, serves),
                self._answers("baseline answers", previous, serves),
            )
        return found

    @asynccontextmanager
    async def _answering(self) -> AsyncIterator[_Serves]:
        """Who says which provider answers for a model."""
        if self._serves is not None:
            yield self._serves
        elif self._provider is not None:
            yield _always(self._provider)
        else:
            settings = await loaded(self._settings)
            async with opened_provider(settings, self._config.provider) as provider:
                yield _always(provider)

    async def _answers(self, name: str, model: Variant, serves: _Serves) -> SafetyCheck:
        limit, model_id = self._config.max_p95_latency_ms, model.model_id
        if not self._asks:
            return SafetyCheck(name=name, passed=True, detail=f"{model_id}: not ours to ask")
        try:
            answer = await self._ask(model, serves)
        except TuneProofError as e:
            return SafetyCheck(name=name, passed=False, detail=f"{model_id}: {e}")
        passed = bool(answer.text.strip()) and answer.latency_ms <= limit
        detail = f"{model_id} answered in {answer.latency_ms:.0f} ms (limit {limit:g} ms)"
        return SafetyCheck(name=name, passed=passed, detail=detail)

    async def ensure_answers(self, model: Variant) -> None:
        """Return where a model answers a call; raises `InputError` with what it said instead.

        An error that may pass (`RetryableError`) is raised as it is.
        """
        if not self._asks:
            return
        try:
            async with self._answering() as serves:
                answer = await self._ask(model, serves)
        except RetryableError:
            raise
        except TuneProofError as error:
            raise _silent(model, str(error)) from error
        if not answer.text.strip():
            raise _silent(model, "its answer is empty")

    async def _ask(self, model: Variant, serves: _Serves) -> Completion:
        provider = await serves(model)
        [answer] = await provider.complete(
            model.model_id,
            [{"role": "user", "content": "Create engaging content"}],
            max_tokens=32,
            timeout_s=CHECK_TIMEOUT_S,
        )
        return answer

    @opening
    async def deploy_model(
        self,
        model_version: ModelVersion | Variant | str,
        evaluation_result: EvaluationResult | None,
        deployment_strategy: str | None = None,
        *,
        previous: Variant | None = None,
        salt: str | None = None,
        run_id: str | None = None,
    ) -> DeploymentResult:
        """Check, declare a rollout and take its first step.

        Raises `SafetyCheckError`, which names each check that failed; nothing is served then.
        """
        candidate = variant_of(model_version)
        baseline = previous or await self.baseline()
        await self.ensure_safe(candidate, baseline, evaluation_result)
        config = self._config
        if deployment_strategy is not None:
            config = replace(config, deployment_strategy=deployment_strategy)
        made = await self.declare(
            candidate,
            baseline,
            ab_test_id=evaluation_result.ab_test_id if evaluation_result else None,
            salt=salt,
            run_id=run_id,
            config=config,
        )
        begun = await self.begin(made.id)
        await self.apply(begun.tasks)
        return self.result(begun)

    @opening
    async def ensure_safe(
        self, candidate: Variant, previous: Variant, evaluation: EvaluationResult | None
    ) -> list[SafetyCheck]:
        """All checks passed, or `SafetyCheckError`."""
        checks = await self.check_safety(candidate, previous, evaluation)
        failed = [c for c in checks if not c.passed]
        if failed:
            raise SafetyCheckError(
                "The safety checks failed: " + "; ".join(f"{c.name}: {c.detail}" for c in failed),
                mend="Mend what they name, then retry the run from its rollout.",
                checks=[{"name": c.name, "passed": c.passed, "detail": c.detail} for c in checks],
            )
        return checks

    @opening
    async def baseline(self) -> Variant:
        """The model in use of the pipeline's first task. Raises `StateError` where none is."""
        routing = await self._store.routing.get(self._config.tasks[0])
        if routing is None:
            raise StateError(
                f"No model serves {self._config.tasks[0]} yet: there is nothing to return to.",
                mend="Give `previous`, the model to fall back to.",
            )
        return routing.baseline

    @opening
    async def declare(
        self,
        candidate: Variant,
        previous: Variant,
        *,
        ab_test_id: str | None = None,
        salt: str | None = None,
        run_id: str | None = None,
        config: PipelineConfig | None = None,
        at: datetime | None = None,
        tx: Tx | None = None,
    ) -> Deployment:
        """Keep a new rollout in state `pending`; no traffic moves.

        What it counts is what its test declared, or the pipeline where it had no test. Raises
        `ConflictError` for a candidate that was rolled back since its test began: that verdict is
        refuted.
        """
        chosen = config or self._config
        instant = at or self._clock.now()
        declaration = chosen.declaration
        if ab_test_id is not None:
            test = await self._store.experiments.get(ab_test_id, tx=tx)
            await self._refuse_refuted(candidate, test, tx)
            declaration = test.declaration
        deployment_id = await self._store.ids.next("deploy", instant, tx=tx)
        deployment = Deployment(
            id=deployment_id,
            run_id=run_id,
            pipeline=chosen.name,
            tasks=chosen.tasks,
            ab_test_id=ab_test_id,
            version_id=candidate.version,
            candidate=candidate,
            previous=previous,
            plan=machine.plan(chosen),
            state=DeploymentState.PENDING,
            step=0,
            share=0.0,
            salt=salt or deployment_id,
            created_at=instant,
            declaration=declaration,
        )
        await self._store.deployments.add(deployment, tx=tx)
        return deployment

    async def _refuse_refuted(self, candidate: Variant, test: ABTest, tx: Tx | None) -> None:
        for other in await self._store.deployments.since(test.start_at, tx=tx):
            if other.state is DeploymentState.ROLLED_BACK and other.candidate.same_as(candidate):
                raise ConflictError(
                    f"{candidate} was rolled back by {other.id} ({other.cause}), after "
                    f"{test.id} began: what that test said of it does not hold any more.",
                    mend="Test it again: tuneproof experiment create BASELINE CANDIDATE.",
                    deployment_id=other.id,
                )

    @opening
    async def begin(
        self, deployment_id: str, *, at: datetime | None = None, tx: Tx | None = None
    ) -> Deployment:
        """Take the first step; it is paused there where the task has changed too often today.

        Raises `ConflictError` where a task serves somebody else's candidate, or another model than
        the one that this rollout would go back to.
        """
        now = at or self._clock.now()
        async with self._store.database.writing(tx) as own:
            deployment = await self._store.deployments.get(deployment_id, lock=True, tx=own)
            moved = machine.begin(deployment, now)
            await self._ensure_its_turn(deployment, own)
            begun = await self._store.moves.move(
                moved, "begin", "system", f"serves {moved.share:.0%}", now, own
            )
            changes = await self._changes(begun, now, own)
            if changes < FLAPPING or begun.state is not DeploymentState.STEPPING:
                return begun
            reason = f"{', '.join(begun.tasks)} changed {changes} times within a day."
            paused = machine.pause(begun, reason)
            return await self._store.moves.move(paused, "pause", "system", reason, now, own)

    async def _ensure_its_turn(self, deployment: Deployment, tx: Tx) -> None:
        own: list[str] = []
        if deployment.ab_test_id is not None:
            test = await self._store.experiments.get(deployment.ab_test_id, tx=tx)
            own = [t.id for t in await self._store.experiments.family(test.family, tx=tx)]
        for task in sorted(deployment.tasks):
            routing = await self._store.routing.get(task, lock=True, tx=tx)
            if routing is not None:
                routing.ensure_free(*own)
                routing.ensure_in_use(deployment.previous, by=f"the rollout {deployment.id}")

    async def _changes(self, begun: Deployment, now: datetime, tx: Tx) -> int:
        """How often rollouts of its tasks began or were taken back within the last day."""
        day = now - timedelta(days=1)
        recent = [
            d
            for d in await self._store.deployments.since(day, tx=tx)
            if set(d.tasks) & set(begun.tasks)
        ]
        began = sum(d.created_at > day for d in recent)
        back = sum(
            d.state is DeploymentState.ROLLED_BACK and d.ended_at is not None and d.ended_at > day
            for d in recent
        )
        return began + back

    @opening
    async def look(
        self, deployment_id: str, *, at: datetime | None = None, tx: Tx | None = None
    ) -> tuple[Deployment, Watch]:
        """Judge a rollout and move it as the judgement says, in one write.

        One that has ended stays as it is, also where it ended while this look was on its way.
        """
        now = at or self._clock.now()
        async with self._store.database.writing(tx) as own:
            deployment = await self._store.deployments.get(deployment_id, lock=True, tx=own)
            if deployment.state.final:
                return deployment, Watch(advice=Advice.STAY, reason="It is over.")
            before = now - timedelta(hours=self._config.maturation_hours)
            evidence = await self._store.events.evidence(deployment_id, before=before, tx=own)
            requests = await self._store.events.newest_requests(deployment_id, tx=own)
            if request_harm(deployment, evidence, requests, self._config)[0].harm:
                hours = await self._store.events.hours(deployment_id, tx=own)
                evidence = replace(evidence, hours=hours)
            seen = watch(deployment, evidence, requests, self._config, now)
            moved = _follow(deployment, seen, now)
            if moved is deployment:
                return deployment, seen
            kept = await self._store.moves.move(
                moved, str(seen.advice), "system", seen.reason, now, own
            )
        return kept, seen

    @opening
    async def act(
        self,
        deployment_id: str,
        verb: str,
        *,
        actor: str,
        reason: str,
        at: datetime | None = None,
        expected_version: int | None = None,
        tx: Tx | None = None,
    ) -> Deployment:
        """Do what a person asked for: `pause`, `resume`, `advance` or `rollback`.

        Who moves it meanwhile is waited for. Raises `StateError` for what cannot be done
        in the state that it is in then, `ConflictError` where it is not at `expected_version`.
        """
        now = at or self._clock.now()
        async with self._store.database.writing(tx) as own:
            deployment = await self._store.deployments.get(deployment_id, lock=True, tx=own)
            _expect_version(deployment, expected_version)
            moved = _asked(deployment, verb, now, actor, reason)
            if moved is deployment:
                return deployment
            if deployment.state is DeploymentState.COMPLETE:
                await self._clear_way_back(deployment, reason, now, own)
            return await self._store.moves.move(moved, verb, actor, reason, now, own)

    async def _clear_way_back(
        self, deployment: Deployment, reason: str, now: datetime, tx: Tx
    ) -> None:
        """End the tests against the candidate of a complete rollout that is to be taken back.

        Raises `ConflictError` where its candidate is the model in use of none of its tasks any
        more, and where another rollout has begun since.
        """
        found = await self._locked(deployment.tasks, tx)
        serving = [r for r in found if r.baseline.same_as(deployment.candidate)]
        if not serving:
            now_in_use = ", ".join(f"{r.baseline.model_id} ({r.task})" for r in found)
            raise ConflictError(
                f"{deployment.candidate.model_id} of rollout {deployment.id} is not the model in "
                f"use any more, which is {now_in_use}: there is nothing to take back.",
                mend=f"Take the task back: tuneproof rollback {deployment.tasks[0]}",
            )
        tests = {subject for routing in serving for subject in routing.subjects}
        for rollout in await self._store.deployments.since(deployment.created_at, tx=tx):
            if rollout.id in tests:
                raise ConflictError(
                    f"Rollout {rollout.id} has begun since {deployment.id} was complete.",
                    mend=f"Take that back first: tuneproof rollback {rollout.id}",
                )
        await self._store.withdrawal.withdraw(sorted(tests), now, reason, tx)

    async def _locked(self, tasks: Sequence[str], tx: Tx) -> list[Routing]:
        """The routings of these tasks, locked with those of all tasks that are tested with them."""
        routings = self._store.routing
        known = await routings.all(tx=tx)
        tested = {subject for r in known if r.task in tasks for subject in r.subjects}
        beside = {r.task for r in known if tested & set(r.subjects)}
        found = [await routings.get(t, lock=True, tx=tx) for t in sorted({*tasks, *beside})]
        return [r for r in found if r is not None and r.task in tasks]

    @opening
    async def rollback_model(
        self,
        deployment_id: str,
        reason: str,
        *,
        actor: str = "system",
        expected_version: int | None = None,
    ) -> RollbackResult:
        """Give all traffic back to the model before: one write. Doing it twice is harmless."""
        began = time.perf_counter()
        deployment = await self.act(
            deployment_id,
            "rollback",
            actor=actor,
            reason=reason,
            expected_version=expected_version,
        )
        seconds = time.perf_counter() - began
        await self.apply(deployment.tasks)
        return RollbackResult(
            deployment_id=deployment_id,
            status=deployment.state,
            restored_model=deployment.previous.model_id,
            reason=deployment.cause or reason,
            seconds=seconds,
        )

    @opening
    async def apply(self, tasks: Sequence[str]) -> list[str]:
        """Tell each target, in order, what these tasks serve now; the names of those that failed.

        Our own routing is written already: a target that does not answer delays nothing. One that
        takes no prompts is told of the model in use alone where variants own the prompt.
        """
        failed = []
        for task in tasks:
            routing = await self._store.routing.get(task)
            for target in self._targets if routing is not None else ():
                try:
                    await self._apply(target, routing)  # type: ignore[arg-type]
                except TuneProofError as e:
                    log.warning("target %s did not take %s: %s", target.name, task, e)
                    failed.append(target.name)
        return failed

    async def _apply(self, target: Target, routing: Routing) -> None:
        if isinstance(target, TakesPrompts) and target.prompts:
            await target.keep(await self._store.prompts.of(routing.prompts))
            await target.apply(routing)
        else:
            await target.apply(routing.unprompted)

    def result(self, deployment: Deployment) -> DeploymentResult:
        """A rollout as `deploy_model` answers it."""
        return DeploymentResult(
            deployment_id=deployment.id,
            status=deployment.state,
            strategy=deployment.plan.strategy,
            current_traffic=deployment.share,
            previous_model=deployment.previous.model_id,
            triggers=self.triggers,
        )


def _silent(model: Variant, why: str) -> InputError:
    return InputError(
        f"The model {model.model_id!r} does not answer: {why}",
        mend="Check its name and its provider. Models that only the application can ask: "
        'served_by = "application" in [tasks.NAME].',
        model=model.model_id,
    )


def _always(provider: Provider) -> _Serves:
    async def serves(model: Variant) -> Provider:
        return provider

    return serves


def _expect_version(deployment: Deployment, version: int | None) -> None:
    if version is not None and version != deployment.version:
        raise ConflictError(
            f"Rollout {deployment.id} is at version {deployment.version}, not {version}.",
            mend="Read it again, then decide.",
            version=deployment.version,
            state=str(deployment.state),
            share=deployment.share,
        )


def _asked(deployment: Deployment, verb: str, now: datetime, actor: str, reason: str) -> Deployment:
    if verb == "rollback":
        return machine.roll_back(deployment, now, reason, {"actor": actor})
    if verb == "pause":
        return machine.pause(deployment, reason)
    if verb == "resume":
        return machine.resume(deployment, now)
    if verb == "advance":
        return machine.advance(deployment, now)
    raise StateError(f"A rollout cannot {verb!r}.", mend="Use pause, resume, advance or rollback.")


def _follow(deployment: Deployment, seen: Watch, now: datetime) -> Deployment:
    if seen.advice is Advice.ROLL_BACK:
        return machine.roll_back(deployment, now, seen.reason, seen.evidence)
    if seen.advice is Advice.ADVANCE and machine.waits_at_most(deployment):
        most = f"It may serve {deployment.plan.most:.0%} (max_traffic), and does"
        return machine.pause(deployment, f"{most}: advance it to all, or take it back.")
    if seen.advice is Advice.ADVANCE:
        return machine.advance(deployment, now)
    if seen.advice is Advice.PAUSE:
        return machine.pause(deployment, seen.reason)
    return deployment


def _performance(evaluation: EvaluationResult | None) -> SafetyCheck:
    name = "performance"
    if evaluation is None:
        return SafetyCheck(name=name, passed=False, detail="no experiment says that it is better")
    passed = evaluation.recommendation is Verdict.PROMOTE
    return SafetyCheck(
        name=name, passed=passed, detail=f"{evaluation.recommendation}: {evaluation.reason}"
    )


def _significance(evaluation: EvaluationResult | None) -> SafetyCheck:
    """Whether what was asked is shown: a lift, or else each of the declared criteria."""
    name = "significance"
    if evaluation is None:
        return SafetyCheck(name=name, passed=False, detail="no experiment")
    look = evaluation.look
    asked = [one for one in look.criteria if one.criterion is not None]
    lifts = [one.criterion for one in asked if one.metric == "engagement"]
    if not asked or any(one is not None and one.kind == "superior" for one in lifts):
        return SafetyCheck(name=name, passed=evaluation.is_significant, detail=look.method)
    detail = "; ".join(f"{one.criterion}: {one.reason}" for one in asked)
    return SafetyCheck(name=name, passed=all(one.holds for one in asked), detail=detail)
