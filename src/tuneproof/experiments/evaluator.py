"""The evaluator: declares tests, takes looks, keeps them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Unpack

from tuneproof.errors import InputError, StateError
from tuneproof.experiments.allocation import phase_counts, thompson_share
from tuneproof.experiments.declaring import Declared, declare
from tuneproof.experiments.families import check_family, controls, settled, shared_control
from tuneproof.experiments.judge import DeclaredLook, judge
from tuneproof.experiments.ledger import Allotment, allot, identity_of
from tuneproof.experiments.records import (
    ABTest,
    Criteria,
    Criterion,
    EvaluationResult,
    Evidence,
    ExperimentStatus,
    Look,
    ModelRef,
    Verdict,
)
from tuneproof.experiments.store import ExperimentStore
from tuneproof.settings import PipelineConfig
from tuneproof.stats.shrinkage import Prior, fit_prior
from tuneproof.training import ModelVersion
from tuneproof.workflow import Clock, SystemClock


class ModelEvaluator:
    """Declares online tests and judges them. Usable by itself, with a store."""

    def __init__(
        self,
        *,
        store: ExperimentStore,
        clock: Clock | None = None,
        config: PipelineConfig | None = None,
    ) -> None:
        self._store = store
        self._clock = clock or SystemClock()
        self._config = config or PipelineConfig()

    async def create_a_b_test(
        self,
        baseline_model: str | ModelRef | ModelVersion,
        candidate_model: str | ModelRef | ModelVersion,
        traffic_split: float | None = None,
        duration_hours: float | None = None,
        *,
        run_id: str | None = None,
        at: datetime | None = None,
        tx: Any = None,
        **declared: Unpack[Declared],
    ) -> ABTest:
        """Declare a test and route its tasks: `traffic_split` of the units get the candidate.

        What `declared` leaves out is as the settings say. Raises `InputError` for a split outside
        (0, 0.5], a duration that is not positive, two equal models, or what `declare` refuses;
        `ConflictError` where one of the tasks is being tested or rolled out.
        """
        config = declare(self._config, declared)
        design = self._design(config, baseline_model, traffic_split, duration_hours, run_id, at)
        candidate = model_ref(candidate_model)
        _check_test(design.baseline, candidate, design.split)
        test_id = await self._store.next_test_id(design.start, tx)
        identity = await self._identity(candidate, tx)
        test = design.test(test_id, candidate, identity, await self._allotment(identity, tx))
        await self._store.start_test(test, tx=tx)
        return test

    async def create_family(
        self,
        baseline_model: str | ModelRef | ModelVersion,
        candidate_models: Sequence[str | ModelRef | ModelVersion],
        traffic_split: float | None = None,
        duration_hours: float | None = None,
        *,
        run_id: str | None = None,
        at: datetime | None = None,
        tx: Any = None,
        **declared: Unpack[Declared],
    ) -> tuple[ABTest, ...]:
        """Declare one test for each of several candidates against one baseline, all at once.

        `traffic_split` is the share of *all* units that each candidate gets. The tests share the
        baseline's units and the error of one test. Raises as `create_a_b_test` does, and
        `InputError` for fewer than two candidates, for shares that leave the baseline fewer
        units than a candidate, and for shares that adapt.
        """
        config = declare(self._config, declared)
        design = self._design(config, baseline_model, traffic_split, duration_hours, run_id, at)
        models = [model_ref(candidate) for candidate in candidate_models]
        check_family(design.baseline, models, design.split, config.allocation)
        family = await self._store.next_family_id(design.start, tx)
        identities = [await self._identity(model, tx) for model in models]
        allotments = [await self._allotment(i, tx, among=len(models)) for i in identities]
        tests = []
        for lane, model in enumerate(models):
            test_id = await self._store.next_test_id(design.start, tx)
            test = design.test(test_id, model, identities[lane], allotments[lane])
            tests.append(replace(test, salt=family, family=family, lane=lane, lanes=len(models)))
        await self._store.start_family(tests, tx=tx)
        return tuple(tests)

    def _design(
        self,
        config: PipelineConfig,
        baseline_model: str | ModelRef | ModelVersion,
        split: float | None,
        hours: float | None,
        run_id: str | None,
        at: datetime | None,
    ) -> _Design:
        design = _Design(
            config=config,
            baseline=model_ref(baseline_model),
            split=config.traffic_split if split is None else split,
            hours=config.a_b_test_duration_hours if hours is None else hours,
            start=at or self._clock.now(),
            run_id=run_id,
        )
        if not design.hours > 0:
            raise InputError(
                f"duration_hours {design.hours!r} is not above 0.", mend="A week is 168."
            )
        return design

    async def _identity(self, candidate: ModelRef, tx: Any) -> tuple[str, ...]:
        dataset = await self._store.dataset_of(candidate, tx=tx)
        return identity_of(candidate.model_id, dataset)

    async def _allotment(self, identity: tuple[str, ...], tx: Any, among: int = 1) -> Allotment:
        spent = await self._store.spent(self._config.name, tx=tx)
        return allot(spent, identity, loop_alpha=self._config.loop_alpha, among=among)

    async def look(self, ab_test_id: str, *, at: datetime | None = None, tx: Any = None) -> Look:
        """Take one look and keep it; a final verdict ends the test.

        An ended test is not looked at again: its last look is returned. One of a family is
        looked at together with its family. Raises `StateError` for a test of a family that was
        ended before its first look.
        """
        test = await self._store.test(ab_test_id, tx=tx)
        if test.family is not None:
            return await self._look_of(test, at, tx)
        looks = await self._store.looks(ab_test_id, tx=tx)
        if test.status is not ExperimentStatus.RUNNING and looks:
            return looks[-1]
        instant = at or self._clock.now()
        evidence = await self._evidence(test, instant, tx)
        look = self._judged(test, evidence, looks, instant, await self._prior(test, tx))
        share = self._next_share(test, evidence, looks, instant)
        if look.verdict is Verdict.CONTINUE and share is not None:
            phase = await self._store.reallocate(test, share, instant, tx=tx)
            moved = {"next_share": share, "next_phase": phase}
            look = replace(look, inputs={**look.inputs, **moved})
        await self._keep(test, look, tx)
        return look

    async def _look_of(self, test: ABTest, at: datetime | None, tx: Any) -> Look:
        assert test.family is not None
        looks = await self.look_family(test.family, at=at, tx=tx)
        found = next((look for look in looks if look.experiment_id == test.id), None)
        if found is None:
            raise StateError(
                f"Experiment {test.id} was ended before its first look: {test.reason}",
                mend=f"tuneproof experiment show {test.id}",
            )
        return found

    async def look_family(
        self, family: str, *, at: datetime | None = None, tx: Any = None
    ) -> tuple[Look, ...]:
        """Take one look at every running test of a family, at one instant, and keep them.

        The newest look of each test by lane, also of those that ended before. The first look at
        which any promotes ends the family; a test that ends otherwise ends alone, and the others
        begin their next phase then. Raises `NotFoundError`.
        """
        tests = await self._store.family(family, tx=tx)
        before = {test.id: await self._store.looks(test.id, tx=tx) for test in tests}
        running = [test for test in tests if test.status is ExperimentStatus.RUNNING]
        new = await self._looks_at(tests, running, before, at or self._clock.now(), tx)
        newest = {**{id: looks[-1] for id, looks in before.items() if looks}, **new}
        return tuple(newest[test.id] for test in tests if test.id in newest)

    async def _looks_at(
        self,
        tests: Sequence[ABTest],
        running: Sequence[ABTest],
        before: Mapping[str, Sequence[Look]],
        at: datetime,
        tx: Any,
    ) -> dict[str, Look]:
        if not running:
            return {}
        evidence = {test.id: await self._evidence(test, at, tx) for test in tests}
        prior = await self._prior(tests[0], tx)
        control = controls(tests, evidence)
        looks = [
            self._judged(t, shared_control(t, evidence, control), before[t.id], at, prior)
            for t in running
        ]
        looks = [replace(x, inputs={**x.inputs, "control": list(control)}) for x in looks]
        found = {look.experiment_id: look for look in settled(looks, tests)}
        for test in running:
            await self._keep(test, found[test.id], tx)
        ended = [look for look in found.values() if look.verdict is not Verdict.CONTINUE]
        if ended and len(ended) < len(running):
            names = [look.experiment_id for look in ended]
            await self._store.stop_lanes(names, at, f"{', '.join(names)} ended", tx=tx)
        return found

    async def _evidence(self, test: ABTest, at: datetime, tx: Any) -> Evidence:
        matured = at - timedelta(hours=test.maturation_hours)
        return await self._store.evidence(
            test.id,
            before=matured,
            halfway=test.start_at + (matured - test.start_at) / 2,
            segments=test.segments,
            tx=tx,
        )

    def _judged(
        self,
        test: ABTest,
        evidence: Evidence,
        looks: Sequence[Look],
        at: datetime,
        prior: Prior,
    ) -> Look:
        return judge(
            test,
            evidence,
            at=at,
            number=len(looks) + 1,
            declared_before=[declared_look(x) for x in looks if x.declared],
            prior=prior,
            max_error_rate=self._config.max_error_rate,
            max_p95_latency_ms=self._config.max_p95_latency_ms,
            max_engagement_drop=self._config.max_engagement_drop,
        )

    async def _keep(self, test: ABTest, look: Look, tx: Any) -> None:
        """Keep a look, and the end of its test where it says so."""
        await self._store.add_look(look, tx=tx)
        if look.verdict is not Verdict.CONTINUE:
            ended = replace(
                test, status=ExperimentStatus.COMPLETED, verdict=look.verdict, reason=look.reason
            )
            await self._store.end_test(ended, tx=tx)

    def _next_share(
        self, test: ABTest, evidence: Evidence, looks: Sequence[Look], at: datetime
    ) -> float | None:
        """The share of the next phase, where one is due and it is another; else None."""
        if test.allocation == "fixed" or at >= test.end_at or not evidence.shares:
            return None
        changes = [look.at for look in looks if "next_share" in look.inputs]
        began = changes[-1] if changes else test.start_at
        if at - began < timedelta(hours=self._config.allocation_hours):
            return None
        newest, strata = max(evidence.shares), evidence.strata()
        phase = next((s for s in strata if s.phase == str(newest)), None)
        if phase is None or not phase_counts(phase, test.min_units_phase):
            return None
        current = evidence.shares[newest]
        share = thompson_share(
            strata,
            current,
            metric=test.metric,
            min_units_phase=test.min_units_phase,
        )
        return None if share == current else share

    async def _prior(self, test: ABTest, tx: Any) -> Prior:
        """What the pipeline's finished experiments say of how large lifts are in truth."""
        past = await self._store.final_lifts(test.pipeline, tx=tx)
        return fit_prior([math.log1p(lift) for lift, _ in past], [error for _, error in past])

    async def evaluate_performance(
        self, ab_test_id: str, significance_threshold: float | None = None
    ) -> EvaluationResult:
        """The experiment as it stands: a running test is looked at now.

        `significance_threshold` may only repeat what was declared: a test does not change while
        it runs. Raises `NotFoundError`, `InputError`.
        """
        test = await self._store.test(ab_test_id)
        declared = test.criteria.significance_threshold
        if significance_threshold is not None and significance_threshold != declared:
            raise InputError(
                f"significance_threshold {significance_threshold:g} is not what {ab_test_id} "
                f"declared ({declared:g}).",
                mend="A running test cannot be changed; declare another one.",
            )
        look = await self.look(ab_test_id)
        test = await self._store.test(ab_test_id)
        return EvaluationResult(
            ab_test_id=ab_test_id,
            status=test.status,
            look=look,
            recommendation=look.verdict,
            reason=look.reason,
            looks=look.number,
        )


def declared_look(look: Look) -> DeclaredLook:
    return DeclaredLook(
        fraction=look.inputs["fractions"][-1], information=look.inputs.get("information")
    )


def model_ref(model: str | ModelRef | ModelVersion) -> ModelRef:
    """A model by whatever the caller has of it."""
    if isinstance(model, ModelRef):
        return model
    if isinstance(model, str):
        return ModelRef(model_id=model)
    if model.model_id is None:
        raise InputError(
            f"Version {model.id} has no model yet: it is {model.status}.",
            mend="Wait for its training (ModelTrainer.monitor_training_job).",
        )
    return ModelRef(model_id=model.model_id, version=model.id)


@dataclass(frozen=True, kw_only=True)
class _Design:
    """What the tests of one declaration have in common."""

    config: PipelineConfig
    baseline: ModelRef
    split: float
    hours: float
    start: datetime
    run_id: str | None

    def test(
        self, id: str, candidate: ModelRef, identity: tuple[str, ...], allotment: Allotment
    ) -> ABTest:
        """The test of one candidate."""
        config = self.config
        return ABTest(
            id=id,
            run_id=self.run_id,
            pipeline=config.name,
            tasks=config.tasks,
            baseline=self.baseline,
            candidate=candidate,
            traffic_split=self.split,
            duration_hours=self.hours,
            criteria=Criteria(
                min_engagement_lift=config.min_engagement_lift,
                min_cost_efficiency_gain=config.min_cost_efficiency_gain,
                significance_threshold=config.significance_threshold,
            ),
            decision=config.decision,
            cost_metric=config.cost_metric,
            maturation_hours=config.maturation_hours,
            min_units=config.min_units,
            min_units_phase=config.min_units_phase,
            salt=id,
            status=ExperimentStatus.RUNNING,
            start_at=self.start,
            end_at=self.start + timedelta(hours=self.hours),
            objectives=tuple(Criterion.parse(text) for text in config.criteria),
            alpha=allotment.alpha if config.loop_ledger else None,
            retest=allotment.retest,
            identity=identity,
            segments=config.segments,
            segment_guardrail=config.segment_guardrail,
            allocation=config.allocation,
            analysis_unit=config.analysis_unit,
            cuped=config.cuped,
        )


def _check_test(baseline: ModelRef, candidate: ModelRef, split: float) -> None:
    if not 0 < split <= 0.5:
        raise InputError(
            f"traffic_split {split!r} is outside (0, 0.5].",
            mend="Give the candidate's share of the units: 10 % is 0.1.",
        )
    if baseline.same_as(candidate):
        raise InputError(
            f"Baseline and candidate are the same model, {baseline.model_id}.",
            mend="Test a version against the model in use.",
        )
