"""Rows of a table or a file as posts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from tuneproof.collection import NO_TIME, Post
from tuneproof.errors import DataError

__all__ = ["Times", "instant", "maker"]

_WORDS = Post._fields[:-1]
_TEXTS = ("persona_id", "original_input", "hook", "body", "version", "group")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def maker(words: Sequence[str]) -> Callable[[Sequence[Any]], Post]:
    """What makes a post of a row whose values stand in the order of `words`."""
    places = [words.index(word) if word in words else None for word in _WORDS]
    further = [(word, place) for place, word in enumerate(words) if word not in _WORDS]
    text = {_WORDS.index(w) for w in _TEXTS}

    def make(row: Sequence[Any]) -> Post:
        values = [None if place is None else row[place] for place in places]
        values[0] = str(values[0])
        for place in text:
            value = values[place]
            if value is not None and type(value) is not str:
                values[place] = as_text(value)
        rate = values[5]
        if rate is not None and type(rate) is not float:
            values[5] = _number(rate, "engagement_rate", values[0])
        if type(values[6]) is not datetime or values[6].tzinfo is not UTC:
            values[6] = instant(values[6])
        fields = {word: _readable(row[place]) for word, place in further} if further else None
        return Post._make((*values, fields))

    return make


def instant(value: Any) -> datetime:
    """An aware UTC datetime of what databases and files keep; naive times are read as UTC.

    Numbers are seconds since 1970, or milli- or microseconds where they are too large for
    seconds. Raises `DataError` for what is no time.
    """
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    try:
        if isinstance(value, datetime):
            return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _EPOCH + timedelta(microseconds=round(value * micros_per(value)))
        return instant(datetime.fromisoformat(str(value).strip()))
    except (ValueError, OverflowError) as error:
        raise DataError(
            f"{value!r} is no time.", mend="Use ISO 8601, such as 2025-01-20T02:00:00Z."
        ) from error


class Times:
    """The times of a file's rows: those that are none become `NO_TIME`, which curation counts."""

    def __init__(self) -> None:
        self._any = False
        self._error: DataError | None = None

    def __call__(self, value: Any) -> datetime:
        """The instant, or `NO_TIME`."""
        if value is None or value == "":
            return NO_TIME
        try:
            found = instant(value)
        except DataError as error:
            self._error = self._error or error
            return NO_TIME
        self._any = True
        return found

    def check(self, where: str) -> None:
        """Raise `DataError` where there were times and not one could be read."""
        if self._error is not None and not self._any:
            raise DataError(
                f"No time of {where} can be read: {self._error.message}", mend=self._error.mend
            )


def micros_per(value: float) -> int:
    """How many microseconds the unit of a number that is a time has, told by its size."""
    if abs(value) >= 1e14:
        return 1
    return 1000 if abs(value) >= 1e11 else 1_000_000


def as_text(value: Any) -> str:
    """A value as text; bytes that are no UTF-8 are kept as lone surrogates."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "surrogateescape")
    return str(value)


def _readable(value: Any) -> Any:
    return as_text(value) if isinstance(value, bytes | bytearray | memoryview) else value


def _number(value: Any, column: str, post: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{column} of post {post} is {value!r}, no number.",
            mend="Use a numeric column with shares between 0 and 1.",
        ) from error
