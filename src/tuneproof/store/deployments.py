"""Rollouts, and what happened to each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from tuneproof.errors import ConflictError, DataError, NotFoundError
from tuneproof.rollout import Deployment, DeploymentState, Plan
from tuneproof.settings import Declaration
from tuneproof.store.database import Database
from tuneproof.store.experiments import stored_variant
from tuneproof.store.paging import Page, page_by_time
from tuneproof.store.rows import to_json_types, to_row
from tuneproof.store.subjects import SubjectKind, add_subject
from tuneproof.store.tables import deployment_history, deployments
from tuneproof.workflow import Tx

__all__ = ["Deployments", "HistoryEntry"]

_FIXED = {"id", "pipeline", "tasks", "candidate", "salt", "created_at", "version", "declaration"}
_CHANGEABLE = set(Deployment.__dataclass_fields__) - _FIXED


@dataclass(frozen=True, kw_only=True)
class HistoryEntry:
    """Something that happened to a rollout: a step, a pause, a rollback, by whom and why."""

    seq: int
    deployment_id: str
    at: datetime
    kind: str
    who: str
    reason: str
    detail: Mapping[str, Any]


class Deployments:
    """The tables of rollouts and their history."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, deployment: Deployment, *, tx: Tx | None = None) -> None:
        """Record a rollout; its events are taken from now on.

        Raises `ConflictError` where its id is taken.
        """
        try:
            async with self._database.writing(tx) as own:
                await own.execute(insert(deployments), _row(deployment))
                await add_subject(own, deployment, SubjectKind.ROLLOUT)
        except IntegrityError as error:
            raise ConflictError(
                f"There is a rollout {deployment.id} already.",
                mend="Take a new id.",
                id=deployment.id,
            ) from error

    async def get(self, id: str, *, lock: bool = False, tx: Tx | None = None) -> Deployment:
        """The rollout with this id. Raises `NotFoundError`.

        `lock`: whoever else would move it waits until this transaction is over.
        """
        async with self._database.reading(tx) as own:
            return await _load(own, id, lock=lock)

    async def page(
        self,
        pipeline: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
        *,
        run_id: str | None = None,
        tx: Tx | None = None,
    ) -> Page[Deployment]:
        """Rollouts, newest first, of one pipeline or run, or of all."""
        query = select(deployments)
        if pipeline is not None:
            query = query.where(deployments.c.pipeline == pipeline)
        if run_id is not None:
            query = query.where(deployments.c.run_id == run_id)
        at, key = deployments.c.created_at, deployments.c.id
        async with self._database.reading(tx) as own:
            rows, after = await page_by_time(own, query, at, key, cursor, limit)
        return Page(items=tuple(_deployment(row) for row in rows), next_cursor=after)

    async def active(
        self, pipeline: str | None = None, *, tx: Tx | None = None
    ) -> list[Deployment]:
        """Rollouts that have not ended, oldest first."""
        final = [s.value for s in DeploymentState if s.final]
        query = select(deployments).where(deployments.c.state.not_in(final))
        if pipeline is not None:
            query = query.where(deployments.c.pipeline == pipeline)
        async with self._database.reading(tx) as own:
            rows = await own.execute(query.order_by(deployments.c.created_at, deployments.c.id))
            return [_deployment(row) for row in rows]

    async def since(self, at: datetime, *, tx: Tx | None = None) -> list[Deployment]:
        """Rollouts that were made, or ended, at or after this instant, oldest first."""
        query = select(deployments).where(
            or_(deployments.c.created_at >= at, deployments.c.ended_at >= at)
        )
        async with self._database.reading(tx) as own:
            rows = await own.execute(query.order_by(deployments.c.created_at, deployments.c.id))
            return [_deployment(row) for row in rows]

    async def update(
        self,
        id: str,
        *,
        expected_version: int | None = None,
        tx: Tx | None = None,
        **fields: Any,
    ) -> Deployment:
        """Change fields of a rollout and count its version up.

        Raises `NotFoundError`; `ConflictError` where it is not at `expected_version`;
        `DataError` for a field that does not change.
        """
        unknown = set(fields) - _CHANGEABLE
        if unknown:
            raise DataError(f"A rollout's {sorted(unknown)} cannot change.", mend="Leave it out.")
        async with self._database.writing(tx) as own:
            old = await _load(own, id)
            new = replace(old, **fields, version=old.version + 1)
            if expected_version is None:
                expected_version = old.version
            moved = await own.execute(
                update(deployments)
                .where(deployments.c.id == id, deployments.c.version == expected_version)
                .values({**_row(new), "version": expected_version + 1})
            )
            if moved.rowcount != 1:
                old = await _load(own, id)
                raise ConflictError(
                    f"Rollout {id} is at version {old.version}, not {expected_version}: it is "
                    f"{old.state.value} at share {old.share}.",
                    mend="Read it again, then decide.",
                    version=old.version,
                    state=old.state.value,
                    share=old.share,
                )
        return replace(new, state=DeploymentState(new.state))

    async def add_history(
        self,
        id: str,
        at: datetime,
        kind: str,
        who: str,
        reason: str,
        detail: Mapping[str, Any] | None = None,
        *,
        tx: Tx | None = None,
    ) -> None:
        """Note for ever what happened to a rollout. Raises `NotFoundError`."""
        row = {
            "deployment_id": id,
            "at": at,
            "kind": kind,
            "who": who,
            "reason": reason,
            "detail": to_json_types(detail or {}),
        }
        async with self._database.writing(tx) as own:
            await _load(own, id)
            await own.execute(insert(deployment_history), row)

    async def history(self, id: str, *, tx: Tx | None = None) -> list[HistoryEntry]:
        """What happened to a rollout, oldest first."""
        table = deployment_history
        query = select(table).where(table.c.deployment_id == id).order_by(table.c.seq)
        async with self._database.reading(tx) as own:
            return [HistoryEntry(**row._mapping) for row in await own.execute(query)]


async def _load(tx: Tx, id: str, *, lock: bool = False) -> Deployment:
    query = select(deployments).where(deployments.c.id == id)
    row = (await tx.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise NotFoundError(f"There is no rollout {id}.", mend="Check the id.", id=id)
    return _deployment(row)


def _row(deployment: Deployment) -> dict[str, Any]:
    return {**to_row(deployment), "declaration": deployment.declaration.to_stored()}


def _deployment(row: Any) -> Deployment:
    values = dict(row._mapping)
    plan = values["plan"]
    return Deployment(
        **{
            **values,
            "tasks": tuple(values["tasks"]),
            "candidate": stored_variant(values["candidate"]),
            "previous": stored_variant(values["previous"]),
            "plan": Plan(**{**plan, "steps": tuple(plan["steps"])}),
            "state": DeploymentState(values["state"]),
            "declaration": Declaration.from_stored(values["declaration"]),
        }
    )
