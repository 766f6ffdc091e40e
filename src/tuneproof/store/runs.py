"""Runs: where each turn of the loop stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from tuneproof.collection import TimeSource
from tuneproof.errors import ConflictError, DataError, NotFoundError
from tuneproof.store.database import Database
from tuneproof.store.paging import Page, page_by_time
from tuneproof.store.rows import to_json_types, to_row
from tuneproof.store.tables import runs
from tuneproof.training import TrainingTime
from tuneproof.workflow import RunStatus, Tx

__all__ = ["Run", "RunStatus", "Runs"]

WAITED_AT_MOST = timedelta(days=62)
"""How long before a month's beginning a run may have been made that still counts in it."""

_OPEN = [s.value for s in RunStatus if not s.final]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One turn of the loop. `version` counts its changes.

    `stages` maps a stage to `{status, started_at, ended_at, detail}`, instants as RFC 3339.
    """

    id: str
    pipeline: str
    status: RunStatus = RunStatus.PENDING
    current_stage: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reason: str | None = None
    error: Mapping[str, Any] | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    created_at: datetime
    updated_at: datetime | None = None
    ended_at: datetime | None = None
    version: int = 0

    @property
    def note(self) -> str:
        """Why its stage waits, or what went wrong in it last; empty where all goes well."""
        return self._of_stage("note")

    @property
    def progress(self) -> str:
        """How far its stage is, where that is known: steps, and when they will be done."""
        done, total, at = (self._of_stage(n) for n in ("step", "total_steps", "ends_at"))
        steps = f"step {done} of {total or '?'}" if done else ""
        until = f"done at about {datetime.fromisoformat(at):%Y-%m-%d %H:%M} UTC" if at else ""
        return ", ".join(part for part in (steps, until) if part)

    @property
    def needs(self) -> str:
        """What its stage needs a person for; empty where it goes on by itself."""
        return self._of_stage("needs")

    def _of_stage(self, name: str) -> str:
        stage = self.stages.get(self.current_stage or "", {})
        open = stage.get("status") == "in_progress"
        return str(stage.get("detail", {}).get(name) or "") if open else ""


_CHANGEABLE = {"status", "current_stage", "config", "arguments", "stages", "reason", "error"}
_CHANGEABLE |= {"result", "ended_at", "updated_at"}


class Runs:
    """The table of runs."""

    def __init__(self, database: Database, clock: TimeSource) -> None:
        self._database = database
        self._clock = clock

    async def create(self, run: Run, *, tx: Tx | None = None) -> Run:
        """Record a new run. Raises `ConflictError` where its id is taken."""
        run = replace(run, updated_at=run.updated_at or run.created_at)
        try:
            async with self._database.writing(tx) as own:
                await own.execute(insert(runs), to_row(run))
        except IntegrityError as error:
            raise ConflictError(
                f"There is a run {run.id} already.", mend="Take a new id.", id=run.id
            ) from error
        return run

    async def get(self, id: str, *, tx: Tx | None = None) -> Run:
        """The run with this id. Raises `NotFoundError`."""
        async with self._database.reading(tx) as own:
            return await _load(own, id)

    async def find(self, id: str, *, tx: Tx | None = None) -> Run | None:
        """The run with this id, or None."""
        try:
            return await self.get(id, tx=tx)
        except NotFoundError:
            return None

    async def page(
        self,
        pipeline: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
        *,
        tx: Tx | None = None,
    ) -> Page[Run]:
        """Runs, newest first, of one pipeline or of all."""
        query = select(runs)
        if pipeline is not None:
            query = query.where(runs.c.pipeline == pipeline)
        async with self._database.reading(tx) as own:
            rows, after = await page_by_time(
                own, query, runs.c.created_at, runs.c.id, cursor, limit
            )
        return Page(items=tuple(_run(row) for row in rows), next_cursor=after)

    async def last_detail(self, pipeline: str, stage: str, *, but: str) -> Mapping[str, Any] | None:
        """What the newest of a pipeline's other runs that completed a stage wrote of it.

        None where the last fifty have not.
        """
        found = await self.page(pipeline)
        entries = (run.stages.get(stage, {}) for run in found.items if run.id != but)
        done = (entry for entry in entries if entry.get("status") == "completed")
        return next((dict(entry.get("detail") or {}) for entry in done), None)

    async def active(self, pipeline: str | None = None, *, tx: Tx | None = None) -> list[Run]:
        """Runs that have not ended, oldest first, those that hold included."""
        query = select(runs).where(runs.c.status.in_(_OPEN))
        if pipeline is not None:
            query = query.where(runs.c.pipeline == pipeline)
        async with self._database.reading(tx) as own:
            rows = await own.execute(query.order_by(runs.c.created_at, runs.c.id))
            return [_run(row) for row in rows]

    async def update(
        self,
        id: str,
        *,
        expected_version: int | None = None,
        tx: Tx | None = None,
        **fields: Any,
    ) -> Run:
        """Change fields of a run and count its version up.

        Raises `NotFoundError`; `ConflictError` where it is not at `expected_version`;
        `DataError` for a field that does not change.
        """
        unknown = set(fields) - _CHANGEABLE
        if unknown:
            raise DataError(f"A run's {sorted(unknown)} cannot be changed.", mend="Leave it out.")
        async with self._database.writing(tx) as own:
            run = await _load(own, id, lock=True)
            if expected_version is not None and run.version != expected_version:
                raise ConflictError(
                    f"Run {id} is at version {run.version}, not {expected_version}.",
                    mend="Read it again, then decide.",
                    version=run.version,
                )
            fields.setdefault("updated_at", self._clock.now())
            new = replace(run, **fields, version=run.version + 1)
            await own.execute(update(runs).where(runs.c.id == id).values(to_row(new)))
        return replace(new, status=RunStatus(new.status))

    async def mark(
        self,
        id: str,
        status: RunStatus,
        *,
        at: datetime,
        reason: str | None = None,
        error: Mapping[str, object] | None = None,
        result: Mapping[str, object] | None = None,
        tx: Tx | None = None,
    ) -> Run:
        """Record where a run stands; `result` is merged into what was there."""
        async with self._database.writing(tx) as own:
            run = await _load(own, id, lock=True)
            return await self.update(
                id,
                tx=own,
                status=status,
                reason=reason,
                error=error,
                result={**run.result, **to_json_types(result or {})},
                updated_at=at,
                ended_at=at if status.final else None,
            )

    async def attempt(self, id: str, *, tx: Tx | None = None) -> int:
        """How often a run was retried, plus one."""
        run = await self.get(id, tx=tx)
        return int(run.arguments.get("attempt", 1))

    async def spent_usd(
        self, pipeline: str, *, since: datetime | None = None, run_id: str | None = None
    ) -> float:
        """What a pipeline's runs have spent on training since an instant, or what one run has.

        A run counts by the instant of its last cost; one that waited two months is not found.
        """
        if run_id is not None:
            run = await self.get(run_id)
            return float((run.result.get("cost") or {}).get("spent_usd") or 0.0)
        total, cursor = 0.0, None
        while True:
            page = await self.page(pipeline, cursor, 200)
            for run in page.items:
                cost = run.result.get("cost") or {}
                if cost and (since is None or datetime.fromisoformat(cost["at"]) >= since):
                    total += float(cost.get("spent_usd") or 0.0)
            cursor = page.next_cursor
            oldest = page.items[-1].created_at if page.items else None
            if cursor is None or (
                since is not None and oldest is not None and oldest < since - WAITED_AT_MOST
            ):
                return round(total, 6)

    async def stage(
        self,
        id: str,
        stage: str,
        status: str,
        detail: Mapping[str, Any] | None = None,
        at: datetime | None = None,
        *,
        tx: Tx | None = None,
    ) -> Run:
        """Record where a stage of a run stands; `detail` is merged into what was there.

        `in_progress` sets `started_at` (once) and the run's current stage; any other status
        but `pending` sets `ended_at`. A stage that had ended and is `in_progress` again begins
        anew: a retry does not show what was wrong before.
        """
        at = at or self._clock.now()
        async with self._database.writing(tx) as own:
            run = await _load(own, id, lock=True)
            entry = dict(run.stages.get(stage, {}))
            if status == "in_progress" and entry.get("ended_at"):
                entry = {}
            entry["status"] = status
            entry["detail"] = {**entry.get("detail", {}), **to_json_types(detail or {})}
            entry.setdefault("started_at", None)
            entry["ended_at"] = None
            if status != "pending":
                entry["started_at"] = entry["started_at"] or at.isoformat()
            if status not in ("pending", "in_progress"):
                entry["ended_at"] = at.isoformat()
            changes: dict[str, Any] = {"stages": {**run.stages, stage: entry}, "updated_at": at}
            if status == "in_progress":
                changes["current_stage"] = stage
            return await self.update(id, tx=own, **changes)

    async def training_times(self, provider: str) -> Sequence[TrainingTime]:
        """How long the newest trainings at a provider took, newest first, of all pipelines."""
        runs = (await self.page()).items
        told = [(run.pipeline, run.result.get("training_time") or {}) for run in runs]
        return [
            TrainingTime(
                pipeline=pipeline,
                base_model=str(one["base_model"]),
                method=str(one["method"]),
                tokens=int(one["tokens"]),
                seconds=float(one["seconds"]),
            )
            for pipeline, one in told
            if one.get("provider") == provider
        ]

    async def progress(self, id: str, stage: str, detail: Mapping[str, object]) -> None:
        """Record how far a stage is; nothing where it is not at work (any more)."""
        async with self._database.writing(None) as own:
            run = await _load(own, id, lock=True)
            entry = dict(run.stages.get(stage, {}))
            if entry.get("status") != "in_progress":
                return
            entry["detail"] = {**entry.get("detail", {}), **to_json_types(detail)}
            changes: dict[str, Any] = {"stages": {**run.stages, stage: entry}}
            await self.update(id, tx=own, updated_at=self._clock.now(), **changes)


async def _load(tx: Tx, id: str, *, lock: bool = False) -> Run:
    query = select(runs).where(runs.c.id == id)
    row = (await tx.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise NotFoundError(f"There is no run {id}.", mend="`tuneproof run list` shows all.", id=id)
    return _run(row)


def _run(row: Any) -> Run:
    values = dict(row._mapping)
    # PostgreSQL's JSONB keeps no order of keys.
    ordered = sorted(values["stages"].items(), key=lambda item: _place(item[0]))
    return Run(**{**values, "status": RunStatus(values["status"]), "stages": dict(ordered)})


_ORDER = ("collect", "curate", "plan", "train", "gate", "experiment", "rollout")


def _place(stage: str) -> int:
    return _ORDER.index(stage) if stage in _ORDER else len(_ORDER)
