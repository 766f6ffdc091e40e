"""Files: content in a folder, one row each.

Content is written under a temporary name, synced and renamed before its row is committed, so a
file that was acknowledged is whole and stays. A file that a job still needs keeps its content
after its row was deleted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from sqlite3 import Connection

from tuneproof_trainer.answers import FileObject
from tuneproof_trainer.database import Row, TrainerDatabase, insert
from tuneproof_trainer.errors import ApiError, bad_request, not_found
from tuneproof_trainer.ids import new_id

__all__ = ["FileStore", "Landed", "Landing", "check_name", "file_object", "sync_folder"]

_CHUNK = 1024 * 1024
_ROW_DEADLINE_S = 3600
"""How long content may wait for its row."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Landed:
    """Content that is safely on disk and waits for its row."""

    id: str
    bytes: int
    sha256: str


def file_object(row: Row) -> FileObject:
    """A row as the wire's File; what it has not is absent."""
    file: FileObject = {
        "object": "file",
        "id": row["id"],
        "purpose": row["purpose"],
        "filename": row["filename"],
        "bytes": row["bytes"],
        "created_at": row["created_at"],
        "status": row["status"],
    }
    if row["expires_at"] is not None:
        file["expires_at"] = row["expires_at"]
    if row["status_details"] is not None:
        file["status_details"] = row["status_details"]
    return file


def check_name(filename: str, purpose: str) -> None:
    """Raise ApiError 400 for a training file that is named like something else."""
    kind = Path(filename).suffix.lower()
    if purpose == "fine-tune" and kind not in ("", ".jsonl"):
        raise bad_request(
            f"Invalid extension {kind.removeprefix('.')}. A file to fine-tune on is JSONL: name it "
            "*.jsonl.",
            "file",
            "invalid_file_format",
        )


class Landing:
    """Content on its way to disk: `finish` makes it last, `abandon` leaves nothing."""

    def __init__(
        self, temporary: Path, folder: Path, max_bytes: int, refusal: Callable[[int], ApiError]
    ) -> None:
        self._id, self._refusal = new_id("file-"), refusal
        self._temporary, self._folder, self._max_bytes = temporary / self._id, folder, max_bytes
        self._digest, self._size = hashlib.sha256(), 0
        self._target = self._temporary.open("wb")

    def write(self, chunk: bytes) -> None:
        """Add a piece; raises ApiError 413 beyond the limit."""
        self._size += len(chunk)
        if self._size > self._max_bytes:
            raise self._refusal(self._max_bytes)
        self._digest.update(chunk)
        self._target.write(chunk)

    def finish(self) -> Landed:
        """Sync, rename, sync the folder: from here on the content stays."""
        with self._target:
            self._target.flush()
            os.fsync(self._target.fileno())
        self._temporary.replace(self._folder / self._id)
        sync_folder(self._folder)
        return Landed(id=self._id, bytes=self._size, sha256=self._digest.hexdigest())

    def abandon(self) -> None:
        """Remove what was written."""
        self._target.close()
        self._temporary.unlink(missing_ok=True)


class FileStore:
    """Files of all organisations."""

    def __init__(self, database: TrainerDatabase, folder: Path, clock: Callable[[], float]) -> None:
        self._db, self._folder, self._clock = database, folder, clock
        self._temporary = folder / "incoming"
        self._temporary.mkdir(parents=True, exist_ok=True)

    def path(self, file_id: str) -> Path:
        """Where the content lies."""
        return self._folder / file_id

    def land(self, chunks: Iterable[bytes], max_bytes: int) -> Landed:
        """Write content to disk for good; raises ApiError 413 beyond `max_bytes`."""
        landing = self.landing(max_bytes)
        try:
            for chunk in chunks:
                landing.write(chunk)
            return landing.finish()
        except BaseException:
            landing.abandon()
            raise

    def landing(self, max_bytes: int, refusal: Callable[[int], ApiError] | None = None) -> Landing:
        """A place to write content to, piece by piece."""
        return Landing(self._temporary, self._folder, max_bytes, refusal or _too_large)

    def record(
        self,
        connection: Connection,
        landed: Landed,
        *,
        org: str,
        filename: str,
        purpose: str,
        lifetime_s: int | None = None,
    ) -> None:
        """The row that makes landed content a file."""
        now = int(self._clock())
        insert(
            connection,
            "files",
            id=landed.id,
            org=org,
            filename=filename,
            purpose=purpose,
            bytes=landed.bytes,
            sha256=landed.sha256,
            created_at=now,
            expires_at=now + lifetime_s if lifetime_s else None,
            status="processed",
        )

    def get(self, org: str, file_id: str) -> Row:
        """The file's row; raises ApiError 404."""
        row = self._db.row(
            "SELECT * FROM files WHERE id = ? AND org = ? AND deleted_at IS NULL", file_id, org
        )
        if row is None or (row["expires_at"] or 2**62) <= self._clock():
            raise not_found(f"No such File object: {file_id}", "id")
        return row

    def find(
        self, org: str, *, after: str | None, limit: int, ascending: bool, purpose: str | None
    ) -> list[Row]:
        """Up to `limit` rows after the file `after`."""
        where, values = ["org = ?", "deleted_at IS NULL"], [org, int(self._clock())]
        where.append("(expires_at IS NULL OR expires_at > ?)")
        if purpose is not None:
            where.append("purpose = ?")
            values.append(purpose)
        if after is not None:
            where.append(f"seq {'>' if ascending else '<'} ?")
            values.append(self._place(org, after))
        order = "ASC" if ascending else "DESC"
        sql = f"SELECT * FROM files WHERE {' AND '.join(where)} ORDER BY seq {order} LIMIT ?"
        return self._db.rows(sql, *values, limit)

    def _place(self, org: str, file_id: str) -> int:
        row = self._db.row("SELECT seq FROM files WHERE id = ? AND org = ?", file_id, org)
        if row is None:
            raise bad_request(f"No such File object: {file_id}", "after", "invalid_value")
        return int(row["seq"])

    async def delete(self, org: str, file_id: str) -> None:
        """Take the file away; its content goes when no unfinished job needs it."""
        self.get(org, file_id)
        now = int(self._clock())

        def work(connection: Connection) -> None:
            connection.execute("UPDATE files SET deleted_at = ? WHERE id = ?", (now, file_id))

        await self._db.awrite(work, frees=True)
        if not self.needed(file_id):
            self.path(file_id).unlink(missing_ok=True)

    def needed(self, file_id: str) -> bool:
        """Whether an unfinished job reads this file."""
        return (
            self._db.row(
                "SELECT 1 FROM jobs WHERE (training_file = ?1 OR validation_file = ?1)"
                " AND status NOT IN ('succeeded', 'failed', 'cancelled')",
                file_id,
            )
            is not None
        )

    def collect(self, lifetime_s: int | None) -> int:
        """Delete what has expired and content without a row; returns how many files went."""
        now = int(self._clock())
        born = now - lifetime_s if lifetime_s else -1

        def expire(connection: Connection) -> None:
            connection.execute(
                "UPDATE files SET deleted_at = ?1 WHERE deleted_at IS NULL"
                " AND (expires_at <= ?1 OR created_at < ?2)",
                (now, born),
            )

        self._db.write(expire)
        living = {r["id"] for r in self._db.rows("SELECT id FROM files WHERE deleted_at IS NULL")}
        return self.remove_unknown(living)

    def remove_unknown(self, known: set[str]) -> int:
        """Remove content that is none of `known`, an hour old and of no use to a job; returns how
        much of it there was."""
        old = self._clock() - _ROW_DEADLINE_S
        gone = [
            path
            for path in self._folder.iterdir()
            if path.is_file()
            and path.name not in known
            and path.stat().st_mtime < old
            and not self.needed(path.name)
        ]
        for path in gone:
            path.unlink(missing_ok=True)
        return len(gone)

    def clear_incoming(self) -> None:
        """Remove what a killed server left half written."""
        for path in self._temporary.iterdir():
            path.unlink(missing_ok=True)


def read_chunks(path: Path, size: int = _CHUNK) -> Iterator[bytes]:
    """The content of `path` piece by piece."""
    with path.open("rb") as file:
        while chunk := file.read(size):
            yield chunk


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _too_large(max_bytes: int) -> ApiError:
    limit = f"{max_bytes // (1024 * 1024)} MiB" if max_bytes >= 1024**2 else f"{max_bytes} bytes"
    return ApiError(
        413,
        f"The file is larger than {limit}. Send it in parts by the uploads API.",
        param="file",
        code="file_too_large",
    )
