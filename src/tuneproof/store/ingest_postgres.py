"""Events into PostgreSQL: the touched units are locked, reckoned in Python, and written by COPY.

A unit's row is what makes its events exactly-once: whoever takes in an event of a unit has first
made that row or locked it. So events of a unit that nobody knew are new without looking, and go
straight into the partitions of their days; events of a known unit are looked for by subject, unit
and id, on any day between the unit's first and last event. The same id on another day is thus the
same event, although the key of a partitioned table must hold the day.

Safe when many ingest at once: all lock in the same order (units that exist, units that are made,
cells, histograms; each sorted by key). Who finds that another made a unit in between gives back
what it locked and begins again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from psycopg.errors import CheckViolation, UniqueViolation

from tuneproof.store.declared import NOTHING, DeclaredKeys
from tuneproof.store.partitions import DAY_US, DayMissingError
from tuneproof.store.sums import (
    COLUMNS,
    EXPOSURE_AT,
    EXPOSURE_COLUMNS,
    OUTCOME_AT,
    OUTCOME_COLUMNS,
    UNIT_COLUMNS,
    Rollups,
    Row,
    Units,
    add_exposures,
    add_item_outcomes,
    add_outcomes,
    forget_outcome,
    has_exposure,
    is_stale,
    may_have_outcome,
    moved_at,
    span_of,
    split_items,
    widen_spans,
)
from tuneproof.workflow import Tx

__all__ = ["ingest"]

_TYPES: Final = {
    "exposures": (
        "int8", "text", "text", "int4", "int2", "int8", "text", "int8", "bool", "int8", "int8",
        "int8", "jsonb",
    ),
    "outcomes": ("int8", "text", "text", "int8", "int8", "int8", "text"),
    "units": (
        "int8", "text", "int8", "text", "int4", "int8", "int8", "int8", "int8", "text", "int4",
        "int8", "int8", "int8", "int8", "text", "int8", "int8", "int8", "int8", "int8",
    ),
    "in_keys": ("int8", "text"),
    "in_spans": ("int2", "int4", "int8", "text", "text", "int8", "int8"),
    "in_cells": ("int8", "int4", "int4", "int2", *("numeric",) * len(COLUMNS)),
    "in_engagement": ("int8", "int4", "int4", "int2", "int4", "int8"),
    "in_requests": ("int8", "int4", "int4", "int2", "int4", "int8", "int8", "int8"),
}  # fmt: skip
_TYPES["in_units"] = _TYPES["units"]

_CELL: Final = ("subject", "hour", "phase", "arm")
_COLUMNS: Final = {
    "exposures": EXPOSURE_COLUMNS,
    "outcomes": OUTCOME_COLUMNS,
    "units": ("subject", "unit", *UNIT_COLUMNS),
    "in_units": ("subject", "unit", *UNIT_COLUMNS),
    "in_keys": ("subject", "unit"),
    "in_spans": ("use", "place", "subject", "unit", "id", "first_at", "last_at"),
    "in_cells": (*_CELL, *COLUMNS),
    "in_engagement": (*_CELL, "bucket", "n"),
    "in_requests": (*_CELL, "bucket", "n", "errors", "latency_us"),
}
_COPY: Final = {
    table: f"COPY {table} ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)"
    for table, columns in _COLUMNS.items()
}

# Compiling a query takes longer than any of these runs.
_STAGE: Final = f"""
SET LOCAL jit = off;
CREATE TEMP TABLE IF NOT EXISTS in_keys (subject int8, unit text COLLATE "C") ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS in_spans (
    use int2, place int4, subject int8, unit text COLLATE "C", id text COLLATE "C",
    first_at int8, last_at int8
) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS in_units (LIKE units) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS in_cells (
    subject int8, hour int4, phase int4, arm int2, {", ".join(f"{n} numeric" for n in COLUMNS)}
) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS in_engagement (LIKE engagement) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS in_requests (LIKE requests) ON COMMIT DELETE ROWS;
"""
_STAGED: Final = ("in_keys", "in_spans", "in_units", "in_cells", "in_engagement", "in_requests")
# A transaction may have taken in events before.
_PREPARE: Final = _STAGE + ";".join(f"DELETE FROM {table}" for table in _STAGED)

# A lateral query is never turned into a scan of the whole table, whatever is known of its size.
_LOCK_UNITS: Final = f"""
SELECT u.* FROM (SELECT * FROM in_keys ORDER BY subject, unit) k CROSS JOIN LATERAL (
    SELECT {", ".join(_COLUMNS["units"])} FROM units
    WHERE units.subject = k.subject AND units.unit = k.unit FOR UPDATE
) u
"""

# `in_spans` holds the exposures that are looked for (use 0), the outcomes (1), the units whose
# last outcome is looked for (2), and those that all are looked for of (3).
_KNOWN_EVENTS: Final = """
SELECT s.place FROM in_spans s CROSS JOIN LATERAL (
    SELECT FROM {table} e
    WHERE e.subject = s.subject AND e.unit = s.unit AND e.id = s.id
        AND e.at >= s.first_at AND e.at <= s.last_at AND e.at >= %s AND e.at <= %s
    LIMIT 1
) known
WHERE s.use = {use}
"""

# The newest outcome from before a unit's move.
_OUTCOMES_BEFORE: Final = """
SELECT s.subject, s.unit, o.id, o.at, o.y, o.quality, o.item FROM in_spans s CROSS JOIN LATERAL (
    SELECT id, at, y, quality, item FROM outcomes e
    WHERE e.subject = s.subject AND e.unit = s.unit
        AND e.at >= s.first_at AND e.at < s.last_at AND e.at >= %s AND e.at < %s
    ORDER BY e.at DESC, e.id DESC LIMIT 1
) o
WHERE s.use = 2
"""

_ITEM_OUTCOMES: Final = """
SELECT s.subject, s.unit, o.id, o.at, o.y, o.quality, o.item FROM in_spans s CROSS JOIN LATERAL (
    SELECT id, at, y, quality, item FROM outcomes e
    WHERE e.subject = s.subject AND e.unit = s.unit
        AND e.at >= s.first_at AND e.at <= s.last_at AND e.at >= %s AND e.at <= %s
) o
WHERE s.use = 3
"""

_WRITE_UNITS: Final = f"""
INSERT INTO units ({", ".join(_COLUMNS["units"])})
SELECT {", ".join(_COLUMNS["units"])} FROM in_units
ON CONFLICT (subject, unit) DO UPDATE
SET {", ".join(f"{name} = excluded.{name}" for name in UNIT_COLUMNS)}
"""


def _add_up(table: str, key: Sequence[str], values: Sequence[str]) -> str:
    columns = ", ".join((*key, *values))
    return f"""
INSERT INTO {table} ({columns}) SELECT {columns} FROM in_{table} ORDER BY {", ".join(key)}
ON CONFLICT ({", ".join(key)}) DO UPDATE
SET {", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in values)}
"""


_WRITE_CELLS: Final = _add_up("cells", _CELL, COLUMNS)
_WRITE_ENGAGEMENT: Final = _add_up("engagement", (*_CELL, "bucket"), ("n",))
_WRITE_REQUESTS: Final = _add_up("requests", (*_CELL, "bucket"), ("n", "errors", "latency_us"))


async def ingest(
    tx: Tx,
    exposures: Sequence[Row],
    outcomes: Sequence[Row],
    declared: DeclaredKeys = NOTHING,
) -> int:
    """Keep new events and what follows from them; how many were new.

    Raises `DayMissingError` where the partition of an event's day was dropped: `tx` has to end.
    """
    raw = (await tx.get_raw_connection()).driver_connection
    assert raw is not None
    exposures, outcomes = _once(exposures), _once(outcomes)
    try:
        async with raw.cursor() as cursor:
            await cursor.execute(_PREPARE)
            return await _Batch(cursor, declared).take(exposures, outcomes)
    except CheckViolation as error:  # no partition for a row
        instants = [row[EXPOSURE_AT] for row in exposures] + [row[OUTCOME_AT] for row in outcomes]
        days = {at // DAY_US for at in instants}
        raise DayMissingError(days, dropped=True) from error


class _Batch:
    """Events on their way in, on one connection."""

    def __init__(self, cursor: Any, declared: DeclaredKeys) -> None:
        self._cursor = cursor
        self._declared = declared

    async def take(self, exposures: Sequence[Row], outcomes: Sequence[Row]) -> int:
        fresh: Units = defaultdict(dict)
        add_exposures(fresh, exposures)
        whole, items = split_items(outcomes, self._declared)
        add_outcomes(fresh, whole)
        add_item_outcomes(fresh, items)
        known = await self._claim(fresh)
        if known:
            exposures = await self._unknown("exposures", exposures, known)
            outcomes = await self._unknown("outcomes", outcomes, known)
        if not exposures and not outcomes:
            return 0
        changes = Rollups()
        await self._copy("exposures", exposures, lambda: changes.add_requests(exposures))
        made = _without(fresh, known)
        await self._copy("outcomes", outcomes, lambda: changes.add_units(made, 1, self._declared))
        if known:
            await self._change(known, exposures, outcomes, changes)
        await self._apply(changes.without_zeros())
        return len(exposures) + len(outcomes)

    async def _claim(self, units: Units) -> Units:
        """Lock the units that exist and write the others; those that exist, as they are."""
        ordered = [(subject, name) for subject in sorted(units) for name in sorted(units[subject])]
        await self._copy("in_keys", ordered)
        while True:
            await self._cursor.execute("SAVEPOINT claim")
            known: Units = defaultdict(dict)
            for subject, name, *unit in await self._read(_LOCK_UNITS):
                known[subject][name] = unit
            made = [
                (subject, name, *units[subject][name])
                for subject, name in ordered
                if name not in known[subject]
            ]
            try:
                await self._copy("units", made)
            except UniqueViolation:  # another made one in between: now it can be locked
                await self._cursor.execute("ROLLBACK TO claim")
                continue
            await self._cursor.execute("RELEASE claim")
            return defaultdict(dict, {subject: names for subject, names in known.items() if names})

    async def _unknown(self, table: str, rows: Sequence[Row], known: Units) -> Sequence[Row]:
        """The events that are not yet kept."""
        use, has = (0, has_exposure) if table == "exposures" else (1, may_have_outcome)
        spans = [
            (use, place, row[0], row[1], row[2], *span_of(unit))
            for place, row in enumerate(rows)
            if (unit := known[row[0]].get(row[1])) is not None and has(unit)
        ]
        found = await self._within(_KNOWN_EVENTS.format(table=table, use=use), spans)
        kept = {place for (place,) in found}
        return [row for place, row in enumerate(rows) if place not in kept] if kept else rows

    async def _change(
        self, known: Units, exposures: Sequence[Row], outcomes: Sequence[Row], changes: Rollups
    ) -> None:
        """Take new events of units that were known into those."""
        exposure_rows, outcome_rows = _of(known, exposures), _of(known, outcomes)
        touched: Units = defaultdict(dict)
        for subject, name, *_ in (*exposure_rows, *outcome_rows):
            touched[subject][name] = known[subject][name]
        changes.add_units(touched, -1, self._declared)
        add_exposures(touched, exposure_rows)
        whole, items = split_items(outcome_rows, self._declared)
        add_outcomes(touched, whole)
        widen_spans(touched, items)
        await self._look_back(touched)
        changes.add_units(touched, 1, self._declared)
        rows = [
            (subject, name, *unit)
            for subject, names in touched.items()
            for name, unit in names.items()
        ]
        await self._copy("in_units", rows)
        await self._cursor.execute(_WRITE_UNITS)

    async def _look_back(self, units: Units) -> None:
        """Where the move to the other arm turns out to be before the outcome, find one before;
        where items are declared, count all of them anew."""
        stale: list[Row] = []
        counted: list[Row] = []
        for subject, names in units.items():
            if subject in self._declared.items:
                counted += [(3, 0, subject, name, "", *span_of(u)) for name, u in names.items()]
                continue
            for name, unit in names.items():
                if is_stale(unit):
                    forget_outcome(unit)
                    stale.append((2, 0, subject, name, "", span_of(unit)[0], moved_at(unit)))
        add_outcomes(units, await self._within(_OUTCOMES_BEFORE, stale))
        add_item_outcomes(units, await self._within(_ITEM_OUTCOMES, counted))

    async def _within(self, query: str, spans: Sequence[Row]) -> Sequence[Row]:
        """What a query finds in the spans, planned for the days that they lie in."""
        if not spans:
            return []
        await self._copy("in_spans", spans)
        edges = (min(span[5] for span in spans), max(span[6] for span in spans))
        return await self._read(query, edges)

    async def _apply(self, changes: Rollups) -> None:
        cells = [(*key, *values) for key, values in changes.cells.items()]
        shapes = [(*key, bucket, n) for (key, bucket), n in changes.engagement.items()]
        requests = [(*key, bucket, *counts) for (key, bucket), counts in changes.requests.items()]
        for table, rows, statement in (
            ("in_cells", cells, _WRITE_CELLS),
            ("in_engagement", shapes, _WRITE_ENGAGEMENT),
            ("in_requests", requests, _WRITE_REQUESTS),
        ):
            if rows:
                await self._copy(table, rows)
                await self._cursor.execute(statement)

    async def _read(self, query: str, values: Sequence[Any] = ()) -> Sequence[Row]:
        await self._cursor.execute(query, values, binary=True)
        found: Sequence[Row] = await self._cursor.fetchall()
        return found

    async def _copy(
        self, table: str, rows: Sequence[Row], meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Write rows; `meanwhile` is done once all are sent, while PostgreSQL still takes them."""
        if not rows:
            meanwhile()
            return
        async with self._cursor.copy(_COPY[table]) as copy:
            copy.set_types(_TYPES[table])
            encoded = copy.formatter.write_row  # `copy.write_row` without a coroutine a row
            for row in rows:
                if data := encoded(row):
                    await copy.write(data)
            meanwhile()


def _once(rows: Sequence[Row]) -> Sequence[Row]:
    """The first row of each event."""
    first = {row[:3]: row for row in reversed(rows)}
    return rows if len(first) == len(rows) else list(reversed(first.values()))


def _of(units: Units, rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row[1] in units.get(row[0], ())]


def _without(units: Units, known: Units) -> Units:
    """The units that are not among the known ones."""
    rest: Units = defaultdict(dict)
    for subject, names in units.items():
        taken = known.get(subject, {})
        rest[subject] = {n: u for n, u in names.items() if n not in taken} if taken else names
    return rest
