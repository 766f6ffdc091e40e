"""Put a backup where a service can begin on it: all of it or nothing.

The archive is read whole before anything is written. Its files are then unpacked into a folder of
the data directory, beside the place they are for (a mounted volume can be no other way), and moved
there once all are on disk. While that folder is there no service begins, and the same command
begins anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from tuneproof.app.archive import CHUNK, Manifest, each_entry, read_manifest, sync
from tuneproof.curation import ShelvedDatasets
from tuneproof.errors import ConfigError, DataError, FilesUnavailableError, StateError
from tuneproof.settings import Settings
from tuneproof.shelf import Shelf
from tuneproof.store import SCHEMA, database_url
from tuneproof.workflow import DirectoryLock

__all__ = ["ENGINE", "LOST_AND_FOUND", "STORE", "refuse_half_restored", "restore"]

log = logging.getLogger(__name__)

STORE: Final = "tuneproof.db"
ENGINE: Final = "engine.db"
"""The names of the databases, in an archive and in a data directory."""

LOST_AND_FOUND: Final = "lost+found"
"""What a volume of its own has in it, however empty it is."""

HALF: Final = ".restoring"
NAMES: Final = "names.json"
"""In the folder: what is moved out of it, so that a second try can take it back."""


def refuse_half_restored(directory: Path) -> None:
    """Raise `StateError` where a restore was broken off: what is there is not all of it."""
    if (directory / HALF).exists():
        raise StateError(
            f"A restore into {directory} was broken off; what is there is not whole.",
            mend=f"Do it again: tuneproof restore FILE --dir {directory}",
        )


def restore(settings: Settings, archive: Path) -> Manifest:
    """Unpack a backup into the data directory of the settings; says what it held.

    Raises `DataError` for an archive that is not whole, was changed, or needs more space than
    there is; `StateError` where the directory is in use or not empty, or a newer TuneProof made
    the archive; `ConfigError` where the settings name another kind of store.
    """
    manifest = read_manifest(archive)
    _refuse(settings, manifest)
    with _alone(settings.dir):
        _refuse_occupied(settings.dir)
        _refuse_lack_of_space(settings.dir, manifest)
        _unpack(archive, manifest, settings.dir)
        _shelve(settings)
    return manifest


def _shelve(settings: Settings) -> None:
    """Have the datasets in the object store, too, where the settings name one and it answers."""
    config = settings.files
    if config.url is None:
        return
    shelved = ShelvedDatasets(Shelf(config.url), settings.dir, cache_bytes=config.cache_mb << 20)
    try:
        shelved.put_all()
    except FilesUnavailableError as error:
        log.warning("other workers will make datasets again from the posts: %s", error.message)


def _refuse(settings: Settings, manifest: Manifest) -> None:
    known = "sqlite" if settings.store.url.scheme == "sqlite" else "postgresql"
    if manifest.store != known:
        raise ConfigError(
            f"The backup is of a service whose store was {manifest.store}; the settings name "
            f"{known}.",
            mend="Set the same kind of database: DATABASE_URL, or [store] url.",
            field="store.url",
        )
    place = settings.dir / STORE
    if known == "sqlite" and Path(str(database_url(settings.store.url.reveal()).database)) != place:
        raise ConfigError(
            f"The settings have the store at {settings.store.url}; a restore makes {place}.",
            mend="Leave [store] url out for the restore; move the file there afterwards.",
            field="store.url",
        )
    if manifest.schema is not None and manifest.schema > SCHEMA:
        raise StateError(
            f"The backup has schema {manifest.schema}; this TuneProof knows up to {SCHEMA}.",
            mend=f"Restore it with TuneProof {manifest.tuneproof} or newer.",
        )


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Raise `StateError` where a service has the directory; none can begin there within."""
    lock = DirectoryLock(directory)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _refuse_occupied(directory: Path) -> None:
    """Take back what a restore left that was broken off; raise `StateError` for anything else."""
    half = directory / HALF
    if half.exists():
        names = json.loads((half / NAMES).read_text()) if (half / NAMES).exists() else []
        for name in names:
            _remove(directory / name)
        _remove(half)
    there = {path.name for path in directory.iterdir()} - {"lock", LOST_AND_FOUND}
    if there:
        raise StateError(
            f"{directory} is not empty: {', '.join(sorted(there)[:5])}.",
            mend="Name an empty directory with --dir, or move away what is in this one.",
        )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _refuse_lack_of_space(directory: Path, manifest: Manifest) -> None:
    free = shutil.disk_usage(directory).free
    if manifest.bytes > free:
        raise DataError(
            f"The backup unpacks to {manifest.bytes:,} bytes; {directory} has room for {free:,}.",
            mend="Free some space, or name a directory on another disk with --dir.",
        )


def _unpack(archive: Path, manifest: Manifest, directory: Path) -> None:
    half = directory / HALF
    half.mkdir(mode=0o700)
    sync(directory)
    data = half / "data"
    data.mkdir(mode=0o700)
    for name, file in each_entry(archive):
        place = data / name
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _written(file, place) != manifest.files[name].sha256:
            raise DataError(f"{archive} changed while it was restored.", mend="Do it again.")
    for root, _, _ in os.walk(data):
        sync(Path(root))
    names = sorted(path.name for path in data.iterdir())
    (half / NAMES).write_text(json.dumps(names))
    sync(half)
    for name in names:
        (data / name).rename(directory / name)
    sync(directory)
    shutil.rmtree(half)
    sync(directory)


def _written(file: IO[bytes], place: Path) -> str:
    """Write a file that is on disk afterwards; its digest."""
    digest = hashlib.sha256()
    with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            target.write(chunk)
        target.flush()
        os.fsync(target.fileno())
    return digest.hexdigest()
