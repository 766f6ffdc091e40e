"""Versions: the models that were trained, with their lineage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from tuneproof.errors import ConflictError, DataError, NotFoundError
from tuneproof.experiments import Variant
from tuneproof.store.database import Database
from tuneproof.store.rows import to_row
from tuneproof.store.tables import versions
from tuneproof.training import ModelVersion, VersionStatus
from tuneproof.workflow import Tx

__all__ = ["Versions"]

_FIXED = {"id", "pipeline", "version", "created_at"}
_CHANGEABLE = set(ModelVersion.__dataclass_fields__) - _FIXED


class Versions:
    """The table of versions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, version: ModelVersion, *, tx: Tx | None = None) -> None:
        """Record a version. Raises `ConflictError` where its id or number is taken."""
        try:
            async with self._database.writing(tx) as own:
                await own.execute(insert(versions), to_row(version))
        except IntegrityError as error:
            raise ConflictError(
                f"Pipeline {version.pipeline} has a version {version.version} or an id "
                f"{version.id} already.",
                mend="Take the next number.",
                id=version.id,
            ) from error

    async def get(self, id: str, *, tx: Tx | None = None) -> ModelVersion:
        """The version with this id. Raises `NotFoundError`."""
        async with self._database.reading(tx) as own:
            return await _load(own, id)

    async def find(self, id: str, *, tx: Tx | None = None) -> ModelVersion | None:
        """The version with this id, or None."""
        try:
            return await self.get(id, tx=tx)
        except NotFoundError:
            return None

    async def update(self, id: str, *, tx: Tx | None = None, **fields: Any) -> ModelVersion:
        """Change fields of a version. Raises `NotFoundError`, `DataError` for a fixed field."""
        unknown = set(fields) - _CHANGEABLE
        if unknown:
            raise DataError(f"A version's {sorted(unknown)} cannot change.", mend="Leave it out.")
        async with self._database.writing(tx) as own:
            new = replace(await _load(own, id, lock=True), **fields)
            await own.execute(update(versions).where(versions.c.id == id).values(to_row(new)))
        return replace(new, status=VersionStatus(new.status))

    async def list(
        self,
        pipeline: str | None = None,
        *,
        run_id: str | None = None,
        model_id: str | None = None,
        base_model: str | None = None,
        training_job_id: str | None = None,
        provider: str | None = None,
        status: VersionStatus | None = None,
        limit: int = 1000,
        tx: Tx | None = None,
    ) -> list[ModelVersion]:
        """Versions, newest first, that have all the given properties."""
        query = select(versions)
        wanted = {
            "pipeline": pipeline,
            "run_id": run_id,
            "model_id": model_id,
            "base_model": base_model,
            "training_job_id": training_job_id,
            "provider": provider,
            "status": status,
        }
        for name, value in wanted.items():
            if value is not None:
                query = query.where(versions.c[name] == str(value))
        query = query.order_by(versions.c.created_at.desc(), versions.c.id.desc()).limit(limit)
        async with self._database.reading(tx) as own:
            return [_version(row) for row in await own.execute(query)]

    async def declare(self, version: ModelVersion, *, tx: Tx | None = None) -> ModelVersion:
        """Record a new version under its pipeline's next number; its parent is the live one."""
        async with self._database.writing(tx) as own:
            base = None if version.model_id == version.base_model else version.base_model
            number = await self.next_number(version.pipeline, base, tx=own)
            live = await self.live(version.pipeline, tx=own)
            numbered = replace(version, version=number, parent_id=live.id if live else None)
            await self.add(numbered, tx=own)
        return numbered

    async def save(self, version: ModelVersion, *, tx: Tx | None = None) -> None:
        """Write what training and gate change of a version. Raises `NotFoundError`."""
        await self.update(
            version.id,
            tx=tx,
            model_id=version.model_id,
            training_job_id=version.training_job_id,
            status=version.status,
            trained_tokens=version.trained_tokens,
            heldout_loss=version.heldout_loss,
            base_heldout_loss=version.base_heldout_loss,
        )

    async def put_live(self, id: str | None, pipeline: str, *, tx: Tx | None = None) -> None:
        """Make a version the model in use; the one before is retired.

        None, and the id of a version that is none of ours, only retire.
        """
        async with self._database.writing(tx) as own:
            before = await self.live(pipeline, tx=own)
            if before is not None and before.id != id:
                await self.update(before.id, tx=own, status=VersionStatus.RETIRED)
            if id is not None and await self.find(id, tx=own):
                await self.update(id, tx=own, status=VersionStatus.LIVE)

    async def taken_back(self, model_id: str, *, tx: Tx | None = None) -> Sequence[ModelVersion]:
        """The versions of this model that did harm."""
        return await self.list(model_id=model_id, status=VersionStatus.ROLLED_BACK, tx=tx)

    async def dataset_of(self, model: Variant, *, tx: Tx | None = None) -> str | None:
        """The hash of the dataset that made this model, where it is one of ours."""
        found = await self.find(model.version, tx=tx) if model.version else None
        if found is None:
            known = await self.list(model_id=model.model_id, limit=1, tx=tx)
            found = known[0] if known else None
        return found.dataset_hash if found else None

    async def relabel(self, old: str, new: str, *, tx: Tx | None = None) -> int:
        """Let the versions of provider `old` be those of `new`; how many there were."""
        statement = update(versions).where(versions.c.provider == old).values(provider=new)
        async with self._database.writing(tx) as own:
            return int((await own.execute(statement)).rowcount)

    async def live(self, pipeline: str, *, tx: Tx | None = None) -> ModelVersion | None:
        """The version in use, or None while the base model still is."""
        found = await self.list(pipeline, status=VersionStatus.LIVE, limit=1, tx=tx)
        return found[0] if found else None

    async def next_number(
        self, pipeline: str, base_model: str | None, *, tx: Tx | None = None
    ) -> str:
        """The semantic version of the next training: `1.0.0`, then minor up each time, and
        major up when the base model is another one than last time; of a model as it is, which
        has no base (None), minor up."""
        query = select(versions.c.version, versions.c.base_model, versions.c.model_id).where(
            versions.c.pipeline == pipeline
        )
        async with self._database.reading(tx) as own:
            rows = (await own.execute(query)).all()
        if not rows:
            return "1.0.0"
        major, minor, _ = max(_parts(row.version) for row in rows)
        trained = [(_parts(r.version), r.base_model) for r in rows if r.model_id != r.base_model]
        last = max(trained)[1] if trained else base_model
        same = base_model is None or base_model == last
        return f"{major}.{minor + 1}.0" if same else f"{major + 1}.0.0"


def _parts(number: str) -> tuple[int, int, int]:
    major, minor, patch = number.split(".")
    return int(major), int(minor), int(patch)


async def _load(tx: Tx, id: str, *, lock: bool = False) -> ModelVersion:
    query = select(versions).where(versions.c.id == id)
    row = (await tx.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise NotFoundError(f"There is no version {id}.", mend="Check the id.", id=id)
    return _version(row)


def _version(row: Any) -> ModelVersion:
    values = dict(row._mapping)
    return ModelVersion(
        **{
            **values,
            "tasks": tuple(values["tasks"]),
            "status": VersionStatus(values["status"]),
        }
    )
