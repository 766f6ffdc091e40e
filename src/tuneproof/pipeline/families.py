"""The experiment of several candidates at once: declared, looked at and ended together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from tuneproof import workflow
from tuneproof.experiments import ABTest, ExperimentStatus, Look, winner
from tuneproof.pipeline.records import Stage
from tuneproof.pipeline.serving import Serving, Wait, completion
from tuneproof.training import ModelVersion, VersionStatus

Looked = tuple[tuple[ABTest, ...], tuple[Look, ...]]
"""A family's tests by lane, and the newest look of each that has one."""


class Families(Serving):
    """What `Serving` does of one candidate, for several at once."""

    async def start_family(self, versions: Sequence[ModelVersion]) -> tuple[ABTest, ...]:
        """Declare one test a version; each gets its share of the units from now on."""
        await self.make_room()
        tests: tuple[ABTest, ...] = await workflow.transaction(
            "experiment.create", self._create_family, tuple(versions)
        )
        self._subjects += [test.id for test in tests]
        await self.apply_routing("experiment.apply")
        self._parts.hooks.run_changed(self._id)
        return tests

    async def _create_family(
        self, tx: Any, versions: tuple[ModelVersion, ...]
    ) -> tuple[ABTest, ...]:
        at = self._parts.clock.now()
        baseline = await self._baseline(tx, versions[0])
        tests = await self._evaluator.create_family(
            baseline, versions, run_id=self._id, at=at, tx=tx
        )
        first = tests[0]
        names = [test.id for test in tests]
        detail = {
            "family": first.family,
            "ab_test_ids": names,
            "baseline": baseline.model_id,
            "ends": first.last_look_at.isoformat(),
        }
        await self._parts.store.mark_stage(
            self._id, Stage.EXPERIMENT, "in_progress", detail, at, tx
        )
        known = {
            "family": first.family,
            "ab_test_ids": names,
            "ab_test_id": first.id,
            "estimated_completion": completion(first, self.config).isoformat(),
        }
        await self._parts.store.mark_run(self._id, "running", at=at, result=known, tx=tx)
        return tests

    async def read_family(self, family: str) -> tuple[ABTest, ...]:
        """The tests of a family as they stand, by lane."""
        tests = tuple(await self._parts.store.family(family))
        self._subjects += [test.id for test in tests]
        return tests

    async def look_family(self, family: str) -> Looked:
        """One look at all running tests, kept in one commit with what follows from it."""
        tests, looks = await workflow.transaction("experiment.look", self._looked_family, family)
        by_id = {test.id: test for test in tests}
        newest = max((look.at for look in looks), default=None)
        best = leading(looks)
        # The leading one last: the figures of "the candidate" are its.
        for look in sorted(looks, key=lambda look: look is best):
            if look.at == newest:
                self._parts.hooks.experiment_looked(by_id[look.experiment_id], look)
        return tests, looks

    async def _looked_family(self, tx: Any, family: str) -> Looked:
        at = self._parts.clock.now()
        looks = await self._evaluator.look_family(family, at=at, tx=tx)
        tests = tuple(await self._parts.store.family(family, tx=tx))
        by_id = {test.id: test for test in tests}
        for look in looks:
            if look.at == at:
                await self._tell_look(tx, by_id[look.experiment_id], look)
        return tests, looks

    async def end_family(
        self, tests: Sequence[ABTest], looks: Sequence[Look], lost: Sequence[ModelVersion]
    ) -> None:
        """Write the verdicts down; versions that did not win are rejected."""
        await workflow.transaction(
            "experiment.end", self._write_verdicts, tuple(tests), tuple(looks), tuple(lost)
        )
        self._parts.hooks.run_changed(self._id)

    async def _write_verdicts(
        self,
        tx: Any,
        tests: tuple[ABTest, ...],
        looks: tuple[Look, ...],
        lost: tuple[ModelVersion, ...],
    ) -> None:
        at = self._parts.clock.now()
        best = leading(looks)
        detail: dict[str, Any] = {"candidates": verdicts_of(tests, looks)}
        if best is not None:
            test = next(t for t in tests if t.id == best.experiment_id)
            detail |= self._verdict_detail(test, best)
            known = {"ab_test_id": test.id}
            await self._parts.store.mark_run(self._id, "running", at=at, result=known, tx=tx)
        await self._parts.store.mark_stage(self._id, Stage.EXPERIMENT, "completed", detail, at, tx)
        for version in lost:
            rejected = replace(version, status=VersionStatus.REJECTED)
            await self._parts.store.keep_version(rejected, tx)

    async def release_family(self, tx: Any, tests: Sequence[ABTest]) -> None:
        """Give the traffic of a family that no run drives back to its baseline."""
        named = [test.id for test in tests]
        cause = f"{tests[0].family} ended"
        await self._parts.store.withdraw(named, self._parts.clock.now(), cause, tx)


def leading(looks: Sequence[Look]) -> Look | None:
    """The look of the winner, else of the test that ended last with the highest lift."""
    best = winner(looks)
    if best is not None or not looks:
        return best
    return max(looks, key=lambda look: (look.at, -1.0 if look.lift is None else look.lift))


def verdicts_of(tests: Sequence[ABTest], looks: Sequence[Look]) -> list[dict[str, Any]]:
    """How each candidate ended, as JSON types."""
    lifts = {look.experiment_id: look.lift for look in looks}
    return [
        {
            "ab_test_id": test.id,
            "model_id": test.candidate.model_id,
            "verdict": None if test.verdict is None else str(test.verdict),
            "reason": test.reason,
            "lift": lifts.get(test.id),
        }
        for test in tests
    ]


async def follow_family(serving: Families, tests: Sequence[ABTest], wait: Wait) -> Looked:
    """Look at all of them every hour until each has ended; missed looks coalesce into one."""
    first = tests[0]
    assert first.family is not None
    interval = timedelta(hours=serving.config.look_interval_hours)
    while True:
        now = await workflow.now()
        if now < first.last_look_at:
            due = first.start_at + ((now - first.start_at) // interval + 1) * interval
            await wait(min(due, first.last_look_at))
        found, looks = await serving.look_family(first.family)
        if not _running(found):
            return found, looks
        if _running(found) < _running(tests):
            await serving.apply_routing("experiment.lanes")
        tests = found


def _running(tests: Sequence[ABTest]) -> int:
    return sum(test.status is ExperimentStatus.RUNNING for test in tests)


def ending(tests: Sequence[ABTest]) -> str:
    """Why a family without a winner ended, in words."""
    said = "; ".join(f"{t.candidate.model_id} {t.verdict}: {t.reason}" for t in tests)
    return f"None of {len(tests)} candidates is promoted. {said}"
