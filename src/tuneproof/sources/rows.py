"""Rows of a table or a file as posts: one reader of values for every kind of source.

What a value means does not depend on where it was kept: a number is one whether the column is
declared as text or not, a time is UTC once it is read, and what is neither text nor number is
text as JSON. What cannot be read is counted; where that is most of a column, nothing is right.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo

from tuneproof.collection import NO_TIME, Post
from tuneproof.errors import DataError
from tuneproof.settings import SourceConfig
from tuneproof.sources.arithmetic import Arithmetic

__all__ = [
    "Reading",
    "Unread",
    "as_text",
    "instant",
    "maker",
    "micros_per",
    "number",
    "of_single",
    "operand",
    "stood_for",
]

_WORDS: Final = Post._fields[:-1]
_TEXTS: Final = ("persona_id", "original_input", "hook", "body", "version", "group")
COUNTS: Final = ("tokens_used", "impressions", "clicks")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|nan|[+-]?inf(inity)?", re.I)
_EPOCH_TEXT: Final = re.compile(r"-?\d{9,19}(\.\d*)?")
_ZONE_WORD: Final = re.compile(r"\s*(UTC|GMT)$", re.IGNORECASE)
_DAY_OR_MONTH: Final = re.compile(r"\d{1,2}[/.-]\d{1,2}[/.-]\d{2,4}\b.*")
_ISO: Final = "Use ISO 8601, such as 2025-01-20T02:00:00Z."
_SAMPLES: Final = 3
_LARGEST_SINGLE: Final = 3.4e38


class Unread(float):
    """A rate that is no number: NaN, shown as what stands there."""

    text: str

    def __new__(cls, value: object) -> Unread:
        self = super().__new__(cls, math.nan)
        self.text = as_text(value)
        return self

    def __repr__(self) -> str:
        return self.text

    __str__ = __repr__


@dataclass
class Tally:
    """How many values of a column could be read, how many not, and the first of those."""

    read: int = 0
    unread: int = 0
    samples: list[str] = field(default_factory=list)
    mend: str = ""

    def refuse(self, value: object, place: str, mend: str) -> None:
        """Count a value that cannot be read."""
        self.unread += 1
        self.mend = self.mend or mend
        if len(self.samples) < _SAMPLES:
            self.samples.append(f"{_shown(value)} ({place})")


class Reading:
    """Reads the values of one source, and knows what it could not read.

    `place` says where the next row stands, for a source that can say it better than by its id.
    """

    def __init__(self, config: SourceConfig, where: str) -> None:
        self.place = ""
        self._config = config
        self._where = where
        self._zone: tzinfo = UTC if config.time_zone == "UTC" else ZoneInfo(config.time_zone)
        self._tallies: dict[str, Tally] = {}

    def time(self, value: Any, id: Any, word: str = "ts") -> datetime:
        """The instant; `NO_TIME` where there is none or it cannot be read."""
        if value is None or value == "":
            return NO_TIME
        tally = self.tally(word)
        try:
            found = instant(value, self._zone, self._config.time_format)
        except DataError as error:
            tally.refuse(value, self._place(id), error.mend)
            return NO_TIME
        tally.read += 1
        return found

    def rate(self, value: Any, id: Any) -> float | None:
        """The rate; NaN that shows what stands there where it is no number."""
        if value is None or value == "":
            return None
        tally = self.tally("engagement_rate")
        try:
            found = number(value)
        except ValueError:
            tally.refuse(value, self._place(id), _rate_mend(value))
            return Unread(value)
        tally.read += 1
        return found

    def worked_out(self, rate: Arithmetic, parts: Mapping[str, Any], id: Any) -> float | None:
        """The rate of its parts; unknown where one is absent, no number where one is none."""
        tally = self.tally("engagement_rate")
        known: dict[str, float | None] = {}
        for name, value in parts.items():
            try:
                known[name] = None if value is None or value == "" else number(value)
            except ValueError:
                tally.refuse(value, f"{name}, {self._place(id)}", _rate_mend(value))
                return Unread(value)
        tally.read += 1
        return rate.of(known)

    def count(self, word: str, value: Any, id: Any) -> int | None:
        """A count; None where it is absent, no number, or below 0."""
        if value is None or value == "":
            return None
        tally = self.tally(word)
        try:
            found = number(value)
            if not found >= 0 or math.isinf(found):
                raise ValueError(value)
        except ValueError:
            tally.refuse(value, self._place(id), "Write digits only, or leave it empty.")
            return None
        tally.read += 1
        return int(found)

    def possible(self, clicks: int, impressions: int, id: Any) -> bool:
        """Whether so many clicks can be: a post has no more than it was seen."""
        if clicks <= impressions:
            return True
        mend = "A post cannot be clicked more often than it is seen: check both columns."
        said = f"{clicks} of {impressions} impressions"
        self.tally("clicks").refuse(said, self._place(id), mend)
        return False

    def check(self) -> None:
        """Raise `DataError` where more than half of a column cannot be read."""
        for word, tally in self._tallies.items():
            if tally.unread > tally.read:
                total = tally.read + tally.unread
                raise DataError(
                    f"{tally.unread:,} of {total:,} values of {word} in {self._where} cannot be "
                    f"read; the first is {tally.samples[0]}.",
                    mend=tally.mend,
                    field=word,
                    value=tally.samples[0],
                )

    def unread(self) -> dict[str, dict[str, object]]:
        """By our word for the column what could not be read, for the manifest."""
        return {
            word: {"count": tally.unread, "samples": list(tally.samples)}
            for word, tally in sorted(self._tallies.items())
            if tally.unread
        }

    def tally(self, word: str) -> Tally:
        """What is known of one column."""
        found = self._tallies.get(word)
        if found is None:
            found = self._tallies[word] = Tally()
        return found

    def _place(self, id: Any) -> str:
        return self.place or f"post {_shown(id, 40)}"


def maker(
    words: Sequence[str], reading: Reading, rate: Arithmetic | None = None
) -> Callable[[Sequence[Any]], Post]:
    """What makes a post of a row whose values stand in the order of `words`.

    The rate is worked out where there is arithmetic for it, of the columns that stand under
    `operand` of their names.
    """
    places = [words.index(word) if word in words else None for word in _WORDS]
    operands = {name: words.index(operand(name)) for name in (rate.columns if rate else ())}
    further = [
        (word, place)
        for place, word in enumerate(words)
        if word not in _WORDS and place not in operands.values()
    ]
    texts = [_WORDS.index(w) for w in _TEXTS if w in words]
    counts = [(_WORDS.index(w), w, reading.tally(w)) for w in COUNTS if w in words]
    rates, times = reading.tally("engagement_rate"), reading.tally("ts")
    matured = _WORDS.index("matured_at") if "matured_at" in words else None
    both = {"impressions", "clicks"} <= set(words)
    clicks, impressions = _WORDS.index("clicks"), _WORDS.index("impressions")

    def make(row: Sequence[Any]) -> Post:
        values: list[Any] = [None if place is None else row[place] for place in places]
        id = values[0]
        values[0] = "" if id is None else as_text(id)
        for place in texts:
            value = values[place]
            if type(value) is not str:
                values[place] = _readable(value)
            elif not value:
                values[place] = None
        if rate is not None:
            parts = {name: row[place] for name, place in operands.items()}
            values[5] = reading.worked_out(rate, parts, id)
        elif type(values[5]) is float:
            rates.read += 1
        elif values[5] is not None:
            values[5] = reading.rate(values[5], id)
        if type(values[6]) is datetime and values[6].tzinfo is UTC:
            times.read += 1
        else:
            values[6] = reading.time(values[6], id)
        if matured is not None:
            settled = reading.time(values[matured], id, "matured_at")
            values[matured] = None if settled is NO_TIME else settled
        for place, word, tally in counts:
            value = values[place]
            if type(value) is int and value >= 0:
                tally.read += 1
            elif value is not None:
                values[place] = reading.count(word, value, id)
        if both and values[clicks] and values[impressions] is not None:
            possible = reading.possible(values[clicks], values[impressions], id)
            values[clicks] = values[clicks] if possible else None
            values[impressions] = values[impressions] if possible else None
        fields = {word: _readable(row[place]) for word, place in further} if further else None
        return Post._make((*values, fields))

    return make


def of_single(post: Post) -> Post:
    """The post with the rate that a float of 32 bits stands for: 0.06, and not 0.05999999866."""
    rate = post.engagement_rate
    if rate is None or not math.isfinite(rate):
        return post
    return post._replace(engagement_rate=stood_for(rate))


def stood_for(rate: float) -> float:
    """The shortest number that has the same 32 bits, for a float that has no more."""
    if not abs(rate) < _LARGEST_SINGLE:
        return rate
    single: float = struct.unpack("f", struct.pack("f", rate))[0]
    if single != rate:
        return rate
    return next(
        short
        for digits in range(6, 10)
        if struct.pack("f", short := float(f"{rate:.{digits}g}")) == struct.pack("f", rate)
    )


def operand(name: str) -> str:
    """The word for a column that a rate is worked out of."""
    return f"\0{name}"


def instant(value: Any, zone: tzinfo = UTC, form: str | None = None) -> datetime:
    """An aware UTC datetime of what databases and files keep; naive times are of `zone`.

    Numbers, as such or as text, are seconds since 1970, or milli-, micro- or nanoseconds where
    they are too large for seconds. `form` is how texts are written, as `strptime` has it; without
    it they are ISO 8601. Raises `DataError` for what is no time.
    """
    try:
        if isinstance(value, datetime):
            return _placed(value, zone)
        if isinstance(value, date):
            return _placed(datetime(value.year, value.month, value.day), zone)  # noqa: DTZ001
        if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
            return _counted(value)
        return _written(as_text(value).strip(), zone, form)
    except (ValueError, OverflowError, ArithmeticError) as error:
        raise DataError(f"{_shown(value)} is no time.", mend=_time_mend(value, form)) from error


def _written(text: str, zone: tzinfo, form: str | None) -> datetime:
    if form is not None:
        return _placed(datetime.strptime(text, form), zone)  # noqa: DTZ007
    if _EPOCH_TEXT.fullmatch(text):
        return _counted(Decimal(text))
    return _placed(datetime.fromisoformat(_ZONE_WORD.sub("+00:00", text)), zone)


def _counted(value: float | Decimal) -> datetime:
    unit = micros_per(value)
    exact = isinstance(value, int | Decimal)
    micros = int(value * Decimal(str(unit))) if exact else round(value * unit)  # type: ignore[operator]
    return _EPOCH + timedelta(microseconds=micros)


def _placed(value: datetime, zone: tzinfo) -> datetime:
    if value.tzinfo is None:
        value = value.replace(tzinfo=zone)
    return value.astimezone(UTC)


def _time_mend(value: Any, form: str | None) -> str:
    if form is not None:
        return f"Texts are read as time_format says, {form!r}: change it, or take it out."
    if _DAY_OR_MONTH.fullmatch(as_text(value).strip()):
        return (
            "Say what comes first: sources.posts.time_format = "
            '"%d/%m/%Y" (day, month, year) or "%m/%d/%Y" (month, day, year).'
        )
    return f"{_ISO} What is written otherwise is read by sources.posts.time_format."


def micros_per(value: float | Decimal) -> float:
    """How many microseconds the unit of a number that is a time has, told by its size."""
    size = abs(float(value))
    for least, micros in ((1e17, 1e-3), (1e14, 1), (1e11, 1000)):
        if size >= least:
            return micros
    return 1_000_000


def number(value: Any) -> float:
    """A number that is one, or that is written as one. Raises `ValueError` for anything else."""
    if isinstance(value, bool):
        raise ValueError(value)
    if isinstance(value, int | float | Decimal):
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError(value) from error
    text = as_text(value).strip()
    if not _NUMBER.fullmatch(text):
        raise ValueError(value)
    return float(text)


def _rate_mend(value: Any) -> str:
    text = as_text(value).strip()
    if text.endswith("%"):
        return "A rate is a share from 0 to 1: divide percents by 100 (4.5% is 0.045)."
    if "," in text:
        return "Write a decimal point, and nothing between thousands: 0.045, 1234."
    return "Use a column of numbers, shares between 0 and 1, and leave it empty where unknown."


def as_text(value: Any) -> str:
    """A value as text, the same whichever driver gave it; what has parts is JSON.

    Bytes that are no UTF-8 are kept as lone surrogates, by which curation finds them.
    """
    if type(value) is str:
        return value
    if type(value) is int or type(value) is float:
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "surrogateescape")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, datetime):
        return _placed(value, UTC).isoformat(" ") if value.tzinfo else value.isoformat(" ")
    if isinstance(value, Mapping):
        return json.dumps(dict(value), ensure_ascii=False, default=as_text)
    if isinstance(value, list | tuple | set | frozenset):
        return json.dumps(list(value), ensure_ascii=False, default=as_text)
    return str(value)


def _readable(value: Any) -> str | None:
    return None if value is None else as_text(value)


def _shown(value: object, most: int = 80) -> str:
    text = repr(value) if isinstance(value, str) else as_text(value)
    return text if len(text) <= most else f"{text[:most]}…"
