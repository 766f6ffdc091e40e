"""Events into SQLite: read the touched units, reckon in Python, write them back.

The transaction holds the write lock from its start (`BEGIN IMMEDIATE`), so nothing changes
between the reading and the writing. Keys go in as one JSON array a query.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from tuneproof.store.declared import NOTHING, DeclaredKeys
from tuneproof.store.sums import (
    COLUMNS,
    COUNTS,
    EXPOSURE_COLUMNS,
    OUTCOME_COLUMNS,
    UNIT_COLUMNS,
    Rollups,
    Row,
    Units,
    add_exposures,
    add_item_outcomes,
    add_outcomes,
    forget_outcome,
    is_stale,
    split_items,
    widen_spans,
)
from tuneproof.workflow import Tx

__all__ = ["ingest"]

Key = tuple[Any, ...]

_CHUNK: Final = 20_000
_BIG: Final = {"exposed_tokens", "exposed_cost"} | (set(COLUMNS) - set(COUNTS))
_CELL: Final = ("subject", "hour", "phase", "arm")


def _insert(table: str, columns: Sequence[str], verb: str = "INSERT") -> str:
    marks = ", ".join("?" * len(columns))
    return f"{verb} INTO {table} ({', '.join(columns)}) VALUES ({marks})"


_INSERT_EXPOSURE: Final = _insert("exposures", EXPOSURE_COLUMNS)
_INSERT_OUTCOME: Final = _insert("outcomes", OUTCOME_COLUMNS)
_REPLACE_UNIT: Final = _insert("units", ("subject", "unit", *UNIT_COLUMNS), "INSERT OR REPLACE")
_REPLACE_CELL: Final = _insert("cells", (*_CELL, *COLUMNS), "INSERT OR REPLACE")
_ADD_ENGAGEMENT: Final = (
    _insert("engagement", (*_CELL, "bucket", "n")) + " ON CONFLICT DO UPDATE SET n = n + excluded.n"
)
_ADD_REQUESTS: Final = (
    _insert("requests", (*_CELL, "bucket", "n", "errors", "latency_us"))
    + " ON CONFLICT DO UPDATE SET n = n + excluded.n, errors = errors + excluded.errors, "
    "latency_us = latency_us + excluded.latency_us"
)


async def ingest(
    tx: Tx,
    exposures: Sequence[Row],
    outcomes: Sequence[Row],
    declared: DeclaredKeys = NOTHING,
) -> int:
    """Keep new events and what follows from them; how many were new."""
    exposure_rows = await _new(tx, "exposures", exposures)
    outcome_rows = await _new(tx, "outcomes", outcomes)
    if exposure_rows:
        await tx.exec_driver_sql(_INSERT_EXPOSURE, [_with_json(row) for row in exposure_rows])
    if outcome_rows:
        await tx.exec_driver_sql(_INSERT_OUTCOME, outcome_rows)
    changes = await _change_units(tx, exposure_rows, outcome_rows, declared)
    changes.add_requests(exposure_rows)
    await _apply(tx, changes.without_zeros())
    return len(exposure_rows) + len(outcome_rows)


def _with_json(exposure: Any) -> Any:
    *rest, attributes = exposure
    return exposure if attributes is None else (*rest, json.dumps(attributes))


async def _new(tx: Tx, table: str, rows: Sequence[Row]) -> list[Any]:
    by_key: dict[Any, Any] = {}
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
    tx: Tx, exposures: Sequence[Row], outcomes: Sequence[Row], declared: DeclaredKeys
) -> Rollups:
    touched: dict[Key, None] = dict.fromkeys(
        (*((r[0], r[1]) for r in exposures), *((r[0], r[1]) for r in outcomes))
    )
    units = await _load(tx, touched)
    changes = Rollups()
    changes.add_units(units, -1, declared)
    add_exposures(units, exposures)
    whole, items = split_items(outcomes, declared)
    add_outcomes(units, whole)
    widen_spans(units, items)
    await _look_back(tx, units, declared)
    changes.add_units(units, 1, declared)
    if touched:
        rows = [(subject, name, *units[subject][name]) for subject, name in touched]
        await tx.exec_driver_sql(_REPLACE_UNIT, rows)
    return changes


async def _load(tx: Tx, keys: Iterable[Key]) -> Units:
    units: Units = defaultdict(dict)
    for chunk in _chunks(keys):
        found = await _rows(
            tx,
            f"SELECT subject, unit, {', '.join(UNIT_COLUMNS)} FROM json_each(?) j JOIN units u "
            "ON u.subject = j.value->>0 AND u.unit = j.value->>1",
            chunk,
        )
        for subject, name, *unit in found:
            units[subject][name] = unit
    return units


async def _look_back(tx: Tx, units: Units, declared: DeclaredKeys) -> None:
    """Where the move to the other arm turns out to be before the outcome, find the one before;
    where items are declared, count all of them anew."""
    stale: list[Key] = []
    for subject, names in units.items():
        for name, unit in names.items():
            if subject in declared.items or is_stale(unit):
                forget_outcome(unit)
                stale.append((subject, name))
    for chunk in _chunks(stale):
        found = await _rows(
            tx,
            f"SELECT {', '.join(f'o.{name}' for name in OUTCOME_COLUMNS)} FROM json_each(?) j "
            "JOIN outcomes o ON o.subject = j.value->>0 AND o.unit = j.value->>1",
            chunk,
        )
        whole, items = split_items(found, declared)
        add_outcomes(units, whole)
        add_item_outcomes(units, items)


async def _apply(tx: Tx, changes: Rollups) -> None:
    await _apply_cells(tx, changes)
    if changes.engagement:
        rows: list[Key] = [(*key, bucket, n) for (key, bucket), n in changes.engagement.items()]
        await tx.exec_driver_sql(_ADD_ENGAGEMENT, rows)
    if changes.requests:
        rows = [(*key, bucket, *counts) for (key, bucket), counts in changes.requests.items()]
        await tx.exec_driver_sql(_ADD_REQUESTS, rows)


async def _apply_cells(tx: Tx, changes: Rollups) -> None:
    """Add to the cells here: SQLite's integers are too short for the sums, which are text."""
    sums = dict(changes.cells)
    for keys in _chunks(changes.cells):
        found = await _rows(
            tx,
            f"SELECT {', '.join((*_CELL, *COLUMNS))} FROM json_each(?) j JOIN cells c "
            "ON (c.subject, c.hour, c.phase, c.arm) = "
            "(j.value->>0, j.value->>1, j.value->>2, j.value->>3)",
            keys,
        )
        for row in found:
            key = tuple(row[:4])
            sums[key] = [int(a) + b for a, b in zip(row[4:], sums[key], strict=True)]
    if sums:
        await tx.exec_driver_sql(
            _REPLACE_CELL, [(*key, *_stored(row)) for key, row in sums.items()]
        )


def _stored(values: Iterable[int]) -> list[int | str]:
    return [
        str(value) if name in _BIG else value for name, value in zip(COLUMNS, values, strict=True)
    ]


async def _rows(tx: Tx, query: str, keys: list[Any]) -> list[Any]:
    return list((await tx.exec_driver_sql(query, (json.dumps(keys),))).tuples())


def _chunks(keys: Iterable[Any]) -> Iterator[list[Any]]:
    everything = list(keys)
    for start in range(0, len(everything), _CHUNK):
        yield everything[start : start + _CHUNK]
