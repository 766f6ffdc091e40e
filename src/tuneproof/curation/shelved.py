"""Datasets on a shelf: kept there by whoever builds one, fetched by whoever needs it.

The data directory is a cache of the shelf then. It loses the datasets that were needed longest ago
where all of them are more than it may hold; what was needed within a day stays, since a stage may
read it just now, and so does what the shelf does not have.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from tuneproof.curation.files import DATASETS, completed, essential, move_in, unfinished
from tuneproof.errors import DataError, FilesUnavailableError
from tuneproof.shelf import Shelf

__all__ = ["ShelvedDatasets"]

_IN_USE_S: Final = 24 * 3600


class ShelvedDatasets:
    """The datasets of a data directory and of a shelf, by their hashes. Its methods block.

    They raise as the shelf's do: `FilesUnavailableError` where the store is away.
    """

    def __init__(self, shelf: Shelf, directory: Path, *, cache_bytes: int) -> None:
        self._shelf = shelf
        self._root = directory / DATASETS
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()

    def put(self, digest: str) -> None:
        """Keep a dataset of the data directory on the shelf, in place of what is there."""
        folder = self._root / digest
        self._shelf.put(_name(digest), folder, essential(folder))
        self._trim()

    def find(self, digest: str) -> Path | None:
        """The dataset's folder in the data directory, fetched where it is not there yet; None
        where the shelf does not have it either.

        Raises `DataError` where what the shelf has is not what was put there.
        """
        place = self._root / digest
        if not self._used(place):
            if not self._fetch(digest, place):
                return None
            self._trim()
        return place

    def put_all(self) -> int:
        """Put all of the data directory there that the shelf lacks; how many that were."""
        known, found = set(self.all()), [folder.name for folder in self._datasets()]
        lacking = [digest for digest in found if digest not in known]
        for digest in lacking:
            self.put(digest)
        return len(lacking)

    def all(self) -> list[str]:
        """The hashes of those on the shelf."""
        return [name.partition("/")[2] for name in self._shelf.names(DATASETS)]

    def _fetch(self, digest: str, place: Path) -> bool:
        folder = unfinished(self._root)
        try:
            if not self._shelf.fetch(_name(digest), folder):
                return False
            completed(folder, digest)
            move_in(folder, place)
        except DataError as error:
            raise DataError(
                f"{error.message} It was fetched from {self._shelf.url}.",
                mend="Collect again, which puts it there anew: tuneproof run retry RUN --stage "
                "collect",
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return True

    def _used(self, place: Path) -> bool:
        """Whether a dataset is there; noted is that it is needed now."""
        with self._lock:
            if place.exists():
                os.utime(place)
                return True
        return False

    def _trim(self) -> None:
        """Remove what is too much; a cache that stays too large keeps no run from going on."""
        with suppress(OSError, FilesUnavailableError):
            sizes = {folder: _size(folder) for folder in self._datasets()}
            total = sum(sizes.values())
            for folder in sorted(sizes, key=_used_at):
                if total > self._cache_bytes and self._drop(folder):
                    total -= sizes[folder]

    def _drop(self, folder: Path) -> bool:
        """Remove a dataset that nobody has needed for long and that the shelf has."""
        if not _idle(folder) or not self._shelf.holds(_name(folder.name)):
            return False
        with self._lock:
            if not _idle(folder):
                return False
            gone = folder.rename(unfinished(self._root))
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def _datasets(self) -> Iterator[Path]:
        for folder in self._root.iterdir() if self._root.is_dir() else ():
            if folder.is_dir() and not folder.name.startswith("."):
                yield folder


def _name(digest: str) -> str:
    return f"{DATASETS}/{digest}"


def _used_at(folder: Path) -> float:
    return folder.stat().st_mtime


def _idle(folder: Path) -> bool:
    return time.time() - _used_at(folder) > _IN_USE_S


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
