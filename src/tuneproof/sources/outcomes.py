"""Outcomes from the user's own table: a query with two bind parameters, read only.

The query is the user's, and says everything: which column is the unit, which the outcome, when
it was last changed. It gets `:since` and `:until`, and must return `unit`, `value` and `at` (when
the row was last changed); `quality` where there is one, `item` where a test counts the items of
its units.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import NullPool

from tuneproof.errors import DataError, StoreUnavailableError
from tuneproof.resilience.threads import InTurn
from tuneproof.settings import OutcomeSourceConfig
from tuneproof.sources.rows import instant
from tuneproof.sources.sql import break_off

__all__ = ["OutcomeRow", "OutcomeTable"]

CHUNK = 5000


@dataclass(frozen=True, kw_only=True, slots=True)
class OutcomeRow:
    """What the user's table says of a unit, as of `at`."""

    unit: str
    value: float
    at: datetime
    quality: float | None = None
    item: str = ""


class OutcomeTable:
    """The user's table of outcomes, by its query. Connections live only as long as a read."""

    def __init__(self, config: OutcomeSourceConfig, url: str) -> None:
        self.config = config
        try:
            self.url = make_url(url)
        except (ArgumentError, ValueError) as error:
            raise DataError(
                f"The outcome source {config.name!r} has a malformed address.",
                mend="Write sqlite:///FILE or postgresql://USER@HOST/DATABASE.",
            ) from error
        self._family = self.url.get_backend_name()

    async def rows(self, since: datetime, until: datetime) -> AsyncIterator[list[OutcomeRow]]:
        """The rows that were changed from `since` on and before `until`, in chunks.

        Raises `DataError` where the query or its rows are not as described,
        `StoreUnavailableError` where the database does not answer.
        """
        engine, in_turn = self._engine(), InTurn()
        try:
            connection = await in_turn(engine.connect)
            try:
                result = await in_turn(self._started, connection, since, until)
                self._check_columns(result.keys())
                while rows := await in_turn(result.fetchmany, CHUNK):
                    yield [self._row(row._mapping) for row in rows]
            finally:
                await in_turn.end(connection.close, partial(break_off, connection))
        except OperationalError as error:
            raise StoreUnavailableError(
                f"The outcome source {self.config.name!r} did not answer: {_first_line(error)}.",
                mend=f"Check outcome_sources.{self.config.name}: its url and its query.",
            ) from error
        except DBAPIError as error:
            raise DataError(
                f"The outcome source {self.config.name!r} refused its query: {_first_line(error)}.",
                mend=f"Check outcome_sources.{self.config.name}.query.",
            ) from error
        finally:
            engine.dispose()

    def _started(self, connection: sa.Connection, since: datetime, until: datetime) -> Any:
        if self._family == "postgresql":
            connection = connection.execution_options(postgresql_readonly=True)
        bound = {"since": self._time(since), "until": self._time(until)}
        query = sa.text(self.config.query)
        return connection.execute(query, bound, execution_options={"stream_results": True})

    def _engine(self) -> Engine:
        if self._family == "sqlite":
            return sa.create_engine("sqlite://", creator=self._read_only, poolclass=NullPool)
        url = self.url
        if self._family in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+psycopg")
        return _engine(url)

    def _read_only(self) -> Any:
        import sqlite3

        path = Path(str(self.url.database or "")).expanduser()
        if not path.is_file():
            raise DataError(
                f"The outcome source {self.config.name!r}: there is no file {str(path)!r}.",
                mend=f"Check outcome_sources.{self.config.name}.url.",
            )
        address = f"file:{quote(str(path.absolute()))}?mode=ro"
        return sqlite3.connect(address, uri=True, timeout=30.0, check_same_thread=False)

    def _time(self, at: datetime) -> Any:
        kind = self.config.times
        if kind == "auto":
            kind = "text" if self._family == "sqlite" else "native"
        if kind == "native":
            return at
        if kind == "text":
            return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"
        return at.timestamp() * (1000 if kind == "milliseconds" else 1)

    def _check_columns(self, names: Sequence[str] | Any) -> None:
        missing = sorted({"unit", "value", "at"} - set(names))
        if missing:
            raise DataError(
                f"The query of the outcome source {self.config.name!r} returns no column "
                f"{', '.join(missing)}; it returns {', '.join(names)}.",
                mend="Name the columns: SELECT id AS unit, rate AS value, updated_at AS at …",
            )

    def _row(self, row: Any) -> OutcomeRow:
        quality, item = row.get("quality"), row.get("item")
        return OutcomeRow(
            unit=str(row["unit"]),
            value=self._number(row, "value"),
            at=instant(row["at"]),
            quality=None if quality is None else self._number(row, "quality"),
            item="" if item is None else str(item),
        )

    def _number(self, row: Any, name: str) -> float:
        try:
            value = float(row[name])
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise DataError(
                f"The outcome source {self.config.name!r} has {name} = {row[name]!r} for unit "
                f"{row['unit']!r}, no number.",
                mend="Leave such rows out: WHERE engagement_rate IS NOT NULL.",
            )
        return value


def _engine(url: URL) -> Engine:
    try:
        return sa.create_engine(url, poolclass=NullPool)
    except (NoSuchModuleError, ImportError) as error:
        raise DataError(
            f"No driver for {url.drivername} is installed: {error}.",
            mend="pip install the database's driver for SQLAlchemy.",
        ) from error


def _first_line(error: DBAPIError) -> str:
    return (str(error.orig).strip().splitlines() or ["no reason"])[0].rstrip(".")
