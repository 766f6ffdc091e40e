"""Units by an attribute of their exposures: read from the raw events, for exploring.

Rollups know no attributes, so this reads units: slower than a look (a second for a million
units), and never what a verdict needs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Integer, and_, bindparam, case, cast, func, or_, select, type_coerce
from sqlalchemy.types import Double, Text

from tuneproof.experiments import Arm, Cell
from tuneproof.stats.aggregates import SUMS, Aggregate
from tuneproof.store.declared import NOTHING, DeclaredKeys
from tuneproof.store.sums import HOUR_US, NANO
from tuneproof.store.tables import exposures, units
from tuneproof.store.types import hour_of
from tuneproof.workflow import Tx

__all__ = ["LARGEST", "read_segments"]

LARGEST: Final = 50
"""Only this many values of an attribute are shown: those with the most units."""

_ARMS: Final = (Arm.BASELINE, Arm.CANDIDATE)


async def read_segments(
    tx: Tx,
    subject: int,
    before: datetime | None,
    attributes: Sequence[str],
    declared: DeclaredKeys = NOTHING,
) -> dict[tuple[str, str], tuple[Cell, ...]]:
    """The cells of each (attribute, value): units with an outcome, y engagement; m items and x
    covariate where they are declared. Costs are not read: segments are judged by engagement.

    A unit has the attributes of its first exposure, which decides its arm too.
    """
    found: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for attribute in attributes:
        for row in await tx.execute(_query(tx, subject, before, attribute, declared)):
            found[attribute, str(row.value)].append(_cell(row))
    kept: dict[tuple[str, str], tuple[Cell, ...]] = {}
    for attribute in attributes:
        mine = {key: cells for key, cells in found.items() if key[0] == attribute}
        largest = sorted(mine, key=lambda key: (-sum(c.units.n for c in mine[key]), key))
        kept |= {key: tuple(mine[key]) for key in largest[:LARGEST]}
    return kept


def _query(
    tx: Tx,
    subject: int,
    before: datetime | None,
    attribute: str,
    declared: DeclaredKeys,
) -> Any:
    u, e = units.c, exposures.c
    baseline = or_(
        u.c_at.is_(None),
        and_(u.b_at.is_not(None), or_(u.b_at < u.c_at, and_(u.b_at == u.c_at, u.b_id < u.c_id))),
    )
    arm = case((baseline, 0), else_=1)
    first = case((baseline, u.b_id), else_=u.c_id)
    at = case((baseline, u.b_at), else_=u.c_at)
    known = case((baseline, u.b_x), else_=u.c_x)
    name = bindparam("attribute", attribute, Text)
    if tx.dialect.name == "sqlite":
        value = func.json_extract(type_coerce(e.attributes, Text), '$."' + name + '"')
    else:
        value = func.jsonb_extract_path_text(e.attributes, name)
    inner = (
        select(
            cast(value, Text).label("value"),
            cast(case((baseline, u.b_phase), else_=u.c_phase), Integer).label("phase"),
            arm.label("arm"),
            (cast(_counted(subject, arm, declared), Double) / NANO).label("y"),
            cast(func.coalesce(u.m, 0), Double).label("m"),
            (cast(func.coalesce(known, 0), Double) / NANO).label("x"),
        )
        .join_from(units, exposures, and_(e.subject == u.subject, e.unit == u.unit, e.id == first))
        .where(u.subject == subject, value.is_not(None))
    )
    if not declared.absent_counts(subject, 0):
        whole = u.y.is_not(None)
        inner = inner.where(or_(whole, arm == 1) if declared.absent_counts(subject, 1) else whole)
    if before is not None:
        inner = inner.where(at < hour_of(before) * HOUR_US)
    part = inner.subquery("part").c
    keys = (part.value, part.phase, part.arm)
    sums = {
        "sum_y": part.y,
        "sum_yy": part.y * part.y,
    }
    if subject in declared.items:
        sums |= {"sum_m": part.m, "sum_mm": part.m * part.m, "sum_ym": part.y * part.m}
    if subject in declared.covariates:
        sums |= {"sum_x": part.x, "sum_xx": part.x * part.x, "sum_xy": part.x * part.y}
    return (
        select(*keys, func.count().label("n"), *(func.sum(x).label(k) for k, x in sums.items()))
        .group_by(*keys)
        .order_by(*keys)
    )


def _counted(subject: int, arm: Any, declared: DeclaredKeys) -> Any:
    """What a unit's outcome counts, as `DeclaredKeys.counted` says."""
    y: Any = units.c.y
    cap = declared.caps.get(subject)
    if cap is not None:
        y = case((y > cap, cap), else_=y)
    return func.coalesce(y, 0) if subject in declared.absent else y


def _cell(row: Any) -> Cell:
    sums: dict[str, Any] = {
        name: float(value) for name, value in row._mapping.items() if name in SUMS
    }
    return Cell(
        phase=row.phase,
        arm=_ARMS[row.arm],
        units=Aggregate(n=row.n, **sums),
        exposed=row.n,
    )
