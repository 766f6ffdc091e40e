"""Posts from files, with the meaning of the SQL query: filter, order, limit.

Parquet is read by pyarrow (the extra `parquet`), which skips what the filter rules out; CSV by
the standard library. Where the best are wanted, only they are kept while reading, so memory
does not grow with the file; all matching posts of a file are sorted in memory.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuneproof.collection import NO_TIME, Post, PostQuery, SourceCheck
from tuneproof.errors import DataError
from tuneproof.settings import SourceConfig
from tuneproof.sources.columns import checked, find_columns, need_columns
from tuneproof.sources.delimited import header, records
from tuneproof.sources.rows import Times, as_text, maker

__all__ = ["CsvSource", "FileSource", "ParquetSource", "arrow", "no_parquet"]


_TIMELESS = "\0timeless"  # a column of our own: whether the row has no time


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
        if config.where:
            raise DataError(
                f"sources.{config.name}.where is SQL, and {str(path)!r} is a file.",
                mend="Load it into a table first: tuneproof posts import FILE.",
            )

    def __str__(self) -> str:
        return f"file {self.path}"

    async def check(self, query: PostQuery) -> SourceCheck:
        """The file's columns and how many rows it has."""
        names, rows = await asyncio.to_thread(self.describe)
        return checked(names, self.config.columns, query, rows=rows)

    async def posts(self, query: PostQuery) -> AsyncIterator[list[Post]]:
        """The best posts, in chunks."""
        names, _ = await asyncio.to_thread(self.describe)
        found = find_columns(names, self.config.columns, query)
        need_columns(found, self.config.columns, query, str(self))
        chunks = await asyncio.to_thread(self.best, found, query)
        while chunk := await asyncio.to_thread(next, chunks, None):
            yield chunk

    async def close(self) -> None:  # noqa: B027 - there is nothing that a file could keep open
        """Files are open only while they are read."""

    @abstractmethod
    def describe(self) -> tuple[Sequence[str], int | None]:
        """The names of the columns, and the number of rows where it is known at once."""

    @abstractmethod
    def best(self, found: Mapping[str, str], query: PostQuery) -> Iterator[list[Post]]:
        """Chunks of the posts that the query asks for, in its order."""


class ParquetSource(FileSource):
    """A Parquet file."""

    def describe(self) -> tuple[Sequence[str], int | None]:
        """From the file's footer."""
        file = self._open()
        return file.schema_arrow.names, file.metadata.num_rows

    def best(self, found: Mapping[str, str], query: PostQuery) -> Iterator[list[Post]]:
        """Filter batch by batch; keep the best so far, or all."""
        pa = arrow()
        columns = list(dict.fromkeys(found.values()))
        keep = query.max_records
        order = [
            (_TIMELESS, "ascending"),
            (found["engagement_rate"], "descending"),
            (found["id"], "ascending"),
        ]
        times = Times()
        table: Any = None
        parts: list[Any] = []
        for batch in self._batches(pa, columns):
            part = self._matching(pa, pa.Table.from_batches([batch]), found, query, times)
            parts.append(part)
            if keep is not None and sum(p.num_rows for p in parts) > 2 * keep + 65_536:
                parts = [pa.concat_tables(parts).sort_by(order).slice(0, keep)]
        times.check(str(self))
        if not parts:
            return
        table = pa.concat_tables(parts).sort_by(order).slice(0, keep)
        _check_ids(table.column(found["id"]).to_pylist(), str(self))
        words = list(found)
        make = maker(words)
        for start in range(0, table.num_rows, query.chunk_size):
            chunk = table.slice(start, query.chunk_size)
            values = [_values(pa, chunk.column(found[word])) for word in words]
            absent = chunk.column(_TIMELESS).to_pylist()
            place = words.index("ts")
            values[place] = [
                NO_TIME if no else t for no, t in zip(absent, values[place], strict=True)
            ]
            yield [make(row) for row in zip(*values, strict=True)]

    def _batches(self, pa: Any, columns: Sequence[str]) -> Iterator[Any]:
        with no_parquet(pa, self.path):
            yield from self._open().iter_batches(batch_size=65_536, columns=columns)

    def _open(self) -> Any:
        pa = arrow()
        with no_parquet(pa, self.path):
            return pa.parquet.ParquetFile(self.path)

    def _matching(
        self, pa: Any, table: Any, found: Mapping[str, str], query: PostQuery, times: Times
    ) -> Any:
        pc = pa.compute
        rate = pc.cast(table.column(found["engagement_rate"]), pa.float64())
        enough = pc.greater_equal(pc.coalesce(rate, pa.scalar(0.0)), query.threshold)
        # Curation counts rates that are no numbers; here they must not vanish.
        enough = pc.or_(enough, pc.fill_null(pc.is_nan(rate), False))
        ts = self._instants(pa, table.column(found["ts"]), times)
        since, until = (pa.scalar(t, pa.timestamp("us", "UTC")) for t in _ends(query))
        inside = pc.and_(pc.greater_equal(ts, since), pc.less(ts, until))
        timeless = pc.is_null(ts)
        inside = pc.or_(pc.fill_null(inside, False), timeless)
        marked = table.append_column(_TIMELESS, timeless)
        return marked.filter(pc.and_(enough, inside))

    def _instants(self, pa: Any, column: Any, times: Times) -> Any:
        target = pa.timestamp("us", "UTC")
        if pa.types.is_timestamp(column.type) and column.type.tz is None:
            return pa.compute.cast(column, pa.timestamp("us")).cast(target)
        if pa.types.is_timestamp(column.type):
            return pa.compute.cast(column, target)
        read = (times(value) for value in column.to_pylist())
        return pa.chunked_array([pa.array([None if t is NO_TIME else t for t in read], target)])


class CsvSource(FileSource):
    """A CSV file with a header."""

    def describe(self) -> tuple[Sequence[str], int | None]:
        """From the header."""
        return header(self.path, errors="surrogateescape"), None

    def best(self, found: Mapping[str, str], query: PostQuery) -> Iterator[list[Post]]:
        """Keep the best while reading, or all."""
        matching = self._matching(found, query)
        if query.max_records is None:
            ordered = sorted(matching, key=_order)
        else:
            ordered = heapq.nsmallest(query.max_records, matching, key=_order)
        _check_ids([post.id for post in ordered], str(self))
        for start in range(0, len(ordered), query.chunk_size):
            yield ordered[start : start + query.chunk_size]

    def _matching(self, found: Mapping[str, str], query: PostQuery) -> Iterator[Post]:
        since, until = _ends(query)
        make = maker(list(found))
        columns = list(found.values())
        rate, ts = found["engagement_rate"], found["ts"]
        times = Times()
        for where, row in records(self.path, errors="surrogateescape"):
            values = {**row, rate: row[rate] or None, ts: times(row[ts])}
            post = make([values[column] for column in columns])
            known = 0.0 if post.engagement_rate is None else post.engagement_rate
            inside = since <= post.ts < until or post.ts is NO_TIME
            if inside and (known >= query.threshold or math.isnan(known)):
                if not row[found["id"]]:
                    raise DataError(f"{where}: the column {found['id']} is empty.", mend=_OWN_ID)
                yield _with_numbers(post, where)
        times.check(str(self))


def _check_ids(ids: Sequence[Any], where: str) -> None:
    """Raise `DataError` where posts that are to be used have no id, or one that others have."""
    absent = sum(id is None or id == "" for id in ids)
    if absent:
        raise DataError(f"{absent:,} of {len(ids):,} posts of {where} have no id.", mend=_OWN_ID)
    repeated = {id: n for id, n in Counter(ids).most_common() if n > 1}
    if repeated:
        (id, n), others = next(iter(repeated.items())), len(repeated) - 1
        also = f", and {others:,} other ids are not of one post alone" if others else ""
        raise DataError(f"{n:,} posts of {where} have the id {str(id)!r}{also}.", mend=_OWN_ID)


_OWN_ID = "Posts are told apart by their id: give each one of its own."


def _with_numbers(post: Post, where: str) -> Post:
    counts: dict[str, Any] = {
        name: _count(value, name, where) if (value := getattr(post, name)) else None
        for name in ("tokens_used", "impressions", "clicks")
    }
    return post._replace(version=post.version or None, **counts)


def _count(value: Any, column: str, where: str) -> int:
    try:
        return int(float(value))
    except (ValueError, OverflowError) as error:
        raise DataError(
            f"{where}: {column} is {value!r}, no number.",
            mend="Write digits only, or leave it empty.",
            field=column,
        ) from error


def _order(post: Post) -> tuple[bool, float, tuple[int, int, str]]:
    rate = post.engagement_rate
    worst = rate is None or math.isnan(rate)
    place = (0, int(post.id), "") if post.id.isdecimal() else (1, 0, post.id)
    return (post.ts is NO_TIME, math.inf if worst else -(rate or 0.0), place)


def _ends(query: PostQuery) -> tuple[Any, Any]:
    return query.window.since, query.window.until


def _values(pa: Any, column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:  # not UTF-8 somewhere: curation finds it by its surrogates
        binary = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
        raw = [chunk.view(binary).to_pylist() for chunk in column.chunks]
        return [None if v is None else as_text(v) for part in raw for v in part]
