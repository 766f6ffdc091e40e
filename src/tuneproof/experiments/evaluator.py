"""The evaluator: declares tests, takes looks, keeps them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Self

from tuneproof.errors import InputError, StateError
from tuneproof.experiments.allocation import phase_counts, thompson_share
from tuneproof.experiments.declaring import declare, told_by
from tuneproof.experiments.families import check_lanes, controls, settled, shared_control
from tuneproof.experiments.judge import DeclaredLook, candidate_harm, judge
from tuneproof.experiments.ledger import allot, identity_of
from tuneproof.experiments.records import (
    ABTest,
    EvaluationResult,
    Evidence,
    ExperimentStatus,
    Look,
    Variant,
    Verdict,
)
from tuneproof.experiments.store import ExperimentStore
from tuneproof.settings import Declaration, PipelineConfig, Settings
from tuneproof.standalone import ensure_open, loaded, opened_store, opening
from tuneproof.stats.shrinkage import Prior, fit_prior
from tuneproof.training import ModelVersion
from tuneproof.workflow import Clock, SystemClock, Tx


class ModelEvaluator:
    """Declares online tests and judges them. Usable by itself: it needs a store and its config.

    Each that is left out is the settings': the database is opened for each call, or for as long
    as `async with evaluator.opened()`, and the config is the first pipeline's. What is declared
    so is looked at when somebody asks, or by the next service on this database.
    """

    def __init__(
        self,
        *,
        store: ExperimentStore | None = None,
        clock: Clock | None = None,
        config: PipelineConfig | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._given = store
        self._clock = clock or SystemClock()
        self._told = config
        self._settings = settings

    @property
    def _store(self) -> ExperimentStore:
        return ensure_open(self._given, "evaluator", "store")

    @property
    def _config(self) -> PipelineConfig:
        return self._told or PipelineConfig()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Self]:
        """This evaluator with its store open: its own, or the settings' until the block ends."""
        if self._given is not None:
            yield self
            return
        settings = await loaded(self._settings)
        async with opened_store(settings, self._clock) as store:
            config = self._told or next(iter(settings.pipelines.values()))
            yield type(self)(store=store, clock=self._clock, config=config)

    @opening
    async def declare(
        self,
        baseline: str | Variant | ModelVersion,
        candidates: Sequence[str | Variant | ModelVersion],
        traffic_split: float | None = None,
        duration_hours: float | None = None,
        *,
        run_id: str | None = None,
        at: datetime | None = None,
        tx: Tx | None = None,
        declaration: Declaration | None = None,
        replace_baseline: bool = False,
        **declared: object,
    ) -> tuple[ABTest, ...]:
        """Declare one test for each candidate against one baseline, all at once, and route them.

        `traffic_split` is the share of *all* units that each candidate gets. The tests of several
        share the baseline's units and the error of one test. A `declaration` holds
        whole, in place of what the settings declare; `declared` are single options in place of
        theirs. Raises `InputError` for a model that is named twice, a split that leaves the
        baseline fewer units than a candidate, a duration that is not positive, shares of several
        that adapt, or what `declare` refuses; `ConflictError` where one of the tasks is being
        tested or rolled out, or is served by another model than this baseline, unless that may be
        replaced (`replace_baseline`).
        """
        config = declare(told_by(self._config, declaration), declared)
        split = config.traffic_split if traffic_split is None else traffic_split
        hours = config.a_b_test_duration_hours if duration_hours is None else duration_hours
        models = [variant_of(candidate) for candidate in candidates]
        check_lanes(variant_of(baseline), models, split, config.allocation)
        if not hours > 0:
            raise InputError(f"duration_hours {hours!r} is not above 0.", mend="A week is 168.")
        declaration = replace(
            config.declaration, traffic_split=split, a_b_test_duration_hours=hours
        )
        start = at or self._clock.now()
        async with self._store.database.writing(tx) as own:
            family, ids = await self._store.lanes.new_ids(len(models), start, tx=own)
            identities = [await self._identity(model, own) for model in models]
            spent = await self._store.experiments.spent(self._config.name, tx=own)
            tests = []
            for lane, (id, model, identity) in enumerate(zip(ids, models, identities, strict=True)):
                allotment = allot(
                    spent, identity, loop_alpha=self._config.loop_alpha, among=len(models)
                )
                tests.append(
                    ABTest(
                        id=id,
                        run_id=run_id,
                        pipeline=config.name,
                        tasks=config.tasks,
                        baseline=variant_of(baseline),
                        candidate=model,
                        declaration=declaration,
                        status=ExperimentStatus.RUNNING,
                        start_at=start,
                        end_at=start + timedelta(hours=hours),
                        family=family,
                        lane=lane,
                        lanes=len(models),
                        alpha=allotment.alpha if config.loop_ledger else None,
                        retest=allotment.retest,
                        identity=identity,
                    )
                )
            await self._store.lanes.start(tests, replace_baseline=replace_baseline, tx=own)
        return tuple(tests)

    @opening
    async def create_a_b_test(
        self,
        baseline_model: str | Variant | ModelVersion,
        candidate_model: str | Variant | ModelVersion,
        traffic_split: float | None = None,
        duration_hours: float | None = None,
        *,
        run_id: str | None = None,
        at: datetime | None = None,
        tx: Tx | None = None,
        declaration: Declaration | None = None,
        replace_baseline: bool = False,
        **declared: object,
    ) -> ABTest:
        """Declare the test of one candidate: arguments and errors are those of `declare`."""
        [test] = await self.declare(
            baseline_model,
            [candidate_model],
            traffic_split,
            duration_hours,
            run_id=run_id,
            at=at,
            tx=tx,
            declaration=declaration,
            replace_baseline=replace_baseline,
            **declared,
        )
        return test

    async def _identity(self, candidate: Variant, tx: Tx) -> tuple[str, ...]:
        dataset = await self._store.versions.dataset_of(candidate, tx=tx)
        return identity_of(candidate.model_id, dataset, candidate.prompt)

    @opening
    async def look(
        self, family: str, *, at: datetime | None = None, tx: Tx | None = None
    ) -> tuple[Look, ...]:
        """Take one look at every running test of a family, at one instant, and keep them.

        The newest look of each test by lane, also of those that ended before; a test that was
        ended before its first look has none. The first look at which any promotes ends the
        family; a test that ends otherwise ends alone, and the others begin their next phase
        then. Who looks meanwhile waits, and gets the same looks where they are of its instant or
        a later one. Raises `NotFoundError`.
        """
        instant = at or self._clock.now()
        async with self._store.database.writing(tx) as own:
            tests = await self._store.experiments.family(family, lock=True, tx=own)
            before = {
                test.id: await self._store.experiments.looks(test.id, tx=own) for test in tests
            }
            running = [test for test in tests if test.status is ExperimentStatus.RUNNING]
            taken = all(before[t.id] and before[t.id][-1].at >= instant for t in running)
            new = {} if taken else await self._looks_at(tests, running, before, instant, own)
        newest = {**{id: looks[-1] for id, looks in before.items() if looks}, **new}
        return tuple(newest[test.id] for test in tests if test.id in newest)

    async def _looks_at(
        self,
        tests: Sequence[ABTest],
        running: Sequence[ABTest],
        before: Mapping[str, Sequence[Look]],
        at: datetime,
        tx: Tx,
    ) -> dict[str, Look]:
        evidence = {test.id: await self._evidence(test, at, tx) for test in tests}
        prior = await self._prior(tests[0], tx)
        control = controls(tests, evidence)
        looks: Sequence[Look] = [
            self._judged(t, shared_control(t, evidence, control), before[t.id], at, prior)
            for t in running
        ]
        if len(tests) > 1:
            looks = [replace(x, inputs={**x.inputs, "control": list(control)}) for x in looks]
        looks = settled(looks, tests)
        ended = [x.experiment_id for x in looks if x.verdict is not Verdict.CONTINUE]
        if not ended:
            looks = await self._adapted(tests, looks, evidence, before, tx)
        elif len(ended) < len(running):
            cause = f"{', '.join(ended)} ended"
            await self._store.lanes.begin_phase(tests, dict.fromkeys(ended, 0.0), at, cause, tx=tx)
        for test, look in zip(running, looks, strict=True):
            await self._keep(test, look, tx)
        return {look.experiment_id: look for look in looks}

    async def _adapted(
        self,
        tests: Sequence[ABTest],
        looks: Sequence[Look],
        evidence: Mapping[str, Evidence],
        before: Mapping[str, Sequence[Look]],
        tx: Tx,
    ) -> Sequence[Look]:
        """The looks, with the phase that begins where a share is to be another from now on."""
        at = looks[0].at
        due = {t.id: self._next_share(t, evidence[t.id], before[t.id], at) for t in tests}
        shares = {id: share for id, share in due.items() if share is not None}
        if not shares:
            return looks
        cause = f"{', '.join(shares)} adapts its share"
        phase = await self._store.lanes.begin_phase(tests, shares, at, cause, tx=tx)
        return [
            replace(look, inputs={**look.inputs, "next_share": share, "next_phase": phase})
            if (share := shares.get(look.experiment_id)) is not None
            else look
            for look in looks
        ]

    async def _evidence(self, test: ABTest, at: datetime, tx: Tx) -> Evidence:
        matured = at - timedelta(hours=test.declaration.maturation_hours)
        found = await self._store.events.evidence(
            test.id,
            before=matured,
            halfway=test.start_at + (matured - test.start_at) / 2,
            segments=test.declaration.segments,
            tx=tx,
        )
        suspected = candidate_harm(
            found,
            max_error_rate=self._config.max_error_rate,
            max_p95_latency_ms=self._config.max_p95_latency_ms,
        )
        if suspected.harm:
            found = replace(found, hours=await self._store.events.hours(test.id, tx=tx))
        return found

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

    async def _keep(self, test: ABTest, look: Look, tx: Tx) -> None:
        """Keep a look, and the end of its test where it says so."""
        await self._store.experiments.add_look(look, tx=tx)
        if look.verdict is not Verdict.CONTINUE:
            await self._store.experiments.end(
                test.id,
                status=ExperimentStatus.COMPLETED,
                verdict=look.verdict,
                reason=look.reason,
                tx=tx,
            )

    def _next_share(
        self, test: ABTest, evidence: Evidence, looks: Sequence[Look], at: datetime
    ) -> float | None:
        """The share of the next phase, where one is due and it is another; else None."""
        if test.declaration.allocation == "fixed" or at >= test.end_at or not evidence.shares:
            return None
        changes = [look.at for look in looks if "next_share" in look.inputs]
        began = changes[-1] if changes else test.start_at
        if at - began < timedelta(hours=self._config.allocation_hours):
            return None
        newest, strata = max(evidence.shares), evidence.strata()
        phase = next((s for s in strata if s.phase == str(newest)), None)
        if phase is None or not phase_counts(phase, test.declaration.min_units_phase):
            return None
        current = evidence.shares[newest]
        share = thompson_share(
            strata,
            current,
            metric=test.metric,
            min_units_phase=test.declaration.min_units_phase,
        )
        return None if share == current else share

    async def _prior(self, test: ABTest, tx: Tx) -> Prior:
        """What the pipeline's finished experiments say of how large lifts are in truth."""
        past = await self._store.experiments.final_lifts(test.pipeline, tx=tx)
        return fit_prior([math.log1p(lift) for lift, _ in past], [error for _, error in past])

    @opening
    async def evaluate_performance(
        self, ab_test_id: str, significance_threshold: float | None = None
    ) -> EvaluationResult:
        """The experiment as it stands: a running test is looked at now.

        `significance_threshold` may only repeat what was declared: a test does not change while
        it runs. Raises `NotFoundError`, `InputError`, and `StateError` for a test that was ended
        before its first look.
        """
        test = await self._store.experiments.get(ab_test_id)
        declared = test.declaration.significance_threshold
        if significance_threshold is not None and significance_threshold != declared:
            raise InputError(
                f"significance_threshold {significance_threshold:g} is not what {ab_test_id} "
                f"declared ({declared:g}).",
                mend="A running test cannot be changed; declare another one.",
            )
        looks = await self.look(test.family)
        look = next((look for look in looks if look.experiment_id == ab_test_id), None)
        test = await self._store.experiments.get(ab_test_id)
        if look is None:
            raise StateError(
                f"Experiment {ab_test_id} was ended before its first look: {test.reason}",
                mend=f"tuneproof experiment show {ab_test_id}",
            )
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


def variant_of(model: str | Variant | ModelVersion) -> Variant:
    """A model by whatever the caller has of it."""
    if isinstance(model, Variant):
        return model
    if isinstance(model, str):
        return Variant(model_id=model)
    if model.model_id is None:
        raise InputError(
            f"Version {model.id} has no model yet: it is {model.status}.",
            mend="Wait for its training (ModelTrainer.monitor_training_job).",
        )
    # Two providers may call different models alike; what was trained has a name of its own.
    provider = None if model.training_job_id is not None else model.provider
    return Variant(
        model_id=model.model_id, version=model.id, provider=provider, prompt=model.prompt
    )
