"""The shelf: folders in an object store, where every worker finds them.

A folder is one object, a plain tar. It is written under a name that nobody asks for, then moved to
its own: what has its name is whole, on stores of every kind. Who is killed in between leaves a
part, which whoever writes a day later removes. Of two who write the same name, one is last.

It knows no datasets: whether what came back is what was put there is for its caller to check.
fsspec speaks to the store, by the protocol of the address; credentials are in the variables and
files that its libraries usually read.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Final

from tuneproof.errors import ConfigError, DataError, FilesUnavailableError, TuneProofError
from tuneproof.settings import Url

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["Shelf"]

LOCAL: Final = ("file", "local")
TAR: Final = ".tar"
PART: Final = ".part-"
STALE: Final = timedelta(days=1)
_CHUNK: Final = 1 << 20


class Shelf:
    """Folders by their names (`datasets/HASH`) under one address. Its methods block.

    They raise `ConfigError` for an address that nothing here can speak to, and
    `FilesUnavailableError` where the store does not answer or refuses.
    """

    def __init__(self, url: Url) -> None:
        self.url = url

    def open(self) -> None:
        """Refuse an address that nothing here can speak to; nothing is asked of the store."""
        with self._speaking():
            from fsspec import get_filesystem_class

            get_filesystem_class(self.url.reveal().partition("://")[0])

    def put(self, name: str, folder: Path, files: Sequence[str]) -> None:
        """Keep these files of a folder under a name, in place of what has it."""
        with self._asking():
            place = self._place(name)
            beside = place.rpartition("/")[0]
            part = f"{beside}/{PART}{uuid.uuid4().hex}"
            self._sweep(beside)
            with self._files.open(part, "wb") as target:
                _pack(target, folder, files)
            self._files.mv(part, place)

    def fetch(self, name: str, folder: Path) -> bool:
        """Unpack into a folder what has this name; False where nothing has.

        It is copied in one piece first: of one that is replaced just now, pieces could be of both.
        Raises `DataError` where it is none of ours, or was cut off.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        copy = folder / f"{PART}{TAR}"
        with self._asking():
            try:
                self._files.get_file(self._place(name), str(copy))
                with copy.open("rb") as source:
                    _unpack(source, folder)
            except FileNotFoundError:
                return False
            except (tarfile.TarError, ValueError) as error:
                raise self.damaged(name, str(error)) from error
            finally:
                copy.unlink(missing_ok=True)
        return True

    def holds(self, name: str) -> bool:
        """Whether something has this name."""
        with self._asking():
            return bool(self._files.exists(self._place(name)))

    def names(self, kind: str) -> list[str]:
        """The names that begin with `kind/`."""
        with self._asking():
            files = self._listed(f"{self._root}/{kind}")
            return sorted(
                f"{kind}/{file.removesuffix(TAR)}" for file in files if file.endswith(TAR)
            )

    def delete(self, name: str) -> None:
        """Remove what has this name, if anything has."""
        with self._asking(), suppress(FileNotFoundError):
            self._files.rm_file(self._place(name))

    def check(self) -> None:
        """Look for, write, read back and delete a small folder, as runs do."""
        name, said = f"checks/{uuid.uuid4().hex}", uuid.uuid4().hex
        with tempfile.TemporaryDirectory(prefix="tuneproof-") as here:
            there, back = Path(here, "there"), Path(here, "back")
            there.mkdir()
            (there / "said").write_text(said)
            known = self.fetch(name, back)
            self.put(name, there, ["said"])
            try:
                found = self.fetch(name, back) and (back / "said").read_text() == said
            finally:
                self.delete(name)
        if known or not found:
            raise self.damaged(name, "it did not give back what it took")

    def damaged(self, name: str, why: str) -> DataError:
        """The error for what is not as it was put there; the caller raises it."""
        return DataError(f"{name} in {self.url} is not what was put there: {why}.")

    @cached_property
    def _opened(self) -> tuple[AbstractFileSystem, str]:
        address = self.url.reveal()
        more = {"auto_mkdir": True} if address.partition("://")[0] in LOCAL else {}
        with self._speaking():
            from fsspec.core import url_to_fs

            files, root = url_to_fs(address, use_listings_cache=False, **more)
        return files, root.rstrip("/")

    @property
    def _files(self) -> AbstractFileSystem:
        return self._opened[0]

    @property
    def _root(self) -> str:
        return self._opened[1]

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}{TAR}"

    def _listed(self, folder: str) -> list[str]:
        """The names of the files in a folder of the store."""
        with suppress(FileNotFoundError):
            return [path.rpartition("/")[2] for path in self._files.ls(folder, detail=False)]
        return []

    def _sweep(self, folder: str) -> None:
        """Remove the parts that killed writers left a day or longer ago."""
        limit = datetime.now(UTC) - STALE
        for name in self._listed(folder):
            if name.startswith(PART):
                with suppress(FileNotFoundError, NotImplementedError):
                    if self._files.modified(f"{folder}/{name}") < limit:
                        self._files.rm_file(f"{folder}/{name}")

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Say of an address that it cannot be used."""
        try:
            yield
        except ImportError as error:
            raise ConfigError(
                f"files.url is {self.url}, and what speaks to it is not installed: {error}.",
                mend="pip install 'tuneproof[s3]' for s3://; for others 'tuneproof[objects]' and "
                "the library that fsspec names.",
                field="files.url",
            ) from error
        except ValueError as error:
            raise ConfigError(
                f"files.url is {self.url}, which fsspec cannot open: {self._why(error)}.",
                mend="Write it like s3://BUCKET/PREFIX.",
                field="files.url",
            ) from None

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Say of what goes wrong within that the store is away: each library has its own errors."""
        try:
            yield
        except TuneProofError:
            raise
        except Exception as error:
            raise FilesUnavailableError(
                f"Files could not be had from or kept in {self.url}: {self._why(error)}.",
                mend="Check that it is up, that the bucket is there, and the credentials: "
                "tuneproof doctor",
            ) from None

    def _why(self, error: Exception) -> str:
        """What a library said; its kind alone where the address has a secret that it may tell."""
        kind = type(error).__name__
        if self.url.masked != self.url.reveal():
            return kind
        return f"{kind}: {str(error).rstrip('.')}"


def _pack(target: IO[bytes], folder: Path, files: Sequence[str]) -> None:
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name in files:
            with (folder / name).open("rb") as file:
                member = tarfile.TarInfo(name)
                member.size = os.fstat(file.fileno()).st_size
                tar.addfile(member, file)


def _unpack(source: IO[bytes], folder: Path) -> None:
    """Raises `ValueError` for what is no file below the folder."""
    with tarfile.open(fileobj=source, mode="r|") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            parts = PurePosixPath(member.name).parts
            if content is None or not parts or {"..", "/"} & set(parts):
                raise ValueError(f"{member.name!r} is no file of it")
            _write(content, folder.joinpath(*parts))


def _write(content: IO[bytes], place: Path) -> None:
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with place.open("wb") as target:
        while chunk := content.read(_CHUNK):
            target.write(chunk)
        target.flush()
        os.fsync(target.fileno())
