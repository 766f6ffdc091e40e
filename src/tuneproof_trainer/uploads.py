"""Uploads: one large file sent in parts, in any order, put together at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from typing import Any

from tuneproof_trainer.answers import UploadObject, UploadPartObject, UploadStatus
from tuneproof_trainer.database import Row, TrainerDatabase, insert
from tuneproof_trainer.errors import ApiError, bad_request, not_found
from tuneproof_trainer.files import FileStore, Landed, Landing, check_name, file_object, read_chunks
from tuneproof_trainer.ids import new_id
from tuneproof_trainer.requests import CompleteUpload, CreateUpload
from tuneproof_trainer.settings import TrainerSettings

__all__ = ["UploadStore"]


class UploadStore:
    """Uploads of all organisations; parts lie in one folder until their upload ends."""

    def __init__(
        self,
        database: TrainerDatabase,
        files: FileStore,
        settings: TrainerSettings,
        clock: Callable[[], float],
    ) -> None:
        self._db, self._files, self._settings, self._clock = database, files, settings, clock
        self._parts = FileStore(database, settings.dir / "parts", clock)

    def get(self, org: str, upload_id: str) -> Row:
        """The upload's row; raises ApiError 404."""
        row = self._db.row("SELECT * FROM uploads WHERE id = ? AND org = ?", upload_id, org)
        if row is None:
            raise not_found(f"No such Upload object: {upload_id}", "upload_id")
        return row

    def show(self, row: Row) -> UploadObject:
        """A row as the wire's Upload."""
        file = None
        if row["file_id"]:
            found = self._db.row("SELECT * FROM files WHERE id = ?", row["file_id"])
            file = file_object(found) if found is not None else None
        return {
            "object": "upload",
            "id": row["id"],
            "bytes": row["bytes"],
            "created_at": row["created_at"],
            "expires_at": row["expires_at"],
            "filename": row["filename"],
            "purpose": row["purpose"],
            "status": self._status(row),
            "file": file,
        }

    def _status(self, row: Row) -> UploadStatus:
        if row["status"] == "pending" and row["expires_at"] <= self._clock():
            return "expired"
        status: UploadStatus = row["status"]
        return status

    def create(self, org: str, upload: CreateUpload) -> UploadObject:
        """Begin an upload of exactly `upload.bytes` bytes."""
        check_name(upload.filename, upload.purpose)
        limit = self._settings.max_upload_bytes
        if upload.bytes > limit:
            raise bad_request(
                f"Invalid 'bytes': integer above maximum value. Expected a value <= {limit}, but "
                f"got {upload.bytes} instead.",
                "bytes",
                "integer_above_max_value",
            )
        upload_id, now = new_id("upload_"), int(self._clock())
        lifetime = upload.expires_after.seconds if upload.expires_after else None

        def work(connection: Connection) -> None:
            insert(
                connection,
                "uploads",
                id=upload_id,
                org=org,
                filename=upload.filename,
                purpose=upload.purpose,
                mime_type=upload.mime_type,
                bytes=upload.bytes,
                created_at=now,
                expires_at=now + self._settings.upload_lifetime_s,
                file_lifetime_s=lifetime,
                status="pending",
            )

        self._db.write(work)
        return self.show(self.get(org, upload_id))

    def pending(self, org: str, upload_id: str) -> Row:
        """The upload's row if it can still take parts; raises ApiError 400, 404."""
        row = self.get(org, upload_id)
        status = self._status(row)
        if status != "pending":
            raise bad_request(
                f"Upload {upload_id} is {status}; only a pending upload can be changed.",
                "upload_id",
                "invalid_upload_state",
            )
        return row

    def landing(self, upload_bytes: int) -> Landing:
        """A place for the content of a part of an upload of that size."""
        return self._parts.landing(min(self._settings.max_part_bytes, upload_bytes), _part)

    def add_part(self, org: str, upload_id: str, landed: Landed) -> UploadPartObject:
        """Make landed content a part of the upload."""
        part_id, now = new_id("part_"), int(self._clock())
        self._parts.path(landed.id).rename(self._parts.path(part_id))
        values = {"id": part_id, "upload_id": upload_id, "bytes": landed.bytes}

        def work(connection: Connection) -> None:
            _check_room(connection, self.pending(org, upload_id), landed.bytes)
            insert(connection, "parts", **values, created_at=now)

        try:
            self._db.write(work)
        except ApiError:
            self._parts.path(part_id).unlink()
            raise
        return {
            "object": "upload.part",
            "id": part_id,
            "created_at": now,
            "upload_id": upload_id,
        }

    def complete(self, org: str, upload_id: str, completion: CompleteUpload) -> UploadObject:
        """Join the parts in the order given and make them a file."""
        row = self.pending(org, upload_id)
        paths = self._ordered(row, completion.part_ids)
        digest = hashlib.md5(usedforsecurity=False) if completion.md5 else None
        landed = self._files.land(_joined(paths, digest), self._settings.max_upload_bytes)
        if completion.md5 and digest and completion.md5.lower() != digest.hexdigest():
            self._files.path(landed.id).unlink()
            raise bad_request(
                f"The parts have MD5 {digest.hexdigest()}, not {completion.md5}.",
                "md5",
                "md5_mismatch",
            )

        def work(connection: Connection) -> None:
            done = connection.execute(
                "UPDATE uploads SET status = 'completed', file_id = ? WHERE id = ?"
                " AND status = 'pending'",
                (landed.id, upload_id),
            )
            if done.rowcount != 1:
                raise bad_request(f"Upload {upload_id} was ended meanwhile.", "upload_id")
            self._files.record(
                connection,
                landed,
                org=org,
                filename=row["filename"],
                purpose=row["purpose"],
                lifetime_s=row["file_lifetime_s"],
            )

        self._db.write(work)
        self._drop_parts(upload_id)
        return self.show(self.get(org, upload_id))

    def _ordered(self, row: Row, part_ids: list[str]) -> list[Path]:
        rows = self._db.rows("SELECT * FROM parts WHERE upload_id = ?", row["id"])
        sizes = {part["id"]: part["bytes"] for part in rows}
        unknown = next((part for part in part_ids if part not in sizes), None)
        if unknown is not None or len(set(part_ids)) != len(part_ids):
            what = f"has no part {unknown}" if unknown else "was given a part twice"
            raise bad_request(f"Upload {row['id']} {what}.", "part_ids", "invalid_part")
        total = sum(sizes[part] for part in part_ids)
        if total != row["bytes"]:
            raise bad_request(
                f"The parts have {total} bytes, but the upload was created for {row['bytes']}.",
                "part_ids",
                "bytes_mismatch",
            )
        return [self._parts.path(part) for part in part_ids]

    def cancel(self, org: str, upload_id: str) -> UploadObject:
        """Give the upload up; its parts are deleted."""
        self.pending(org, upload_id)
        sql = "UPDATE uploads SET status = 'cancelled' WHERE id = ? AND status = 'pending'"
        self._db.write(lambda c: c.execute(sql, (upload_id,)), frees=True)
        self._drop_parts(upload_id)
        return self.show(self.get(org, upload_id))

    def _drop_parts(self, upload_id: str) -> None:
        for part in self._db.rows("SELECT id FROM parts WHERE upload_id = ?", upload_id):
            self._parts.path(part["id"]).unlink(missing_ok=True)
        sql = "DELETE FROM parts WHERE upload_id = ?"
        self._db.write(lambda c: c.execute(sql, (upload_id,)), frees=True)

    def collect(self) -> None:
        """Expire old uploads and delete their parts."""
        now = int(self._clock())
        sql = "SELECT id FROM uploads WHERE status = 'pending' AND expires_at <= ?"
        expire = "UPDATE uploads SET status = 'expired' WHERE id = ? AND status = 'pending'"
        for row in self._db.rows(sql, now):
            self._db.write(partial(_execute, sql=expire, values=(row["id"],)))
            self._drop_parts(row["id"])
        self._parts.remove_unknown({r["id"] for r in self._db.rows("SELECT id FROM parts")})

    def clear_incoming(self) -> None:
        """Remove parts that a killed server left half written."""
        self._parts.clear_incoming()


def _part(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"The part is larger than {max_bytes} bytes: a part has 64 MiB at most, and no more than "
        "its upload.",
        param="data",
        code="file_too_large",
    )


def _check_room(connection: Connection, upload: Row, size: int) -> None:
    """Parts may be sent again, but not without an end."""
    sql = "SELECT COALESCE(SUM(bytes), 0) FROM parts WHERE upload_id = ?"
    held = connection.execute(sql, (upload["id"],)).fetchone()[0]
    if held + size > 2 * upload["bytes"]:
        raise bad_request(
            f"Upload {upload['id']} was created for {upload['bytes']} bytes and has parts of "
            f"{held} already, so this one of {size} is too much. Complete or cancel it.",
            "data",
            "bytes_mismatch",
        )


def _execute(connection: Connection, sql: str, values: tuple[Any, ...]) -> None:
    connection.execute(sql, values)


def _joined(paths: list[Path], digest: hashlib._Hash | None) -> Iterator[bytes]:
    for path in paths:
        for chunk in read_chunks(path):
            if digest is not None:
                digest.update(chunk)
            yield chunk
