"""Column types that mean the same on SQLite and on PostgreSQL.

Instants are aware UTC datetimes in Python; `timestamptz` on PostgreSQL and integer
microseconds since 1970 on SQLite (comparable, exact, half the size of text). JSON is JSONB on
PostgreSQL and text on SQLite, and refuses NaN, which JSON cannot say. `WholeNumber` is an
integer without a limit, for sums of squares that outgrow 64 bits.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Numeric, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from tuneproof.errors import DataError

__all__ = ["Instant", "Json", "WholeNumber", "dump_json", "from_micros", "hour_of", "to_micros"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_micros(at: datetime) -> int:
    """Microseconds from 1970-01-01T00:00Z to `at`, exactly.

    Raises `DataError` where `at` has no time zone.
    """
    if at.tzinfo is None:
        raise DataError(
            f"The instant {at.isoformat()} has no time zone.", mend="Use an aware datetime in UTC."
        )
    since = at - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def from_micros(micros: int) -> datetime:
    """The aware UTC datetime that lies `micros` microseconds after 1970-01-01T00:00Z."""
    return _EPOCH + timedelta(microseconds=micros)


def hour_of(at: datetime) -> int:
    """The whole hours from 1970-01-01T00:00Z to `at`: the key of an hourly rollup."""
    return to_micros(at) // 3_600_000_000


def dump_json(value: Any) -> str:
    """`value` as compact JSON; raises `DataError` for NaN, infinities and foreign types."""
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"This value cannot be kept as JSON: {error}.",
            mend="Use None for what is not known, and JSON types only.",
        ) from error


class Instant(TypeDecorator[datetime]):
    """An aware instant, kept to the microsecond; always UTC when read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(BigInteger())
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        micros = to_micros(value)
        return micros if dialect.name == "sqlite" else from_micros(micros)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return from_micros(value) if dialect.name == "sqlite" else value.astimezone(UTC)


class WholeNumber(TypeDecorator[int]):
    """An integer of any size: `numeric` on PostgreSQL, decimal text on SQLite."""

    impl = Numeric(asdecimal=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(Text())
        return dialect.type_descriptor(Numeric(asdecimal=True))

    def process_bind_param(self, value: int | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        return str(value) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        return None if value is None else int(value)


Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
"""A JSON value; SQL NULL for None."""
