"""The routing that a client holds: parsed from the service's answer, kept on disk, decided by."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuneproof.assignment import bucket, candidate_buckets
from tuneproof.errors import NotFoundError

log = logging.getLogger("tuneproof.client")


@dataclass(frozen=True, slots=True)
class Choice:
    """Which model serves a unit, and what an exposure must say about it.

    `source` says where the decision came from: the `service` as last heard, the `disk` (the
    last known state of an earlier process), or the `default` that the application gave.
    """

    task: str
    unit: str
    model: str
    arm: str
    subject: str | None
    phase: int
    version: int
    model_version: str | None
    source: str


@dataclass(frozen=True, slots=True)
class _Side:
    """What all choices of one task and arm share."""

    task: str
    model: str
    arm: str
    subject: str | None
    phase: int
    version: int
    model_version: str | None
    source: str

    def choice(self, unit: str) -> Choice:
        return Choice(
            self.task,
            unit,
            self.model,
            self.arm,
            self.subject,
            self.phase,
            self.version,
            self.model_version,
            self.source,
        )


@dataclass(frozen=True, slots=True)
class _Route:
    salt: str
    buckets: int
    baseline: _Side
    candidate: _Side


class RoutingState:
    """The routes of all tasks; replaced whole, so readers need no lock."""

    def __init__(self, *, path: Path | None, defaults: Mapping[str, str]) -> None:
        self._path = path
        self._routes: dict[str, _Route] = {}
        self._defaults = {
            task: _Side(task, model, "baseline", None, 0, 0, None, "default")
            for task, model in defaults.items()
        }
        self._table: list[Any] | None = None
        self._saving = threading.Lock()
        self.version = 0
        self.filled = threading.Event()

    def choose(self, task: str, unit: str) -> Choice:
        """The choice for this unit; raises `NotFoundError` for a task that nobody knows."""
        route = self._routes.get(task)
        if route is None:
            return self._default(task).choice(unit)
        if route.buckets and bucket(route.salt, unit) < route.buckets:
            return route.candidate.choice(unit)
        return route.baseline.choice(unit)

    def _default(self, task: str) -> _Side:
        side = self._defaults.get(task)
        if side is not None:
            return side
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
        filled, self.filled = self.filled.is_set(), threading.Event()
        if filled:
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

    def update(self, answer: Mapping[str, Any]) -> None:
        """Take the answer of `GET /routing`, and keep it on disk when it changed."""
        changed = answer["routing"] != self._table
        self._take(answer, source="service")
        if changed:
            self._save(answer)

    def _take(self, answer: Mapping[str, Any], *, source: str) -> None:
        routes = {row["task"]: _route(row, source) for row in answer["routing"]}
        self._routes = routes
        self._table = list(answer["routing"])
        self.version = int(answer.get("version", 0))
        self.filled.set()

    def _save(self, answer: Mapping[str, Any]) -> None:
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


def _route(row: Mapping[str, Any], source: str) -> _Route:
    baseline, candidate = row["baseline"], row.get("candidate")
    side = _Side(
        task=row["task"],
        model=baseline["model_id"],
        arm="baseline",
        subject=row.get("subject"),
        phase=int(row.get("phase", 0)),
        version=int(row.get("version", 0)),
        model_version=baseline.get("version"),
        source=source,
    )
    if candidate is None:
        return _Route(salt=row.get("salt", ""), buckets=0, baseline=side, candidate=side)
    other = replace(
        side, model=candidate["model_id"], arm="candidate", model_version=candidate.get("version")
    )
    buckets = candidate_buckets(float(row.get("share", 0.0)))
    return _Route(salt=row.get("salt", ""), buckets=buckets, baseline=side, candidate=other)
