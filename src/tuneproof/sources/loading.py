"""Put a file of posts into a table: `tuneproof posts import`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

from tuneproof.errors import ConfigError, DataError, StoreUnavailableError
from tuneproof.resilience import damage
from tuneproof.settings import Url
from tuneproof.sources.delimited import header, records
from tuneproof.sources.files import arrow, no_parquet
from tuneproof.sources.jsonlines import keys, objects
from tuneproof.sources.rows import as_text, instant

__all__ = ["import_posts"]

CHUNK: Final = 1000
_DRIVERS: Final = {"postgresql": "postgresql+psycopg", "sqlite": "sqlite+pysqlite"}
_INTEGERS: Final = {"tokens_used", "impressions", "clicks"}
_TIMES: Final = {"ts", "created_at", "published_at", "timestamp"}
_RATES: Final = {"engagement_rate", "engagement"}
_BEYOND: Final = 2**63

Row = dict[str, Any]


async def import_posts(
    path: Path | str,
    url: str,
    *,
    table: str = "posts",
    progress: Callable[[int], None] | None = None,
) -> int:
    """Load a file (Parquet, CSV, JSON Lines) into a table, all or nothing; how many rows were new.

    One transaction makes the table and its index, where they are absent, and puts in all rows.
    Posts whose `id` is there already stay as they are. `progress` gets the rows read so far.
    Raises `DataError` for a file that is no table of posts, naming the row and the column of a
    value that cannot be used, and for a table that lacks one of its columns;
    `StoreUnavailableError` where the database does not answer.
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
        with _undamaged(engine), engine.begin() as connection:
            target = _table(connection, table, columns)
            return _insert(connection, target, rows, progress)
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


def _undamaged(engine: Engine) -> AbstractContextManager[None]:
    where = f"The database {engine.url.render_as_string(hide_password=True)}"
    return damage.damage_as_error(where, damage.OTHER_FILE)


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise ConfigError(
            f"{Url(url)} is not a database address.",
            mend="Write sqlite:///FILE or postgresql://USER@HOST/DATABASE.",
        ) from error
    family = parsed.get_backend_name().replace("postgresql", "postgres")
    family = family.replace("postgres", "postgresql")
    if family not in _DRIVERS:
        raise DataError(f"Posts cannot be loaded into {family}.", mend="Use SQLite or PostgreSQL.")
    if family == "sqlite" and parsed.database:
        Path(parsed.database).expanduser().parent.mkdir(parents=True, exist_ok=True)
    arguments: dict[str, Any] = {"timeout": 30.0} if family == "sqlite" else {}
    address = parsed.set(drivername=_DRIVERS[family])
    engine = sa.create_engine(address, poolclass=NullPool, connect_args=arguments)
    if family == "sqlite":
        # The driver's own transactions leave out what makes tables.
        sa.event.listen(engine, "connect", _without_own_transactions)
        sa.event.listen(engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _without_own_transactions(connection: Any, _: Any) -> None:
    connection.isolation_level = None


def _table(connection: Connection, name: str, columns: dict[str, Any]) -> sa.Table:
    """The table, as it is or newly made, limited to the file's columns."""
    schema, _, short = name.rpartition(".")
    inspector = sa.inspect(connection)
    metadata = sa.MetaData(schema=schema or None)
    if not inspector.has_table(short, schema=schema or None):
        made = sa.Table(short, metadata, *_columns(columns))
        if {"ts", "engagement_rate"} <= set(columns):
            sa.Index(f"{short}_ts_engagement_rate", made.c.ts, made.c.engagement_rate)
        metadata.create_all(connection)
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
    connection: Connection,
    table: sa.Table,
    rows: Iterator[Row],
    progress: Callable[[int], None] | None,
) -> int:
    insert: Any = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    count = sa.select(sa.func.count()).select_from(table)
    before = connection.execute(count).scalar_one()
    done = 0
    while chunk := list(islice(rows, CHUNK)):
        connection.execute(insert(table).on_conflict_do_nothing(), chunk)
        done += len(chunk)
        if progress is not None:
            progress(done)
    return int(connection.execute(count).scalar_one() - before)


def _read(path: Path) -> tuple[dict[str, Any], Iterator[Row]]:
    if path.suffix.lower() in (".parquet", ".pq"):
        return _read_parquet(path)
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _read_json_lines(path)
    raise DataError(
        f"{str(path)!r} is no file that can be loaded.",
        mend="Give a .parquet, a .csv or a .jsonl file.",
    )


def _read_parquet(path: Path) -> tuple[dict[str, Any], Iterator[Row]]:
    pa = arrow()
    with no_parquet(pa, path):
        file = pa.parquet.ParquetFile(path)
    columns = {field.name: _sql_type(pa, field.type) for field in file.schema_arrow}

    def rows() -> Iterator[Row]:
        number = 0
        with no_parquet(pa, path):
            for batch in file.iter_batches(batch_size=CHUNK):
                for row in batch.to_pylist():
                    number += 1
                    yield _ready(row, columns, f"{str(path)!r}, row {number}")

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
    columns: dict[str, Any] = {name: _csv_type(name) for name in header(path)}
    return columns, (_ready(row, columns, where) for where, row in records(path))


def _read_json_lines(path: Path) -> tuple[dict[str, Any], Iterator[Row]]:
    columns: dict[str, Any] = {name: _csv_type(name) for name in keys(path)}

    def rows() -> Iterator[Row]:
        for where, found in objects(path):
            row = {name: found.get(name) for name in columns}
            for name, kind in columns.items():
                if isinstance(kind, sa.Text) and row[name] is not None:
                    row[name] = as_text(row[name])
            yield _ready(row, columns, where)

    return columns, rows()


def _csv_type(name: str) -> Any:
    if name in _INTEGERS:
        return sa.BigInteger()
    if name in _RATES:
        return sa.Double()
    return sa.DateTime(timezone=True) if name in _TIMES else sa.Text()


def _ready(row: Row, columns: dict[str, Any], where: str) -> Row:
    """The row with values of its columns' types; empty texts of CSV files become NULL."""
    for name, kind in columns.items():
        value = row[name]
        if value is None or value == "":
            row[name] = None
        elif isinstance(kind, sa.BigInteger):
            row[name] = _whole(value, name, where)
        elif isinstance(kind, sa.Double):
            row[name] = _number(value, name, where)
        elif isinstance(kind, sa.DateTime):
            row[name] = _time(value, name, where)
    if row["id"] is None:
        raise DataError(f"{where}: the column id is empty.", mend="Give every post an id.")
    return row


def _whole(value: Any, column: str, where: str) -> int:
    try:
        whole = int(value) if str(value).lstrip("+-").isdecimal() else int(float(value))
    except (ValueError, OverflowError):
        whole = _BEYOND
    if not -_BEYOND <= whole < _BEYOND:
        raise DataError(
            f"{where}: {column} is {_shortened(value)}, no whole number of 64 bits.",
            mend="Write digits only, or leave it empty.",
            field=column,
        )
    return whole


def _number(value: Any, column: str, where: str) -> float:
    try:
        number = float(value)
    except ValueError as error:
        percent = " Divide percents by 100." if str(value).rstrip().endswith("%") else ""
        raise DataError(
            f"{where}: {column} is {_shortened(value)}, no number.",
            mend=f"A rate is a share from 0 to 1, such as 0.12.{percent}",
            field=column,
        ) from error
    if column in _RATES and not 0 <= number <= 1:
        raise DataError(
            f"{where}: {column} is {_shortened(value)}, no share.",
            mend="A rate is a share from 0 to 1, such as 0.12: divide percents by 100, and leave "
            "it empty where it is not known.",
            field=column,
        )
    return number


def _time(value: Any, column: str, where: str) -> datetime:
    """Aware UTC, since a naive time would be read in the server's zone."""
    try:
        return instant(value)
    except DataError as error:
        raise DataError(
            f"{where}: {column} is {_shortened(value)}, no time.", mend=error.mend, field=column
        ) from error


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
