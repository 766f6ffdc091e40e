"""What a run writes down: the changes that touch several nouns, each in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime

from tuneproof.errors import ConflictError
from tuneproof.experiments import (
    ABTest,
    Arm,
    Evidence,
    ExperimentStatus,
    Look,
    ModelRef,
    Requests,
    Spent,
    Verdict,
)
from tuneproof.rollout import Deployment, DeploymentState, Lane, Routing, routing_of
from tuneproof.rollout.machine import advance, roll_back
from tuneproof.store.activity import ActivityLog
from tuneproof.store.database import Database
from tuneproof.store.deployments import Deployments
from tuneproof.store.events import Events
from tuneproof.store.experiments import Experiments
from tuneproof.store.ids import Ids
from tuneproof.store.outbox import StoredOutbox
from tuneproof.store.routing import Routings
from tuneproof.store.runs import Runs
from tuneproof.store.subjects import SubjectKind, Subjects
from tuneproof.store.versions import Versions
from tuneproof.store.watches import Watches
from tuneproof.training import VersionStatus
from tuneproof.workflow import Tx

__all__ = ["Loop"]


class Loop:
    """The store as the pipeline, the evaluator and the deployment manager see it."""

    def __init__(
        self,
        database: Database,
        *,
        activity: ActivityLog,
        deployments: Deployments,
        events: Events,
        experiments: Experiments,
        ids: Ids,
        outbox: StoredOutbox,
        routing: Routings,
        runs: Runs,
        subjects: Subjects,
        versions: Versions,
        watches: Watches,
    ) -> None:
        self._database = database
        self.activity = activity
        self._deployments = deployments
        self._events = events
        self._experiments = experiments
        self._ids = ids
        self.outbox = outbox
        self._routing = routing
        self.runs = runs
        self.watches = watches
        self._subjects = subjects
        self.versions = versions

    # --- experiments ----------------------------------------------------------------

    def transaction(self, tx: Tx | None) -> AbstractAsyncContextManager[Tx]:
        """`tx` itself, or a new transaction that may write where it is None."""
        return self._database.writing(tx)

    async def new_ids(
        self, lanes: int, at: datetime, *, tx: Tx | None = None
    ) -> tuple[str, list[str]]:
        """The next `family-YYYYMMDD-NNN` with its `ab-test-YYYYMMDD-NNN`, by lane.

        A test alone is its own family.
        """
        async with self._database.writing(tx) as own:
            together = await self._ids.next("family", at, tx=own) if lanes > 1 else None
            ids = [await self._ids.next("ab-test", at, tx=own) for _ in range(lanes)]
        return together or ids[0], ids

    async def start_tests(self, tests: Sequence[ABTest], *, tx: Tx | None = None) -> None:
        """Keep a family's tests, open their first phase together, route their tasks."""
        first = tests[0]
        async with self._database.writing(tx) as own:
            for task in first.tasks:
                await self._refuse_busy(task, own)
            for test in tests:
                await self._experiments.add(test, tx=own)
                await self._experiments.open_phase(
                    test.id, 1, test.traffic_split, test.start_at, tx=own
                )
            for task in first.tasks:
                await self._routing.set(_first_routing(task, tests), tx=own)

    async def _refuse_busy(self, task: str, tx: Tx) -> None:
        routing = await self._routing.get(task, tx=tx)
        if routing is not None and routing.subjects:
            busy = ", ".join(routing.subjects)
            raise ConflictError(
                f"Task {task} is busy with {busy}: one candidate at a time, or several as one "
                "family.",
                mend=f"End {busy} first, or wait for it.",
                subject=routing.subjects[0],
            )

    async def family(self, family: str, *, tx: Tx | None = None) -> Sequence[ABTest]:
        """The tests of a family by lane. Raises `NotFoundError`."""
        return await self._experiments.family(family, tx=tx)

    async def begin_phase(
        self,
        tests: Sequence[ABTest],
        shares: Mapping[str, float],
        at: datetime,
        cause: str,
        *,
        tx: Tx | None = None,
    ) -> int:
        """Begin the next phase of all tests of a family: its number.

        `shares` are the new ones by test, the others stay; 0 gives a lane back to the baseline.
        All begin it at this instant, also those whose share stays: the baseline that they share
        has other rates from now on.
        """
        async with self._database.writing(tx) as own:
            number = 0
            for test in tests:
                newest = (await self._experiments.phases(test.id, tx=own))[-1]
                number = newest.number + 1
                share = shares.get(test.id, newest.share)
                await self._experiments.open_phase(test.id, number, share, at, tx=own)
            names = {test.id for test in tests}
            for task in tests[0].tasks:
                routing = await self._routing.get(task, tx=own)
                if routing is not None and names & set(routing.subjects):
                    lanes = tuple(_reshared(lane, shares) for lane in routing.lanes)
                    moved = replace(routing, lanes=lanes, phase=number, updated_at=at, cause=cause)
                    await self._routing.set(moved, tx=own)
        return number

    async def test(self, test_id: str, *, tx: Tx | None = None) -> ABTest:
        """The test of this id. Raises `NotFoundError`."""
        return await self._experiments.get(test_id, tx=tx)

    async def looks(self, test_id: str, *, tx: Tx | None = None) -> Sequence[Look]:
        """All looks, oldest first."""
        return await self._experiments.looks(test_id, tx=tx)

    async def add_look(self, look: Look, *, tx: Tx | None = None) -> None:
        """Keep a look for ever."""
        await self._experiments.add_look(look, tx=tx)

    async def end_test(self, test: ABTest, *, tx: Tx | None = None) -> None:
        """Keep the test's final status, verdict and reason."""
        await self._experiments.update(
            test.id, status=test.status, verdict=test.verdict, reason=test.reason, tx=tx
        )

    async def spent(self, pipeline: str, *, tx: Tx | None = None) -> Sequence[Spent]:
        """What each experiment of a pipeline has taken of the loop's error, oldest first."""
        return await self._experiments.spent(pipeline, tx=tx)

    async def final_lifts(
        self, pipeline: str, *, tx: Tx | None = None
    ) -> Sequence[tuple[float, float]]:
        """The lift of each finished experiment with its standard error on the log scale."""
        return await self._experiments.final_lifts(pipeline, tx=tx)

    async def dataset_of(self, model: ModelRef, *, tx: Tx | None = None) -> str | None:
        """The hash of the dataset that made this model, where it is one of ours."""
        return await self.versions.dataset_of(model.model_id, tx=tx)

    async def evidence(
        self,
        subject: str,
        *,
        before: datetime,
        halfway: datetime | None = None,
        segments: Sequence[str] = (),
        tx: Tx | None = None,
    ) -> Evidence:
        """What is known of units whose first exposure hour ended by `before`."""
        return await self._events.evidence(
            subject, before=before, halfway=halfway, segments=segments, tx=tx
        )

    # --- rollouts -------------------------------------------------------------------

    async def next_deployment_id(self, at: datetime, tx: Tx | None = None) -> str:
        """The next `deploy-YYYYMMDD-NNN`."""
        return await self._ids.next("deploy", at, tx=tx)

    async def deployment(self, deployment_id: str, *, tx: Tx | None = None) -> Deployment:
        """The rollout of this id. Raises `NotFoundError`."""
        return await self._deployments.get(deployment_id, tx=tx)

    async def add_deployment(self, deployment: Deployment, *, tx: Tx | None = None) -> None:
        """Keep a new rollout."""
        await self._deployments.add(deployment, tx=tx)

    async def move_deployment(
        self,
        deployment: Deployment,
        kind: str,
        who: str,
        reason: str,
        at: datetime,
        tx: Tx | None = None,
    ) -> Deployment:
        """Keep a moved rollout, its history line, its phase and the routing of its tasks.

        Raises `ConflictError` where somebody else moved it since it was read.
        """
        async with self._database.writing(tx) as own:
            kept = await self._deployments.update(
                deployment.id,
                expected_version=deployment.version,
                tx=own,
                state=deployment.state,
                step=deployment.step,
                share=deployment.share,
                step_started_at=deployment.step_started_at,
                next_at=deployment.next_at,
                ended_at=deployment.ended_at,
                cause=deployment.cause,
                evidence=deployment.evidence,
            )
            detail = {"state": str(kept.state), "share": kept.share, "step": kept.step}
            await self._deployments.add_history(
                kept.id, at, kind, who, reason, {**detail, "evidence": kept.evidence}, tx=own
            )
            await self.activity.add(at, who, f"rollout {kind}", kept.id, reason, tx=own)
            if kept.state is DeploymentState.ROLLED_BACK:
                await self._return_to_previous(kept, own)
            phase = await self._phase(kept, at, own)
            for task in kept.tasks:
                routing = replace(routing_of(kept, task, phase), updated_at=at)
                if await self._mine(routing, kept, own):
                    await self._routing.set(routing, tx=own)
        return kept

    async def _return_to_previous(self, deployment: Deployment, tx: Tx) -> None:
        """A version that did harm is marked, so that it is not tried again by itself."""
        marks = (
            (deployment.version_id, VersionStatus.ROLLED_BACK),
            (deployment.previous.version, VersionStatus.LIVE),
        )
        for version_id, status in marks:
            # A rollout declared by hand may name a version that is not one of ours.
            if version_id is not None and await self.versions.find(version_id, tx=tx):
                await self.versions.update(version_id, tx=tx, status=status)

    async def _phase(self, deployment: Deployment, at: datetime, tx: Tx) -> int:
        phases = await self._experiments.phases(deployment.id, tx=tx)
        number = phases[-1].number if phases else 0
        if deployment.state.final or (phases and phases[-1].share == deployment.share):
            return number
        await self._experiments.open_phase(deployment.id, number + 1, deployment.share, at, tx=tx)
        return number + 1

    async def _mine(self, wanted: Routing, deployment: Deployment, tx: Tx) -> bool:
        """Whether this rollout still speaks for the task: a later one may have taken over."""
        now = await self._routing.get(wanted.task, tx=tx)
        mine = {deployment.id, deployment.ab_test_id}
        if now is None or not now.subjects or mine & set(now.subjects):
            return True
        return not deployment.state.final

    async def requests_by_phase(
        self, subject: str, *, tx: Tx | None = None
    ) -> Mapping[int, Requests]:
        """The candidate's requests in the newest phase, under that phase's number."""
        phases = await self._experiments.phases(subject, tx=tx)
        if not phases:
            return {}
        newest = phases[-1].number
        found = await self._events.requests(subject, phase=newest, tx=tx)
        return {newest: found.get(Arm.CANDIDATE, Requests())}

    async def routing_of(self, task: str, *, tx: Tx | None = None) -> Routing | None:
        """Which model serves a task now."""
        return await self._routing.get(task, tx=tx)

    async def supersede_holds(self, pipeline: str, at: datetime, tx: Tx | None = None) -> list[str]:
        """Complete the rollouts that only hold; the ids of the runs that drive them."""
        woken = []
        async with self._database.writing(tx) as own:
            for deployment in await self._deployments.active(pipeline, tx=own):
                if deployment.state is not DeploymentState.HOLDING:
                    continue
                await self.move_deployment(
                    advance(deployment, at), "complete", "system", "superseded", at, own
                )
                woken.append(deployment.run_id or deployment.id)
        return woken

    async def withdraw(
        self, subjects: Sequence[str], at: datetime, cause: str, tx: Tx | None = None
    ) -> list[str]:
        """End what still runs of these tests and rollouts; their tasks get the baseline back.

        Where other tests of a family go on, all lanes begin the next phase. The tasks.
        """
        async with self._database.writing(tx) as own:
            for deployment in await self._deployments.active(tx=own):
                if deployment.id in subjects:
                    moved = roll_back(deployment, at, cause, {})
                    await self.move_deployment(moved, "rollback", "system", cause, at, own)
            routed, moved_on = [], set()
            for routing in await self._routing.all(tx=own):
                ended = [s for s in routing.subjects if s in subjects]
                if not ended:
                    continue
                for subject in ended:
                    await self._end_open_test(subject, cause, own)
                routed.append(routing.task)
                if not await self._goes_on(routing, own):
                    bare = Routing(
                        task=routing.task, baseline=routing.baseline, updated_at=at, cause=cause
                    )
                    await self._routing.set(bare, tx=own)
                elif routing.salt not in moved_on:  # its other tasks have begun the phase with it
                    moved_on.add(routing.salt)
                    await self._stop_lanes(routing, ended, at, cause, own)
        return routed

    async def _stop_lanes(
        self,
        routing: Routing,
        ended: Sequence[str],
        at: datetime,
        cause: str,
        tx: Tx,
    ) -> None:
        """Give the lanes of these tests back to the baseline, where a candidate serves yet."""
        stopped = [x.subject for x in routing.lanes if x.candidate and x.subject in ended]
        if stopped:
            tests = await self._experiments.family(routing.salt, tx=tx)
            shares = dict.fromkeys(stopped, 0.0)
            await self.begin_phase(tests, shares, at, cause, tx=tx)

    async def _goes_on(self, routing: Routing, tx: Tx) -> bool:
        """Whether another candidate of the same family is still being tested."""
        if routing.only is not None:
            return False
        tests = [await self._experiments.get(id, tx=tx) for id in routing.subjects]
        return any(test.status is ExperimentStatus.RUNNING for test in tests)

    async def _end_open_test(self, subject: str, cause: str, tx: Tx) -> None:
        if await self._subjects.kind(subject, tx=tx) is not SubjectKind.TEST:
            return
        test = await self._experiments.get(subject, tx=tx)
        if test.status is ExperimentStatus.RUNNING:
            await self._experiments.update(
                subject,
                status=ExperimentStatus.ABORTED,
                verdict=Verdict.REJECT,
                reason=cause,
                tx=tx,
            )


def _first_routing(task: str, tests: Sequence[ABTest]) -> Routing:
    """A task's routing while the first phase of these tests runs: a lane each."""
    first = tests[0]
    return Routing(
        task=task,
        baseline=first.baseline,
        lanes=tuple(
            Lane(subject=t.id, candidate=t.candidate, share=t.traffic_split) for t in tests
        ),
        salt=first.salt,
        phase=1,
        updated_at=first.start_at,
        cause=f"{first.family} starts",
    )


def _reshared(lane: Lane, shares: Mapping[str, float]) -> Lane:
    """The lane with its new share, where it has one; at 0 the baseline has it alone."""
    share = shares.get(lane.subject, lane.share)
    return replace(lane, share=share, candidate=lane.candidate if share else None)
