"""Lanes begin and change their shares: tests, their phases and the routing, in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from tuneproof.experiments import ABTest
from tuneproof.rollout import Lane, Routing
from tuneproof.store.database import Database
from tuneproof.store.experiments import Experiments
from tuneproof.store.ids import Ids
from tuneproof.store.routing import Routings
from tuneproof.workflow import Tx

__all__ = ["Lanes"]


class Lanes:
    """The tests of one candidate or several that share a baseline, a lane each."""

    def __init__(
        self, database: Database, ids: Ids, experiments: Experiments, routing: Routings
    ) -> None:
        self._database = database
        self._ids = ids
        self._experiments = experiments
        self._routing = routing

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

    async def start(
        self, tests: Sequence[ABTest], *, replace_baseline: bool = False, tx: Tx | None = None
    ) -> None:
        """Record the tests of a family, open their first phase together and route their tasks.

        Raises `ConflictError` where one of the tasks is being tested or rolled out, or where its
        model in use is not the tests' baseline, unless that may `replace_baseline`.
        """
        first = tests[0]
        async with self._database.writing(tx) as own:
            for task in sorted(first.tasks):
                routing = await self._routing.get(task, lock=True, tx=own)
                if routing is not None:
                    routing.ensure_free()
                    if not replace_baseline:
                        routing.ensure_in_use(first.baseline)
            for test in tests:
                await self._experiments.add(test, tx=own)
                await self._experiments.open_phase(
                    test.id, 1, test.declaration.traffic_split, test.start_at, tx=own
                )
            for task in first.tasks:
                routing = await self._routing.get(task, tx=own)
                await self._routing.set(_first_routing(task, tests, routing), tx=own)

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
            for task in sorted(tests[0].tasks):  # everybody locks them in this order
                routing = await self._routing.get(task, lock=True, tx=own)
                if routing is not None and names & set(routing.subjects):
                    lanes = tuple(_reshared(lane, shares) for lane in routing.lanes)
                    moved = replace(routing, lanes=lanes, phase=number, updated_at=at, cause=cause)
                    await self._routing.set(moved, tx=own)
        return number


def _first_routing(task: str, tests: Sequence[ABTest], before: Routing | None) -> Routing:
    """A task's routing while the first phase of these tests runs: a lane each.

    The model in use stays as it is routed, and is asked from now on as the tests say: what they
    compare with may not change by the settings while they run.
    """
    first = tests[0]
    baseline = first.baseline
    if before is not None and before.baseline.same_as(baseline):
        baseline = replace(before.baseline, prompt=baseline.prompt)
    return Routing(
        task=task,
        baseline=baseline,
        lanes=tuple(
            Lane(subject=t.id, candidate=t.candidate, share=t.declaration.traffic_split)
            for t in tests
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
