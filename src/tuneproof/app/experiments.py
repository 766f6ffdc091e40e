"""Use cases of experiments: declare, plan, look, end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any, Unpack

from tuneproof.app.core import Core
from tuneproof.cache import METRICS_TTL_S, metrics_key
from tuneproof.collection import Window
from tuneproof.errors import NotFoundError, StateError
from tuneproof.experiments import (
    ABTest,
    Arm,
    Declared,
    EvaluationResult,
    ExperimentStatus,
    Look,
    ModelEvaluator,
    ModelRef,
    allot,
    declare,
)
from tuneproof.experiments.planning import CyclePlan, plan_cycle, read_history
from tuneproof.pipeline import experiment_alone
from tuneproof.settings import PipelineConfig
from tuneproof.store import Page
from tuneproof.workflow import Tx


@dataclass(frozen=True, kw_only=True)
class Sibling:
    """One test of a family and its last look."""

    test: ABTest
    look: Look | None


class Experiments(Core):
    """What can be asked of experiments."""

    async def create_ab_test(
        self,
        *,
        baseline: ModelRef,
        candidates: Sequence[ModelRef],
        traffic_split: float | None = None,
        duration_hours: float | None = None,
        pipeline: str = "default",
        tasks: Sequence[str] | None = None,
        actor: str = "system",
        **declared: Unpack[Declared],
    ) -> Sequence[ABTest]:
        """Declare a test for each candidate at once, outside a run; they are looked at every hour.

        `traffic_split` is each candidate's share of all units. What `declared` leaves out is as
        the pipeline's settings say. Raises as `ModelEvaluator.declare` does.
        """
        config = self._declared(pipeline, tasks, declared)
        evaluator = ModelEvaluator(store=self.store, clock=self.clock, config=config)
        async with self.store.database.begin() as tx:
            tests = await evaluator.declare(
                baseline, candidates, traffic_split, duration_hours, tx=tx
            )
            for test in tests:
                await self.store.activity.add(
                    self.clock.now(), actor, "experiment start", test.id, tx=tx
                )
        await self.engine.start(experiment_alone, tests[0].family, config)
        await self._routing_changed()
        return tests

    def _declared(
        self, pipeline: str, tasks: Sequence[str] | None, declared: Declared
    ) -> PipelineConfig:
        config = self.pipeline(pipeline)
        if tasks is not None:
            config = replace(config, tasks=tuple(tasks))
        return declare(config, declared)

    async def family(self, id: str) -> Sequence[ABTest]:
        """The tests of a family by lane. Raises `NotFoundError`."""
        return await self.store.experiments.family(id)

    async def siblings(self, family: str) -> Sequence[Sibling]:
        """The tests of a family by lane, each with its last look.

        Raises `NotFoundError`, also for a test that was declared alone.
        """
        tests = await self.family(family)
        if tests[0].siblings is None:
            raise NotFoundError(
                f"{family} is a test alone, no family.",
                mend=f"tuneproof experiment show {family}",
                id=family,
            )
        return [
            Sibling(test=test, look=await self.store.experiments.last_look(test.id))
            for test in tests
        ]

    async def plan(
        self,
        *,
        pipeline: str = "default",
        share: float | None = None,
        hours: float | None = None,
        lift: float | None = None,
        days_back: float | None = None,
        posts: str | None = None,
        candidates: int | None = None,
    ) -> CyclePlan:
        """What a test of the next candidate would find on the traffic of the last days, and when.

        Reads the pipeline's posts (or the file `posts`); changes nothing. `candidates` are tested
        at once (default: as the settings say). Raises `ConfigError`
        for a share or duration out of range, `DataError` where the posts cannot be read.
        """
        config = self.pipeline(pipeline)
        asked = {"traffic_split": share, "a_b_test_duration_hours": hours, "days_back": days_back}
        config = config.override(**{k: v for k, v in asked.items() if v is not None})
        until = self.clock.now()
        window = Window(since=until - timedelta(days=config.days_back), until=until)
        spent = await self.store.experiments.spent(config.name)
        level = config.significance_threshold
        if config.loop_ledger:
            level = min(level, 2 * allot(spent, (), loop_alpha=config.loop_alpha).alpha)
        source = self.open_source(config, posts)
        try:
            history = await read_history(source, window)
        finally:
            await source.close()
        return plan_cycle(
            history,
            config,
            alpha=level,
            lift=lift,
            prices=self.prices(config),
            candidates=candidates,
        )

    async def experiment(self, id: str) -> ABTest:
        """The test of this id. Raises `NotFoundError`."""
        return await self.store.experiments.get(id)

    async def experiments(
        self, *, pipeline: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> Page[ABTest]:
        """Tests, newest first."""
        return await self.store.experiments.page(pipeline, cursor, limit)

    async def looks(self, id: str) -> Sequence[Look]:
        """All looks of a test, oldest first. Raises `NotFoundError`."""
        await self.experiment(id)
        return await self.store.experiments.looks(id)

    async def evaluation(self, id: str) -> EvaluationResult | None:
        """The test as its last look saw it; None before the first look."""
        test = await self.experiment(id)
        look = await self.store.experiments.last_look(id)
        if look is None:
            return None
        await self._warm(look)
        return EvaluationResult(
            ab_test_id=id,
            status=test.status,
            look=look,
            recommendation=test.verdict or look.verdict,
            reason=test.reason or look.reason,
            looks=look.number,
        )

    async def arm_metrics(self, id: str, arm: Arm) -> Mapping[str, Any] | None:
        """One arm's figures from the cache, which each look warms; else from the last look."""
        number = await self.cache.get_or_compute(
            _newest_key(id), METRICS_TTL_S, lambda: self.store.experiments.count_looks(id)
        )
        if not number:
            return None

        async def read() -> Any:
            look = await self.store.experiments.last_look(id)
            if look is None:
                return None
            return asdict(look.baseline if arm is Arm.BASELINE else look.candidate)

        found: Mapping[str, Any] | None = await self.cache.get_or_compute(
            metrics_key(id, str(arm), number), METRICS_TTL_S, read
        )
        return found

    def warm_soon(self, look: Look) -> None:
        """Put a look's figures into the cache, without keeping the run waiting for it."""
        self.supervisor.soon("warm", lambda: self._warm(look), attempts=1)

    async def _warm(self, look: Look) -> None:
        id = look.experiment_id
        for arm, figures in ((Arm.BASELINE, look.baseline), (Arm.CANDIDATE, look.candidate)):
            await self.cache.set(
                metrics_key(id, str(arm), look.number), asdict(figures), METRICS_TTL_S
            )
        await self.cache.set(_newest_key(id), look.number, METRICS_TTL_S)

    async def end_experiment(
        self, id: str, *, reason: str, actor: str = "system"
    ) -> Sequence[ABTest]:
        """End a running test by hand, or all of a family: traffic goes back to the baseline.

        Of a family, the candidates that are not named go on. The tests that `id` names; raises
        `StateError` where none of them runs.
        """
        async with self.store.database.begin() as tx:
            tests = await self.store.experiments.named(id, lock=True, tx=tx)
            running = [t for t in tests if t.status is ExperimentStatus.RUNNING]
            if not running:
                raise StateError(
                    f"Experiment {id} is {tests[0].status} already."
                    if len(tests) == 1
                    else f"All tests of {id} have ended already.",
                    mend=f"tuneproof experiment show {tests[0].id}",
                )
            await self._end(running, reason, actor, tx)
        await self._wake(tests[0].run_id or tests[0].family)
        await self._routing_changed()
        return await self.store.experiments.named(id)

    async def _end(self, tests: Sequence[ABTest], reason: str, actor: str, tx: Tx) -> None:
        at = self.clock.now()
        for test in tests:
            await self.store.activity.add(at, actor, "experiment end", test.id, reason, tx=tx)
        cause = f"Ended by {actor}: {reason}"
        await self.store.withdrawal.withdraw([test.id for test in tests], at, cause, tx)


def _newest_key(id: str) -> str:
    """Where the cache keeps the number of an experiment's newest look."""
    return f"model_metrics:{id}:newest"
