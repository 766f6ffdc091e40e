"""The routing that a client holds: parsed from the service's answer, kept on disk, decided by."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, NotRequired, TypedDict

from xxhash import xxh3_64_intdigest

from tuneproof.assignment import BUCKETS, SEPARATOR, bucket, candidate_buckets
from tuneproof.errors import NotFoundError, StateError
from tuneproof.prompts import Prompt, PromptDocument

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
    prompt: Prompt | None = None
    """By which the model is to be asked; None: by what the application asks itself."""

    def messages(self, **variables: object) -> list[dict[str, str]]:
        """What the model is to be asked, for these values of the task's variables.

        Raises `InputError` for one that is missing, `StateError` where the application owns the
        prompt.
        """
        if self.prompt is None:
            raise StateError(
                f"No prompt is known for {self.task}: the application owns it, or the service was "
                "not heard yet.",
                mend=f'Set prompt_owner = "variant" in [tasks.{self.task}] of the service; and '
                "give the client `prompts={task: prompt}` for the time before it hears from it.",
            )
        return self.prompt.render(variables)

    @property
    def parameters(self) -> Mapping[str, object]:
        """How the model is to answer: temperature and the like, as fields of the request."""
        return {} if self.prompt is None else self.prompt.parameters


class ModelRow(TypedDict):
    """A model in the answer of `GET /routing`."""

    model_id: str
    version: NotRequired[str | None]
    prompt: NotRequired[str | None]


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
    knowing: NotRequired[RouteRow]
    """On disk: the row itself, where it has prompts."""


class RoutingTable(TypedDict):
    """The answer of `GET /routing`, as far as a client reads it."""

    routing: list[RouteRow]
    version: NotRequired[int]
    prompts: NotRequired[dict[str, PromptDocument]]


_Rest = tuple[str, str, str | None, int, int, str | None, str, Prompt | None]
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

    def __init__(
        self,
        *,
        path: Path | None,
        defaults: Mapping[str, str],
        prompts: Mapping[str, Prompt] = MappingProxyType({}),
    ) -> None:
        self._path = path
        self._routes: dict[str, _Route] = {}
        self._defaults: dict[str, _Rest] = {
            task: (model, "baseline", None, 0, 0, None, "default", prompts.get(task))
            for task, model in defaults.items()
        }
        self._table: tuple[list[RouteRow], Mapping[str, PromptDocument]] | None = None
        self._prompts: dict[str, Prompt] = {}
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
        model, arm, subject, phase, version, model_version, source, prompt = (
            lane.candidate if place < lane.buckets else lane.baseline
        )
        return _made(
            Choice,
            (task, unit, model, arm, subject, phase, version, model_version, source, prompt),
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
            self._take(_knowing(json.loads(self._path.read_bytes())), source="disk")
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("The state in %s cannot be read and is ignored: %s", self._path, error)
            return False
        return True

    def update(self, answer: RoutingTable) -> None:
        """Take the answer of `GET /routing`, and keep it on disk when it changed."""
        changed = (answer["routing"], answer.get("prompts", {})) != self._table
        self._take(answer, source="service")
        if changed:
            self._save(answer)

    def _take(self, answer: RoutingTable, *, source: str) -> None:
        told = answer.get("prompts", {})
        known = self._prompts  # those that stay are not read again: they never change
        prompts = {hash: known.get(hash) or Prompt.of(row) for hash, row in told.items()}
        routes = {row["task"]: _route(row, source, prompts) for row in answer["routing"]}
        self._routes, self._prompts = routes, prompts
        self._table = (list(answer["routing"]), told)
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
                temporary.write_text(json.dumps(_for_all(answer)))
                os.replace(temporary, self._path)
        except OSError as error:
            log.warning("The routing could not be kept in %s: %s", self._path, error)


def _for_all(answer: RoutingTable) -> Mapping[str, object]:
    """What is kept: a client of before, which knows no prompts, finds the baselines alone there."""
    return {**answer, "routing": [_plain(row) for row in answer["routing"]]}


def _plain(row: RouteRow) -> RouteRow:
    lanes: list[LaneRow] = list(row.get("lanes") or [row])
    models = [row["baseline"], *(lane.get("candidate") for lane in lanes)]
    if not any(model is not None and model.get("prompt") for model in models):
        return row
    return {
        "task": row["task"],
        "baseline": row["baseline"],
        "version": row.get("version", 0),
        "knowing": row,
    }


def _knowing(kept: RoutingTable) -> RoutingTable:
    return {**kept, "routing": [row.get("knowing", row) for row in kept["routing"]]}


def _route(row: RouteRow, source: str, prompts: Mapping[str, Prompt]) -> _Route:
    baseline, phase = row["baseline"], int(row.get("phase", 0))
    version = int(row.get("version", 0))

    def rest(model: ModelRow, arm: str, subject: str | None) -> _Rest:
        hash = model.get("prompt")
        prompt = None if hash is None else prompts[hash]
        known = (model["model_id"], arm, subject, phase, version, model.get("version"), source)
        return *known, prompt

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
