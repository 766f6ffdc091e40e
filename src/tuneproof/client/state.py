"""The routing that a client holds: parsed from the service's answer, kept on disk, decided by."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

from xxhash import xxh3_64_intdigest

from tuneproof.assignment import BUCKETS, SEPARATOR, bucket, candidate_buckets
from tuneproof.errors import NotFoundError

log = logging.getLogger("tuneproof.client")
_made = tuple.__new__


class Choice(NamedTuple):
    """Which model serves a unit, and what an exposure must say about it.

    `source` says where the decision came from: the `service` as last heard, the `disk` (the
    last known state of an earlier process), or the `default` that the application gave.
    """

    # A tuple, since making one costs a fifth of what a frozen dataclass does: see `choose`.
    task: str
    unit: str
    model: str
    arm: str
    subject: str | None
    phase: int
    version: int
    model_version: str | None
    source: str


class ModelRow(TypedDict):
    """A model in the answer of `GET /routing`."""

    model_id: str
    version: NotRequired[str | None]


class LaneRow(TypedDict):
    """A candidate's part of a task's units."""

    subject: NotRequired[str | None]
    candidate: NotRequired[ModelRow | None]
    share: NotRequired[float]


class RouteRow(LaneRow):
    """A task's routing; without `lanes`, its only lane's fields stand beside the task's own."""

    task: str
    baseline: ModelRow
    salt: NotRequired[str]
    phase: NotRequired[int]
    version: NotRequired[int]
    lanes: NotRequired[list[LaneRow]]


class RoutingTable(TypedDict):
    """The answer of `GET /routing`, as far as a client reads it."""

    routing: list[RouteRow]
    version: NotRequired[int]


_Rest = tuple[str, str, str | None, int, int, str | None, str]
"""A choice's fields after its unit: what all choices of one task and arm share."""


@dataclass(frozen=True, slots=True)
class _Lane:
    """The buckets of a candidate among its lane's, and both arms' answers."""

    buckets: int
    baseline: _Rest
    candidate: _Rest


@dataclass(frozen=True, slots=True)
class _Route:
    """`only` is the lane where there is one, as there is outside families."""

    salted: str
    only: _Lane | None
    lanes: tuple[_Lane, ...]


class HeldRouting:
    """The routes of all tasks; replaced whole, so readers need no lock."""

    def __init__(self, *, path: Path | None, defaults: Mapping[str, str]) -> None:
        self._path = path
        self._routes: dict[str, _Route] = {}
        self._defaults: dict[str, _Rest] = {
            task: (model, "baseline", None, 0, 0, None, "default")
            for task, model in defaults.items()
        }
        self._table: list[RouteRow] | None = None
        self._saving = threading.Lock()
        self.version = 0
        self.heard = False
        """Whether there is a state to decide by; `filled` is waited for, this is quick to ask."""
        self.filled = threading.Event()

    def choose(self, task: str, unit: str) -> Choice:
        """The choice for this unit; raises `NotFoundError` for a task that nobody knows.

        Applications call this for every request, so `assignment`'s rule is written out here.
        """
        route = self._routes.get(task)
        if route is None:
            return _made(Choice, (task, unit, *self._default(task)))
        try:
            place = xxh3_64_intdigest(f"{route.salted}{unit}".encode()) % BUCKETS
        except UnicodeEncodeError:
            place = bucket(route.salted, unit)  # which says what is wrong with the text
        lane = route.only
        if lane is None:
            place, number = divmod(place, len(route.lanes))
            lane = route.lanes[number]
        model, arm, subject, phase, version, model_version, source = (
            lane.candidate if place < lane.buckets else lane.baseline
        )
        return _made(
            Choice,
            (task, unit, model, arm, subject, phase, version, model_version, source),
        )

    def _default(self, task: str) -> _Rest:
        rest = self._defaults.get(task)
        if rest is not None:
            return rest
        known = ", ".join(sorted({*self._routes, *self._defaults})) or "none yet"
        raise NotFoundError(
            f"No routing is known for task {task!r} (known: {known}).",
            mend="Check the name, or give the client `defaults={task: model}` for the time before "
            "it first hears from the service.",
        )

    def knows(self, task: str) -> bool:
        """Whether `choose` has an answer for this task."""
        return task in self._routes or task in self._defaults

    def renew_locks(self) -> None:
        """Replace locks that a thread lost in a fork may hold."""
        self._saving = threading.Lock()
        self.filled = threading.Event()
        if self.heard:
            self.filled.set()

    def load(self) -> bool:
        """Take the state that an earlier process kept; False where there is none to read."""
        if self._path is None:
            return False
        try:
            self._take(json.loads(self._path.read_bytes()), source="disk")
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("The state in %s cannot be read and is ignored: %s", self._path, error)
            return False
        return True

    def update(self, answer: RoutingTable) -> None:
        """Take the answer of `GET /routing`, and keep it on disk when it changed."""
        changed = answer["routing"] != self._table
        self._take(answer, source="service")
        if changed:
            self._save(answer)

    def _take(self, answer: RoutingTable, *, source: str) -> None:
        routes = {row["task"]: _route(row, source) for row in answer["routing"]}
        self._routes = routes
        self._table = list(answer["routing"])
        self.version = int(answer.get("version", 0))
        self.heard = True
        self.filled.set()

    def _save(self, answer: RoutingTable) -> None:
        if self._path is None:
            return
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            with self._saving:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_text(json.dumps(answer))
                os.replace(temporary, self._path)
        except OSError as error:
            log.warning("The routing could not be kept in %s: %s", self._path, error)


def _route(row: RouteRow, source: str) -> _Route:
    baseline, phase = row["baseline"], int(row.get("phase", 0))
    version = int(row.get("version", 0))

    def rest(model: ModelRow, arm: str, subject: str | None) -> _Rest:
        return model["model_id"], arm, subject, phase, version, model.get("version"), source

    def lane(part: LaneRow) -> _Lane:
        candidate, subject = part.get("candidate"), part.get("subject")
        share = 0.0 if candidate is None else float(part.get("share", 0.0))
        return _Lane(
            buckets=candidate_buckets(share),
            baseline=rest(baseline, "baseline", subject),
            candidate=rest(candidate or baseline, "candidate", subject),
        )

    lanes = tuple(lane(part) for part in row.get("lanes") or (row,))
    return _Route(
        salted=f"{row.get('salt', '')}{SEPARATOR}",
        only=lanes[0] if len(lanes) == 1 else None,
        lanes=lanes,
    )
