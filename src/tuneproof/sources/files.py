"""Posts from files, with the meaning of the SQL query: filter, order, limit.

Parquet is read by pyarrow (the extra `parquet`), which skips what the filter rules out where it
compares as we do; CSV by the standard library, JSON lines by orjson. Where the best are wanted,
only they are kept while reading, so memory does not grow with the file; all matching posts of a
file are sorted in memory.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from tuneproof.collection import Post, PostQuery, SourceCheck
from tuneproof.errors import DataError
from tuneproof.settings import SourceConfig
from tuneproof.sources.arithmetic import Arithmetic
from tuneproof.sources.choosing import OWN_ID, Best, check_ids, chunked
from tuneproof.sources.columns import (
    RATE,
    checked,
    find_columns,
    need_columns,
    rate_arithmetic,
)
from tuneproof.sources.delimited import header, records
from tuneproof.sources.jsonlines import keys, objects
from tuneproof.sources.rows import Reading, as_text, maker, operand, stood_for

__all__ = ["CsvSource", "FileSource", "JsonLinesSource", "ParquetSource", "arrow", "no_parquet"]


_AT_ONCE: Final = 10_000

# Columns of our own: whether the row has no time, and its rate as it is put in order.
_TIMELESS = "\0timeless"
_RANK = "\0rank"


def arrow() -> Any:
    """The pyarrow package. Raises `DataError` that says how to install it."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            "Parquet files need pyarrow, which is not installed.",
            mend="pip install tuneproof[parquet]",
        ) from error
    return pyarrow


@contextmanager
def no_parquet(pa: Any, path: Path) -> Iterator[None]:
    """Raise `DataError` in place of what pyarrow raises for a file that is broken."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{str(path)!r} cannot be read as Parquet: {str(error).rstrip('.')}.",
            mend="Write it again, or give a CSV file.",
        ) from error


class FileSource(ABC):
    """A file of posts."""

    def __init__(self, config: SourceConfig, path: Path) -> None:
        self.config = config
        self.path = path
        self.reading: Reading | None = None
        if config.where:
            raise DataError(
                f"sources.{config.name}.where is SQL, and {str(path)!r} is a file.",
                mend="Load it into a table first: tuneproof posts import FILE.",
            )

    def __str__(self) -> str:
        return f"file {self.path}"

    async def check(self, query: PostQuery) -> SourceCheck:
        """The file's columns and how many rows it has."""
        with self._there():
            described = await asyncio.to_thread(self.describe)
        return checked(described.columns, self.config.columns, query, rows=described.rows)

    async def posts(self, query: PostQuery) -> AsyncIterator[list[Post]]:
        """The best posts, in chunks."""
        with self._there():
            async for chunk in self._posts(query):
                yield chunk

    async def _posts(self, query: PostQuery) -> AsyncIterator[list[Post]]:
        names = [*(await asyncio.to_thread(self.describe)).columns]
        found = find_columns(names, self.config.columns, query)
        need_columns(found, self.config.columns, query, str(self))
        reading = self.reading = Reading(self.config, str(self))
        asked = _Asked(found=found, rate=rate_arithmetic(names, found), query=query)
        chunks = await asyncio.to_thread(self.best, asked, reading)
        while chunk := await asyncio.to_thread(next, chunks, None):
            yield chunk

    @contextmanager
    def _there(self) -> Iterator[None]:
        """Raise `DataError` in place of what the system says of a file that cannot be read."""
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{str(self.path)!r} cannot be read: {error.strerror or error}.",
                mend="Check that it is there, is a file, and may be read.",
            ) from error

    def unread(self) -> Mapping[str, Mapping[str, object]]:
        """What the last reading could not read, by our word for the column."""
        return {} if self.reading is None else self.reading.unread()

    async def close(self) -> None:  # noqa: B027 - there is nothing that a file could keep open
        """Files are open only while they are read."""

    @abstractmethod
    def describe(self) -> Described:
        """The file's columns, and the number of its rows where it is known at once."""

    @abstractmethod
    def rows(self, asked: _Asked, reading: Reading) -> Iterator[Sequence[Any]]:
        """All rows, with the values that `asked.columns` names; `reading` learns where each is."""

    def best(self, asked: _Asked, reading: Reading) -> Iterator[list[Post]]:
        """Chunks of the posts that the query asks for, in its order."""
        make, best = maker(asked.words, reading, asked.rate), Best(asked.query)
        rows = self.rows(asked, reading)
        while some := list(islice(map(make, rows), _AT_ONCE)):
            best.add(some)
        reading.check()
        chosen = best.posts()
        check_ids([post.id for post in chosen], str(self))
        yield from chunked(chosen, asked.query.chunk_size)


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a file says of itself: its columns with the types that they have in it."""

    columns: Mapping[str, str]
    rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What is read of a file: our words with the columns for them, how to get at the rate where it
    is none of them, and which posts are wanted."""

    found: Mapping[str, str]
    rate: Arithmetic | None
    query: PostQuery

    @property
    def words(self) -> list[str]:
        """Our words for the values of a row, in order."""
        if self.rate is None:
            return list(self.found)
        others = [word for word in self.found if word != RATE]
        return [*others, *(operand(name) for name in self.rate.columns)]

    @property
    def columns(self) -> list[str]:
        """The file's columns for these words."""
        names = [name for word, name in self.found.items() if self.rate is None or word != RATE]
        return [*names, *(self.rate.columns if self.rate else ())]


class ParquetSource(FileSource):
    """A Parquet file."""

    def describe(self) -> Described:
        """From the file's footer."""
        file = self._open()
        columns = {field.name: str(field.type) for field in file.schema_arrow}
        return Described(columns=columns, rows=file.metadata.num_rows)

    def rows(self, asked: _Asked, reading: Reading) -> Iterator[Sequence[Any]]:
        """Batch by batch."""
        pa = arrow()
        columns = list(dict.fromkeys(asked.columns))
        for batch in self._batches(pa, columns):
            yield from self._values(pa, pa.Table.from_batches([batch]), asked.columns)

    def best(self, asked: _Asked, reading: Reading) -> Iterator[list[Post]]:
        """By pyarrow where it can compare the columns; else row by row."""
        pa = arrow()
        schema = self._open().schema_arrow
        if not self._compares(pa, schema, asked):
            return super().best(asked, reading)
        return self._sorted(pa, asked, reading)

    def _compares(self, pa: Any, schema: Any, asked: _Asked) -> bool:
        """Whether pyarrow compares rates, times and ids as we do."""
        if asked.rate is not None or asked.query.matured is not None:
            return False
        rate, ts, id = (schema.field(asked.found[w]).type for w in (RATE, "ts", "id"))
        naive = pa.types.is_timestamp(ts) and ts.tz is None
        return (
            (pa.types.is_float64(rate) or pa.types.is_integer(rate))
            and pa.types.is_timestamp(ts)
            and (not naive or self.config.time_zone == "UTC")
            and pa.types.is_integer(id)
        )

    def _sorted(self, pa: Any, asked: _Asked, reading: Reading) -> Iterator[list[Post]]:
        """Filter batch by batch; keep the best so far, or all."""
        query, keep = asked.query, asked.query.max_records
        order = [
            (_TIMELESS, "ascending"),
            (_RANK, "descending"),
            (asked.found["id"], "ascending"),
        ]
        parts: list[Any] = []
        for batch in self._batches(pa, list(dict.fromkeys(asked.columns))):
            parts.append(self._matching(pa, pa.Table.from_batches([batch]), asked))
            if keep is not None and sum(p.num_rows for p in parts) > 2 * keep + 65_536:
                parts = [pa.concat_tables(parts).sort_by(order).slice(0, keep)]
        if not parts:
            return
        table = pa.concat_tables(parts).sort_by(order).slice(0, keep)
        check_ids(table.column(asked.found["id"]).to_pylist(), str(self))
        make = maker(asked.words, reading)
        for start in range(0, table.num_rows, query.chunk_size):
            chunk = table.slice(start, query.chunk_size)
            yield [make(row) for row in self._values(pa, chunk, asked.columns)]
        reading.check()

    def _matching(self, pa: Any, table: Any, asked: _Asked) -> Any:
        pc, query = pa.compute, asked.query
        for place, field in enumerate(table.schema):
            if pa.types.is_string_view(field.type) or pa.types.is_binary_view(field.type):
                plain = pa.large_string() if pa.types.is_string_view(field.type) else pa.binary()
                table = table.set_column(place, field.name, table.column(place).cast(plain))
        rate = pc.cast(table.column(asked.found[RATE]), pa.float64())
        enough = pc.greater_equal(pc.coalesce(rate, pa.scalar(0.0)), query.threshold)
        # Curation counts rates that are no numbers; here they must not vanish.
        nameless = pc.fill_null(pc.is_nan(rate), False)
        ts = pc.cast(table.column(asked.found["ts"]), pa.timestamp("us"), safe=False)
        ts = ts.cast(pa.timestamp("us", "UTC"))
        since, until = (pa.scalar(t, ts.type) for t in (query.window.since, query.window.until))
        inside = pc.and_(pc.greater_equal(ts, since), pc.less(ts, until))
        timeless = pc.is_null(ts)
        table = table.append_column(_TIMELESS, timeless)
        unknown = pa.scalar(None, pa.float64())
        table = table.append_column(_RANK, pc.if_else(nameless, unknown, rate))
        inside = pc.or_(pc.fill_null(inside, False), timeless)
        return table.filter(pc.and_(pc.or_(enough, nameless), inside))

    def _values(self, pa: Any, table: Any, columns: Sequence[str]) -> Iterator[Sequence[Any]]:
        with no_parquet(pa, self.path):
            return zip(*(_values(pa, table.column(name)) for name in columns), strict=True)

    def _batches(self, pa: Any, columns: Sequence[str]) -> Iterator[Any]:
        with no_parquet(pa, self.path):
            yield from self._open().iter_batches(batch_size=65_536, columns=columns)

    def _open(self) -> Any:
        pa = arrow()
        with no_parquet(pa, self.path):
            return pa.parquet.ParquetFile(self.path)


class CsvSource(FileSource):
    """A CSV file with a header."""

    def describe(self) -> Described:
        """From the header."""
        names = header(self.path, errors="surrogateescape")
        return Described(columns=dict.fromkeys(names, "text"))

    def rows(self, asked: _Asked, reading: Reading) -> Iterator[Sequence[Any]]:
        """Row by row."""
        columns, id = asked.columns, asked.found["id"]
        for where, row in records(self.path, errors="surrogateescape"):
            if not row[id]:
                raise DataError(f"{where}: the column {id} is empty.", mend=OWN_ID)
            reading.place = where
            yield [row[column] for column in columns]


class JsonLinesSource(FileSource):
    """A file with a JSON object a line."""

    def __init__(self, config: SourceConfig, path: Path) -> None:
        super().__init__(config, path)
        self._known: tuple[tuple[int, int], Described] | None = None

    def describe(self) -> Described:
        """From all objects, since any of them may have a key that no other has."""
        stat = self.path.stat()
        state = (stat.st_mtime_ns, stat.st_size)
        if self._known is None or self._known[0] != state:
            self._known = state, Described(columns=keys(self.path))
        return self._known[1]

    def rows(self, asked: _Asked, reading: Reading) -> Iterator[Sequence[Any]]:
        """Line by line."""
        columns, id = asked.columns, asked.found["id"]
        for where, row in objects(self.path):
            if row.get(id) in (None, ""):
                raise DataError(f"{where}: it has no {id}.", mend=OWN_ID)
            reading.place = where
            yield [row.get(column) for column in columns]


def _values(pa: Any, column: Any) -> list[Any]:
    """A column as Python has it, the same for each of the types that mean the same."""
    types, kind = pa.types, column.type
    if types.is_dictionary(kind):
        return _values(pa, column.cast(kind.value_type))
    if isinstance(kind, pa.BaseExtensionType) and not _is_uuid(kind):
        return _values(pa, pa.chunked_array([c.storage for c in column.chunks], kind.storage_type))
    if types.is_timestamp(kind) and kind.unit == "ns":
        column = pa.compute.cast(column, pa.timestamp("us", kind.tz), safe=False)
    elif types.is_float16(kind):
        return [None if v is None else float(str(v)) for v in _halves(column)]
    elif types.is_float32(kind):
        return [None if v is None else stood_for(v) for v in column.to_pylist()]
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:  # not UTF-8 somewhere: curation finds it by its surrogates
        binary = pa.large_binary() if types.is_large_string(kind) else pa.binary()
        raw = [chunk.view(binary).to_pylist() for chunk in column.cast(_string(pa, kind)).chunks]
        return [None if v is None else as_text(v) for part in raw for v in part]


def _string(pa: Any, kind: Any) -> Any:
    return kind if pa.types.is_large_string(kind) else pa.string()


def _is_uuid(kind: Any) -> bool:
    return getattr(kind, "extension_name", "") == "arrow.uuid"


def _halves(column: Any) -> Iterator[Any]:
    import numpy as np

    return (None if v is None else np.float16(v) for v in column.to_pylist())
