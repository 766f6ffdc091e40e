"""What one unit adds to the rollups: the arithmetic that keeps them up, in one place.

All integers, so that adding and taking away is exact and no order of arrival shows. Both
databases go through it, and so does the recount that they are held to.

A unit counts once, in the phase and arm of its first exposure (earliest `at`, then `id`). Its
outcome is the newest one (latest `at`, then `id`) from before it was first served by the other
arm. Its tokens and cost are those of all its exposures in the arm that it counts in.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import mul
from typing import Any, Final

from tuneproof.stats.aggregates import ENGAGEMENT_EDGES, LATENCY_MS_EDGES

__all__ = [
    "COLUMNS",
    "COUNTS",
    "ENGAGEMENT_NANO_EDGES",
    "EXPOSURE_COLUMNS",
    "LATENCY_US_EDGES",
    "NANO",
    "NO_LATENCY",
    "OUTCOME_COLUMNS",
    "UNIT_COLUMNS",
    "CellKey",
    "Rollups",
    "Row",
    "Unit",
    "Units",
    "arm_of",
    "bucket_of_latency",
    "bucket_of_outcome",
    "day_of",
    "forget_outcome",
    "is_stale",
    "moved_at",
    "show",
    "span_of",
    "tell",
    "was_shown",
    "was_told",
]

NANO: Final = 1_000_000_000
"""Outcomes, qualities and dollars are kept in billionths."""

HOUR_US: Final = 3_600_000_000

ENGAGEMENT_NANO_EDGES: Final = tuple(round(edge * NANO) for edge in ENGAGEMENT_EDGES)
LATENCY_US_EDGES: Final = tuple(round(edge * 1000) for edge in LATENCY_MS_EDGES)

NO_LATENCY: Final = -1
"""The bucket of requests whose latency nobody measured."""

CellKey = tuple[int, int, int, int]
"""Subject's key, hour, phase, arm (0 baseline, 1 candidate)."""

Row = Sequence[Any]
"""A raw event in the order of its table's columns."""

Unit = list[Any]
"""A unit's row in its table, after the key: a list, since it is read, changed and written whole."""

Units = defaultdict[int, dict[str, Unit]]
"""Units by their subject's key and their name."""

EXPOSURE_COLUMNS: Final = (
    "subject", "unit", "id", "phase", "arm", "at", "task", "latency_us", "error", "tokens",
    "cost_nano", "attributes",
)  # fmt: skip
OUTCOME_COLUMNS: Final = ("subject", "unit", "id", "at", "y", "quality")
UNIT_COLUMNS: Final = (
    "b_at", "b_id", "b_phase", "b_tokens", "b_cost", "c_at", "c_id", "c_phase", "c_tokens",
    "c_cost", "y_at", "y_id", "y", "quality", "first_at", "last_at",
)  # fmt: skip
"""A unit's row after its key."""

# The places in a unit's row: five columns for each arm, the outcome that counts, and the span
# that all its raw events lie in.
_ARM: Final = 5
_C: Final = _ARM
_AT, _ID, _, _TOKENS, _COST = range(_ARM)
_Y_AT, _Y_ID, _Y, _QUALITY = range(2 * _ARM, 2 * _ARM + 4)
_FIRST_AT, _LAST_AT = range(2 * _ARM + 4, 2 * _ARM + 6)


def day_of(hour: int) -> int:
    """The key under which a whole day is summed, beside its hours: negative, so none is both."""
    return -(hour // 24) - 1


def bucket_of_outcome(nano: int) -> int:
    """The place of an outcome in the engagement histogram."""
    return bisect_left(ENGAGEMENT_NANO_EDGES, nano)


def bucket_of_latency(micros: int | None) -> int:
    """The place of a latency in the latency histogram; -1 where it is not known."""
    return NO_LATENCY if micros is None else bisect_left(LATENCY_US_EDGES, micros)


def show(units: Units, exposures: Iterable[Row]) -> None:
    """Take exposures into their units, which are made where they are absent."""
    for subject, name, id, phase, arm, at, _, _, _, tokens, cost, _ in exposures:
        unit = _of(units[subject], name, at)
        place = _ARM * arm
        known = unit[place]
        if known is None or at < known or (at == known and id < unit[place + _ID]):
            unit[place : place + _TOKENS] = at, id, phase
        unit[place + _TOKENS] += tokens
        unit[place + _COST] += cost


def tell(units: Units, outcomes: Iterable[Row]) -> None:
    """Take outcomes into their units; one counts if it is the newest from before the move.

    The exposures that came with them are to be shown first.
    """
    for subject, name, id, at, y, quality in outcomes:
        unit = _of(units[subject], name, at)
        b_at, c_at = unit[_AT], unit[_C]
        if b_at is not None and c_at is not None and at >= b_at and at >= c_at:
            continue
        known = unit[_Y_AT]
        if known is None or at > known or (at == known and id > unit[_Y_ID]):
            unit[_Y_AT : _QUALITY + 1] = at, id, y, quality


def _of(names: dict[str, Unit], name: str, at: int) -> Unit:
    """The unit of this name, its span widened to `at`."""
    unit = names.get(name)
    if unit is None:
        unit = names[name] = [None, None, None, 0, 0, None, None, None, 0, 0]
        unit += (None, None, None, None, at, at)
    elif at < unit[_FIRST_AT]:
        unit[_FIRST_AT] = at
    elif at > unit[_LAST_AT]:
        unit[_LAST_AT] = at
    return unit


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
    unit[_Y_AT : _QUALITY + 1] = None, None, None, None


def span_of(unit: Unit) -> tuple[int, int]:
    """The instants of the first and the last raw event of a unit."""
    return unit[_FIRST_AT], unit[_LAST_AT]


def was_shown(unit: Unit) -> bool:
    """Whether any exposure of a unit is known."""
    return unit[_AT] is not None or unit[_C] is not None


def was_told(unit: Unit) -> bool:
    """Whether any outcome of a unit may be known: one that is not counted leaves no trace."""
    return unit[_Y_AT] is not None or moved_at(unit) is not None


COUNTS: Final = ("exposed", "exposed_tokens", "exposed_cost", "n", "n_q")
SUMS: Final = ("y", "yy", "c", "cc", "cy", "t", "tt", "yt", "ct", "q", "qq")
COLUMNS: Final = COUNTS + SUMS


@dataclass(slots=True)
class Rollups:
    """Differences to the rollups, or the rollups themselves: `cells` by key and column."""

    cells: dict[CellKey, list[int]] = field(default_factory=dict)
    engagement: Counter[tuple[CellKey, int]] = field(default_factory=Counter)
    requests: dict[tuple[CellKey, int], list[int]] = field(default_factory=dict)

    def add_units(self, units: Units, sign: int) -> None:
        """Add (`sign` 1) or take away (-1) what units add to their cells."""
        for subject, names in units.items():
            together: dict[tuple[int, int, int], list[tuple[Any, ...]]] = defaultdict(list)
            for unit in names.values():
                arm = arm_of(unit)
                if arm is not None:
                    at, _, phase, tokens, cost = unit[_ARM * arm : _ARM * arm + _ARM]
                    added = (tokens, cost, unit[_Y], unit[_QUALITY])
                    together[at // HOUR_US, phase, arm].append(added)
            for (hour, phase, arm), added_up in together.items():
                sums = [sign * value for value in _sums(added_up)]
                shape = Counter(bucket_of_outcome(y) for _, _, y, _ in added_up if y is not None)
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
        for subject, _, _, phase, arm, at, _, latency_us, error, *_ in exposures:
            place = (subject, at // HOUR_US, phase, arm, bucket_of_latency(latency_us))
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


def _sums(units: list[tuple[Any, ...]]) -> tuple[int, ...]:
    """The columns of a cell over units given as (tokens, cost, y, quality)."""
    exposed = len(units)
    tokens, cost, ys, _ = zip(*units, strict=True)
    counts = (exposed, sum(tokens), sum(cost))
    if None in ys:
        units = [unit for unit in units if unit[2] is not None]
        if not units:
            return (*counts, *(0,) * (len(COLUMNS) - len(counts)))
    t, c, y, quality = zip(*units, strict=True)
    q = [value for value in quality if value is not None]
    return (
        *counts, len(y), len(q),
        sum(y), _dot(y, y), sum(c), _dot(c, c), _dot(c, y),
        sum(t), _dot(t, t), _dot(y, t), _dot(c, t), sum(q), _dot(q, q),
    )  # fmt: skip


def _dot(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(map(mul, a, b))
