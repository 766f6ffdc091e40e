"""The routing of all tasks, held in memory as clients get it, and read anew after each change.

A change by this process is seen at once, one by another worker within `WATCH_S`, and then
told to everybody who listens here. While the database is away the last known state stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from tuneproof import assignment
from tuneproof.errors import TuneProofError

if TYPE_CHECKING:
    from tuneproof.app import App
    from tuneproof.experiments import ModelRef
    from tuneproof.rollout import Lane, Routing

log = logging.getLogger(__name__)

WATCH_S = 0.25
"""How often the database is asked whether another worker changed something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneSides:
    """A lane's two answers up to the unit; the candidate has the lowest `buckets` of it."""

    buckets: int
    baseline: bytes
    candidate: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """One task's decision, ready to be sent: each lane's and arm's answer up to the unit."""

    salt: str
    lanes: tuple[LaneSides, ...]

    def answer(self, unit: str) -> bytes:
        """The decision for this unit, as JSON."""
        bucket = assignment.bucket(self.salt, unit)
        place, lane = divmod(bucket, len(self.lanes))
        sides = self.lanes[lane]
        chosen = sides.candidate if place < sides.buckets else sides.baseline
        return chosen + orjson.dumps(unit) + b"}"

    @classmethod
    def of(cls, routing: Routing) -> Sides:
        """Of a task's routing."""
        lanes = tuple(_sides(routing, lane) for lane in routing.lanes)
        return cls(salt=routing.salt, lanes=lanes or (_sides(routing, None),))


def _sides(routing: Routing, lane: Lane | None) -> LaneSides:
    subject = None if lane is None else lane.subject
    baseline = _beginning(routing, routing.baseline, "baseline", subject)
    if lane is None or lane.candidate is None:
        return LaneSides(buckets=0, baseline=baseline, candidate=baseline)
    return LaneSides(
        buckets=assignment.candidate_buckets(lane.share),
        baseline=baseline,
        candidate=_beginning(routing, lane.candidate, "candidate", subject),
    )


def _beginning(routing: Routing, model: ModelRef, arm: str, subject: str | None) -> bytes:
    fields: dict[str, Any] = {
        "task": routing.task,
        "model": model.model_id,
        "model_version": model.version,
        "arm": arm,
        "subject": subject,
        "phase": routing.phase,
        "version": routing.version,
    }
    return orjson.dumps(fields)[:-1] + b',"unit":'


@dataclass(frozen=True, kw_only=True)
class Table:
    """All tasks at one instant. `version` grows with each write of any of them."""

    version: int
    routing: tuple[Routing, ...]
    sides: dict[str, Sides]
    body: bytes

    @classmethod
    def of(cls, routing: Sequence[Routing]) -> Table:
        """Of the store's rows, all from one read."""
        from tuneproof.server.deployment import routing_table

        # The sum, as `store.routing.version()` has it: a largest version hides other tasks'.
        version = sum(r.version for r in routing)
        return cls(
            version=version,
            routing=tuple(routing),
            sides={r.task: Sides.of(r) for r in routing},
            body=routing_table(routing, version).model_dump_json().encode(),
        )


class Board:
    """Holds the table; `start` and `stop` with the service."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._reading = asyncio.Lock()
        self._table: Table | None = None
        self._seen = -1
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for changes by other workers."""
        self._task = asyncio.create_task(self._watch(), name="tuneproof-board")

    async def stop(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def held(self) -> Table | None:
        """The table, where nothing that this process knows of has changed since it was read."""
        return self._table if self._seen == self._app.live.newest.get("routing", 0) else None

    async def current(self) -> Table:
        """The table, read anew where it must be; once, however many ask for it.

        Raises `StoreUnavailableError`.
        """
        found = self.held
        if found is None:
            async with self._reading:
                found = self.held or await self._read()
        return found

    async def _read(self) -> Table:
        seen = self._app.live.newest.get("routing", 0)
        table = Table.of(await self._app.routing())
        self._table, self._seen = table, seen
        return table

    async def _watch(self) -> None:
        away = False
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                await self._look()
                away = False
            except TuneProofError as error:
                if not away:
                    log.warning("the routing could not be read, the last one stays: %s", error)
                away = True

    async def _look(self) -> None:
        async with self._reading:
            known = self.held
            table = await self._read()
        if known is None or self.held is None:
            return  # a change by this process, which told of it
        before = {r.task: r for r in known.routing}
        for routing in table.routing:
            if routing != before.get(routing.task):
                self._app.live.publish("routing", routing.task, routing.version)
        self._seen = self._app.live.newest.get("routing", 0)
