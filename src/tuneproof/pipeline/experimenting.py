"""The experiment stage: one test for each candidate, declared together, followed to verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tuneproof import workflow
from tuneproof.experiments import (
    ABTest,
    ExperimentStatus,
    Look,
    ModelEvaluator,
    Verdict,
    winner,
)
from tuneproof.pipeline.context import RunContext
from tuneproof.pipeline.details import VerdictDetail
from tuneproof.pipeline.records import Stage, StageStatus
from tuneproof.pipeline.routing import baseline_of, route, withdraw
from tuneproof.pipeline.steps import StepName
from tuneproof.rollout import plan
from tuneproof.settings import Declaration, PipelineConfig
from tuneproof.training import ModelVersion, VersionStatus
from tuneproof.workflow import Tx


@dataclass(frozen=True, kw_only=True)
class Tested:
    """The tests of a family by lane, and the newest look of each that has one."""

    tests: tuple[ABTest, ...]
    looks: tuple[Look, ...] = ()

    @property
    def running(self) -> int:
        """How many tests have no verdict yet."""
        return sum(test.status is ExperimentStatus.RUNNING for test in self.tests)

    @property
    def look(self) -> Look | None:
        """The look of the winner, else of the test that ended last with the highest lift."""
        best = winner(self.looks)
        if best is not None or not self.looks:
            return best
        return max(self.looks, key=lambda x: (x.at, -1.0 if x.lift is None else x.lift))

    @property
    def test(self) -> ABTest:
        """The test of `look`: the one that stands for all."""
        look = self.look
        found = (t for t in self.tests if look is not None and t.id == look.experiment_id)
        return next(found, self.tests[0])

    @property
    def outcome(self) -> str:
        """How a test that promotes nobody ended, in words."""
        if len(self.tests) == 1:
            return f"The experiment says {self.test.verdict}: {self.test.reason}"
        each = "; ".join(f"{t.candidate} {t.verdict}: {t.reason}" for t in self.tests)
        return f"None of {len(self.tests)} candidates is promoted. {each}"


class ExperimentStage:
    """From checked versions to verdicts. Also follows tests that no run drives."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._evaluator = ModelEvaluator(
            store=run.parts.store, clock=run.parts.clock, config=run.config
        )

    # --- declare ------------------------------------------------------------------------

    async def declare(self, versions: Sequence[ModelVersion]) -> tuple[ABTest, ...]:
        """Declare a test for each version; each gets its share of the units from now on.

        Rollouts that only hold are completed first: an experiment takes their tasks.
        """
        run = self._run
        await run.begin(Stage.EXPERIMENT)
        for run_id in await workflow.transaction(StepName.EXPERIMENT_SUPERSEDE, self._supersede):
            await workflow.step(StepName.EXPERIMENT_WAKE, self._wake, run_id)
        tests = await workflow.transaction(
            StepName.EXPERIMENT_DECLARE, self._declare, tuple(versions)
        )
        run.subjects += [test.id for test in tests]
        await route(run, StepName.EXPERIMENT_ROUTE)
        run.changed()
        return tests

    async def _supersede(self, tx: Tx) -> list[str]:
        run = self._run
        return await run.parts.store.moves.supersede_holds(run.config.name, run.now, tx)

    async def _wake(self, run_id: str) -> None:
        reason = f"superseded by {self._run.id}"
        await workflow.engine().send(run_id, workflow.Signal(kind="wake", reason=reason))

    async def _declare(self, tx: Tx, versions: tuple[ModelVersion, ...]) -> tuple[ABTest, ...]:
        run = self._run
        baseline = await baseline_of(run, versions[0], tx)
        tests = await self._evaluator.declare(
            baseline,
            versions,
            run_id=run.id,
            at=run.now,
            tx=tx,
            declaration=self._declaration(),
        )
        first, names = tests[0], [test.id for test in tests]
        shared = {"family": first.family, "ab_test_ids": names} if len(tests) > 1 else {}
        detail = {
            "ab_test_id": first.id,
            "baseline": baseline.model_id,
            "ends": first.last_look_at.isoformat(),
            **shared,
        }
        await run.mark_stage(tx, Stage.EXPERIMENT, StageStatus.IN_PROGRESS, detail)
        known = {
            "ab_test_id": first.id,
            "estimated_completion": completion(first, run.config).isoformat(),
            **shared,
        }
        await run.mark_run(tx, known)
        return tests

    def _declaration(self) -> Declaration:
        """As the settings say; the units that the plan expects where they say nothing of them."""
        config, per_hour = self._run.config, self._run.units_per_hour
        if config.planned_units is not None or not per_hour:
            return config.declaration
        planned = per_hour * config.a_b_test_duration_hours
        return replace(config.declaration, planned_units=planned)

    # --- follow -------------------------------------------------------------------------

    async def read(self, family: str) -> tuple[ABTest, ...]:
        """Tests that were declared outside a run, as they stand."""
        self._run.stage = Stage.EXPERIMENT
        tests = await workflow.step(StepName.EXPERIMENT_READ, self._read, family)
        self._run.subjects += [test.id for test in tests]
        return tests

    async def _read(self, family: str) -> tuple[ABTest, ...]:
        return tuple(await self._run.parts.store.experiments.family(family))

    async def follow(self, tests: Sequence[ABTest]) -> Tested:
        """Look every hour until each has its verdict; looks that were missed coalesce into one.

        A look that raises is kept and told; the next one is tried an interval later.
        """
        run, first = self._run, tests[0]
        found = Tested(tests=tuple(tests))
        interval = timedelta(hours=run.config.look_interval_hours)
        failed = False
        while True:
            now = await workflow.now()
            due = first.start_at + ((now - first.start_at) // interval + 1) * interval
            if now < first.last_look_at:
                due = min(due, first.last_look_at)
                await run.wait(due)
            elif failed:
                await run.wait(due)
            else:
                due = now
            looked = await run.attempt(first.family, due, self._look, found)
            failed = looked is None
            found = looked or found
            if looked is not None and not looked.running:
                return looked

    async def _look(self, before: Tested) -> Tested:
        """One look at all running tests, kept in one commit with what follows from it."""
        family = before.tests[0].family
        tests, looks = await workflow.transaction(StepName.EXPERIMENT_LOOK, self._looked, family)
        found = Tested(tests=tests, looks=looks)
        by_id = {test.id: test for test in tests}
        newest = max((look.at for look in looks), default=None)
        # The leading one last: the figures of "the candidate" are its.
        for look in sorted(looks, key=lambda look: look is found.look):
            if look.at == newest:
                self._run.parts.hooks.experiment_looked(by_id[look.experiment_id], look)
        fewer = 0 < found.running < before.running
        if fewer or any("next_share" in look.inputs for look in looks):
            await route(self._run, StepName.EXPERIMENT_ROUTE)
        return found

    async def _looked(self, tx: Tx, family: str) -> tuple[tuple[ABTest, ...], tuple[Look, ...]]:
        at = self._run.now
        looks = await self._evaluator.look(family, at=at, tx=tx)
        tests = tuple(await self._run.parts.store.experiments.family(family, tx=tx))
        by_id = {test.id: test for test in tests}
        for look in looks:
            if look.at == at:
                await self._tell(tx, by_id[look.experiment_id], look)
        await self._run.parts.store.watches.looked(list(by_id), at, tx=tx)
        return tests, looks

    async def _tell(self, tx: Tx, test: ABTest, look: Look) -> None:
        """Tell the tracking server of a declared or last look."""
        if not look.declared and look.verdict is Verdict.CONTINUE:
            return
        lane = "" if test.siblings is None else f"candidate_{test.lane + 1}_"
        numbers = {
            "lift": look.lift,
            "lift_lower": look.lower,
            "lift_upper": look.upper,
            "units": look.baseline.sample_size + look.candidate.sample_size,
        }
        payload = {
            "metrics": {f"{lane}{k}": float(v) for k, v in numbers.items() if v is not None},
            "step": look.number,
            "at": look.at.isoformat(),
        }
        await self._run.tell_once(tx, f"{test.id}:look:{look.number}", "metrics", payload)

    # --- end ----------------------------------------------------------------------------

    async def end(self, tested: Tested, versions: Sequence[ModelVersion]) -> None:
        """Write the verdicts down; of several versions, those that did not win are rejected.

        A candidate that did not win loses its traffic when the run ends.
        """
        lost = [v for lane, v in enumerate(versions) if lane != tested.test.lane]
        await workflow.transaction(StepName.EXPERIMENT_END, self._write, tested, tuple(lost))
        self._run.changed()

    async def _write(self, tx: Tx, tested: Tested, lost: tuple[ModelVersion, ...]) -> None:
        run, store = self._run, self._run.parts.store
        verdicts = [VerdictDetail.of(test, tested.looks) for test in tested.tests]
        detail = verdicts[tested.test.lane].of_stage()
        if len(verdicts) > 1:
            detail["candidates"] = [verdict.of_candidate() for verdict in verdicts]
        await run.mark_run(tx, {"ab_test_id": tested.test.id})
        await run.mark_stage(tx, Stage.EXPERIMENT, StageStatus.COMPLETED, detail)
        for version in lost:
            await store.versions.save(replace(version, status=VersionStatus.REJECTED), tx=tx)

    async def release(self, tested: Tested) -> None:
        """Give the traffic of tests that no run drives back to their baseline."""
        await workflow.transaction(StepName.EXPERIMENT_END, self._release, tested)
        await route(self._run, StepName.EXPERIMENT_ROUTE)

    async def _release(self, tx: Tx, tested: Tested) -> None:
        alone = tested.test.reason if len(tested.tests) == 1 else None
        await withdraw(self._run, tx, alone or f"{self._run.id} ended")


def completion(test: ABTest, config: PipelineConfig) -> datetime:
    """When a run with this test is over, if nothing goes wrong."""
    steps = plan(config)
    hours = steps.interval_hours * (len(steps.steps) - bool(steps.holdback))
    return test.last_look_at + timedelta(hours=hours, days=steps.holdback_days)
