"""Vectors of texts that were asked for before, in a file of the data directory.

Most posts that a gate learns from are those of the gate before it, and on a slow machine their
vectors take minutes. A text is known by a hash, so the file says nothing of it in clear. What a
model gave is given again as long as it gives the same vector of one text that is asked for each
time: one that was replaced under its name is asked anew.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["FILE", "VectorCache"]

log = logging.getLogger(__name__)

FILE: Final = "vectors.db"
MOST: Final = 40_000
"""How many vectors are kept: those that were needed last."""

KEPT_S: Final = 90 * 86_400.0
"""How long one is kept that nobody needs."""

ALIKE: Final = 0.999
"""How near two vectors of one text are, by their cosine, that one model gave."""

AT_ONCE: Final = 500
WAIT_S: Final = 30.0
_PROBE: Final = ""
"""The hash under which the vector stands that the model is known by."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS vectors (
    model TEXT NOT NULL, text TEXT NOT NULL, vector BLOB NOT NULL, used_at REAL NOT NULL,
    PRIMARY KEY (model, text)
) WITHOUT ROWID
"""

Vector: TypeAlias = NDArray[np.floating[Any]]

T = TypeVar("T")


class VectorCache:
    """The vectors of one model of one provider.

    Several processes may use the file. One that cannot be read or written is done without: what
    it would have known is asked for.
    """

    def __init__(self, path: Path, provider: str, model: str) -> None:
        self._path = path
        self._model = f"{provider}\x1f{model}"

    def begin(self, probe: Vector) -> None:
        """Forget what another model of this name gave; `probe` is its vector of the same text each
        time. Old and superfluous vectors of all models go, too."""

        def work(file: sqlite3.Connection) -> None:
            known = self._found(file, [_PROBE]).get(_PROBE)
            if known is None or not _alike(known, probe):
                file.execute("DELETE FROM vectors WHERE model = ?", (self._model,))
                self._put(file, {_PROBE: probe})
            file.execute("DELETE FROM vectors WHERE used_at < ?", (time.time() - KEPT_S,))
            file.execute(
                "DELETE FROM vectors WHERE (model, text) IN (SELECT model, text FROM vectors "
                "WHERE text != ? ORDER BY used_at DESC LIMIT -1 OFFSET ?)",
                (_PROBE, MOST),
            )

        self._do(work, None)

    def known(self, texts: Sequence[str]) -> dict[str, Vector]:
        """Those of these texts that are kept, which are needed once more."""
        names = {_hash(text): text for text in texts}

        def work(file: sqlite3.Connection) -> dict[str, Vector]:
            found: dict[str, Vector] = {}
            for hashes in _parts(list(names)):
                part = self._found(file, hashes)
                file.execute(
                    f"UPDATE vectors SET used_at = ? WHERE model = ? AND text IN ({_marks(part)})",
                    (time.time(), self._model, *part),
                )
                found.update({names[hash]: vector for hash, vector in part.items()})
            return found

        return self._do(work, {})

    def keep(self, vectors: Mapping[str, Vector]) -> None:
        """Keep the vectors of these texts."""
        hashed = {_hash(text): vector for text, vector in vectors.items()}
        self._do(lambda file: self._put(file, hashed), None)

    def _do(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Work on the file, in a transaction."""
        try:
            with closing(sqlite3.connect(self._path, timeout=WAIT_S)) as file, file:
                self._path.chmod(0o600)
                file.execute(_SCHEMA)
                return work(file)
        except (OSError, sqlite3.Error) as error:
            log.warning("%s is done without, and vectors are asked for: %s", self._path, error)
            return otherwise

    def _found(self, file: sqlite3.Connection, hashes: Sequence[str]) -> dict[str, Vector]:
        rows = file.execute(
            f"SELECT text, vector FROM vectors WHERE model = ? AND text IN ({_marks(hashes)})",
            (self._model, *hashes),
        )
        return {text: np.frombuffer(vector, "<f4") for text, vector in rows}

    def _put(self, file: sqlite3.Connection, vectors: Mapping[str, Vector]) -> None:
        now = time.time()
        file.executemany(
            "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)",
            [
                (self._model, hash, np.asarray(vector, "<f4").tobytes(), now)
                for hash, vector in vectors.items()
            ],
        )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _alike(one: Vector, other: Vector) -> bool:
    if len(one) != len(other):
        return False
    lengths = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return lengths > 0 and float(np.dot(one, other)) / lengths >= ALIKE


def _marks(hashes: Collection[str]) -> str:
    return ",".join("?" * len(hashes))


def _parts(hashes: Sequence[str]) -> list[Sequence[str]]:
    return [hashes[start : start + AT_ONCE] for start in range(0, len(hashes), AT_ONCE)]
