"""What one unit adds to the rollups: the arithmetic that keeps them up, in one place.

All integers, so that adding and taking away is exact and no order of arrival shows.
PostgreSQL does the same sums in SQL (`ingest_postgres`); a property test holds them equal.

A unit counts once, in the phase and arm of its first exposure (earliest `at`, then `id`). Its
outcome is the newest one (latest `at`, then `id`) from before it was first served by the other
arm. Its tokens and cost are those of all its exposures in the arm that it counts in.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from tuneproof.stats.aggregates import ENGAGEMENT_EDGES, LATENCY_MS_EDGES

__all__ = [
    "ENGAGEMENT_NANO_EDGES",
    "LATENCY_US_EDGES",
    "NANO",
    "NO_LATENCY",
    "CellKey",
    "Rollups",
    "Seen",
    "Unit",
    "bucket_of_latency",
    "bucket_of_outcome",
    "day_of",
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


def day_of(hour: int) -> int:
    """The key under which a whole day is summed, beside its hours: negative, so none is both."""
    return -(hour // 24) - 1


def bucket_of_outcome(nano: int) -> int:
    """The place of an outcome in the engagement histogram."""
    return bisect_left(ENGAGEMENT_NANO_EDGES, nano)


def bucket_of_latency(micros: int | None) -> int:
    """The place of a latency in the latency histogram; -1 where it is not known."""
    return NO_LATENCY if micros is None else bisect_left(LATENCY_US_EDGES, micros)


@dataclass(slots=True)
class Seen:
    """What is known of a unit in one arm; `at` in microseconds."""

    at: int | None = None
    id: str | None = None
    phase: int | None = None
    tokens: int = 0
    cost: int = 0

    def add(self, at: int, id: str, phase: int, tokens: int, cost: int) -> None:
        """Take in one exposure."""
        if self.at is None or self.id is None or (at, id) < (self.at, self.id):
            self.at, self.id, self.phase = at, id, phase
        self.tokens += tokens
        self.cost += cost


@dataclass(slots=True)
class Unit:
    """All that is known of a unit: its exposures by arm, and the outcome that counts."""

    arms: tuple[Seen, Seen] = field(default_factory=lambda: (Seen(), Seen()))
    y_at: int | None = None
    y_id: str | None = None
    y: int | None = None
    quality: int | None = None

    def first(self) -> tuple[int, Seen] | None:
        """The arm that the unit counts in, with what is known there; None before exposure."""
        known = [(s.at, s.id, arm) for arm, s in enumerate(self.arms) if s.at is not None]
        if not known:
            return None
        arm = min(known)[2]
        return arm, self.arms[arm]

    def moved_at(self) -> int | None:
        """When the other arm first served the unit: outcomes from then on do not count."""
        first = self.first()
        return None if first is None else self.arms[1 - first[0]].at

    def see(self, at: int, id: str, y: int, quality: int | None) -> None:
        """Take in one outcome; it counts if it is the newest from before the move."""
        moved = self.moved_at()
        if moved is not None and at >= moved:
            return
        if self.y_at is None or self.y_id is None or (at, id) > (self.y_at, self.y_id):
            self.y_at, self.y_id, self.y, self.quality = at, id, y, quality

    def forget_outcome(self) -> None:
        """As if no outcome had come: before they are taken in again."""
        self.y_at = self.y_id = self.y = self.quality = None


COUNTS: Final = ("exposed", "exposed_tokens", "exposed_cost", "n", "n_q")
SUMS: Final = ("y", "yy", "c", "cc", "cy", "t", "tt", "yt", "ct", "q", "qq")
COLUMNS: Final = COUNTS + SUMS


@dataclass(slots=True)
class Rollups:
    """Differences to the rollups, or the rollups themselves: `cells` by key and column."""

    cells: dict[CellKey, list[int]] = field(default_factory=dict)
    engagement: Counter[tuple[CellKey, int]] = field(default_factory=Counter)
    requests: dict[tuple[CellKey, int], list[int]] = field(default_factory=dict)

    def add_unit(self, subject: int, unit: Unit, sign: int) -> None:
        """Add (`sign` 1) or take away (-1) what a unit adds to its cell."""
        first = unit.first()
        if first is None:
            return
        arm, seen = first
        assert seen.at is not None
        assert seen.phase is not None
        hour = seen.at // HOUR_US
        values = _contribution(seen, unit)
        for stretch in (hour, day_of(hour)):
            key = (subject, stretch, seen.phase, arm)
            cell = self.cells.setdefault(key, [0] * len(COLUMNS))
            for place, value in enumerate(values):
                cell[place] += sign * value
            if unit.y is not None:
                self.engagement[key, bucket_of_outcome(unit.y)] += sign

    def add_request(self, key: CellKey, error: bool, latency_us: int | None) -> None:
        """Count one request."""
        subject, hour, phase, arm = key
        bucket = bucket_of_latency(latency_us)
        for stretch in (hour, day_of(hour)):
            place = ((subject, stretch, phase, arm), bucket)
            counts = self.requests.setdefault(place, [0, 0, 0])
            counts[0] += 1
            counts[1] += error
            counts[2] += latency_us or 0

    def without_zeros(self) -> Rollups:
        """The same, without entries that change nothing."""
        return Rollups(
            cells={k: v for k, v in self.cells.items() if any(v)},
            engagement=Counter({k: v for k, v in self.engagement.items() if v}),
            requests={k: v for k, v in self.requests.items() if any(v)},
        )


def _contribution(seen: Seen, unit: Unit) -> tuple[int, ...]:
    t, c = seen.tokens, seen.cost
    if unit.y is None:
        return (1, t, c, 0, 0, *(0,) * len(SUMS))
    y, q = unit.y, unit.quality or 0
    n_q = int(unit.quality is not None)
    return (1, t, c, 1, n_q, y, y * y, c, c * c, c * y, t, t * t, y * t, c * t, q, q * q)
