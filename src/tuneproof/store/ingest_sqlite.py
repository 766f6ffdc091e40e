"""Events into SQLite: read the touched units, reckon in Python, write them back.

The transaction holds the write lock from its start (`BEGIN IMMEDIATE`), so nothing changes
between the reading and the writing. Keys go in as one JSON array a query.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from tuneproof.store.sums import COLUMNS, HOUR_US, Rollups, Seen, Unit
from tuneproof.store.tables import SUMS

__all__ = ["ingest"]

UnitKey = tuple[int, str]
EventKey = tuple[int, str, str]

# Tuples in the order of the tables' columns.
ExposureRow = tuple[Any, ...]
OutcomeRow = tuple[Any, ...]

_CHUNK = 20_000
_BIG = {"exposed_tokens", "exposed_cost", *SUMS}
_UNIT_COLUMNS = (
    "b_at, b_id, b_phase, b_tokens, b_cost, c_at, c_id, c_phase, c_tokens, c_cost, "
    "y_at, y_id, y, quality"
)
_INSERT_EXPOSURE = f"INSERT INTO exposures VALUES ({', '.join('?' * 12)})"
_INSERT_OUTCOME = f"INSERT INTO outcomes VALUES ({', '.join('?' * 6)})"
_REPLACE_UNIT = (
    f"INSERT OR REPLACE INTO units (subject, unit, {_UNIT_COLUMNS}) VALUES ({', '.join('?' * 16)})"
)


async def ingest(
    tx: AsyncConnection, exposures: Sequence[ExposureRow], outcomes: Sequence[OutcomeRow]
) -> int:
    """Keep new events and what follows from them; how many were new."""
    new_exposures = await _new(tx, "exposures", exposures)
    new_outcomes = await _new(tx, "outcomes", outcomes)
    if new_exposures:
        await tx.exec_driver_sql(_INSERT_EXPOSURE, new_exposures)
    if new_outcomes:
        await tx.exec_driver_sql(_INSERT_OUTCOME, new_outcomes)
    changes = await _change_units(tx, new_exposures, new_outcomes)
    for subject, _, _, phase, arm, at, _, latency, error, *_ in new_exposures:
        changes.add_request((subject, at // HOUR_US, phase, arm), bool(error), latency)
    await _apply(tx, changes.without_zeros())
    return len(new_exposures) + len(new_outcomes)


async def _new(tx: AsyncConnection, table: str, rows: Sequence[Any]) -> list[Any]:
    by_key: dict[EventKey, Any] = {}
    for row in rows:  # the first of several with one id counts
        by_key.setdefault(row[:3], row)
    for keys in _chunks(by_key):
        found = await _rows(
            tx,
            f"SELECT e.subject, e.unit, e.id FROM json_each(?) j JOIN {table} e "
            "ON e.subject = j.value->>0 AND e.unit = j.value->>1 AND e.id = j.value->>2",
            keys,
        )
        for row in found:
            del by_key[tuple(row)]
    return list(by_key.values())


async def _change_units(
    tx: AsyncConnection, exposures: Sequence[ExposureRow], outcomes: Sequence[OutcomeRow]
) -> Rollups:
    touched = dict.fromkeys((*(row[:2] for row in exposures), *(row[:2] for row in outcomes)))
    units = await _load(tx, touched)
    changes = Rollups()
    for (subject, _), unit in units.items():
        changes.add_unit(subject, unit, -1)
    for subject, name, id, phase, arm, at, _, _, _, tokens, cost, _ in exposures:
        units[subject, name].arms[arm].add(at, id, phase, tokens, cost)
    for subject, name, id, at, y, quality in outcomes:
        units[subject, name].see(at, id, y, quality)
    await _look_back(tx, units)
    for (subject, _), unit in units.items():
        changes.add_unit(subject, unit, 1)
    if units:
        await tx.exec_driver_sql(_REPLACE_UNIT, [_unit_row(k, u) for k, u in units.items()])
    return changes


async def _load(tx: AsyncConnection, keys: Iterable[UnitKey]) -> dict[UnitKey, Unit]:
    units = {key: Unit() for key in keys}
    for chunk in _chunks(units):
        found = await _rows(
            tx,
            f"SELECT subject, unit, {_UNIT_COLUMNS} FROM json_each(?) j JOIN units u "
            "ON u.subject = j.value->>0 AND u.unit = j.value->>1",
            chunk,
        )
        for row in found:
            rest = row[2:]
            units[row[0], row[1]] = Unit((Seen(*rest[:5]), Seen(*rest[5:10])), *rest[10:])
    return units


async def _look_back(tx: AsyncConnection, units: dict[UnitKey, Unit]) -> None:
    """Where the move to the other arm turns out to be before the outcome, find the one before."""
    stale = [k for k, u in units.items() if _is_stale(u)]
    for key in stale:
        units[key].forget_outcome()
    for chunk in _chunks(stale):
        found = await _rows(
            tx,
            "SELECT o.subject, o.unit, o.at, o.id, o.y, o.quality FROM json_each(?) j "
            "JOIN outcomes o ON o.subject = j.value->>0 AND o.unit = j.value->>1",
            chunk,
        )
        for row in found:
            units[row[0], row[1]].see(*row[2:])


def _is_stale(unit: Unit) -> bool:
    moved = unit.moved_at()
    return moved is not None and unit.y_at is not None and unit.y_at >= moved


def _unit_row(key: UnitKey, unit: Unit) -> tuple[Any, ...]:
    arms = [(s.at, s.id, s.phase, s.tokens, s.cost) for s in unit.arms]
    return (*key, *arms[0], *arms[1], unit.y_at, unit.y_id, unit.y, unit.quality)


async def _apply(tx: AsyncConnection, changes: Rollups) -> None:
    await _apply_cells(tx, changes)
    if changes.engagement:
        await tx.exec_driver_sql(
            "INSERT INTO engagement VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET n = n + excluded.n",
            [(*key, bucket, n) for (key, bucket), n in changes.engagement.items()],
        )
    if changes.requests:
        await tx.exec_driver_sql(
            "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "n = n + excluded.n, errors = errors + excluded.errors, "
            "latency_us = latency_us + excluded.latency_us",
            [(*key, bucket, *counts) for (key, bucket), counts in changes.requests.items()],
        )


async def _apply_cells(tx: AsyncConnection, changes: Rollups) -> None:
    columns = ", ".join(COLUMNS)
    for key, difference in changes.cells.items():
        found = await tx.exec_driver_sql(
            f"SELECT {columns} FROM cells WHERE (subject, hour, phase, arm) = (?, ?, ?, ?)", key
        )
        old = found.one_or_none() or (0,) * len(COLUMNS)
        new = (int(a) + b for a, b in zip(old, difference, strict=True))
        values = [
            str(value) if name in _BIG else value for name, value in zip(COLUMNS, new, strict=True)
        ]
        await tx.exec_driver_sql(
            f"INSERT OR REPLACE INTO cells (subject, hour, phase, arm, {columns}) "
            f"VALUES ({', '.join('?' * (4 + len(COLUMNS)))})",
            (*key, *values),
        )


async def _rows(tx: AsyncConnection, query: str, keys: list[Any]) -> list[Any]:
    return list((await tx.exec_driver_sql(query, (json.dumps(keys),))).tuples())


def _chunks(keys: Iterable[Any]) -> Iterator[list[Any]]:
    everything = list(keys)
    for start in range(0, len(everything), _CHUNK):
        yield everything[start : start + _CHUNK]
