"""The files of a dataset: written beside their place, named by content, moved in whole.

DIR/datasets/HASH/train.jsonl  validation.jsonl      all tasks, for training together
                  TASK/train.jsonl  validation.jsonl  one task
                  lineage.csv                         which post made which line, and its rate
                  manifest.json                       what, from where, and what was left out

What came from elsewhere is one of ours only by `completed`: its hash is reckoned anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from tuneproof.collection import Dataset
from tuneproof.curation.sift import TRAIN, VALIDATION
from tuneproof.errors import DataError, FilesUnavailableError

__all__ = ["DATASETS", "LINEAGE", "DatasetFiles", "TaskFiles", "completed", "essential", "on_disk"]

DATASETS: Final = "datasets"
"""The folder of all datasets, in a data directory."""

LINEAGE: Final = "lineage.csv"
MANIFEST: Final = "manifest.json"
SIDES: Final = (TRAIN, VALIDATION)
_BUFFER: Final = 1 << 20
_STALE_S: Final = 24 * 3600
_TEMPORARY: Final = ".writing-"


class TaskFiles:
    """The two files of one task while they grow."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.counts = dict.fromkeys(SIDES, 0)
        self._files = {side: _open(folder / f"{side}.jsonl") for side in SIDES}

    def write(self, side: str, lines: Sequence[bytes]) -> None:
        """Append lines to one side."""
        if lines:
            self.counts[side] += len(lines)
            self._files[side].write(b"\n".join((*lines, b"")))

    def close(self) -> None:
        """Write what is buffered down to the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()

    def drop_lines(self, side: str, unwanted: set[int]) -> None:
        """Write one side anew without some of its lines (numbered from 0), after `close`."""
        _without(self.folder / f"{side}.jsonl", unwanted)
        self.counts[side] -= len(unwanted)

    def digest(self) -> str:
        """The hash of what both files hold."""
        return _digest(self.folder)


class DatasetFiles:
    """A dataset's folder while it is made. As a context manager it leaves nothing half made."""

    def __init__(self, directory: Path, tasks: Sequence[str]) -> None:
        self.root = directory / DATASETS
        self.folder = unfinished(self.root)
        self.tasks = {task: TaskFiles(self.folder / task) for task in tasks}
        self._lineage = _open(self.folder / LINEAGE)
        self._lineage.write(b"post_id,task,side,engagement_rate\n")

    def __enter__(self) -> DatasetFiles:
        return self

    def __exit__(self, *error: object) -> None:
        if self.folder.exists():
            with suppress(OSError):  # a disk that is full takes nothing more, at the end neither
                self.finish_lines()
            shutil.rmtree(self.folder, ignore_errors=True)

    def note_lineage(self, lines: Sequence[bytes]) -> None:
        """Append to the list of which post made which line."""
        if lines:
            self._lineage.write(b"\n".join((*lines, b"")))

    def drop_lineage(self, unwanted: set[int]) -> None:
        """Forget lines of the lineage (numbered from 0), after `finish_lines`."""
        _without(self.folder / LINEAGE, {number + 1 for number in unwanted})

    def finish(self, manifest: dict[str, Any]) -> tuple[str, dict[str, Dataset], Path]:
        """Merge, name by content, and move into place: the hash, the datasets, the folder.

        A folder of this hash that exists already holds the same lines, and is left alone.
        """
        digests = {task: files.digest() for task, files in self.tasks.items()}
        digest = _whole(digests)
        place = self.root / digest
        datasets = {t: self._dataset(t, digests[t], place) for t in self.tasks}
        if not place.exists():
            _merge(self.folder, list(self.tasks))
            _write_json(self.folder / MANIFEST, {"hash": digest, **manifest})
            move_in(self.folder, place)
        return digest, datasets, place

    def _dataset(self, task: str, digest: str, place: Path) -> Dataset:
        files = self.tasks[task]
        return Dataset(
            task=task,
            hash=digest,
            train_path=str(place / task / f"{TRAIN}.jsonl"),
            validation_path=str(place / task / f"{VALIDATION}.jsonl"),
            train_examples=files.counts[TRAIN],
            validation_examples=files.counts[VALIDATION],
        )

    def finish_lines(self) -> None:
        """No more lines will come."""
        if not self._lineage.closed:
            self._lineage.close()
            for files in self.tasks.values():
                files.close()


@contextmanager
def on_disk(directory: Path) -> Iterator[None]:
    """Raise `FilesUnavailableError` in place of what a disk says that is full or gone."""
    try:
        yield
    except OSError as error:
        raise FilesUnavailableError(
            f"The dataset cannot be written to {directory}: {error.strerror or error}.",
            mend="Make room there, or let TuneProof write there; the run tries again by itself.",
        ) from error


def essential(folder: Path) -> list[str]:
    """The files of a dataset of which `completed` makes all of it again."""
    tasks = [f"{task}/{side}.jsonl" for task in _tasks(folder) for side in SIDES]
    return [*tasks, LINEAGE, MANIFEST]


def completed(folder: Path, digest: str) -> None:
    """Have the files of all tasks together beside those of each, once they are what they should be.

    Raises `DataError` where their content does not have this hash.
    """
    try:
        tasks = _tasks(folder)
        if not {path.name for path in folder.iterdir() if path.is_dir()}.issuperset(tasks):
            raise ValueError("the files of a task are missing")
        found = _whole({task: _digest(folder / task) for task in tasks})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"Dataset {digest} is not whole: {error}.") from error
    if found != digest:
        raise DataError(f"Dataset {digest} was changed: its content has the hash {found}.")
    _merge(folder, tasks)


def unfinished(root: Path) -> Path:
    """A name beside datasets for one that is being made; what killed makers left is removed."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    _sweep(root)
    return root / f"{_TEMPORARY}{uuid.uuid4().hex}"


def move_in(folder: Path, place: Path) -> None:
    """Give a dataset that is whole its name; one that is there already is left alone."""
    _sync(folder)
    try:
        folder.rename(place)
    except OSError:
        if not place.exists():
            raise
    _sync(place.parent)


def _tasks(folder: Path) -> list[str]:
    """The tasks of a dataset as its manifest names them, in the order of its hash."""
    return list(json.loads((folder / MANIFEST).read_text("utf-8"))["tasks"])


def _digest(folder: Path) -> str:
    """The hash of both files of a task."""
    total = hashlib.sha256()
    for side in SIDES:
        with (folder / f"{side}.jsonl").open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:32]


def _whole(digests: Mapping[str, str]) -> str:
    """The hash of a dataset, from those of its tasks."""
    text = "".join(f"{task} {digest}\n" for task, digest in digests.items())
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _merge(folder: Path, tasks: Sequence[str]) -> None:
    for side in SIDES:
        parts, whole = [folder / task / f"{side}.jsonl" for task in tasks], folder / f"{side}.jsonl"
        if len(parts) == 1:
            os.link(parts[0], whole)
            continue
        with _open(whole) as target:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, target, _BUFFER)
            target.flush()
            os.fsync(target.fileno())


def _open(path: Path) -> BinaryIO:
    return path.open("wb", buffering=_BUFFER)


def _without(path: Path, unwanted: set[int]) -> None:
    fresh = path.with_suffix(".new")
    with path.open("rb") as old, _open(fresh) as new:
        new.writelines(line for number, line in enumerate(old) if number not in unwanted)
        new.flush()
        os.fsync(new.fileno())
    fresh.replace(path)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(root: Path) -> None:
    """Remove what a killed process left half written a day or longer ago."""
    limit = time.time() - _STALE_S
    for folder in root.glob(f"{_TEMPORARY}*"):
        if folder.stat().st_mtime < limit:
            shutil.rmtree(folder, ignore_errors=True)
