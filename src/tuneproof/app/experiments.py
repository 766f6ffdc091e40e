"""Use cases of experiments: declare, plan, look, end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from tuneproof import workflow
from tuneproof.app.histories import HistoryService
from tuneproof.app.look_cache import LookCache
from tuneproof.app.managers import Managers
from tuneproof.app.pipelines import Pipelines
from tuneproof.app.prompts import PromptService
from tuneproof.app.providers import Providers
from tuneproof.app.routing import RoutingService
from tuneproof.app.sources import Sources
from tuneproof.app.waking import wake
from tuneproof.collection import Window
from tuneproof.errors import InputError, NotFoundError, StateError, TuneProofError
from tuneproof.experiments import (
    ABTest,
    Declared,
    EvaluationResult,
    ExperimentStatus,
    Look,
    ModelEvaluator,
    Variant,
    allot,
    declare,
    told_by,
)
from tuneproof.experiments.planning import (
    NO_LIFT,
    CyclePlan,
    History,
    plan_cycle,
    read_history,
)
from tuneproof.experiments.view import ABOVE_ZERO
from tuneproof.pipeline import ensure_all_know, experiment_alone
from tuneproof.pipeline.collecting import collector
from tuneproof.rollout import Routing
from tuneproof.settings import Declaration, PipelineConfig
from tuneproof.store import Claim, Store
from tuneproof.training import TimeEstimate, estimate_time
from tuneproof.workflow import Clock, Tx

log = logging.getLogger(__name__)

__all__ = ["ExperimentService", "Sibling"]


@dataclass(frozen=True, kw_only=True)
class Sibling:
    """One test of a family and its last look."""

    test: ABTest
    look: Look | None


class ExperimentService:
    """What can be asked of experiments."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        engine: workflow.Engine,
        pipelines: Pipelines,
        providers: Providers,
        sources: Sources,
        routing: RoutingService,
        figures: LookCache,
        managers: Managers,
        histories: HistoryService,
        prompts: PromptService,
    ) -> None:
        self._store = store
        self._clock = clock
        self._engine = engine
        self._pipelines = pipelines
        self._providers = providers
        self._sources = sources
        self._routing = routing
        self._figures = figures
        self._managers = managers
        self._histories = histories
        self._prompts = prompts

    async def create(
        self,
        *,
        baseline: Variant,
        candidates: Sequence[Variant],
        traffic_split: float | None = None,
        duration_hours: float | None = None,
        pipeline: str = "default",
        tasks: Sequence[str] | None = None,
        actor: str = "system",
        declaration: Declaration | None = None,
        replace_baseline: bool = False,
        claim: Claim | None = None,
        **declared: object,
    ) -> Sequence[ABTest]:
        """Declare a test for each candidate at once, outside a run; they are looked at every hour.

        `traffic_split` is each candidate's share of all units. A `declaration` holds
        whole, in place of what the pipeline's settings declare; `declared` are single options in
        place of theirs. All models are asked first, but where the application alone can ask them.
        `claim` is told the family.

        Raises as `ModelEvaluator.declare` does, and `InputError` for a model that does not
        answer; nothing moves then.
        """
        config = self._declared(pipeline, tasks, declaration, declared)
        baseline, candidates = await self._with_prompts(config, baseline, candidates)
        if declaration is None:
            config = await self._planned(config, duration_hours)
        await self._ensure_allowed(config, baseline, replace_baseline)
        await self._ensure_answer(config, [baseline, *candidates])
        evaluator = ModelEvaluator(store=self._store, clock=self._clock, config=config)
        async with self._store.database.begin() as tx:
            replaced = await self._others_in_use(config, baseline, tx)
            tests = await evaluator.declare(
                baseline,
                candidates,
                traffic_split,
                duration_hours,
                replace_baseline=replace_baseline,
                tx=tx,
            )
            await self._note_replaced(replaced, baseline, actor, tx)
            for test in tests:
                await self._store.activity.add(
                    self._clock.now(), actor, "experiment start", test.id, tx=tx
                )
            if claim is not None:
                await claim.made(tests[0].family, tx=tx)
        await self._engine.start(experiment_alone, tests[0].family, config)
        await self._routing.board.refresh_if_possible()
        return tests

    async def _with_prompts(
        self, config: PipelineConfig, baseline: Variant, candidates: Sequence[Variant]
    ) -> tuple[Variant, list[Variant]]:
        """The same with the prompts that they are asked by, where variants own those."""
        routed = await self._store.routing.get(config.tasks[0])
        in_use = None if routed is None else routed.baseline
        if in_use is not None and not in_use.same_as(baseline):
            in_use = None
        baseline = await self._prompts.resolved(config.tasks, baseline, in_use)
        if baseline.prompt is not None:
            await ensure_all_know(self._engine.older_workers)
        return baseline, [
            await self._prompts.resolved(config.tasks, one, baseline) for one in candidates
        ]

    async def _planned(self, config: PipelineConfig, hours: float | None) -> PipelineConfig:
        """With the units that posts or history let expect, where none are declared.

        Raises `InputError` where their mean rate is below 0: no lift of that can be shown.
        """
        hours = config.a_b_test_duration_hours if hours is None else hours
        plan = await self._advice(config)
        if plan is None:
            return config
        if plan.mean is not None and plan.mean < 0:
            raise InputError(
                f"The mean rate of the posts of {config.name} is {plan.mean:.3g}: {NO_LIFT}.",
                mend=ABOVE_ZERO,
                mean=plan.mean,
            )
        if config.planned_units is not None:
            return config
        per_hour = plan.units_per_hour
        return replace(config, planned_units=per_hour * hours) if per_hour else config

    async def _advice(self, config: PipelineConfig) -> CyclePlan | None:
        """The plan by the posts; where those say nothing, by the first task's history."""
        found = None
        for task in (None, config.tasks[0]):
            try:
                plan = await self.plan(pipeline=config.name, task=task)
            except TuneProofError as error:
                log.info("the units of a test could not be planned: %s", error)
                continue
            if plan.mean is not None:
                return plan
            found = found or plan
        return found

    async def _ensure_allowed(
        self, config: PipelineConfig, baseline: Variant, replace_baseline: bool
    ) -> None:
        """What will be refused is refused before models are asked."""
        if not replace_baseline:
            for routing in await self._others_in_use(config, baseline):
                routing.ensure_in_use(baseline)

    async def _others_in_use(
        self, config: PipelineConfig, baseline: Variant, tx: Tx | None = None
    ) -> list[Routing]:
        """The routings of the tasks that another model than this one serves."""
        declared = self._routing.board.declared
        found = [
            await self._store.routing.get(task, tx=tx) or declared.get(task)
            for task in config.tasks
        ]
        return [r for r in found if r is not None and not r.baseline.same_as(baseline)]

    async def _ensure_answer(self, config: PipelineConfig, models: Sequence[Variant]) -> None:
        manager = self._managers.of(config)
        await asyncio.gather(*map(manager.ensure_answers, dict.fromkeys(models)))

    async def _note_replaced(
        self, replaced: Sequence[Routing], baseline: Variant, actor: str, tx: Tx
    ) -> None:
        for routing in replaced:
            said = f"{baseline.model_id} takes the place of {routing.baseline.model_id}."
            await self._store.activity.add(
                self._clock.now(), actor, "baseline replace", routing.task, said, tx=tx
            )

    def _declared(
        self,
        pipeline: str,
        tasks: Sequence[str] | None,
        declaration: Declaration | None,
        declared: Declared,
    ) -> PipelineConfig:
        config = self._pipelines.get(pipeline)
        if tasks is not None:
            config = replace(config, tasks=tuple(tasks))
        return declare(told_by(config, declaration), declared)

    async def siblings(self, family: str) -> Sequence[Sibling]:
        """The tests of a family by lane, each with its last look.

        Raises `NotFoundError`, also for a test that was declared alone.
        """
        tests = await self._store.experiments.family(family)
        if tests[0].siblings is None:
            raise NotFoundError(
                f"{family} is a test alone, no family.",
                mend=f"tuneproof experiment show {family}",
                id=family,
            )
        looks = await self._figures.newest(tests)
        return [Sibling(test=test, look=look) for test, look in zip(tests, looks, strict=True)]

    async def plan(
        self,
        *,
        pipeline: str | PipelineConfig = "default",
        share: float | None = None,
        hours: float | None = None,
        lift: float | None = None,
        days_back: float | None = None,
        posts: str | None = None,
        task: str | None = None,
        candidates: int | None = None,
    ) -> CyclePlan:
        """What a test of the next candidate would find on the traffic of the last days, and when.

        Reads the pipeline's posts (or the file `posts`), or what the gateway recorded of a
        `task` while nothing was tested; changes nothing. `candidates` are tested at once (default:
        as the settings say). Its training is taken to be as large as the last one. Raises
        `ConfigError` for a share or duration out of range, `DataError` where the posts cannot be
        read, `NotFoundError` for a task that nobody serves.
        """
        config = self._pipelines.get(pipeline) if isinstance(pipeline, str) else pipeline
        asked = {"traffic_split": share, "a_b_test_duration_hours": hours, "days_back": days_back}
        config = config.override(**{k: v for k, v in asked.items() if v is not None})
        until = self._clock.now()
        window = Window(since=until - timedelta(days=config.days_back), until=until)
        spent = await self._store.experiments.spent(config.name)
        level = config.significance_threshold
        if config.loop_ledger:
            level = min(level, 2 * allot(spent, (), loop_alpha=config.loop_alpha).alpha)
        history = await self._history(config, window, posts, task)
        tokens, training = await self._training(config)
        return plan_cycle(
            history,
            config,
            alpha=level,
            lift=lift,
            trained_tokens=tokens,
            training=training,
            prices=await self._providers.prices(config, await self._in_use(config)),
            candidates=candidates,
        )

    async def _in_use(self, config: PipelineConfig) -> Variant:
        """The model in use: as it is routed, or the settings name it, else the base."""
        for task in config.tasks:
            found = await self._store.routing.get(task) or self._routing.board.declared.get(task)
            if found is not None:
                return found.baseline
        return Variant(model_id=config.base_model or "")

    async def _training(self, config: PipelineConfig) -> tuple[float | None, TimeEstimate | None]:
        """The tokens that the pipeline's newest training had, and how long as many take now."""
        config = config.for_training
        earlier = await self._store.runs.training_times(config.provider)
        tokens = next((float(t.tokens) for t in earlier if t.pipeline == config.name), None)
        if tokens is None:
            return None, None
        model, method = config.base_model, config.method
        return tokens, estimate_time(tokens, base_model=model, method=method, earlier=earlier)

    async def selection(self, *, pipeline: str = "default", days_back: float | None = None) -> str:
        """Which posts a run of this pipeline would learn from now, in words.

        Raises `DataError` where the posts cannot be read.
        """
        config = self._pipelines.get(pipeline)
        days = config.days_back if days_back is None else days_back
        source = self._sources.open(config)
        try:
            collecting = collector(config, source, (), directory=Path(), clock=self._clock)
            query = collecting.query(days, self._clock.now())
            return (await collecting.chosen(source, query)).selects()
        finally:
            await source.close()

    async def _history(
        self, config: PipelineConfig, window: Window, posts: str | None, task: str | None
    ) -> History:
        if task is not None:
            return await self._histories.read(task, window, config)
        source = self._sources.open(config, posts)
        try:
            return await read_history(source, window)
        finally:
            await source.close()

    async def looks(self, id: str) -> Sequence[Look]:
        """All looks of a test, oldest first. Raises `NotFoundError`."""
        await self._store.experiments.get(id)
        return await self._store.experiments.looks(id)

    async def evaluation(self, id: str) -> EvaluationResult | None:
        """The test as its last look saw it, by the database; None before the first look."""
        test = await self._store.experiments.get(id)
        return _evaluated(test, await self._store.experiments.last_look(id))

    async def shown(self, test: ABTest) -> EvaluationResult | None:
        """The same for who only looks: read through the cache, where there is one."""
        [look] = await self._figures.newest([test])
        return _evaluated(test, look)

    async def end(self, id: str, *, reason: str, actor: str = "system") -> Sequence[ABTest]:
        """End a running test by hand, or all of a family: traffic goes back to the baseline.

        Of a family, the candidates that are not named go on. The tests that `id` names; raises
        `StateError` where none of them runs.
        """
        async with self._store.database.begin() as tx:
            tests = await self._store.experiments.named(id, lock=True, tx=tx)
            running = [t for t in tests if t.status is ExperimentStatus.RUNNING]
            if not running:
                raise await self._ended_already(id, tests, tx)
            await self._write_end(running, reason, actor, tx)
        await wake(self._engine, tests[0].run_id or tests[0].family)
        await self._routing.board.refresh_if_possible()
        return await self._store.experiments.named(id)

    async def _ended_already(self, id: str, tests: Sequence[ABTest], tx: Tx) -> StateError:
        """Says who ended it, when and why."""
        test = tests[0]
        deeds = (await self._store.activity.page(object_id=test.id, limit=1, tx=tx)).items
        look = await self._store.experiments.last_look(test.id, tx=tx)
        who, kind, at = "system", "look", test.start_at if look is None else look.at
        if deeds and deeds[0].action == "experiment end":
            who, kind, at = deeds[0].actor, "end", deeds[0].at
        what = (
            f"Experiment {id} is {test.status} already"
            if len(tests) == 1
            else (f"All tests of {id} have ended already")
        )
        return StateError(
            f"{what}: {who} did {kind} at {at.isoformat(timespec='seconds')}: {test.reason}",
            mend=f"tuneproof experiment show {test.id}",
            state=str(test.status),
            changed={"kind": kind, "who": who, "at": at.isoformat(), "reason": test.reason},
        )

    async def _write_end(self, tests: Sequence[ABTest], reason: str, actor: str, tx: Tx) -> None:
        at = self._clock.now()
        for test in tests:
            await self._store.activity.add(at, actor, "experiment end", test.id, reason, tx=tx)
        cause = f"Ended by {actor}: {reason}"
        await self._store.withdrawal.withdraw([test.id for test in tests], at, cause, tx)


def _evaluated(test: ABTest, look: Look | None) -> EvaluationResult | None:
    if look is None:
        return None
    return EvaluationResult(
        ab_test_id=test.id,
        status=test.status,
        look=look,
        recommendation=test.verdict or look.verdict,
        reason=test.reason or look.reason,
        looks=look.number,
    )
