"""What one unit adds to the rollups: the arithmetic that keeps them up, in one place.

All integers, so that adding and taking away is exact and no order of arrival shows. Both
databases go through it, and so does the recount that they are held to.

A unit counts once, in the phase and arm of its first exposure (earliest `at`, then `id`). Its
outcome is the newest one (latest `at`, then `id`) from before it was first served by the other
arm. Its tokens and cost are those of all its exposures in the arm that it counts in, and unknown
where those of any of them are.

Where items are declared, each item of the unit has such a newest outcome: the unit's `y` is their
sum, `m` their number, its quality the mean of theirs. A declared covariate `x` is that of the first
exposure. What is not declared is kept with the events and summed nowhere.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import mul
from typing import Any, Final

from tuneproof.errors import DataError
from tuneproof.stats.aggregates import ENGAGEMENT_EDGES, LATENCY_MS_EDGES
from tuneproof.store.declared import NOTHING, DeclaredKeys

__all__ = [
    "COLUMNS",
    "COUNTS",
    "ENGAGEMENT_NANO_EDGES",
    "EXPOSURE_AT",
    "EXPOSURE_COLUMNS",
    "LATENCY_US_EDGES",
    "NANO",
    "NO_LATENCY",
    "OUTCOME_AT",
    "OUTCOME_COLUMNS",
    "UNIT_COLUMNS",
    "UNKNOWN",
    "CellKey",
    "Rollups",
    "Row",
    "Unit",
    "Units",
    "add_exposures",
    "add_item_outcomes",
    "add_outcomes",
    "arm_of",
    "bucket_of_outcome",
    "day_of",
    "forget_outcome",
    "has_exposure",
    "is_stale",
    "may_have_outcome",
    "moved_at",
    "span_of",
    "split_items",
    "widen_spans",
]

NANO: Final = 1_000_000_000
"""Outcomes, qualities and dollars are kept in billionths."""

HOUR_US: Final = 3_600_000_000

ENGAGEMENT_NANO_EDGES: Final = tuple(round(edge * NANO) for edge in ENGAGEMENT_EDGES)
LATENCY_US_EDGES: Final = tuple(round(edge * 1000) for edge in LATENCY_MS_EDGES)

LARGEST: Final = 9_000_000_000 * NANO
"""What the outcomes of a unit's items may sum up to: it is kept in 64 bits."""

NO_LATENCY: Final = -1
"""The bucket of requests whose latency nobody measured."""

UNKNOWN: Final = -1
"""Tokens or a cost that nobody told."""

CellKey = tuple[int, int, int, int]
"""Subject's key, hour, phase, arm (0 baseline, 1 candidate)."""

# Rows are positional: at 100,000 events a second they are made, unpacked and written as they are.
# A named tuple takes 2.3 times as long to make as a tuple (0.9 against 0.4 µs), and 2.7 times as
# long to unpack; a record's attributes take 3.6 times as long to read as a tuple to unpack.
Row = Sequence[Any]
"""A raw event in the order of its table's columns."""

Unit = list[Any]
"""A unit's row in its table, after the key: a list, since it is read, changed and written whole."""

Units = defaultdict[int, dict[str, Unit]]
"""Units by their subject's key and their name."""

EXPOSURE_COLUMNS: Final = (
    "subject", "unit", "id", "phase", "arm", "at", "task", "latency_us", "error", "tokens",
    "cost_nano", "covariate", "attributes",
)  # fmt: skip
OUTCOME_COLUMNS: Final = ("subject", "unit", "id", "at", "y", "quality", "item")
EXPOSURE_AT: Final = EXPOSURE_COLUMNS.index("at")
OUTCOME_AT: Final = OUTCOME_COLUMNS.index("at")
UNIT_COLUMNS: Final = (
    "b_at", "b_id", "b_phase", "b_x", "b_tokens", "b_cost", "c_at", "c_id", "c_phase", "c_x",
    "c_tokens", "c_cost", "y_at", "y_id", "y", "quality", "m", "first_at", "last_at",
)  # fmt: skip
"""A unit's row after its key."""

# The places in a unit's row: six columns for each arm, the outcome that counts and of how many
# items it is, and the span that all its raw events lie in.
_ARM: Final = 6
_C: Final = _ARM
_AT, _ID, _, _X, _TOKENS, _COST = range(_ARM)
_Y_AT, _Y_ID, _Y, _QUALITY, _M = range(2 * _ARM, 2 * _ARM + 5)
_FIRST_AT, _LAST_AT = range(2 * _ARM + 5, 2 * _ARM + 7)


def day_of(hour: int) -> int:
    """The key under which a whole day is summed, beside its hours: negative, so none is both."""
    return -(hour // 24) - 1


def bucket_of_outcome(nano: int, items: int = 1) -> int:
    """The place of an outcome, or of the mean over items, in the engagement histogram."""
    return bisect_left(ENGAGEMENT_NANO_EDGES, -(-nano // items) if items > 1 else nano)


def add_exposures(units: Units, exposures: Iterable[Row]) -> None:
    """Take exposures into their units, which are made where they are absent."""
    for subject, name, id, phase, arm, at, _, _, _, tokens, cost, x, _ in exposures:
        names = units[subject]
        unit = names.get(name)
        if unit is None:
            unit = names[name] = _unseen(at)
        elif at < unit[_FIRST_AT] or at > unit[_LAST_AT]:
            _widen(unit, at)
        place = _ARM * arm
        known = unit[place]
        if known is None or at < known or (at == known and id < unit[place + _ID]):
            unit[place : place + _TOKENS] = at, id, phase, x
        used, spent = unit[place + _TOKENS], unit[place + _COST]
        unit[place + _TOKENS] = UNKNOWN if tokens < 0 or used < 0 else used + tokens
        unit[place + _COST] = UNKNOWN if cost < 0 or spent < 0 else spent + cost


def add_outcomes(units: Units, outcomes: Iterable[Row]) -> None:
    """Take outcomes into their units; one counts if it is the newest from before the move.

    The exposures that came with them are to be added first.
    """
    for subject, name, id, at, y, quality, _ in outcomes:
        names = units[subject]
        unit = names.get(name)
        if unit is None:
            unit = names[name] = _unseen(at)
        elif at < unit[_FIRST_AT] or at > unit[_LAST_AT]:
            _widen(unit, at)
        b_at, c_at = unit[_AT], unit[_C]
        if b_at is not None and c_at is not None and at >= b_at and at >= c_at:
            continue
        known = unit[_Y_AT]
        if known is None or at > known or (at == known and id > unit[_Y_ID]):
            unit[_Y_AT : _QUALITY + 1] = at, id, y, quality


def widen_spans(units: Units, outcomes: Iterable[Row]) -> None:
    """Take in that there are these outcomes, not yet what they say."""
    for subject, name, _, at, *_ in outcomes:
        _of(units[subject], name, at)


def add_item_outcomes(units: Units, outcomes: Iterable[Row]) -> None:
    """Take outcomes of items into their units, in place of what was known of those.

    They must be all outcomes of those units, and the exposures are to be added first. Raises
    `DataError` where a unit's items sum up to more than `LARGEST`.
    """
    together: dict[tuple[int, str], dict[str | None, Row]] = defaultdict(dict)
    for row in outcomes:
        subject, name, id, at, _, _, item = row
        moved = moved_at(_of(units[subject], name, at))
        newest = together[subject, name]
        if moved is not None and at >= moved:
            continue
        known = newest.get(item)
        if known is None or (at, id) > (known[3], known[2]):
            newest[item] = row
    for (subject, name), newest in together.items():
        _count_items(units[subject][name], name, list(newest.values()))


def _count_items(unit: Unit, name: str, newest: Sequence[Row]) -> None:
    forget_outcome(unit)
    if not newest:
        return
    y = sum(row[4] for row in newest)
    if abs(y) > LARGEST:
        raise DataError(
            f"The outcomes of the {len(newest)} items of unit {name!r} sum up to {y / NANO:g}.",
            mend="A unit's outcomes sum up to at most 9e9: measure in larger units.",
        )
    scores = [row[5] for row in newest if row[5] is not None]
    at, id = max((row[3], row[2]) for row in newest)
    quality = sum(scores) // len(scores) if scores else None
    unit[_Y_AT : _M + 1] = at, id, y, quality, len(newest)


def split_items(
    outcomes: Sequence[Row], declared: DeclaredKeys
) -> tuple[Sequence[Row], Sequence[Row]]:
    """The outcomes of whole units, and those of items."""
    if not declared.items:
        return outcomes, ()
    items = [row for row in outcomes if row[0] in declared.items]
    return [row for row in outcomes if row[0] not in declared.items], items


def _of(names: dict[str, Unit], name: str, at: int) -> Unit:
    """The unit of this name, its span widened to `at`: what adding events does in line."""
    unit = names.get(name)
    if unit is None:
        unit = names[name] = _unseen(at)
    else:
        _widen(unit, at)
    return unit


def _unseen(at: int) -> Unit:
    return [
        None, None, None, None, 0, 0, None, None, None, None, 0, 0, None, None, None, None, None,
        at, at,
    ]  # fmt: skip


def _widen(unit: Unit, at: int) -> None:
    unit[_FIRST_AT] = min(at, unit[_FIRST_AT])
    unit[_LAST_AT] = max(at, unit[_LAST_AT])


def arm_of(unit: Unit) -> int | None:
    """The arm that a unit counts in; None before its exposure."""
    b_at, c_at = unit[_AT], unit[_C]
    if b_at is None:
        return None if c_at is None else 1
    if c_at is None or b_at < c_at:
        return 0
    return 0 if b_at == c_at and unit[_ID] < unit[_C + _ID] else 1


def moved_at(unit: Unit) -> int | None:
    """When the other arm first served the unit: outcomes from then on do not count."""
    b_at, c_at = unit[_AT], unit[_C]
    return None if b_at is None or c_at is None else max(b_at, c_at)


def is_stale(unit: Unit) -> bool:
    """Whether the unit's move turns out to be before the outcome that is kept of it."""
    moved = moved_at(unit)
    return moved is not None and unit[_Y_AT] is not None and unit[_Y_AT] >= moved


def forget_outcome(unit: Unit) -> None:
    """As if no outcome had come: before they are taken in again."""
    unit[_Y_AT : _M + 1] = None, None, None, None, None


def span_of(unit: Unit) -> tuple[int, int]:
    """The instants of the first and the last raw event of a unit."""
    return unit[_FIRST_AT], unit[_LAST_AT]


def has_exposure(unit: Unit) -> bool:
    """Whether any exposure of a unit is known."""
    return unit[_AT] is not None or unit[_C] is not None


def may_have_outcome(unit: Unit) -> bool:
    """Whether any outcome of a unit may be known: one that is not counted leaves no trace."""
    return unit[_Y_AT] is not None or moved_at(unit) is not None


COUNTS: Final = ("exposed", "exposed_tokens", "exposed_cost", "n", "n_q")
SUMS: Final = ("y", "yy", "c", "cc", "cy", "t", "tt", "yt", "ct", "q", "qq")
DECLARED_SUMS: Final = ("m", "mm", "ym", "x", "xx", "xy")
UNKNOWN_SUMS: Final = ("n_uc", "y_uc", "yy_uc", "n_uu", "t_uu", "tt_uu", "c_uu", "cc_uu")
COLUMNS: Final = COUNTS + SUMS + DECLARED_SUMS + UNKNOWN_SUMS
_UNDECLARED: Final = (0,) * len(DECLARED_SUMS)
_ALL_KNOWN: Final = (0,) * len(UNKNOWN_SUMS)


@dataclass(slots=True)
class Rollups:
    """Differences to the rollups, or the rollups themselves: `cells` by key and column."""

    cells: dict[CellKey, list[int]] = field(default_factory=dict)
    engagement: Counter[tuple[CellKey, int]] = field(default_factory=Counter)
    requests: dict[tuple[CellKey, int], list[int]] = field(default_factory=dict)

    def add_units(self, units: Units, sign: int, declared: DeclaredKeys = NOTHING) -> None:
        """Add (`sign` 1) or take away (-1) what units add to their cells."""
        bucket = partial(bisect_left, ENGAGEMENT_NANO_EDGES)  # `bucket_of_outcome`, a call less
        for subject, names in units.items():
            if subject in declared:
                self._add_declared(subject, names, sign, declared)
                continue
            together: dict[tuple[int, int, int], list[tuple[Any, ...]]] = defaultdict(list)
            for unit in names.values():
                arm = arm_of(unit)
                if arm is not None:
                    at, _, phase, _, tokens, cost = unit[_ARM * arm : _ARM * arm + _ARM]
                    added = (tokens, cost, unit[_Y], unit[_QUALITY])
                    together[at // HOUR_US, phase, arm].append(added)
            for (hour, phase, arm), added_up in together.items():
                plain, unknown = _sums(added_up)
                sums = [sign * value for value in (*plain, *_UNDECLARED, *unknown)]
                shape = Counter(map(bucket, [y for _, _, y, _ in added_up if y is not None]))
                for stretch in (hour, day_of(hour)):
                    self._add((subject, stretch, phase, arm), sums, shape, sign)

    def _add_declared(
        self, subject: int, names: dict[str, Unit], sign: int, declared: DeclaredKeys
    ) -> None:
        """The same for units of subjects that declare how they are counted."""
        together: dict[tuple[int, int, int], list[tuple[Any, ...]]] = defaultdict(list)
        for unit in names.values():
            arm = arm_of(unit)
            if arm is not None:
                at, _, phase, x, tokens, cost = unit[_ARM * arm : _ARM * arm + _ARM]
                m = unit[_M] or 0
                known = (x or 0) if subject in declared.covariates else 0
                y = declared.counted(subject, arm, unit[_Y])
                added = (tokens, cost, y, unit[_QUALITY], m, known)
                together[at // HOUR_US, phase, arm].append(added)
        for (hour, phase, arm), added_up in together.items():
            measured = [unit for unit in added_up if unit[2] is not None]
            plain, unknown = _sums([unit[:4] for unit in added_up])
            sums = [sign * value for value in (*plain, *_declared_sums(measured), *unknown)]
            shape = Counter(bucket_of_outcome(unit[2], unit[4]) for unit in measured)
            for stretch in (hour, day_of(hour)):
                self._add((subject, stretch, phase, arm), sums, shape, sign)

    def _add(self, key: CellKey, sums: list[int], shape: Counter[int], sign: int) -> None:
        cell = self.cells.get(key)
        self.cells[key] = sums if cell is None else [a + b for a, b in zip(cell, sums, strict=True)]
        for bucket, n in shape.items():
            self.engagement[key, bucket] += sign * n

    def add_requests(self, exposures: Iterable[Row]) -> None:
        """Count requests."""
        hours: dict[tuple[int, int, int, int, int], list[int]] = {}
        for subject, _, _, phase, arm, at, _, latency_us, error, _, _, _, _ in exposures:
            bucket = NO_LATENCY if latency_us is None else bisect_left(LATENCY_US_EDGES, latency_us)
            place = (subject, at // HOUR_US, phase, arm, bucket)
            counts = hours.get(place)
            if counts is None:
                counts = hours[place] = [0, 0, 0]
            counts[0] += 1
            counts[1] += error
            counts[2] += latency_us or 0
        for (subject, hour, phase, arm, bucket), counts in hours.items():
            for stretch in (hour, day_of(hour)):
                key = ((subject, stretch, phase, arm), bucket)
                before = self.requests.get(key, (0, 0, 0))
                self.requests[key] = [a + b for a, b in zip(before, counts, strict=True)]

    def without_zeros(self) -> Rollups:
        """The same, without entries that change nothing."""
        return Rollups(
            cells={k: v for k, v in self.cells.items() if any(v)},
            engagement=Counter({k: v for k, v in self.engagement.items() if v}),
            requests={k: v for k, v in self.requests.items() if any(v)},
        )


def _sums(units: list[tuple[Any, ...]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The columns of a cell over units as (tokens, cost, y, quality), and its unknown sums."""
    tokens, cost, _, _ = zip(*units, strict=True)
    if min(tokens) >= 0 and min(cost) >= 0:
        return _known_sums(units), _ALL_KNOWN
    known = [(max(tokens, 0), max(cost, 0), *rest) for tokens, cost, *rest in units]
    return _known_sums(known), _unknown_sums([unit for unit in units if unit[2] is not None])


def _known_sums(units: list[tuple[Any, ...]]) -> tuple[int, ...]:
    """The columns of a cell over units of which all is known, or that add 0 where it is not."""
    exposed = len(units)
    tokens, cost, ys, _ = zip(*units, strict=True)
    counts = (exposed, sum(tokens), sum(cost))
    if None in ys:
        units = [unit for unit in units if unit[2] is not None]
        if not units:
            return (*counts, *(0,) * (len(COUNTS + SUMS) - len(counts)))
    t, c, y, quality = zip(*units, strict=True)
    q = [value for value in quality if value is not None]
    return (
        *counts, len(y), len(q),
        sum(y), _dot(y, y), sum(c), _dot(c, c), _dot(c, y),
        sum(t), _dot(t, t), _dot(y, t), _dot(c, t), sum(q), _dot(q, q),
    )  # fmt: skip


def _unknown_sums(units: list[tuple[Any, ...]]) -> tuple[int, ...]:
    """The sums of units with an outcome whose cost, or whose tokens or cost, are unknown."""
    y = [y for _, cost, y, _ in units if cost < 0]
    partly = [(max(t, 0), max(c, 0)) for t, c, _, _ in units if t < 0 or c < 0]
    t, c = [tokens for tokens, _ in partly], [cost for _, cost in partly]
    return len(y), sum(y), _dot(y, y), len(partly), sum(t), _dot(t, t), sum(c), _dot(c, c)


def _declared_sums(units: list[tuple[Any, ...]]) -> tuple[int, ...]:
    """The sums of items and covariates over units with an outcome."""
    if not units:
        return _UNDECLARED
    _, _, y, _, m, x = zip(*units, strict=True)
    return sum(m), _dot(m, m), _dot(y, m), sum(x), _dot(x, x), _dot(x, y)


def _dot(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(map(mul, a, b))
