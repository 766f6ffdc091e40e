"""Events into PostgreSQL: COPY into temporary tables, then a fixed list of set statements.

Safe when many ingest at once: all lock in the same order (exposures, outcomes, units, cells,
histograms; each sorted by key), and a unit is read after it is locked. The sums are those of
`sums.py`, in SQL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from tuneproof.store.sums import (
    ENGAGEMENT_NANO_EDGES,
    HOUR_US,
    LATENCY_US_EDGES,
    NO_LATENCY,
)
from tuneproof.store.tables import SUMS

__all__ = ["ingest"]

_EXPOSURE_TYPES: Final = (
    "int8", "text", "text", "int4", "int2", "int8", "text", "int8", "bool", "int8", "int8", "text",
)  # fmt: skip
_OUTCOME_TYPES: Final = ("int8", "text", "text", "int8", "int8", "int8")

_STAGE: Final = """
CREATE TEMP TABLE IF NOT EXISTS in_exposures (
    subject int8, unit text COLLATE "C", id text COLLATE "C", phase int4, arm int2, at int8,
    task text, latency_us int8, error bool, tokens int8, cost_nano int8, attributes text
) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS in_outcomes (
    subject int8, unit text COLLATE "C", id text COLLATE "C", at int8, y int8, quality int8
) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS in_seen (
    subject int8, unit text COLLATE "C", arm int2, at int8, id text COLLATE "C", phase int4,
    tokens int8, cost int8
) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS in_told (
    subject int8, unit text COLLATE "C", at int8, id text COLLATE "C", y int8, quality int8
) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS in_requests (
    subject int8, hour int4, phase int4, arm int2, bucket int4, n int8, errors int8,
    latency_us int8
) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS in_blank (LIKE units) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS in_fresh (LIKE units) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS in_before (LIKE units) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS in_after (LIKE units) ON COMMIT DELETE ROWS
"""


def _bucket(column: str, edges: Sequence[int]) -> str:
    # width_bucket counts the thresholds at or below a value; a bucket ends at its edge.
    thresholds = ",".join(str(edge + 1) for edge in edges)
    return f"width_bucket({column}, ARRAY[{thresholds}]::int8[])"


_KEEP_EXPOSURES: Final = f"""
WITH fresh AS (
    INSERT INTO exposures
    SELECT subject, unit, id, phase, arm, at, task, latency_us,
        error, tokens, cost_nano, attributes::jsonb
    FROM in_exposures ORDER BY subject, unit, id
    ON CONFLICT DO NOTHING
    RETURNING subject, unit, id, phase, arm, at, latency_us, error, tokens, cost_nano
), counted AS (
    INSERT INTO in_requests
    SELECT subject, at / {HOUR_US}, phase, arm,
        COALESCE({_bucket("latency_us", LATENCY_US_EDGES)}, {NO_LATENCY}),
        count(*), count(*) FILTER (WHERE error), COALESCE(sum(latency_us), 0)
    FROM fresh GROUP BY 1, 2, 3, 4, 5
), seen AS (
    INSERT INTO in_seen
    SELECT DISTINCT ON (subject, unit, arm) subject, unit, arm, at, id, phase,
        sum(tokens) OVER w, sum(cost_nano) OVER w
    FROM fresh
    WINDOW w AS (PARTITION BY subject, unit, arm)
    ORDER BY subject, unit, arm, at, id
)
SELECT count(*) FROM fresh
"""

_KEEP_OUTCOMES: Final = """
WITH fresh AS (
    INSERT INTO outcomes
    SELECT subject, unit, id, at, y, quality
    FROM in_outcomes ORDER BY subject, unit, id
    ON CONFLICT DO NOTHING
    RETURNING subject, unit, id, at, y, quality
), told AS (
    INSERT INTO in_told
    SELECT DISTINCT ON (subject, unit) subject, unit, at, id, y, quality
    FROM fresh ORDER BY subject, unit, at DESC, id DESC
)
SELECT count(*) FROM fresh
"""

_BLANK_UNITS: Final = """
INSERT INTO in_blank (subject, unit, b_tokens, b_cost, c_tokens, c_cost)
SELECT subject, unit, 0, 0, 0, 0 FROM in_seen UNION SELECT subject, unit, 0, 0, 0, 0 FROM in_told
"""

# Most units are new: they are written once, whole. Those that exist are locked and changed.
_MAKE_UNITS: Final = """
WITH made AS (
    INSERT INTO units SELECT * FROM in_fresh ORDER BY subject, unit
    ON CONFLICT DO NOTHING RETURNING *
)
INSERT INTO in_after SELECT * FROM made
"""

_LOCK_UNITS: Final = """
INSERT INTO in_before
SELECT u.* FROM units u JOIN in_blank t ON u.subject = t.subject AND u.unit = t.unit
WHERE NOT EXISTS (
    SELECT FROM in_after a WHERE a.subject = t.subject AND a.unit = t.unit
)
ORDER BY u.subject, u.unit FOR UPDATE OF u
"""

# Which arm a unit counts in; a row comparison with NULL falls through to 1, as it should.
_ARM: Final = """CASE WHEN b_at IS NULL AND c_at IS NULL THEN NULL
    WHEN c_at IS NULL OR (b_at, b_id) < (c_at, c_id) THEN 0 ELSE 1 END"""


def _newer(table: str, arm: str, name: str) -> str:
    """An arm's first exposure: the batch's where it is earlier than the one that is known."""
    earlier = f"u.{arm}_at IS NULL OR ({table}.at, {table}.id) < (u.{arm}_at, u.{arm}_id)"
    return f"CASE WHEN {earlier} THEN {table}.{name} ELSE u.{arm}_{name} END AS {arm}_{name}"


def _arm_columns(arm: str) -> str:
    first = ", ".join(_newer(arm, arm, name) for name in ("at", "id", "phase"))
    tokens = f"u.{arm}_tokens + COALESCE({arm}.tokens, 0) AS {arm}_tokens"
    return f"{first}, {tokens}, u.{arm}_cost + COALESCE({arm}.cost, 0) AS {arm}_cost"


def _outcome(name: str, kept: str) -> str:
    """The outcome that counts: looked up again where the unit moved, else the newest."""
    newer = "m.y_at IS NULL OR (o.at, o.id) > (m.y_at, m.y_id)"
    return (
        f"CASE WHEN m.moved_at IS NOT NULL THEN back.{name} "
        f"WHEN {newer} THEN o.{name} ELSE m.{kept} END"
    )


def _reckon(before: str, after: str) -> str:
    """What becomes of the units in `before` by the new events."""
    outcome = (("at", "y_at"), ("id", "y_id"), ("y", "y"), ("quality", "quality"))
    return f"""
INSERT INTO {after}
WITH merged AS (
    SELECT u.subject, u.unit, {_arm_columns("b")}, {_arm_columns("c")},
        u.y_at, u.y_id, u.y, u.quality
    FROM {before} u
    LEFT JOIN in_seen b ON b.subject = u.subject AND b.unit = u.unit AND b.arm = 0
    LEFT JOIN in_seen c ON c.subject = u.subject AND c.unit = u.unit AND c.arm = 1
), moved AS (
    SELECT m.*, CASE {_ARM} WHEN 0 THEN c_at WHEN 1 THEN b_at END AS moved_at FROM merged m
)
SELECT m.subject, m.unit, m.b_at, m.b_id, m.b_phase, m.b_tokens, m.b_cost,
    m.c_at, m.c_id, m.c_phase, m.c_tokens, m.c_cost,
    {", ".join(_outcome(name, kept) for name, kept in outcome)}
FROM moved m
LEFT JOIN in_told o ON o.subject = m.subject AND o.unit = m.unit
LEFT JOIN LATERAL (
    SELECT r.at, r.id, r.y, r.quality FROM outcomes r
    WHERE m.moved_at IS NOT NULL AND r.subject = m.subject AND r.unit = m.unit
        AND r.at < m.moved_at
    ORDER BY r.at DESC, r.id DESC LIMIT 1
) back ON m.moved_at IS NOT NULL
"""


_RECKON_NEW: Final = _reckon("in_blank", "in_fresh")
_RECKON_KNOWN: Final = _reckon("in_before", "in_after")

_UNIT_COLUMNS: Final = (
    "b_at", "b_id", "b_phase", "b_tokens", "b_cost", "c_at", "c_id", "c_phase", "c_tokens",
    "c_cost", "y_at", "y_id", "y", "quality",
)  # fmt: skip

_WRITE_UNITS: Final = f"""
UPDATE units u SET {", ".join(f"{name} = a.{name}" for name in _UNIT_COLUMNS)}
FROM in_after a JOIN in_before USING (subject, unit)
WHERE u.subject = a.subject AND u.unit = a.unit
"""

_SIGNED: Final = f"""
SELECT sign, subject, (CASE arm WHEN 0 THEN b_at ELSE c_at END) / {HOUR_US} AS hour,
    CASE arm WHEN 0 THEN b_phase ELSE c_phase END AS phase, arm,
    CASE arm WHEN 0 THEN b_tokens ELSE c_tokens END AS t,
    CASE arm WHEN 0 THEN b_cost ELSE c_cost END AS c, y, quality AS q
FROM (
    SELECT -1 AS sign, {_ARM} AS arm, u.* FROM in_before u
    UNION ALL SELECT 1, {_ARM}, u.* FROM in_after u
) x WHERE arm IS NOT NULL
"""

_FITS: Final = 3_037_000_499  # the square still fits into 64 bits


def _sum(name: str) -> str:
    """The signed sum of one variable or of a product of two, over units with an outcome."""
    if len(name) == 1:
        only = "WHERE y IS NOT NULL"
        return f"COALESCE(sum(sign * {name}) FILTER ({only}), 0) AS {name}"
    a, b = name[0], name[1]
    big = f"greatest(abs({a}), abs({b})) > {_FITS}"
    return (
        f"COALESCE(sum(sign * {a} * {b}) FILTER (WHERE y IS NOT NULL AND NOT {big}), 0) + "
        f"COALESCE(sum(sign * {a}::numeric * {b}) FILTER (WHERE y IS NOT NULL AND {big}), 0) "
        f"AS {name}"
    )


_CELL_COLUMNS: Final = ("exposed", "exposed_tokens", "exposed_cost", "n", "n_q", *SUMS)

_DAY: Final = "-(hour / 24) - 1"  # `sums.day_of`

_WRITE_CELLS: Final = f"""
INSERT INTO cells (subject, hour, phase, arm, {", ".join(_CELL_COLUMNS)})
WITH hours AS (
    SELECT subject, hour, phase, arm, sum(sign) AS exposed, sum(sign * t) AS exposed_tokens,
        sum(sign * c) AS exposed_cost, COALESCE(sum(sign) FILTER (WHERE y IS NOT NULL), 0) AS n,
        COALESCE(sum(sign) FILTER (WHERE q IS NOT NULL), 0) AS n_q,
        {", ".join(_sum(name) for name in SUMS)}
    FROM ({_SIGNED}) s GROUP BY subject, hour, phase, arm
), days AS (
    SELECT subject, {_DAY} AS hour, phase, arm,
        {", ".join(f"sum({name}) AS {name}" for name in _CELL_COLUMNS)}
    FROM hours GROUP BY 1, 2, 3, 4
)
SELECT * FROM (SELECT * FROM hours UNION ALL SELECT * FROM days) d
WHERE ({", ".join(_CELL_COLUMNS)}) <> ({", ".join("0" for _ in _CELL_COLUMNS)})
ORDER BY subject, hour, phase, arm
ON CONFLICT (subject, hour, phase, arm) DO UPDATE
SET {", ".join(f"{name} = cells.{name} + excluded.{name}" for name in _CELL_COLUMNS)}
"""

_WRITE_ENGAGEMENT: Final = f"""
INSERT INTO engagement (subject, hour, phase, arm, bucket, n)
WITH hours AS (
    SELECT subject, hour, phase, arm, {_bucket("y", ENGAGEMENT_NANO_EDGES)} AS bucket,
        sum(sign) AS n
    FROM ({_SIGNED}) s WHERE y IS NOT NULL GROUP BY 1, 2, 3, 4, 5 HAVING sum(sign) <> 0
)
SELECT * FROM hours
UNION ALL SELECT subject, {_DAY}, phase, arm, bucket, sum(n) FROM hours
GROUP BY 1, 2, 3, 4, 5 HAVING sum(n) <> 0
ORDER BY 1, 2, 3, 4, 5
ON CONFLICT (subject, hour, phase, arm, bucket) DO UPDATE SET n = engagement.n + excluded.n
"""

_WRITE_REQUESTS: Final = f"""
INSERT INTO requests
SELECT * FROM in_requests
UNION ALL SELECT subject, {_DAY}, phase, arm, bucket, sum(n), sum(errors), sum(latency_us)
FROM in_requests GROUP BY 1, 2, 3, 4, 5
ORDER BY 1, 2, 3, 4, 5
ON CONFLICT (subject, hour, phase, arm, bucket) DO UPDATE SET n = requests.n + excluded.n,
    errors = requests.errors + excluded.errors,
    latency_us = requests.latency_us + excluded.latency_us
"""


async def ingest(
    tx: AsyncConnection, exposures: Sequence[tuple[Any, ...]], outcomes: Sequence[tuple[Any, ...]]
) -> int:
    """Keep new events and what follows from them; how many were new."""
    raw = (await tx.get_raw_connection()).driver_connection
    assert raw is not None
    async with raw.cursor() as cursor:
        await cursor.execute(_STAGE)
        new: int = 0
        if exposures:
            await _copy(cursor, "in_exposures", _EXPOSURE_TYPES, _once(exposures))
            await cursor.execute(_KEEP_EXPOSURES)
            new += (await cursor.fetchone())[0]
        if outcomes:
            await _copy(cursor, "in_outcomes", _OUTCOME_TYPES, _once(outcomes))
            await cursor.execute(_KEEP_OUTCOMES)
            new += (await cursor.fetchone())[0]
        if not new:
            return 0
        await cursor.execute(_BLANK_UNITS)
        touched = cursor.rowcount
        await cursor.execute(_RECKON_NEW)
        await cursor.execute(_MAKE_UNITS)
        if cursor.rowcount < touched:
            await cursor.execute(_LOCK_UNITS)
            await cursor.execute(_RECKON_KNOWN)
            await cursor.execute(_WRITE_UNITS)
        for statement in (_WRITE_CELLS, _WRITE_ENGAGEMENT, _WRITE_REQUESTS):
            await cursor.execute(statement)
    return int(new)


def _once(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The first row of each event, sorted by key: then PostgreSQL's own sort has nothing to do."""
    first: dict[Any, tuple[Any, ...]] = {}
    for row in rows:
        first.setdefault(row[:3], row)
    return [first[key] for key in sorted(first)]


async def _copy(cursor: Any, table: str, types: Sequence[str], rows: Sequence[Any]) -> None:
    async with cursor.copy(f"COPY {table} FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(types)
        for row in rows:
            await copy.write_row(row)
