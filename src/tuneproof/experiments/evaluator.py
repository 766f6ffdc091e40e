"""The evaluator: declares tests, takes looks, keeps them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Protocol, Unpack

from tuneproof.errors import InputError
from tuneproof.experiments.allocation import thompson_share
from tuneproof.experiments.declaring import Declared, declare
from tuneproof.experiments.judge import DeclaredLook, judge
from tuneproof.experiments.ledger import Allotment, Spent, allot, identity_of
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
from tuneproof.settings import PipelineConfig
from tuneproof.stats.shrinkage import Prior, fit_prior
from tuneproof.training import ModelVersion
from tuneproof.workflow import Clock, SystemClock


class ExperimentStore(Protocol):
    """What the evaluator keeps: tests, looks, phases, evidence, routing."""

    async def next_test_id(self, at: datetime, tx: Any = None) -> str:
        """The next `ab-test-YYYYMMDD-NNN`."""

    async def start_test(self, test: ABTest, *, tx: Any = None) -> None:
        """Keep a new test, open its first phase, and route its tasks; refuses busy tasks."""

    async def test(self, test_id: str, *, tx: Any = None) -> ABTest:
        """The test of this id. Raises `NotFoundError`."""

    async def looks(self, test_id: str, *, tx: Any = None) -> Sequence[Look]:
        """All looks, oldest first."""

    async def add_look(self, look: Look, *, tx: Any = None) -> None:
        """Keep a look for ever."""

    async def end_test(self, test: ABTest, *, tx: Any = None) -> None:
        """Keep the test's final status, verdict and reason."""

    async def evidence(
        self,
        subject: str,
        *,
        before: datetime,
        halfway: datetime | None = None,
        segments: Sequence[str] = (),
        tx: Any = None,
    ) -> Evidence:
        """What is known of units whose first exposure hour ended by `before`.

        `halfway` asks for those before it as well, `segments` for the cells by attribute.
        """

    async def spent(self, pipeline: str, *, tx: Any = None) -> Sequence[Spent]:
        """What each experiment of a pipeline has taken of the loop's error, oldest first."""

    async def final_lifts(self, pipeline: str, *, tx: Any = None) -> Sequence[tuple[float, float]]:
        """The lift of each finished experiment with its standard error on the log scale."""

    async def reallocate(self, test: ABTest, share: float, at: datetime, *, tx: Any = None) -> int:
        """Give the candidate another share from now on: the number of the phase that begins."""

    async def dataset_of(self, model: ModelRef, *, tx: Any = None) -> str | None:
        """The hash of the dataset that made this model, where it is one of ours."""


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
        start = at or self._clock.now()
        split = config.traffic_split if traffic_split is None else traffic_split
        hours = config.a_b_test_duration_hours if duration_hours is None else duration_hours
        baseline, candidate = model_ref(baseline_model), model_ref(candidate_model)
        _check_test(baseline, candidate, split, hours)
        test_id = await self._store.next_test_id(start, tx)
        dataset = await self._store.dataset_of(candidate, tx=tx)
        identity = identity_of(candidate.model_id, dataset)
        allotment = await self._allotment(identity, tx)
        test = ABTest(
            id=test_id,
            run_id=run_id,
            pipeline=config.name,
            tasks=config.tasks,
            baseline=baseline,
            candidate=candidate,
            traffic_split=split,
            duration_hours=hours,
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
            salt=test_id,
            status=ExperimentStatus.RUNNING,
            start_at=start,
            end_at=start + timedelta(hours=hours),
            objectives=tuple(Criterion.parse(text) for text in config.criteria),
            alpha=allotment.alpha if config.loop_ledger else None,
            retest=allotment.retest,
            identity=identity,
            segments=config.segments,
            segment_guardrail=config.segment_guardrail,
            allocation=config.allocation,
        )
        await self._store.start_test(test, tx=tx)
        return test

    async def _allotment(self, identity: tuple[str, ...], tx: Any) -> Allotment:
        spent = await self._store.spent(self._config.name, tx=tx)
        return allot(spent, identity, loop_alpha=self._config.loop_alpha)

    async def look(self, ab_test_id: str, *, at: datetime | None = None, tx: Any = None) -> Look:
        """Take one look and keep it; a final verdict ends the test.

        An ended test is not looked at again: its last look is returned.
        """
        test = await self._store.test(ab_test_id, tx=tx)
        looks = await self._store.looks(ab_test_id, tx=tx)
        if test.status is not ExperimentStatus.RUNNING and looks:
            return looks[-1]
        instant = at or self._clock.now()
        matured = instant - timedelta(hours=test.maturation_hours)
        evidence = await self._store.evidence(
            test.id,
            before=matured,
            halfway=test.start_at + (matured - test.start_at) / 2,
            segments=test.segments,
            tx=tx,
        )
        look = judge(
            test,
            evidence,
            at=instant,
            number=len(looks) + 1,
            declared_before=[declared_look(x) for x in looks if x.declared],
            prior=await self._prior(test, tx),
            max_error_rate=self._config.max_error_rate,
            max_p95_latency_ms=self._config.max_p95_latency_ms,
            max_engagement_drop=self._config.max_engagement_drop,
        )
        share = self._next_share(test, evidence, looks, instant)
        if look.verdict is Verdict.CONTINUE and share is not None:
            phase = await self._store.reallocate(test, share, instant, tx=tx)
            moved = {"next_share": share, "next_phase": phase}
            look = replace(look, inputs={**look.inputs, **moved})
        await self._store.add_look(look, tx=tx)
        if look.verdict is not Verdict.CONTINUE:
            ended = replace(
                test, status=ExperimentStatus.COMPLETED, verdict=look.verdict, reason=look.reason
            )
            await self._store.end_test(ended, tx=tx)
        return look

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
        current = evidence.shares[max(evidence.shares)]
        share = thompson_share(evidence.strata(), current, min_units_phase=test.min_units_phase)
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


def _check_test(baseline: ModelRef, candidate: ModelRef, split: float, hours: float) -> None:
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
