"""Posts from a table: one query, the same for every database, read with the best driver."""

from __future__ import annotations

import asyncio
import math
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from functools import cached_property, partial
from typing import Any, Final
from warnings import catch_warnings, simplefilter

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import (
    DBAPIError,
    NoSuchModuleError,
    NoSuchTableError,
    OperationalError,
    SAWarning,
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
from tuneproof.resilience.threads import InTurn
from tuneproof.settings import SourceConfig
from tuneproof.sources.arithmetic import Arithmetic
from tuneproof.sources.choosing import OWN_ID, Best, check_ids, chunked, shared_id
from tuneproof.sources.columns import (
    MATURED,
    RATE,
    checked,
    find_columns,
    missing_columns,
    need_columns,
    rate_arithmetic,
)
from tuneproof.sources.rows import Reading, instant, maker, of_single, operand

__all__ = ["Plan", "SqlSource", "Table", "Times", "break_off"]

OWN_MARK: Final = "tuneproof_migration"
"""The table that only a database with a store of ours has."""

OWN_TABLES: Final = frozenset(
    (
        OWN_MARK,
        *("activity", "cells", "comments", "counters", "deployment_history", "deployments"),
        "engagement",
        *(
            "experiments",
            "exposures",
            "idempotency",
            "looks",
            "meta",
            "outbox",
            "outcomes",
            "prompts",
        ),
        *("phases", "requests", "routing", "runs", "schedule", "scores", "scoring_days"),
        *("subjects", "tokens", "units", "versions"),
    )
)
"""The store's tables by name: sources do not know the store."""

ENGINE_TABLES: Final = frozenset(("datasource_outputs", "dbos_datasource_migrations"))
"""Those of the durable engine beside them."""

OWN_DAYS: Final = re.compile(r"(exposures|outcomes)_(past|future|\d{4}_\d\d_\d\d)")
"""The parts of the store's tables that hold a day."""

_ZONES: Final = timedelta(days=1)
"""No zone is further from UTC."""

_SINGLE: Final = 1e-6
"""A float of 32 bits differs from the number it stands for by less than this share of it."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as it was found: its columns with their types, which have an index first, and which
    of them no two rows share. `stored` is false for a view, which can have no index."""

    schema: str | None
    name: str
    columns: Mapping[str, Any]
    indexed: Sequence[Sequence[str]]
    unique: frozenset[str] = frozenset()
    stored: bool = True

    def selectable(self) -> sa.TableClause:
        """The table, to be selected from: always the same one, or it would be two tables."""
        return self._clause

    @cached_property
    def _clause(self) -> sa.TableClause:
        columns = (sa.column(name, type) for name, type in self.columns.items())
        return sa.table(self.name, *columns, schema=self.schema)


class Times(Enum):
    """Who compares the times of a table with the window."""

    DATABASE = "database"
    BOTH = "both"  # the database by the day, since it does not know of their zone; then we
    HERE = "here"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a table is asked: what the database compares, and what is compared here.

    A database compares what it keeps as numbers and as times. What is kept otherwise, as text say,
    is read as it is and compared here, so that nothing is compared across types. `single` says
    that rates are floats of 32 bits, `unit` how many microseconds the unit of times has that are
    numbers in SQLite.
    """

    table: Table
    found: Mapping[str, str]
    rate: Arithmetic | None = None
    numbers: bool = True
    times: Times = Times.DATABASE
    single: bool = False
    unit: float | None = None

    @property
    def exact(self) -> bool:
        """Whether the database finds the posts by itself; when they matured is compared here."""
        return self.numbers and self.times is Times.DATABASE and MATURED not in self.found

    @property
    def words(self) -> list[str]:
        """Our words for the columns of the result, in order."""
        if self.rate is None or self.numbers:
            return list(self.found)
        others = [word for word in self.found if word != RATE]
        return [*others, *(operand(name) for name in self.rate.columns)]


class SqlSource(ABC):
    """A table of posts. Drivers differ; what is asked does not."""

    def __init__(self, config: SourceConfig, url: URL) -> None:
        self.config = config
        self.url = url
        self.reading: Reading | None = None
        self._table: Table | None = None
        self._plans: dict[tuple[tuple[str, str], ...], Plan] = {}

    def __str__(self) -> str:
        address = self.url.set(drivername=self.url.get_backend_name())
        return f"{address.render_as_string(hide_password=True)} table {self.config.table}"

    async def check(self, query: PostQuery) -> SourceCheck:
        """The table's columns, whether it has rows, and the index that would help."""
        table = self._table = await asyncio.to_thread(self._look)
        found = find_columns(table.columns, self.config.columns, query)
        ts, rate = found.get("ts"), found.get(RATE)
        indexed = any(index[0] == ts for index in table.indexed if index)
        advice = []
        if ts and rate and table.stored and not indexed:
            advice.append(self._index(table, ts, rate))
        plan = (
            None
            if missing_columns(found, self.config.columns, query)
            else await self.plan_of(query)
        )
        if plan is not None:
            advice += _costs(plan)
        timely = plan is not None and plan.times is Times.DATABASE and indexed
        rows, newest = await asyncio.to_thread(self._extent, table, ts if timely else None)
        return checked(
            {name: _declared(kind) for name, kind in table.columns.items()},
            self.config.columns,
            query,
            advice=tuple(advice),
            rows=rows,
            newest=newest,
        )

    async def posts(self, query: PostQuery) -> AsyncIterator[list[Post]]:
        """The best posts, in chunks, from one query in a transaction that cannot write."""
        plan = await self.plan_of(query)
        reading = self.reading = Reading(self.config, str(self))
        make = maker(plan.words, reading, None if plan.numbers else plan.rate)
        if plan.exact and plan.found["id"] not in plan.table.unique:
            await self._check_ids(plan, query)
        best = Best(query)
        async for rows in self.read(self.statement(plan, query), query.chunk_size):
            posts = [make(row) for row in rows]
            if not plan.exact:
                best.add(posts)
            elif not plan.single:
                yield posts
            elif enough := [p for p in map(of_single, posts) if best.wanted(p)]:
                yield enough
        reading.check()
        if not plan.exact:
            chosen = await asyncio.to_thread(best.posts)
            check_ids([post.id for post in chosen], str(self))
            for chunk in chunked(chosen, query.chunk_size):
                yield chunk

    async def totals(self, window: Window) -> Totals | None:
        """The window's totals by one aggregate of the database; None for rates that are text."""
        query = PostQuery(window=window, threshold=0.0, max_records=None)
        plan = await self.plan_of(query)
        used = plan.found.get("tokens_used")
        if not plan.exact or plan.single:
            return None
        if used is not None and not self.adds_up([plan.table.columns[used]]):
            return None
        return await asyncio.to_thread(self._totals, plan, query)

    async def cut(self, window: Window, share: float) -> Cut | None:
        """Where the best share begins, by the database; None for rates that are text."""
        query = PostQuery(window=window, threshold=0.0, max_records=None)
        plan = await self.plan_of(query)
        if not plan.exact or plan.single:
            return None
        return await asyncio.to_thread(self._cut, plan, query, share)

    def unread(self) -> Mapping[str, Mapping[str, object]]:
        """What the last reading could not read, by our word for the column."""
        return {} if self.reading is None else self.reading.unread()

    async def plan_of(self, query: PostQuery) -> Plan:
        """How a query is asked; found out once, since SQLite looks at all values for it."""
        table = self._table
        if table is None:
            table = await asyncio.to_thread(self._look)
        found = find_columns(table.columns, self.config.columns, query)
        need_columns(found, self.config.columns, query, str(self))
        known = self._plans.get(tuple(found.items()))
        if known is not None and known.table is table:
            return known
        rate = rate_arithmetic(table.columns, found)
        plan = await self.plan(Plan(table=table, found=found, rate=rate))
        self._plans[tuple(found.items())] = plan
        return plan

    async def plan(self, plan: Plan) -> Plan:
        """What of a plan the database can do, by the types that it declares."""
        kinds = [plan.table.columns[name] for name in rated_by(plan)]
        return replace(
            plan,
            numbers=self.adds_up(kinds),
            times=self.compares(plan.table.columns[plan.found["ts"]]),
            single=plan.rate is None and any(is_single(kind) for kind in kinds),
        )

    def compares(self, kind: Any) -> Times:
        """Who compares times of this type."""
        if not isinstance(kind, sa.DateTime | sa.Date):
            return Times.HERE
        aware = getattr(kind, "timezone", False) or self.config.time_zone == "UTC"
        return Times.DATABASE if aware else Times.BOTH

    async def close(self) -> None:
        """Forget the schema; connections live only as long as a read."""
        self._table = None
        self._plans.clear()

    @abstractmethod
    def read(self, statement: sa.Select[Any], chunk_size: int) -> AsyncIterator[Sequence[Any]]:
        """Run the query and yield its rows, so many at once."""

    def within(
        self, ts: sa.ColumnElement[Any], window: Window, plan: Plan
    ) -> Sequence[sa.ColumnElement[bool]]:
        """The conditions on the time; naive columns hold UTC."""
        since, until = window.since, window.until
        if not getattr(ts.type, "timezone", False):
            since, until = since.replace(tzinfo=None), until.replace(tzinfo=None)
        return (ts >= since, ts < until)

    def timely(self, plan: Plan, query: PostQuery) -> Sequence[sa.ColumnElement[bool]]:
        """The conditions on the time that the database can keep; none where we keep them."""
        if plan.times is Times.HERE:
            return ()
        window = query.window
        if plan.times is Times.BOTH:
            window = Window(since=window.since - _ZONES, until=window.until + _ZONES)
        return self.within(plan.table.selectable().c[plan.found["ts"]], window, plan)

    def tie(self, id: sa.ColumnElement[Any]) -> Sequence[sa.ColumnElement[Any]]:
        """What puts posts of the same rate in order."""
        return (id,)

    def rated(self, plan: Plan) -> sa.ColumnElement[Any]:
        """The rate as a number of the database."""
        source = plan.table.selectable()
        if plan.rate is None:
            return source.c[plan.found[RATE]]
        return plan.rate.sql(lambda name: sa.cast(source.c[name], sa.Double()))

    def ranked(self, rate: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """The rate as it is put in order; NaN, where there is such, is no rate."""
        return rate

    def shown(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """A column as it is fetched: what drivers give differently is made text."""
        return column

    def statement(self, plan: Plan, query: PostQuery) -> sa.Select[Any]:
        """The query: the window's posts at or above the threshold, best first; as far as the
        database can tell."""
        source = plan.table.selectable()
        fetched = [
            self.rated(plan).label(RATE)
            if word == RATE and plan.numbers
            else self.shown(source.c[column]).label(word)
            for word, column in plan.found.items()
            if word in plan.words
        ]
        if plan.rate is not None and not plan.numbers:
            names = enumerate(plan.rate.columns)
            fetched += [self.shown(source.c[name]).label(f"operand_{i}") for i, name in names]
        statement = sa.select(*fetched).select_from(source).where(*self.timely(plan, query))
        if self.config.where:
            statement = statement.where(self.narrowed())
        if plan.numbers:
            statement = statement.where(self._enough(plan, query))
        if not plan.exact:
            return statement
        order = self.ranked(self.rated(plan)).desc().nulls_last()
        statement = statement.order_by(order, *self.tie(source.c[plan.found["id"]]))
        return statement if query.max_records is None else statement.limit(query.max_records)

    def _enough(self, plan: Plan, query: PostQuery) -> sa.ColumnElement[bool]:
        least = query.threshold
        if plan.single:  # which are compared again here, as what they stand for
            least -= abs(least) * _SINGLE
        return sa.func.coalesce(self.rated(plan), 0.0) >= least

    def narrowed(self) -> sa.ColumnElement[bool]:
        """What the settings put beside the conditions, as it is written: a colon names nothing."""
        condition: sa.ColumnElement[bool] = sa.literal_column(f"({self.config.where})")
        return condition

    def adds_up(self, types: Sequence[Any]) -> bool:
        """Whether columns of these types are numbers, which the database can add up."""
        return all(isinstance(kind, sa.Numeric | sa.Float | sa.Integer) for kind in types)

    def strays(self, columns: Sequence[sa.ColumnElement[Any]]) -> sa.ColumnElement[bool]:
        """Whether one of a row's values is no number although its column may be."""
        return sa.false()

    def ready(self, connection: Connection, plan: Plan) -> None:  # noqa: B027 - most need nothing
        """Make a connection ready for the totals."""

    def earliest(self, ts: sa.ColumnElement[Any], plan: Plan) -> Sequence[sa.ColumnElement[Any]]:
        """The earliest time as `first`, and what finding it takes."""
        return (sa.func.min(sa.type_coerce(ts, sa.types.NullType())).label("first"),)

    def hour(self, ts: sa.ColumnElement[Any], plan: Plan) -> Sequence[sa.ColumnElement[Any]]:
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

    def _index(self, table: Table, ts: str, rate: str) -> str:
        quoted = self.engine().dialect.identifier_preparer
        names = [ts, rate] if rate in table.columns else [ts]
        index = quoted.quote(re.sub(r"\W", "_", "_".join((table.name, *names))))
        columns = ", ".join(quoted.quote(name) for name in names)
        return f"CREATE INDEX {index} ON {quoted.format_table(table.selectable())} ({columns});"

    async def _check_ids(self, plan: Plan, query: PostQuery) -> None:
        """Raise `DataError` where posts that would be read share an id, or have none."""
        chosen = self.statement(plan, query).subquery()
        number = sa.func.count().label("number")
        shared = sa.select(chosen.c.id, number).group_by(chosen.c.id)
        shared = shared.having(sa.or_(number > 1, chosen.c.id.is_(None)))
        found = await self.ask(plan, shared.order_by(number.desc()).limit(1000))
        if not found:
            return
        absent = [row.number for row in found if row.id is None]
        if absent:
            raise DataError(f"{absent[0]:,} posts of {self} have no id.", mend=OWN_ID)
        raise shared_id(found[0].id, found[0].number, len(found) - 1, str(self))

    def _totals(self, plan: Plan, query: PostQuery) -> Totals | None:
        with self._connected() as connection:
            self.ready(connection, plan)
            rows = connection.execute(self.aggregate(plan, query)).all()
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

    def _cut(self, plan: Plan, query: PostQuery, share: float) -> Cut | None:
        source = plan.table.selectable()
        kept = self.rated(plan)
        double: sa.Double[float] = sa.Double()
        rate = sa.cast(kept, double)
        wanted: list[sa.ColumnElement[bool]] = [*self.timely(plan, query), rate >= 0, rate <= 1]
        if self.config.where:
            wanted.append(self.narrowed())
        counted = sa.select(sa.func.count()).select_from(source).where(*wanted)
        ranked = sa.select(rate, kept.label("kept")).select_from(source).where(*wanted)
        with self._connected() as connection:
            self.ready(connection, plan)
            number = connection.execute(counted).scalar_one()
            if not number:
                return Cut(rated=0, threshold=0.0)
            last = ranked.order_by(kept.desc()).offset(best_of(number, share) - 1).limit(1)
            least, exact = connection.execute(last).one()
        if isinstance(exact, Decimal) and Decimal(least) > exact:
            least = math.nextafter(least, 0.0)  # what it is rounded to must not leave it out
        return Cut(rated=number, threshold=float(least))

    def aggregate(self, plan: Plan, query: PostQuery) -> sa.Select[Any]:
        """The totals by hour in one statement, with the number of rows that cannot be added up;
        apart those of posts whose rate is below 0.

        By hour, since a database's sum of millions of floats is too rough in its last digits.
        """
        source, found = plan.table.selectable(), plan.found
        ts = source.c[found["ts"]]
        used = source.c[found["tokens_used"]] if "tokens_used" in found else None
        double: sa.Double[float] = sa.Double()
        rate = sa.cast(self.rated(plan), double)
        tokens = sa.cast(sa.null() if used is None else used, double)
        strays = sa.false() if used is None else self.strays([used])
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
                *self.earliest(ts, plan),
            )
            .select_from(source)
            .where(*self.timely(plan, query), sa.or_(share, rate < 0, strays))
            .group_by(*self.hour(ts, plan), negative)
        )
        if self.config.where:
            statement = statement.where(self.narrowed())
        return statement

    def _extent(self, table: Table, ts: str | None) -> tuple[int | None, datetime | None]:
        source = table.selectable()
        any_row = sa.select(sa.literal(1)).select_from(source).limit(1)
        with self._connected() as connection:
            if connection.execute(any_row).first() is None:
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

    async def ask(self, plan: Plan, statement: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        """All rows of a short answer. Whoever breaks off does not wait for a long query."""
        in_turn, connected = InTurn(), self._connected()
        connection = await in_turn(connected.__enter__)
        try:
            await in_turn(self.ready, connection, plan)
            result = await in_turn(connection.execute, statement)
            return await in_turn(result.all)
        except DBAPIError as error:
            raise self.told(error) from error
        finally:
            await in_turn.end(connection.close, partial(break_off, connection))

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


def _costs(plan: Plan) -> list[str]:
    """What it costs that the database cannot compare by itself, and the mend."""
    said = []
    if not plan.numbers:
        names = " and ".join(rated_by(plan))
        said.append(
            f"{names} is no number in all rows, so that each run reads every post of its window: "
            "change the column's type to a number."
        )
    if plan.times is Times.HERE:
        said.append(
            f"{plan.found['ts']} is no time that the database can compare, so that each run reads "
            "the whole table: change the column's type to a timestamp."
        )
    return said


def _declared(kind: Any) -> str:
    """A type as a manifest names it."""
    zone = " with time zone" if getattr(kind, "timezone", False) else ""
    return f"{str(kind).lower()}{zone}"


def is_single(kind: Any) -> bool:
    """Whether numbers of this type may have 32 bits only."""
    return isinstance(kind, sa.Float) and not isinstance(kind, sa.Double)


def rated_by(plan: Plan) -> Sequence[str]:
    """The columns that the rate comes from."""
    return (plan.found[RATE],) if plan.rate is None else plan.rate.columns


def _theirs(tables: Sequence[str]) -> list[str]:
    """The tables without those of a store of ours, where there is one beside them."""
    if OWN_MARK not in tables:
        return list(tables)
    ours = OWN_TABLES | ENGINE_TABLES
    return [t for t in tables if t not in ours and not OWN_DAYS.fullmatch(t)]


def _inspect(connection: Connection, wanted: str, where: str) -> Table:
    schema, name = _parts(wanted)
    inspector = sa.inspect(connection)
    try:
        with catch_warnings():  # of a type that SQLAlchemy does not know; it is fetched as text
            simplefilter("ignore", SAWarning)
            columns = inspector.get_columns(name, schema=schema)
    except NoSuchTableError as error:
        tables = _theirs(inspector.get_table_names(schema=schema))
        tables += inspector.get_view_names(schema=schema)
        raise DataError(
            f"{where}: there is no such table; there are {', '.join(sorted(tables)) or 'none'}.",
            mend="Set sources.posts.table, or load one: tuneproof posts import FILE.",
            tables=sorted(tables),
        ) from error
    indexes = inspector.get_indexes(name, schema=schema)
    primary = inspector.get_pk_constraint(name, schema=schema)
    keys: list[Sequence[str | None]] = [primary["constrained_columns"]]
    keys += [u["column_names"] for u in inspector.get_unique_constraints(name, schema=schema)]
    keys += [i["column_names"] for i in indexes if i.get("unique") and not _partial(i)]
    return Table(
        schema=schema,
        name=name,
        columns={column["name"]: _plain(column["type"]) for column in columns},
        indexed=[[c for c in index["column_names"] if c] for index in indexes],
        unique=frozenset(name for key in keys if len(key) == 1 for name in key if name),
        stored=name not in inspector.get_view_names(schema=schema),
    )


def _parts(name: str) -> tuple[str | None, str]:
    """Schema and name of a table, of which each may stand in double quotes."""
    parts = re.fullmatch(r'(?:("[^"]+"|[^"]+)\.)?("[^"]+"|[^".]+)', name)
    if parts is None:
        return None, name
    schema, table = parts.groups()
    return schema and schema.strip('"'), table.strip('"')


def _partial(index: Any) -> bool:
    return any(name.endswith("_where") and where for name, where in _options(index))


def _options(index: Any) -> Sequence[tuple[str, Any]]:
    return list(index.get("dialect_options", {}).items())


def _plain(kind: Any) -> Any:
    """What a domain is made of; else the type itself."""
    return _plain(kind.data_type) if hasattr(kind, "data_type") else kind


def break_off(connection: Connection) -> None:
    """Have the database end what it works at for a connection of another thread, where its driver
    can say so: whoever is told to stop does not wait for a long query."""
    with suppress(Exception):  # it is closed next, whatever became of it
        driver: Any = connection.connection.driver_connection
        stop = getattr(driver, "interrupt", None) or getattr(driver, "cancel", None)
        if stop is not None:
            stop()
