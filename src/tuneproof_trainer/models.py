"""Which models exist, for whom, and which engine answers for each."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from sqlite3 import Connection

from tuneproof_trainer.answers import ModelObject
from tuneproof_trainer.database import Row, TrainerDatabase
from tuneproof_trainer.engines.protocol import BaseModel, TrainingEngine
from tuneproof_trainer.errors import ApiError, not_found

__all__ = ["Models", "Resolved"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A model that a request named."""

    id: str
    root: str
    """The base model that it descends from."""

    path: Path | None
    engine: TrainingEngine


class Models:
    """Base models of the engines, and fine-tunes of this server's organisations."""

    def __init__(
        self,
        database: TrainerDatabase,
        folder: Path,
        engines: Sequence[TrainingEngine],
        clock: Callable[[], float],
    ) -> None:
        self._db, self._folder, self._clock = database, folder, clock
        self._bases: dict[str, tuple[BaseModel, TrainingEngine]] = {
            base.id: (base, engine) for engine in engines for base in engine.base_models()
        }
        self._loading: dict[str, asyncio.Task[None]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def resolve(self, org: str, name: str, *, deleted: bool = False) -> Resolved:
        """The model of this name, also one that was deleted if `deleted`.

        Raises ApiError 404 `model_not_found`.
        """
        base = self._bases.get(name)
        if base is not None:
            return Resolved(id=name, root=name, path=None, engine=base[1])
        row = self._row(org, name, deleted)
        found = self._bases.get(row["root"]) if row is not None else None
        if row is None or found is None:
            raise not_found(
                f"The model `{name}` does not exist or you do not have access to it. Base models "
                f"of this server: {', '.join(self._bases)}.",
                "model",
                "model_not_found",
            )
        path = self._folder / row["path"]
        return Resolved(id=name, root=row["root"], path=path, engine=found[1])

    def _row(self, org: str, name: str, deleted: bool = False) -> Row | None:
        living = "" if deleted else " AND deleted_at IS NULL"
        sql = f"SELECT * FROM models WHERE id = ? AND org = ?{living}"
        return self._db.row(sql, name, org)

    async def ready(self, model: Resolved) -> None:
        """Load the model if it is not loaded, in a thread and never twice at once.

        Whoever gives up waiting does not stop it: others may wait for the same model.
        """
        if model.engine.loaded(model.id):
            return
        loading = self._loading.get(model.id)
        if loading is None:
            work = asyncio.to_thread(model.engine.load, model.id, model.path)
            loading = self._loading[model.id] = asyncio.create_task(work)
            loading.add_done_callback(lambda _: self._loading.pop(model.id))
        await asyncio.shield(loading)

    def show(self, org: str, name: str) -> ModelObject:
        """One model as the wire shows it; raises ApiError 404."""
        self.resolve(org, name)
        base = self._bases.get(name)
        if base is not None:
            return _base_object(base[0])
        row = self._row(org, name)
        assert row is not None
        return self._object(row)

    def list(self, org: str) -> list[ModelObject]:
        """Base models, then this organisation's fine-tunes, oldest first."""
        rows = self._db.rows(
            "SELECT * FROM models WHERE org = ? AND deleted_at IS NULL AND final = 1"
            " ORDER BY created_at, id",
            org,
        )
        bases = [_base_object(base) for base, _ in self._bases.values()]
        return bases + [self._object(row) for row in rows if row["root"] in self._bases]

    def _object(self, row: Row) -> ModelObject:
        base, _ = self._bases[row["root"]]
        return {
            "id": row["id"],
            "object": "model",
            "created": row["created_at"],
            "owned_by": row["org"],
            "shutdown_date": base.shutdown_date,
        }

    async def delete(self, org: str, name: str) -> None:
        """Take a fine-tune away for good; raises ApiError 403 for a base model, 404."""
        model = self.resolve(org, name)
        if model.path is None:
            raise ApiError(
                403,
                f"`{name}` is a base model of this server and cannot be deleted.",
                param="model",
                code="model_not_deletable",
            )
        now = int(self._clock())

        def work(connection: Connection) -> None:
            connection.execute("UPDATE models SET deleted_at = ? WHERE id = ?", (now, name))

        await self._db.awrite(work, frees=True)
        await asyncio.to_thread(model.engine.unload, name)
        await asyncio.to_thread(shutil.rmtree, model.path, True)


def _base_object(base: BaseModel) -> ModelObject:
    return {
        "id": base.id,
        "object": "model",
        "created": base.created,
        "owned_by": base.owned_by,
        "shutdown_date": base.shutdown_date,
    }
