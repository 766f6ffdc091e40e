"""Posts from a table: one query, the same for every database, read with the best driver."""

from __future__ import annotations

import asyncio
import math
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import (
    DBAPIError,
    NoSuchModuleError,
    NoSuchTableError,
    OperationalError,
)
from sqlalchemy.pool import NullPool

from tuneproof.collection import (
    Cut,
    Post,
    PostQuery,
    SourceCheck,
    Totals,
    Window,
    best_of,
)
from tuneproof.errors import DataError, StoreUnavailableError, TuneProofError
from tuneproof.resilience import damage
from tuneproof.settings import SourceConfig
from tuneproof.sources.columns import checked, find_columns, need_columns

__all__ = ["SqlSource", "Table", "break_off"]

OWN_MARK: Final = "tuneproof_migration"
"""The table that only a database with a store of ours has."""

OWN_TABLES: Final = frozenset(
    (
        OWN_MARK,
        *("activity", "cells", "comments", "counters", "deployment_history", "deployments"),
        "engagement",
        *("experiments", "exposures", "idempotency", "looks", "meta", "outbox", "outcomes"),
        *("phases", "requests", "routing", "runs", "schedule", "scores", "scoring_days"),
        *("subjects", "tokens", "units", "versions"),
    )
)
"""The store's tables by name: sources do not know the store."""

ENGINE_TABLES: Final = frozenset(("datasource_outputs", "dbos_datasource_migrations"))
"""Those of the durable engine beside them."""

OWN_DAYS: Final = re.compile(r"(exposures|outcomes)_(past|future|\d{4}_\d\d_\d\d)")
"""The parts of the store's tables that hold a day."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as it was found: its columns with their types, and which have an index first."""

    schema: str | None
    name: str
    columns: Mapping[str, Any]
    indexed: Sequence[Sequence[str]]

    def selectable(self) -> sa.TableClause:
        """The table, to be selected from."""
        columns = (sa.column(name, type) for name, type in self.columns.items())
        return sa.table(self.name, *columns, schema=self.schema)


class SqlSource(ABC):
    """A table of posts. Drivers differ; what is asked does not."""

    def __init__(self, config: SourceConfig, url: URL) -> None:
        self.config = config
        self.url = url
        self._table: Table | None = None

    def __str__(self) -> str:
        address = self.url.set(drivername=self.url.get_backend_name())
        return f"{address.render_as_string(hide_password=True)} table {self.config.table}"

    async def check(self, query: PostQuery) -> SourceCheck:
        """The table's columns, whether it has rows, and the index that would help."""
        return await asyncio.to_thread(self._check, query)

    async def posts(self, query: PostQuery) -> AsyncIterator[list[Post]]:
        """The best posts, in chunks, from one query in a transaction that cannot write."""
        table = self._table
        if table is None:
            table = await asyncio.to_thread(self._look)
        found = find_columns(table.columns, self.config.columns, query)
        need_columns(found, self.config.columns, query, str(self))
        async for chunk in self.read(table, found, query):
            yield chunk

    async def totals(self, window: Window) -> Totals | None:
        """The window's totals by one aggregate of the database; None for rates that are text."""
        table = self._table
        if table is None:
            table = await asyncio.to_thread(self._look)
        query = PostQuery(window=window, threshold=0.0, max_records=None)
        found = find_columns(table.columns, self.config.columns, query)
        need_columns(found, self.config.columns, query, str(self))
        summed = [table.columns[found[w]] for w in ("engagement_rate", "tokens_used") if w in found]
        if not self.adds_up(summed):
            return None
        return await asyncio.to_thread(self._totals, table, found, query)

    async def cut(self, window: Window, share: float) -> Cut | None:
        """Where the best share begins, by the database; None for rates that are text."""
        table = self._table
        if table is None:
            table = await asyncio.to_thread(self._look)
        query = PostQuery(window=window, threshold=0.0, max_records=None)
        found = find_columns(table.columns, self.config.columns, query)
        need_columns(found, self.config.columns, query, str(self))
        if not self.adds_up([table.columns[found["engagement_rate"]]]):
            return None
        return await asyncio.to_thread(self._cut, table, found, query, share)

    async def close(self) -> None:
        """Forget the schema; connections live only as long as a read."""
        self._table = None

    @abstractmethod
    def read(
        self, table: Table, found: Mapping[str, str], query: PostQuery
    ) -> AsyncIterator[list[Post]]:
        """Run the query and yield its chunks."""

    def since_until(
        self, ts: sa.ColumnElement[Any], query: PostQuery
    ) -> Sequence[sa.ColumnElement[bool]]:
        """The conditions on the time; naive columns hold UTC."""
        since, until = query.window.since, query.window.until
        if not getattr(ts.type, "timezone", False):
            since, until = since.replace(tzinfo=None), until.replace(tzinfo=None)
        return (ts >= since, ts < until)

    def tie(self, id: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """What puts posts of the same rate in order."""
        return id

    def statement(self, table: Table, found: Mapping[str, str], query: PostQuery) -> sa.Select[Any]:
        """The query: the window's posts at or above the threshold, best first."""
        source = table.selectable()
        rate = source.c[found["engagement_rate"]]
        ts, id = source.c[found["ts"]], source.c[found["id"]]
        statement = (
            sa.select(*(source.c[column].label(word) for word, column in found.items()))
            .where(*self.since_until(ts, query))
            .where(sa.func.coalesce(rate, 0.0) >= query.threshold)
            .order_by(rate.desc().nulls_last(), self.tie(id))
        )
        if self.config.where:
            statement = statement.where(sa.text(f"({self.config.where})"))
        return statement if query.max_records is None else statement.limit(query.max_records)

    def adds_up(self, types: Sequence[Any]) -> bool:
        """Whether columns of these types are numbers, which the database can add up."""
        return all(isinstance(kind, sa.Numeric | sa.Float | sa.Integer) for kind in types)

    def strays(self, columns: Sequence[sa.ColumnElement[Any]]) -> sa.ColumnElement[bool]:
        """Whether one of a row's values is no number although its column may be."""
        return sa.false()

    def ready(  # noqa: B027 - most need nothing
        self, connection: Connection, table: Table, found: Mapping[str, str]
    ) -> None:
        """Make a connection ready for the totals."""

    def earliest(self, ts: sa.ColumnElement[Any]) -> Sequence[sa.ColumnElement[Any]]:
        """The earliest time as `first`, and what finding it takes."""
        return (sa.func.min(sa.type_coerce(ts, sa.types.NullType())).label("first"),)

    def hour(self, ts: sa.ColumnElement[Any]) -> Sequence[sa.ColumnElement[Any]]:
        """The hour, by which totals are grouped; nothing where it is not known how to say it."""
        return ()

    def engine(self) -> Engine:
        """A synchronous engine without a pool, for looking at the schema."""
        try:
            return sa.create_engine(self.url, poolclass=NullPool)
        except (NoSuchModuleError, ImportError) as error:
            raise DataError(
                f"No driver for {self.url.drivername} is installed: {error}.",
                mend="pip install the database's driver for SQLAlchemy.",
            ) from error

    def outage(self, error: BaseException) -> StoreUnavailableError:
        """The error for a database that does not answer."""
        reason = (str(getattr(error, "orig", error)).strip().splitlines() or ["no reason"])[0]
        return StoreUnavailableError(
            f"The source {self} did not answer: {reason.rstrip('.')}.",
            mend=f"Check that it runs and that sources.{self.config.name}.url is right.",
        )

    def told(self, error: Exception, *, connecting: bool = False) -> TuneProofError:
        """What a driver's error is to a caller: damage, an outage, or a refusal."""
        broken = damage.damage_of(error, f"The source {self}", damage.OTHER_FILE)
        if broken is not None:
            return broken
        if not isinstance(error, DBAPIError) or isinstance(error, OperationalError):
            return self.outage(error)
        return self.outage(error) if connecting else self.failure(error)

    def failure(self, error: DBAPIError) -> DataError:
        """The error for a query that the database refused."""
        reason = (str(error.orig).strip().splitlines() or ["no reason"])[0]
        return DataError(
            f"The source {self} refused the query: {reason}.",
            mend=f"Check sources.{self.config.name}: its columns and its where.",
        )

    def _check(self, query: PostQuery) -> SourceCheck:
        table = self._look()
        found = find_columns(table.columns, self.config.columns, query)
        ts, rate = found.get("ts"), found.get("engagement_rate")
        indexed = any(index[0] == ts for index in table.indexed if index)
        advice: tuple[str, ...] = ()
        if ts and rate and not indexed:
            table_name = self.config.table
            index = f"{table_name.replace('.', '_')}_{ts}_{rate}"
            advice = (f"CREATE INDEX {index} ON {table_name} ({ts}, {rate});",)
        with self._connected() as connection:
            rows, newest = self._extent(connection, table, ts if indexed else None)
        return checked(
            table.columns, self.config.columns, query, advice=advice, rows=rows, newest=newest
        )

    def _totals(self, table: Table, found: Mapping[str, str], query: PostQuery) -> Totals | None:
        from tuneproof.sources.rows import instant

        with self._connected() as connection:
            self.ready(connection, table, found)
            rows = connection.execute(self.aggregate(table, found, query)).all()
        if any(row.strays for row in rows):
            return None
        hours, below = [r for r in rows if not r.negative], [r for r in rows if r.negative]
        firsts = [instant(hour.first) for hour in hours if hour.first is not None]
        return Totals(
            n=sum(hour.n for hour in hours),
            rates=math.fsum(hour.rates or 0.0 for hour in hours),
            squares=math.fsum(hour.squares or 0.0 for hour in hours),
            first=min(firsts, default=None),
            tokens=math.fsum(hour.tokens or 0.0 for hour in hours),
            counted=sum(hour.counted or 0 for hour in hours),
            negative=sum(hour.n for hour in below),
            negative_rates=math.fsum(hour.rates or 0.0 for hour in below),
        )

    def _cut(
        self, table: Table, found: Mapping[str, str], query: PostQuery, share: float
    ) -> Cut | None:
        source = table.selectable()
        kept = source.c[found["engagement_rate"]]
        strays = self.strays([kept])
        double: sa.Double[float] = sa.Double()
        rate = sa.cast(kept, double)
        rated = sa.and_(rate >= 0, rate <= 1)
        times: list[Any] = [*self.since_until(source.c[found["ts"]], query)]
        if self.config.where:
            times.append(sa.text(f"({self.config.where})"))
        stray = sa.func.sum(sa.case((strays, 1), else_=0))
        counts = sa.select(sa.func.count(), stray).select_from(source)
        ranked = sa.select(rate, kept).select_from(source).where(*times, rated)
        with self._connected() as connection:
            self.ready(connection, table, found)
            row = connection.execute(counts.where(*times, sa.or_(rated, strays))).one()
            number: int = row[0]
            if row[1]:
                return None
            if not number:
                return Cut(rated=0, threshold=0.0)
            last = ranked.order_by(kept.desc()).offset(best_of(number, share) - 1).limit(1)
            least, exact = connection.execute(last).one()
        if isinstance(exact, Decimal) and Decimal(least) > exact:
            least = math.nextafter(least, 0.0)  # what it is rounded to must not leave it out
        return Cut(rated=number, threshold=float(least))

    def aggregate(self, table: Table, found: Mapping[str, str], query: PostQuery) -> sa.Select[Any]:
        """The totals by hour in one statement, with the number of rows that cannot be added up;
        apart those of posts whose rate is below 0.

        By hour, since a database's sum of millions of floats is too rough in its last digits.
        """
        source = table.selectable()
        kept, ts = source.c[found["engagement_rate"]], source.c[found["ts"]]
        used = source.c[found["tokens_used"]] if "tokens_used" in found else None
        double: sa.Double[float] = sa.Double()
        rate = sa.cast(kept, double)
        tokens = sa.cast(sa.null() if used is None else used, double)
        strays = self.strays([kept] if used is None else [kept, used])
        share, negative = sa.and_(rate >= 0, rate <= 1), sa.case((rate < 0, 1), else_=0)
        statement = (
            sa.select(
                sa.func.count().label("n"),
                sa.func.sum(rate).label("rates"),
                sa.func.sum(rate * rate).label("squares"),
                sa.func.sum(tokens).label("tokens"),
                sa.func.sum(sa.case((tokens != 0, 1), else_=0)).label("counted"),
                sa.func.sum(sa.case((strays, 1), else_=0)).label("strays"),
                negative.label("negative"),
                *self.earliest(ts),
            )
            .select_from(source)
            .where(*self.since_until(ts, query), sa.or_(share, rate < 0, strays))
            .group_by(*self.hour(ts), negative)
        )
        if self.config.where:
            statement = statement.where(sa.text(f"({self.config.where})"))
        return statement

    def _extent(self, connection: Connection, table: Table, ts: str | None) -> tuple[Any, Any]:
        from tuneproof.sources.rows import instant

        source = table.selectable()
        first = connection.execute(sa.select(sa.literal(1)).select_from(source).limit(1)).first()
        if first is None:
            return 0, None
        if ts is None:
            return None, None
        column = sa.type_coerce(source.c[ts], sa.types.NullType())
        newest = connection.execute(sa.select(sa.func.max(column))).scalar_one()
        return None, None if newest is None else instant(newest)

    def _look(self) -> Table:
        with self._connected() as connection:
            table = _inspect(connection, self.config.table, str(self))
        self._table = table
        return table

    def _connected(self) -> _Connected:
        return _Connected(self)


class _Connected:
    """A connection for looking; driver errors become ours."""

    def __init__(self, source: SqlSource) -> None:
        self._source = source

    def __enter__(self) -> Connection:
        self._engine = self._source.engine()
        try:
            self._connection = self._engine.connect()
        except (DBAPIError, OSError) as error:
            raise self._source.told(error, connecting=True) from error
        except ModuleNotFoundError as error:
            raise DataError(f"{error}.", mend="pip install the database's driver.") from error
        return self._connection

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._connection.close()
        self._engine.dispose()
        if isinstance(error, DBAPIError):
            raise self._source.told(error) from error


def _theirs(tables: Sequence[str]) -> list[str]:
    """The tables without those of a store of ours, where there is one beside them."""
    if OWN_MARK not in tables:
        return list(tables)
    ours = OWN_TABLES | ENGINE_TABLES
    return [t for t in tables if t not in ours and not OWN_DAYS.fullmatch(t)]


def _inspect(connection: Connection, wanted: str, where: str) -> Table:
    schema, _, name = wanted.rpartition(".")
    inspector = sa.inspect(connection)
    try:
        columns = inspector.get_columns(name, schema=schema or None)
    except NoSuchTableError as error:
        tables = _theirs(inspector.get_table_names(schema=schema or None))
        tables += inspector.get_view_names(schema=schema or None)
        raise DataError(
            f"{where}: there is no such table; there are {', '.join(sorted(tables)) or 'none'}.",
            mend="Set sources.posts.table, or load one: tuneproof posts import FILE.",
            tables=sorted(tables),
        ) from error
    indexes = inspector.get_indexes(name, schema=schema or None)
    return Table(
        schema=schema or None,
        name=name,
        columns={column["name"]: column["type"] for column in columns},
        indexed=[[c for c in index["column_names"] if c] for index in indexes],
    )


def break_off(connection: Connection) -> None:
    """Have the database end what it works at for a connection of another thread, where its driver
    can say so: whoever is told to stop does not wait for a long query."""
    with suppress(Exception):  # it is closed next, whatever became of it
        driver: Any = connection.connection.driver_connection
        stop = getattr(driver, "interrupt", None) or getattr(driver, "cancel", None)
        if stop is not None:
            stop()
