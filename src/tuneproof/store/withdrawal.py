"""Tests and rollouts end before their time: their rows and the routing, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from tuneproof.experiments import ExperimentStatus, Verdict
from tuneproof.rollout import Routing
from tuneproof.rollout.machine import roll_back
from tuneproof.store.database import Database
from tuneproof.store.deployments import Deployments
from tuneproof.store.experiments import Experiments
from tuneproof.store.lanes import Lanes
from tuneproof.store.moves import RolloutMoves
from tuneproof.store.routing import Routings
from tuneproof.workflow import Tx

__all__ = ["Withdrawal"]


class Withdrawal:
    """Takes candidates away from users."""

    def __init__(
        self,
        database: Database,
        *,
        deployments: Deployments,
        experiments: Experiments,
        lanes: Lanes,
        moves: RolloutMoves,
        routing: Routings,
    ) -> None:
        self._database = database
        self._deployments = deployments
        self._experiments = experiments
        self._lanes = lanes
        self._moves = moves
        self._routing = routing

    async def withdraw(
        self, subjects: Sequence[str], at: datetime, cause: str, tx: Tx | None = None
    ) -> list[str]:
        """End what still runs of these tests and rollouts; their tasks get the baseline back.

        Where other tests of a family go on, all lanes begin the next phase. The tasks.
        """
        async with self._database.writing(tx) as own:
            # Tests before rollouts before routing: everybody locks them in this order.
            for subject in subjects:
                await self._experiments.end(
                    subject,
                    status=ExperimentStatus.ABORTED,
                    verdict=Verdict.REJECT,
                    reason=cause,
                    tx=own,
                )
            for deployment in await self._deployments.active(tx=own):
                if deployment.id in subjects:
                    moved = roll_back(deployment, at, cause, {})
                    await self._moves.move(moved, "rollback", "system", cause, at, own)
            routed, moved_on = [], set()
            for routing in await self._serving(subjects, own):
                ended = [s for s in routing.subjects if s in subjects]
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

    async def _serving(self, subjects: Sequence[str], tx: Tx) -> list[Routing]:
        """The routings that serve these, by task, locked: another's write is not undone."""
        ended = set(subjects)
        tasks = [r.task for r in await self._routing.all(tx=tx) if ended & set(r.subjects)]
        found = [await self._routing.get(task, lock=True, tx=tx) for task in tasks]
        return [r for r in found if r is not None and ended & set(r.subjects)]

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
            await self._lanes.begin_phase(tests, shares, at, cause, tx=tx)

    async def _goes_on(self, routing: Routing, tx: Tx) -> bool:
        """Whether another candidate of the same family is still being tested."""
        if routing.only is not None:
            return False
        tests = [await self._experiments.get(id, tx=tx) for id in routing.subjects]
        return any(test.status is ExperimentStatus.RUNNING for test in tests)
