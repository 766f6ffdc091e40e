"""What a backup takes of a data directory, while the service runs.

It is what a service that was killed at one instant would have left: the databases are held still
for the moment in which a view of each is opened and every file gets a second name. Views and names
are written to the archive afterwards. So a restored service does what one does after a kill: it
takes its runs up where they were, and finds each effect before it makes it again.

What must not travel stays: locks, sockets, the token of the running service, what gateways keep.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Final

from tuneproof.app.archive import FORMAT, ArchiveWriter, Entry, Manifest
from tuneproof.app.restore import ENGINE, LOST_AND_FOUND, STORE, refuse_half_restored
from tuneproof.curation import ShelvedDatasets
from tuneproof.curation.files import DATASETS
from tuneproof.errors import DataError, RetryableError, StateError
from tuneproof.settings import Settings
from tuneproof.shelf import Shelf
from tuneproof.store import SqliteViews, database_url, refuse_absent, schema_of

__all__ = ["back_up"]

TRAINER: Final = "trainer/trainer.sqlite"

FOLDERS: Final = (DATASETS, "trainer", "spool")
FILES: Final = ("demo.json",)
SPOOL: Final = "spool/"
STAGING: Final = ".backup-"

_KNOWN: Final = {*FOLDERS, *FILES, STORE, ENGINE, LOST_AND_FOUND}
_LEFT: Final = {"lock", "ray-storage-owner", "incoming", "work"}
"""Names of the trainer that stay: it makes each anew. A job that is under way trains again from its
first step."""

_ANEW: Final = ("-wal", "-shm", "-journal", ".part")
"""How names end of what databases and half made files leave beside them."""


@dataclass(frozen=True, kw_only=True)
class _Held:
    """A file as it was at the instant: where it can be read, and how much of it counts."""

    name: str
    path: Path
    size: int


def back_up(settings: Settings, to: Path, *, now: datetime, replace: bool = False) -> Manifest:
    """Write all of a data directory to one archive; says what it holds.

    The databases of a SQLite store are in it; of a store in PostgreSQL, what lies beside it.
    Raises `StoreUnavailableError` where nothing is there or a database stays locked,
    `ConflictError` where the archive is there, `StateError` for somebody else's directory,
    `DataError` where something is damaged or the archive cannot be written.
    """
    _refuse(settings)
    writer = ArchiveWriter(to, replace=replace)
    with _staging(settings.dir) as staging:
        taking = _Taking(settings, staging)
        try:
            with writer.writing():
                schema = taking.write(writer)
                return writer.finish(
                    lambda files: _manifest(
                        settings, files, schema=schema, now=now, damaged=taking.damaged
                    )
                )
        except OSError as error:
            raise DataError(
                f"{to} cannot be written: {error.strerror or error}.",
                mend="Free some space, or name another place.",
            ) from error
        finally:
            taking.views.close()


class _Taking:
    """One backup under way: views of the databases, and a second name for each file."""

    def __init__(self, settings: Settings, staging: Path) -> None:
        self._directory, self._staging = settings.dir, staging
        self._databases = _databases(settings)
        self._shelf = None if settings.files.url is None else Shelf(settings.files.url)
        self._held: list[_Held] = []
        self.damaged: list[str] = []
        self.views = SqliteViews(list(self._databases.values()), self._hold)

    def _hold(self) -> None:
        """Give each file a second name, by which it is read whatever becomes of it."""
        for number, (name, path) in enumerate(_files(self._directory)):
            second = self._staging / str(number)
            try:
                size = path.stat().st_size
                os.link(path, second, follow_symlinks=False)
            except FileNotFoundError:
                continue  # what no database speaks of may come and go
            except OSError:  # on another disk, or one without second names
                second = path
            self._held.append(_Held(name=name, path=second, size=size))

    def write(self, writer: ArchiveWriter) -> str | None:
        """Add everything to an archive; the store's schema, where that is in it."""
        schema = None
        for name, path in self._databases.items():
            copy = self._staging / "database"
            self.views.copy(path, copy)
            schema = schema_of(copy) if name == STORE else schema
            _add(writer, _Held(name=name, path=copy, size=copy.stat().st_size))
            copy.unlink()
        self.views.close()
        for held in self._held:
            _add(writer, held)
        if self._shelf is not None:
            self._write_shelved(writer, ShelvedDatasets(self._shelf, self._staging, cache_bytes=0))
        return schema

    def _write_shelved(self, writer: ArchiveWriter, shelved: ShelvedDatasets) -> None:
        """Add the datasets that only the object store has: after the instant, so none is missing
        that a row of the databases names. Those that are damaged there are left out."""
        here = {Path(held.name).parts[1] for held in self._held if held.name.startswith(DATASETS)}
        for digest in shelved.all():
            if digest in here:
                continue
            try:
                folder = shelved.find(digest)
            except DataError:
                self.damaged.append(f"{DATASETS}/{digest}")
                continue
            if folder is None:
                continue  # removed meanwhile, by a rule of the bucket
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                name = path.relative_to(self._staging).as_posix()
                _add(writer, _Held(name=name, path=path, size=path.stat().st_size))
            shutil.rmtree(folder)


def _add(writer: ArchiveWriter, held: _Held) -> None:
    try:
        with held.path.open("rb") as file:
            size = _whole_lines(held, file.fileno()) if held.name.startswith(SPOOL) else held.size
            writer.add(held.name, file, size)
    except (FileNotFoundError, DataError) as error:
        raise RetryableError(
            f"{held.name} changed while it was saved.",
            mend="Try again; have the folder on the disk of the data directory, where it is held.",
        ) from error


def _whole_lines(held: _Held, descriptor: int) -> int:
    """How much of a growing file of lines is whole: the last line may be half written."""
    content = os.pread(descriptor, held.size, 0)
    return content.rfind(b"\n") + 1


def _databases(settings: Settings) -> Mapping[str, Path]:
    """The SQLite databases that there are, by their names in an archive. The store is the first:
    whoever writes to it and to another has its lock first."""
    directory, found = settings.dir, {}
    if settings.store.url.scheme == "sqlite":
        found[STORE] = Path(str(database_url(settings.store.url.reveal()).database))
        found[ENGINE] = directory / ENGINE
    found[TRAINER] = directory / TRAINER
    return {name: path for name, path in found.items() if path.is_file()}


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Each file that travels, by its name in the directory."""
    for name in FILES:
        if (directory / name).is_file():
            yield name, directory / name
    for folder in FOLDERS:
        for root, folders, files in os.walk(directory / folder):
            folders[:] = sorted(name for name in folders if _travels(name, folder))
            for name in sorted(files):
                path = Path(root, name)
                plain = path.relative_to(directory).as_posix()
                if plain != TRAINER and _travels(name, folder) and not path.is_symlink():
                    yield plain, path


def _travels(name: str, folder: str) -> bool:
    if folder == "trainer":
        return name not in _LEFT and not name.endswith(_ANEW)
    return not name.startswith(".writing-")  # the spool's locks are needed to take its events over


def _manifest(
    settings: Settings,
    files: Mapping[str, Entry],
    *,
    schema: str | None,
    now: datetime,
    damaged: Sequence[str],
) -> Manifest:
    stays = {
        path.name
        for path in settings.dir.iterdir()
        if path.name not in _KNOWN
        and not path.name.startswith(STAGING)
        and not path.name.endswith(_ANEW)
    }
    return Manifest(
        format=FORMAT,
        tuneproof=metadata.version("tuneproof"),
        made_at=now.isoformat(),
        store="sqlite" if settings.store.url.scheme == "sqlite" else "postgresql",
        schema=schema,
        directory=str(settings.dir),
        files=files,
        left_out=tuple(sorted([*stays, *damaged])),
    )


def _refuse(settings: Settings) -> None:
    """Raise where there is nothing to save, or where we would leave files in others' folders."""
    refuse_absent(settings.store.url.reveal())
    refuse_half_restored(settings.dir)
    if not settings.dir.is_dir():
        raise StateError(
            f"There is no data directory {settings.dir}.", mend="Name another one with --dir."
        )
    owner = settings.dir.stat().st_uid
    if owner != os.getuid():
        raise StateError(
            f"{settings.dir} belongs to user {owner}; who reads its databases leaves files there.",
            mend=f"Run this as that user: sudo -u '#{owner}' tuneproof backup ...",
        )


@contextmanager
def _staging(directory: Path) -> Iterator[Path]:
    """A folder for second names, on the same disk; what killed backups left is removed."""
    for left in directory.glob(f"{STAGING}*"):
        with _locked(left) as free:
            if free:
                shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=STAGING, dir=directory))
    with _locked(made):
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether nobody else has this folder; nobody else has within."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)
