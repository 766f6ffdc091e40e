"""Put a file of posts into a table: `tuneproof posts import`."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

from tuneproof.errors import DataError, StoreUnavailableError
from tuneproof.sources.files import arrow
from tuneproof.sources.rows import instant

__all__ = ["import_posts"]

CHUNK: Final = 1000
_DRIVERS: Final = {"postgresql": "postgresql+psycopg", "sqlite": "sqlite+pysqlite"}
_INTEGERS: Final = {"tokens_used", "impressions", "clicks"}
_TIMES: Final = {"ts", "created_at", "published_at", "timestamp"}
_RATES: Final = {"engagement_rate", "engagement"}

Row = dict[str, Any]


async def import_posts(
    path: Path | str,
    url: str,
    *,
    table: str = "posts",
    progress: Callable[[int], None] | None = None,
) -> int:
    """Load a Parquet or CSV file into a table, a chunk a transaction; how many rows were new.

    The table and its index are made where they are absent. Posts whose `id` is there already
    stay as they are, so that a load that was cut off is simply done again. `progress` gets
    the rows read so far. Raises `DataError` for a file that is no table of posts and for a
    table that lacks one of its columns, `StoreUnavailableError` where the database does not
    answer.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"The file {str(path)!r} does not exist.", mend="Check the path.")
    return await asyncio.to_thread(_load, path, url, table, progress)


def _load(path: Path, url: str, table: str, progress: Callable[[int], None] | None) -> int:
    columns, rows = _read(path)
    if "id" not in columns:
        raise DataError(
            f"{str(path)!r} has no column id; it has {', '.join(columns)}.",
            mend="Posts are told apart by their id: add one.",
        )
    engine = _engine(url)
    try:
        target = _table(engine, table, columns)
        return _insert(engine, target, rows, progress)
    except OperationalError as error:
        raise StoreUnavailableError(
            f"The database did not answer: {str(error.orig).splitlines()[0]}.",
            mend="Check that it runs and that the address is right.",
        ) from error
    except DBAPIError as error:
        raise DataError(
            f"The table {table!r} refused the posts: {str(error.orig).splitlines()[0]}.",
            mend="Load them into another table with --table.",
        ) from error
    finally:
        engine.dispose()


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    family = parsed.get_backend_name().replace("postgresql", "postgres")
    family = family.replace("postgres", "postgresql")
    if family not in _DRIVERS:
        raise DataError(f"Posts cannot be loaded into {family}.", mend="Use SQLite or PostgreSQL.")
    if family == "sqlite" and parsed.database:
        Path(parsed.database).expanduser().parent.mkdir(parents=True, exist_ok=True)
    arguments: dict[str, Any] = {"timeout": 30.0} if family == "sqlite" else {}
    address = parsed.set(drivername=_DRIVERS[family])
    return sa.create_engine(address, poolclass=NullPool, connect_args=arguments)


def _table(engine: Engine, name: str, columns: dict[str, Any]) -> sa.Table:
    """The table, as it is or newly made, limited to the file's columns."""
    schema, _, short = name.rpartition(".")
    inspector = sa.inspect(engine)
    metadata = sa.MetaData(schema=schema or None)
    if not inspector.has_table(short, schema=schema or None):
        made = sa.Table(short, metadata, *_columns(columns))
        if {"ts", "engagement_rate"} <= set(columns):
            sa.Index(f"{short}_ts_engagement_rate", made.c.ts, made.c.engagement_rate)
        metadata.create_all(engine)
        return made
    existing = {column["name"] for column in inspector.get_columns(short, schema=schema or None)}
    lacking = sorted(set(columns) - existing)
    if lacking:
        raise DataError(
            f"The table {name!r} has no column for {', '.join(lacking)}.",
            mend="Load into another table with --table, or add the columns.",
        )
    return sa.Table(short, metadata, *_columns(columns))


def _columns(columns: dict[str, Any]) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, primary_key=name == "id") for name, kind in columns.items()]


def _insert(
    engine: Engine,
    table: sa.Table,
    rows: Iterator[Row],
    progress: Callable[[int], None] | None,
) -> int:
    insert: Any = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
    count = sa.select(sa.func.count()).select_from(table)
    with engine.connect() as connection:
        before = connection.execute(count).scalar_one()
    done = 0
    while chunk := list(islice(rows, CHUNK)):
        with engine.begin() as connection:
            connection.execute(insert(table).on_conflict_do_nothing(), chunk)
        done += len(chunk)
        if progress is not None:
            progress(done)
    with engine.connect() as connection:
        return int(connection.execute(count).scalar_one() - before)


def _read(path: Path) -> tuple[dict[str, Any], Iterator[Row]]:
    if path.suffix.lower() in (".parquet", ".pq"):
        return _read_parquet(path)
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    raise DataError(
        f"{str(path)!r} is no file that can be loaded.", mend="Give a .parquet or a .csv file."
    )


def _read_parquet(path: Path) -> tuple[dict[str, Any], Iterator[Row]]:
    pa = arrow()
    try:
        file = pa.parquet.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{str(path)!r} cannot be read as Parquet: {error}.", mend="Write it again."
        ) from error
    columns = {field.name: _sql_type(pa, field.type) for field in file.schema_arrow}

    def rows() -> Iterator[Row]:
        for batch in file.iter_batches(batch_size=CHUNK):
            for row in batch.to_pylist():
                yield _ready(row, columns)

    return columns, rows()


def _sql_type(pa: Any, kind: Any) -> Any:
    if pa.types.is_integer(kind):
        return sa.BigInteger()
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return sa.Double()
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return sa.DateTime(timezone=True)
    if pa.types.is_boolean(kind):
        return sa.Boolean()
    return sa.Text()


def _read_csv(path: Path) -> tuple[dict[str, Any], Iterator[Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file), [])
    columns: dict[str, Any] = {name: _csv_type(name) for name in names}

    def rows() -> Iterator[Row]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            try:
                for row in csv.DictReader(file):
                    yield _ready(_typed(row, columns), columns)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{str(path)!r} is not UTF-8: {error}.", mend="Convert it to UTF-8 first."
                ) from error

    return columns, rows()


def _csv_type(name: str) -> Any:
    if name in _INTEGERS:
        return sa.BigInteger()
    if name in _RATES:
        return sa.Double()
    return sa.DateTime(timezone=True) if name in _TIMES else sa.Text()


def _typed(row: dict[str, str], columns: dict[str, Any]) -> Row:
    typed: Row = {}
    for name, kind in columns.items():
        value = row[name]
        if isinstance(kind, sa.BigInteger):
            typed[name] = int(float(value)) if value else None
        elif isinstance(kind, sa.Double):
            typed[name] = float(value) if value else None
        else:
            typed[name] = value or None
    return typed


def _ready(row: Row, columns: dict[str, Any]) -> Row:
    """Times as aware UTC, since a naive one would be read in the server's zone."""
    for name, kind in columns.items():
        if isinstance(kind, sa.DateTime) and row[name] is not None:
            row[name] = instant(row[name])
    return row
