"""Reading the rollups: what a look needs, from a few hundred rows whatever the traffic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Select,
    Table,
    Text,
    and_,
    case,
    cast,
    false,
    func,
    or_,
    select,
)

from tuneproof.experiments import Arm, HourRequests, Requests
from tuneproof.stats.aggregates import (
    ENGAGEMENT_EDGES,
    LATENCY_MS_EDGES,
    Aggregate,
    Histogram,
)
from tuneproof.store.declared import read_declared
from tuneproof.store.sums import (
    EXPOSURE_COLUMNS,
    HOUR_US,
    LATENCY_US_EDGES,
    NANO,
    NO_LATENCY,
    OUTCOME_COLUMNS,
    Rollups,
    Row,
    Units,
    add_exposures,
    add_item_outcomes,
    add_outcomes,
    day_of,
    split_items,
)
from tuneproof.store.tables import (
    DECLARED_SUMS,
    SUMS,
    UNKNOWN_SUMS,
    cells,
    engagement,
    exposures,
    outcomes,
    requests,
)
from tuneproof.store.types import hour_of, to_micros
from tuneproof.workflow import Tx

__all__ = [
    "ARMS",
    "ArmStratum",
    "exposed_days",
    "read_exposed",
    "read_hours",
    "read_looked",
    "read_requests",
    "read_strata",
    "stored_rollups",
]

ARMS: Final = (Arm.BASELINE, Arm.CANDIDATE)
"""An arm's number in the tables is its place here."""

_DOLLARS: Final = NANO
_Sums = dict[tuple[int, int], dict[str, int]]
_COLUMNS: Final = ("exposed", "exposed_tokens", "exposed_cost", "n", "n_q", *SUMS, *UNKNOWN_SUMS)
# The sums' names in an `Aggregate`, and what makes a whole number of ours its unit.
_TO_AGGREGATE: Final = {
    "y": ("sum_y", NANO),
    "yy": ("sum_yy", NANO**2),
    "c": ("sum_c", NANO),
    "cc": ("sum_cc", NANO**2),
    "cy": ("sum_cy", NANO**2),
    "t": ("sum_d", 1),
    "tt": ("sum_dd", 1),
    "yt": ("sum_yd", NANO),
    "ct": ("sum_cd", NANO),
}
# The same of the units whose cost is unknown, and of whose usage something is.
_UNCOSTED: Final = {"y_uc": ("sum_y", NANO), "yy_uc": ("sum_yy", NANO**2)}
_UNMETERED: Final = {
    "t_uu": ("sum_d", 1),
    "tt_uu": ("sum_dd", 1),
    "c_uu": ("sum_c", NANO),
    "cc_uu": ("sum_cc", NANO**2),
}
# Read only where they are declared: everywhere else they are 0.
_DECLARED_COLUMNS: Final = (*_COLUMNS, *DECLARED_SUMS)
_DECLARED_TO_AGGREGATE: Final = {
    "m": ("sum_m", 1),
    "mm": ("sum_mm", 1),
    "ym": ("sum_ym", NANO),
    "x": ("sum_x", NANO),
    "xx": ("sum_xx", NANO**2),
    "xy": ("sum_xy", NANO**2),
}


@dataclass(frozen=True, kw_only=True)
class ArmStratum:
    """One arm in one phase.

    `units` holds the sums over units that have an outcome: y outcome, c cost in USD, d tokens,
    with the engagement histogram. `exposed`, `tokens` and `cost_usd` are over all units that
    were exposed, with an outcome or without; what is unknown of some adds nothing. `quality` is a
    mean over `quality_n` units. `uncosted` and `unmetered` are as in `Cell`.
    """

    phase: int
    arm: Arm
    units: Aggregate
    exposed: int
    tokens: int
    cost_usd: float
    quality: float | None = None
    quality_n: int = 0
    qualities: Aggregate = field(default_factory=Aggregate)
    """y is the quality score."""
    uncosted: Aggregate = field(default_factory=Aggregate)
    unmetered: Aggregate = field(default_factory=Aggregate)


async def read_strata(tx: Tx, subject: int, before: datetime | None) -> list[ArmStratum]:
    """The arms of each phase, of units whose first exposure's hour ended by `before`."""
    declared = await read_declared(tx, subject)
    names = _DECLARED_COLUMNS if declared.sums_more else _COLUMNS
    sums = await _sums(tx, subject, before, names)
    return _strata(sums, await _histograms(tx, subject, before))


async def read_looked(
    tx: Tx,
    subject: int,
    before: datetime | None,
    halfway: datetime | None,
    *,
    declared: bool = False,
) -> tuple[list[ArmStratum], list[ArmStratum], dict[tuple[int, Arm], int]]:
    """What a look needs of the cells: the strata, those before `halfway` (without histograms,
    and none where it is None), and all exposures as `read_exposed` counts them.

    `declared` reads the sums of items and covariates too, which are 0 where none are declared.
    PostgreSQL answers all of it in one query beside the histograms'.
    """
    names = _DECLARED_COLUMNS if declared else _COLUMNS
    if tx.dialect.name == "postgresql":
        sums, first, exposed = await _sums_at(tx, subject, before, halfway, names)
    else:
        sums = await _sums(tx, subject, before, names)
        first = {} if halfway is None else await _sums(tx, subject, halfway, names)
        exposed = await read_exposed(tx, subject, None)
    return _strata(sums, await _histograms(tx, subject, before)), _strata(first, None), exposed


async def _sums_at(
    tx: Tx,
    subject: int,
    before: datetime | None,
    halfway: datetime | None,
    names: Sequence[str],
) -> tuple[_Sums, _Sums, dict[tuple[int, Arm], int]]:
    cuts = [_ended(cells.c.hour, before)]
    if halfway is not None:
        cuts.append(_ended(cells.c.hour, halfway))
    days = cells.c.hour < 0
    query = select(
        cells.c.phase,
        cells.c.arm,
        func.sum(cells.c.exposed).filter(days),
        *(func.sum(cells.c[name]).filter(cut) for cut in cuts for name in names),
    ).where(cells.c.subject == subject, or_(days, *cuts))
    sums: _Sums = {}
    first: _Sums = {}
    exposed: dict[tuple[int, Arm], int] = {}
    size = len(names)
    for phase, arm, n, *values in await tx.execute(query.group_by(cells.c.phase, cells.c.arm)):
        if n:
            exposed[phase, ARMS[arm]] = int(n)
        numbers = [int(value or 0) for value in values]
        for place, found in enumerate((sums, first)[: len(cuts)]):
            part = numbers[place * size : (place + 1) * size]
            found[phase, arm] = dict(zip(names, part, strict=True))
    return sums, first, dict(sorted(exposed.items()))


def _strata(sums: _Sums, shapes: Mapping[tuple[int, int], list[int]] | None) -> list[ArmStratum]:
    return [
        _stratum(phase, arm, row, None if shapes is None else shapes[phase, arm])
        for (phase, arm), row in sorted(sums.items())
        if row["exposed"]
    ]


async def read_exposed(tx: Tx, subject: int, before: datetime | None) -> dict[tuple[int, Arm], int]:
    """How many units were first exposed in each phase and arm, in hours ended by `before`."""
    query = select(cells.c.phase, cells.c.arm, func.sum(cells.c.exposed)).where(
        cells.c.subject == subject, _ended(cells.c.hour, before)
    )
    found = await tx.execute(query.group_by(cells.c.phase, cells.c.arm).order_by("phase", "arm"))
    return {(phase, ARMS[arm]): int(n) for phase, arm, n in found if n}


async def read_requests(
    tx: Tx, subject: int, since: datetime | None, phase: int | None
) -> dict[Arm, Requests]:
    """All requests of each arm from `since` on (exactly) or of one phase.

    The whole hours come from the rollup; the rest of the hour that `since` lies in is counted.
    """
    table = requests
    query = select(
        table.c.arm,
        table.c.bucket,
        func.sum(table.c.n),
        func.sum(table.c.errors),
        func.sum(table.c.latency_us),
    ).where(table.c.subject == subject)
    if phase is not None:
        query = query.where(table.c.phase == phase)
    query = query.where(_follows(table.c.hour, since))
    rows = list(await tx.execute(query.group_by(table.c.arm, table.c.bucket)))
    if since is not None:
        rows += await tx.execute(_rest_of_hour(subject, since, phase))
    return _requests(rows)


async def read_hours(tx: Tx, subject: int) -> tuple[HourRequests, ...]:
    """The requests of both arms in each hour of each phase, oldest first."""
    table = requests
    query = select(
        table.c.hour,
        table.c.phase,
        table.c.arm,
        table.c.bucket,
        table.c.n,
        table.c.errors,
        table.c.latency_us,
    ).where(table.c.subject == subject, table.c.hour >= 0)
    hours: dict[tuple[int, int], list[Any]] = defaultdict(list)
    for hour, phase, *counts in await tx.execute(query.order_by(table.c.hour, table.c.phase)):
        hours[hour, phase].append(counts)
    found = ((phase, _requests(rows)) for (_, phase), rows in hours.items())
    return tuple(
        HourRequests(
            phase=phase,
            baseline=arms.get(Arm.BASELINE, Requests()),
            candidate=arms.get(Arm.CANDIDATE, Requests()),
        )
        for phase, arms in found
    )


async def exposed_days(tx: Tx, subject: int) -> list[ColumnElement[bool]]:
    """What keeps a query of a subject's exposures to the days that have some.

    PostgreSQL then opens no other day's partition; SQLite has none to leave out.
    """
    if tx.dialect.name != "postgresql":
        return []
    query = select(func.min(requests.c.hour), func.max(requests.c.hour)).where(
        requests.c.subject == subject, requests.c.hour < 0
    )
    last, first = (await tx.execute(query)).one()
    if last is None:
        return [false()]
    return [
        exposures.c.at >= (-first - 1) * 24 * HOUR_US,
        exposures.c.at < -last * 24 * HOUR_US,
    ]


def _ended(hour: ColumnElement[int], before: datetime | None) -> ColumnElement[bool]:
    """The stretches that cover all hours ended by `before`: whole days, then hours."""
    if before is None:
        return hour < 0
    end = hour_of(before)
    today = end // 24 * 24
    return or_(and_(hour < 0, hour >= day_of(today - 1)), and_(hour >= today, hour < end))


def _follows(hour: ColumnElement[int], since: datetime | None) -> ColumnElement[bool]:
    """The stretches that cover all hours after that of `since`: hours, then whole days."""
    if since is None:
        return hour < 0
    now = hour_of(since)
    return or_(hour < day_of(now), and_(hour > now, hour < (now // 24 + 1) * 24))


def stored_rollups(rows: Mapping[str, list[Any]]) -> Rollups:
    """The rollups that are kept, as `sums.Rollups`, to be compared with a recount."""
    kept = Rollups()
    for row in rows["cells"]:
        kept.cells[tuple(row[:4])] = [int(value) for value in row[4:]]
    for row in rows["engagement"]:
        kept.engagement[tuple(row[:4]), row[4]] = row[5]
    for row in rows["requests"]:
        kept.requests[(tuple(row[:4]), row[4])] = [int(value) for value in row[5:]]
    return kept.without_zeros()


async def recounted_rollups(tx: Tx, subject: int) -> Rollups:
    """The rollups made anew from all raw events of a subject."""
    declared = await read_declared(tx, subject)
    fresh = Rollups()
    units: Units = defaultdict(dict)
    items: list[Row] = []
    async for exposure_rows in _parts(tx, exposures, EXPOSURE_COLUMNS, subject):
        add_exposures(units, exposure_rows)
        fresh.add_requests(exposure_rows)
    async for outcome_rows in _parts(tx, outcomes, OUTCOME_COLUMNS, subject):
        whole, part = split_items(outcome_rows, declared)
        add_outcomes(units, whole)
        items += part
    add_item_outcomes(units, items)
    fresh.add_units(units, 1, declared)
    return fresh.without_zeros()


async def _parts(
    tx: Tx, table: Table, columns: Sequence[str], subject: int
) -> AsyncIterator[Sequence[Row]]:
    query = select(*(table.c[name] for name in columns)).where(table.c.subject == subject)
    async with tx.stream(query) as rows:
        async for part in rows.partitions(10_000):
            yield part


async def _sums(
    tx: Tx, subject: int, before: datetime | None, names: Sequence[str]
) -> dict[tuple[int, int], dict[str, int]]:
    """The sums of the cells by phase and arm: added by PostgreSQL; SQLite's integers are too
    short for them, so there they are added here."""
    own_sums = tx.dialect.name == "postgresql"
    columns = [func.sum(cells.c[n]) if own_sums else cast(cells.c[n], Text) for n in names]
    query = select(cells.c.phase, cells.c.arm, *columns).where(cells.c.subject == subject)
    query = query.where(_ended(cells.c.hour, before))
    if own_sums:
        query = query.group_by(cells.c.phase, cells.c.arm)
    totals: dict[tuple[int, int], list[int]] = {}
    for phase, arm, *values in await tx.execute(query):
        total = totals.setdefault((phase, arm), [0] * len(names))
        for place, value in enumerate(values):
            total[place] += int(value)
    return {key: dict(zip(names, total, strict=True)) for key, total in totals.items()}


async def _histograms(
    tx: Tx, subject: int, before: datetime | None
) -> dict[tuple[int, int], list[int]]:
    size = len(ENGAGEMENT_EDGES) + 1
    found: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0] * size)
    columns = (engagement.c.phase, engagement.c.arm, engagement.c.bucket)
    query = select(*columns, func.sum(engagement.c.n)).where(
        engagement.c.subject == subject, _ended(engagement.c.hour, before)
    )
    for phase, arm, bucket, n in await tx.execute(query.group_by(*columns)):
        found[phase, arm][bucket] = int(n)
    return found


def _stratum(phase: int, arm: int, row: dict[str, int], shape: list[int] | None) -> ArmStratum:
    units = _TO_AGGREGATE if "m" not in row else _TO_AGGREGATE | _DECLARED_TO_AGGREGATE
    sums = _in_units(row, units)
    return ArmStratum(
        phase=phase,
        arm=ARMS[arm],
        units=Aggregate(
            n=row["n"],
            **sums,
            histogram=None
            if shape is None
            else Histogram(edges=ENGAGEMENT_EDGES, counts=tuple(shape)),
        ),
        exposed=row["exposed"],
        tokens=row["exposed_tokens"],
        cost_usd=row["exposed_cost"] / _DOLLARS,
        quality=row["q"] / NANO / row["n_q"] if row["n_q"] else None,
        quality_n=row["n_q"],
        qualities=Aggregate(n=row["n_q"], sum_y=row["q"] / NANO, sum_yy=row["qq"] / NANO**2),
        uncosted=Aggregate(n=row["n_uc"], **_in_units(row, _UNCOSTED)),
        unmetered=Aggregate(n=row["n_uu"], **_in_units(row, _UNMETERED)),
    )


def _in_units(row: Mapping[str, int], names: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    """Sums of whole numbers as those of an `Aggregate`."""
    return {name: row[ours] / unit for ours, (name, unit) in names.items()}


def _rest_of_hour(subject: int, since: datetime, phase: int | None) -> Select[Any]:
    end = (hour_of(since) + 1) * 3_600_000_000
    table = exposures
    bucket = _latency_bucket(table.c.latency_us).label("bucket")
    query = select(
        table.c.arm,
        bucket,
        func.count(),
        func.sum(case((table.c.error, 1), else_=0)),
        func.coalesce(func.sum(table.c.latency_us), 0),
    ).where(table.c.subject == subject, table.c.at >= to_micros(since), table.c.at < end)
    if phase is not None:
        query = query.where(table.c.phase == phase)
    return query.group_by(table.c.arm, bucket)


def _latency_bucket(column: ColumnElement[Any]) -> ColumnElement[int]:
    places = [(column <= edge, place) for place, edge in enumerate(LATENCY_US_EDGES)]
    return case((column.is_(None), NO_LATENCY), *places, else_=len(LATENCY_US_EDGES))


def _requests(rows: list[Any]) -> dict[Arm, Requests]:
    counts: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    shapes: dict[int, list[int]] = defaultdict(lambda: [0] * (len(LATENCY_US_EDGES) + 1))
    for arm, bucket, n, errors, latency_us in rows:
        known = int(n) if bucket != NO_LATENCY else 0
        for place, value in enumerate((n, errors, latency_us, known)):
            counts[arm][place] += int(value)
        if known:
            shapes[arm][bucket] += known
    edges = tuple(map(float, LATENCY_MS_EDGES))
    return {
        ARMS[arm]: Requests(
            n=n,
            errors=errors,
            latency=Histogram(edges=edges, counts=tuple(shapes[arm])),
            mean_latency_ms=total / known / 1000 if known else None,
        )
        for arm, (n, errors, total, known) in sorted(counts.items())
    }
