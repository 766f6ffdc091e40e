"""The archive that a backup is: a compressed tar, whose last member says what is in it.

It knows members by their names in the data directory, and nothing of what they mean. A digest of
each is in `manifest.json`, which is written last: an archive that was cut off has none.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Final
from zlib import error as ZlibError  # noqa: N812 - it is no error of ours

from tuneproof.errors import ConflictError, DataError

__all__ = ["FORMAT", "ArchiveWriter", "Entry", "Manifest", "each_entry", "read_manifest"]

FORMAT: Final = 1
"""The way archives are written; a restore knows those up to it."""

MANIFEST: Final = "manifest.json"
DATA: Final = "data/"
CHUNK: Final = 1 << 20
COMPRESSION: Final = 1
"""Adapters hardly shrink, and a backup should not keep a core from its work for long."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of an archive."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an archive holds, and of when. `store` is `sqlite` or `postgresql`; of the latter the
    database is not in the archive. `left_out` are things of the directory that stayed there."""

    format: int
    tuneproof: str
    made_at: str
    store: str
    schema: str | None
    directory: str
    files: Mapping[str, Entry] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """What it takes once it is unpacked."""
        return sum(entry.bytes for entry in self.files.values())

    def to_dict(self) -> dict[str, object]:
        """As JSON types."""
        return {**asdict(self), "left_out": list(self.left_out)}


class ArchiveWriter:
    """An archive that grows beside its place; nothing is in that place until all of it is.

    Its owner alone may read it. Raises `ConflictError` where something has the name already.
    """

    def __init__(self, path: Path, *, replace: bool = False) -> None:
        if path.exists() and not (replace and path.is_file()):
            raise ConflictError(
                f"{path} is there already.", mend="Name another file, or overwrite it with --yes."
            )
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        self._files: dict[str, Entry] = {}

    @contextmanager
    def writing(self) -> Iterator[ArchiveWriter]:
        """Add files within; at the end all of it is on disk under its name, or nothing is."""
        descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                with tarfile.open(
                    fileobj=file, mode="w:gz", compresslevel=COMPRESSION, format=tarfile.PAX_FORMAT
                ) as self._tar:
                    yield self
                file.flush()
                os.fsync(file.fileno())
            self._part.replace(self._path)
            sync(self._path.absolute().parent)
        except BaseException:
            self._part.unlink(missing_ok=True)
            raise

    def add(self, name: str, file: IO[bytes], size: int) -> None:
        """Add so many bytes of a file. Raises `DataError` where it has fewer."""
        reading = _Digesting(file, size)
        self._tar.addfile(_member(DATA + name, size), reading)
        self._files[name] = Entry(bytes=size, sha256=reading.hexdigest())

    def finish(self, manifest: Callable[[Mapping[str, Entry]], Manifest]) -> Manifest:
        """Write the manifest, made from what was added."""
        made = manifest(self._files)
        text = json.dumps(made.to_dict(), ensure_ascii=False, indent=1).encode()
        self._tar.addfile(_member(MANIFEST, len(text)), io.BytesIO(text))
        return made


class _Digesting(io.RawIOBase):
    """The first bytes of a file, hashed as they are read."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size
        self._digest = hashlib.sha256()
        self.hexdigest = self._digest.hexdigest

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        found = self._file.read(wanted)
        if len(found) < wanted:
            raise DataError("A file became shorter while it was read.", mend="Try again.")
        self._left -= len(found)
        self._digest.update(found)
        return found


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, int(time.time())
    return member


def read_manifest(path: Path) -> Manifest:
    """What an archive says of itself, once all of it was read and every digest is right.

    Raises `DataError` where it is no archive of ours, was cut off, or was changed.
    """
    try:
        return _read(path)
    except (tarfile.TarError, EOFError, ZlibError) as error:
        raise _not_ours(path, f"it is damaged or cut off ({error})") from error
    except OSError as error:
        raise _not_ours(path, error.strerror or str(error)) from error


def _read(path: Path) -> Manifest:
    found: dict[str, Entry] = {}
    manifest: Manifest | None = None
    for name, size, file in _members(path):
        if manifest is not None:
            raise _not_ours(path, "something comes after its manifest")
        if name == MANIFEST:
            manifest = _parsed(path, file.read())
            continue
        plain = _plain(path, name)
        if plain in found:
            raise _not_ours(path, f"{plain} is in it twice")
        found[plain] = Entry(bytes=size, sha256=_digest_of(file))
    if manifest is None:
        raise _not_ours(path, "its end, with the manifest, is missing")
    for plain in sorted({*found, *manifest.files}):
        if found.get(plain) != manifest.files.get(plain):
            raise _not_ours(path, f"{plain} is not what was saved")
    return manifest


def _digest_of(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def each_entry(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Each file of an archive that `read_manifest` has read."""
    for name, _, file in _members(path):
        if name != MANIFEST:
            yield _plain(path, name), file


def _members(path: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Each member's name, size and content."""
    with tarfile.open(path, mode="r|gz") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            if content is None:
                raise _not_ours(path, f"{member.name} is no file")
            yield member.name, member.size, content


def _plain(path: Path, name: str) -> str:
    """A member's name in the data directory: below it, whatever an archive says."""
    plain = name.removeprefix(DATA)
    parts = PurePosixPath(plain).parts
    if plain == name or not parts or "\\" in plain or {"..", "/", "."} & set(parts):
        raise _not_ours(path, f"{name} leads elsewhere")
    return plain


def _parsed(path: Path, text: bytes) -> Manifest:
    try:
        fields = json.loads(text)
        files = {name: Entry(**entry) for name, entry in fields.pop("files").items()}
        made = Manifest(**{**fields, "files": files, "left_out": tuple(fields["left_out"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        newer = b'"format"' in text and f'"format": {FORMAT}'.encode() not in text
        why = "a newer TuneProof made it" if newer else f"its manifest says {error}"
        raise _not_ours(path, why) from error
    if made.format > FORMAT:
        raise _not_ours(path, f"a newer TuneProof ({made.tuneproof}) made it")
    return made


def _not_ours(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} cannot be restored: {why}.",
        mend="Take another archive that `tuneproof backup` made; nothing was written.",
    )


def sync(folder: Path) -> None:
    """Have the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
