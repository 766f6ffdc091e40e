"""The routing of all tasks, held in memory: what every request and every page is answered from.

A change by this process is read at once. One by another worker is too on PostgreSQL, which
notifies all of them; where no notice comes it is seen within `WATCH_S`. Whoever listens live is
told once the board has it. While the database is away the last known state stays, and
`age_s` says how old it is: until it is so old that nobody can have looked at a candidate for too
long. From then on its baseline serves all, until the database is back and `recall` has decided.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Protocol

import orjson
from xxhash import xxh3_64_hexdigest

from tuneproof import assignment
from tuneproof.app.live import Live
from tuneproof.errors import StoreUnavailableError
from tuneproof.experiments import Arm, Variant
from tuneproof.prompts import Prompt
from tuneproof.resilience import Supervisor
from tuneproof.rollout import Lane, Routing

log = logging.getLogger(__name__)

__all__ = ["Board", "PromptSource", "RoutingSnapshot", "TaskAnswers"]

WATCH_S = 0.25
"""How often the database is read where no notice of a change comes."""

LONGEST_PAUSE_S = 1.0
"""How long after an outage at most the routing is read again."""

DOUBT_EVERY_S = 5.0
"""How often the age of the state is compared with its limit."""

READING, FOLLOWING, DOUBTING = "routing", "routing-notices", "routing-doubts"
"""The names of the board's background tasks."""


class RoutingStore(Protocol):
    """Where the routing is kept."""

    async def all(self) -> Sequence[Routing]:
        """The routing of all tasks, by task."""

    async def renew(self, task: str, above: int) -> None:
        """Give a task's routing, as it is, a version above this one, if it has none."""

    @property
    def notifies(self) -> bool:
        """Whether `notices` tells of writes; else only asking helps."""

    def notices(self) -> AsyncIterator[str]:
        """Something for each write by any worker, and once at the beginning."""


class PromptSource(Protocol):
    """Where the prompts of what is routed are found."""

    async def of(self, hashes: Collection[str]) -> Mapping[str, Prompt]:
        """These prompts. Raises `TuneProofError` where one cannot be had."""

    def asked(self, routing: Routing) -> Routing:
        """The routing with the prompt by which a model in use is asked that names none."""


class NoPrompts:
    """Stands where no task leaves its prompt to variants."""

    async def of(self, hashes: Collection[str]) -> Mapping[str, Prompt]:
        """None are asked for."""
        return {}

    def asked(self, routing: Routing) -> Routing:
        """As it is."""
        return routing


@dataclass(frozen=True, slots=True)
class _LaneAnswers:
    """A lane's two answers, up to the unit."""

    baseline: bytes
    candidate: bytes


class TaskAnswers:
    """One task's decisions, ready to be sent but for the unit."""

    def __init__(self, routing: Routing, *, prompts: bool = False) -> None:
        lanes: tuple[Lane | None, ...] = routing.lanes or (None,)
        self._salt = routing.salt
        self._buckets = routing.buckets or (0,)
        self._lanes = tuple(_lane_answers(routing, lane, prompts) for lane in lanes)

    def decide(self, unit: str) -> bytes:
        """The decision for this unit, as JSON."""
        bucket = assignment.bucket(self._salt, unit)
        lane, chosen = assignment.lane_and_arm(bucket, self._buckets)
        answers = self._lanes[lane]
        return (answers.candidate if chosen else answers.baseline) + orjson.dumps(unit) + b"}"


def _lane_answers(routing: Routing, lane: Lane | None, prompts: bool) -> _LaneAnswers:
    subject = None if lane is None else lane.subject
    baseline = _beginning(routing, routing.baseline, Arm.BASELINE, subject, prompts)
    if lane is None or lane.candidate is None:
        return _LaneAnswers(baseline, baseline)
    candidate = _beginning(routing, lane.candidate, Arm.CANDIDATE, subject, prompts)
    return _LaneAnswers(baseline, candidate)


def _beginning(
    routing: Routing, model: Variant, arm: Arm, subject: str | None, prompts: bool
) -> bytes:
    fields = {
        "task": routing.task,
        "model": model.model_id,
        "model_version": model.version,
        "arm": str(arm),
        "subject": subject,
        "phase": routing.phase,
        "version": routing.version,
    }
    if prompts:
        fields["prompt"] = model.prompt
    return orjson.dumps(fields)[:-1] + b',"unit":'


@dataclass(frozen=True, kw_only=True)
class RoutingSnapshot:
    """All tasks at one instant. `version` grows with each write of any of them.

    `body` is the answer of `GET /routing`, `answers` are those of `GET /decide` by task: of each
    two, whether who asks knows prompts (True) or not. `prompts` are those that are served, by hash.
    Those of the settings change without a write, so `tag`, by which a caller says what it has seen,
    goes by the content where prompts are known.
    """

    version: int
    routing: tuple[Routing, ...]
    by_task: Mapping[str, Routing]
    answers: Mapping[bool, Mapping[str, TaskAnswers]]
    body: Mapping[bool, bytes]
    tag: Mapping[bool, str]
    prompts: Mapping[str, Prompt]

    @classmethod
    def of(
        cls, routing: Sequence[Routing], prompts: Mapping[str, Prompt] = MappingProxyType({})
    ) -> RoutingSnapshot:
        """Of the store's rows, all from one read, with the prompts that they name."""
        # The sum: a largest version would hide the writes of other tasks.
        version = sum(one.version for one in routing)
        plain = [one.unprompted for one in routing]
        table = {"version": version, "routing": [_document(one) for one in plain]}
        knowing = {
            "version": version,
            "routing": [_document(one, prompts=True) for one in routing],
            "prompts": {hash: prompt.document() for hash, prompt in sorted(prompts.items())},
        }
        body = {False: orjson.dumps(table), True: orjson.dumps(knowing)}
        return cls(
            version=version,
            routing=tuple(routing),
            by_task={one.task: one for one in routing},
            answers={
                False: {one.task: TaskAnswers(one) for one in plain},
                True: {one.task: TaskAnswers(one, prompts=True) for one in routing},
            },
            body=body,
            tag={False: str(version), True: f"{version}-{xxh3_64_hexdigest(body[True])}"},
            prompts=prompts,
        )

    @property
    def models(self) -> frozenset[Variant]:
        """All models that serve somebody."""
        return frozenset(model for one in self.routing for model in (one.baseline, *one.candidates))


def _document(routing: Routing, *, prompts: bool = False) -> dict[str, object]:
    fields = routing.document()
    lanes = [
        {"subject": lane.subject, "candidate": _model(lane.candidate, prompts), "share": lane.share}
        for lane in fields["lanes"]
    ]
    document: dict[str, object] = {
        **fields,
        "baseline": _model(routing.baseline, prompts),
        "candidate": _model(fields["candidate"], prompts),
        "updated_at": None if routing.updated_at is None else _rfc3339(routing.updated_at),
        "lanes": lanes,
    }
    if not lanes:
        del document["lanes"]
    return document


def _model(model: Variant | None, prompts: bool) -> dict[str, str | None] | None:
    if model is None:
        return None
    found = {"model_id": model.model_id, "version": model.version}
    return {**found, "prompt": model.prompt} if prompts else found


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def _nothing(_subjects: Collection[str]) -> None:
    """Where nobody is to be asked."""


class Board:
    """App's memory of the routing.

    `prepare` is awaited with the models of a new state before that is shown, so that who serves
    them need not be asked for within a request. `declared` are tasks that settings name a model
    for: they are served from the first minute, until they have a routing of their own.

    `trust_s` says for how long a task's candidates may be served on a state that cannot be read;
    `recall` is awaited with the subjects for which that was too long, once it can be read again
    and before their candidates serve anybody.
    """

    def __init__(
        self,
        store: RoutingStore,
        live: Live,
        *,
        prepare: Callable[[Iterable[Variant]], Awaitable[None]],
        watch_s: float = WATCH_S,
        clock: Callable[[], float] = time.monotonic,
        declared: Sequence[Routing] = (),
        trust_s: Callable[[Routing], float] = lambda _routing: math.inf,
        recall: Callable[[Collection[str]], Awaitable[None]] = _nothing,
        prompts: PromptSource = NoPrompts(),
    ) -> None:
        self._store = store
        self._live = live
        self._prepare = prepare
        self._watch_s = watch_s
        self._clock = clock
        self.declared = {one.task: one for one in declared}
        self.trust_s = trust_s
        self._recall = recall
        self._prompts = prompts
        self._doubted: set[str] = set()  # subjects
        self._shown_alone: set[str] = set()  # their tasks
        self._reading = asyncio.Lock()
        self._asked = 0
        self._answered = 0
        self.stale = asyncio.Event()  # set by who has written: it is read again soon
        self._snapshot: RoutingSnapshot | None = None
        self._read_at: float | None = None

    def watch(self, supervisor: Supervisor) -> None:
        """Stay up to date from now on."""
        supervisor.keep(
            READING, lambda: self._keep_reading(supervisor), longest_pause_s=LONGEST_PAUSE_S
        )
        supervisor.every(DOUBTING, DOUBT_EVERY_S, self.doubt)
        if self._store.notifies:
            supervisor.keep(
                FOLLOWING, lambda: self._follow(supervisor), longest_pause_s=LONGEST_PAUSE_S
            )

    @property
    def snapshot(self) -> RoutingSnapshot:
        """The state as last read; nobody is asked.

        Raises `StoreUnavailableError` where it never could be read.
        """
        if self._snapshot is None:
            raise StoreUnavailableError(
                "The routing could not be read yet.", mend="Check that the database can be reached."
            )
        return self._snapshot

    @property
    def age_s(self) -> float | None:
        """How long ago the state was true for certain; None before the first read."""
        return None if self._read_at is None else self._clock() - self._read_at

    async def refresh(self) -> RoutingSnapshot:
        """Read the state now and tell of what changed; those who ask meanwhile share a read.

        Raises `StoreUnavailableError`.
        """
        self._asked += 1
        number = self._asked
        async with self._reading:
            if self._answered < number:  # no read has begun since this was asked
                newest = self._asked
                await self._read()
                self._answered = newest
        return self.snapshot

    async def refresh_if_possible(self) -> RoutingSnapshot:
        """The state as it is now, or as last known while the database is away."""
        with contextlib.suppress(StoreUnavailableError):
            await self.refresh()
        return self.snapshot

    async def _read(self) -> None:
        began = self._clock()
        routing = self._with_declared(self._trusted(one) for one in await self._store.all())
        before = self._snapshot
        if before is None or routing != before.routing:
            new = RoutingSnapshot.of(routing, await self._prompts_of(routing))
            await self._prepared(new)
            self._show(new)
        self._read_at = began

    def _with_declared(self, stored: Iterable[Routing]) -> tuple[Routing, ...]:
        found = {**self.declared, **{one.task: one for one in stored}}
        return tuple(self._prompts.asked(found[task]) for task in sorted(found))

    async def _prompts_of(self, routing: Iterable[Routing]) -> Mapping[str, Prompt]:
        return await self._prompts.of({hash for one in routing for hash in one.prompts})

    def _show(self, new: RoutingSnapshot) -> None:
        before, self._snapshot = self._snapshot, new
        if before is not None:
            for one in new.routing:
                if one != before.by_task.get(one.task):
                    self._live.publish("routing", one.task, one.version)

    async def doubt(self) -> None:
        """Serve the baselines of tasks whose state is too old for their candidates."""
        age_s, held = self.age_s, self._snapshot
        if age_s is None or held is None:
            return
        for one in held.routing:
            if one.lanes and age_s > self.trust_s(one):
                log.error(
                    "the routing could not be read for %.1f h: %s serves its baseline alone",
                    age_s / 3600,
                    one.task,
                )
                self._doubted.update(one.subjects)
                self._shown_alone.add(one.task)
        routing = tuple(map(self._trusted, held.routing))
        if routing != held.routing:
            named = {hash for one in routing for hash in one.prompts}
            prompts = {hash: held.prompts[hash] for hash in named}
            self._show(RoutingSnapshot.of(routing, prompts))

    def _trusted(self, routing: Routing) -> Routing:
        """This routing, without candidates that are in doubt."""
        if self._doubted.isdisjoint(routing.subjects):
            return routing
        return Routing(
            task=routing.task,
            baseline=routing.baseline,
            version=routing.version + 1,
            updated_at=routing.updated_at,
            cause="The database is away: nobody can look at the candidate.",
        )

    async def _settle(self) -> None:
        """The database is back: have it decided what becomes of those in doubt."""
        await self._recall(frozenset(self._doubted))
        for task in self._shown_alone:  # who waits for what is newer than that has to hear of it
            await self._store.renew(task, self.snapshot.by_task[task].version)
        self._doubted.clear()
        self._shown_alone.clear()
        await self.refresh()

    async def _prepared(self, new: RoutingSnapshot) -> None:
        try:
            await self._prepare(new.models)
        except Exception:  # a request can find out by itself; a rollback must not wait for it
            log.exception("who serves the models of the new routing could not be prepared")

    async def _keep_reading(self, supervisor: Supervisor) -> None:
        while True:
            self.stale.clear()
            await self.refresh()
            if self._doubted:
                await self._settle()
            supervisor.succeeded(READING)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._watch_s):
                    await self.stale.wait()

    async def _follow(self, supervisor: Supervisor) -> None:
        async for _ in self._store.notices():
            self.stale.set()
            supervisor.succeeded(FOLLOWING)
