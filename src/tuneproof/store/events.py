"""Exposures and outcomes: taken in once each, kept as sums, read by looks and guardrails.

Ingestion is one transaction: raw events, units and rollups change together or not at all.
Events may come late, twice and in any order; the result does not depend on it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import exists, func, or_, select

from tuneproof.errors import DataError, NotFoundError, StateError, StoreUnavailableError
from tuneproof.experiments import (
    Arm,
    Cell,
    Evidence,
    Exposure,
    HourRequests,
    Ingested,
    Outcome,
    RejectedEvent,
    Requests,
)
from tuneproof.stats.aggregates import Aggregate
from tuneproof.store import ingest_postgres, ingest_sqlite
from tuneproof.store.database import Database
from tuneproof.store.declared import KNOWN, NOTHING, DeclaredKeys
from tuneproof.store.partitions import DayMissingError, Partitions
from tuneproof.store.rollups import (
    ARMS,
    ArmStratum,
    exposed_days,
    read_exposed,
    read_hours,
    read_looked,
    read_requests,
    read_strata,
    recounted_rollups,
    stored_rollups,
)
from tuneproof.store.scores import ScoreState, read_qualities
from tuneproof.store.segments import read_segments
from tuneproof.store.sums import EXPOSURE_AT, NANO, OUTCOME_AT, UNKNOWN, Rollups
from tuneproof.store.tables import (
    cells,
    engagement,
    exposures,
    phases,
    requests,
    scores,
    subjects,
    units,
)
from tuneproof.store.types import from_micros, to_micros
from tuneproof.workflow import Tx

log = logging.getLogger(__name__)

__all__ = ["Events", "RecentRequest"]

_ARM_NUMBERS: Final = {arm: number for number, arm in enumerate(ARMS)}

_NO_SUBJECT: Final = "its subject takes no events: there is none of that id, or they are gone"

MAX_VALUE: Final = 9.0e9
"""Outcomes, qualities and costs up to here fit into 64 bits of billionths."""


@dataclass(frozen=True, kw_only=True)
class RecentRequest:
    """One request, as the breaker for gross failure reads it."""

    at: datetime
    arm: Arm
    error: bool
    latency_ms: float | None


class Events:
    """The events and everything that is summed up from them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._partitions = Partitions(database)

    async def ingest(
        self,
        exposures: Sequence[Exposure] = (),
        outcomes: Sequence[Outcome] = (),
        *,
        now: datetime | None = None,
        tx: Tx | None = None,
    ) -> Ingested:
        """Take in events, all in one transaction.

        An event is known by its subject, unit and id: sent again it changes nothing, also with
        another instant. Events of unknown subjects, and of those whose raw events are gone, are
        refused, named in `unknown`, and the rest is taken. `accepted` counts the new ones. `now`
        is not needed: an event's own instant is what counts.
        Raises `DataError` for an event with a malformed value; then none is taken.
        """
        made: frozenset[int] = frozenset()
        for _ in range(3):
            try:
                async with self._database.writing(tx) as own:
                    return await self._ingest(own, exposures, outcomes, made)
            except DayMissingError as missing:
                if missing.dropped:
                    self._partitions.days.difference_update(missing.days)
                    if tx is not None:
                        break
                else:
                    made = await self._partitions.make(missing.days, tx=tx)
        raise StoreUnavailableError(
            "A day that these events are of was just taken away.", mend="Send them again."
        )

    async def _ingest(
        self,
        tx: Tx,
        exposures: Sequence[Exposure],
        outcomes: Sequence[Outcome],
        made: frozenset[int],
    ) -> Ingested:
        subjects = dict.fromkeys([*(e.subject for e in exposures), *(o.subject for o in outcomes)])
        keys, declared = await _taking(tx, subjects)
        exposure_rows = [_exposure_row(keys[e.subject], e) for e in exposures if e.subject in keys]
        outcome_rows = [_outcome_row(keys[e.subject], e) for e in outcomes if e.subject in keys]
        unknown: tuple[str, ...] = ()
        if len(keys) < len(subjects):
            events: list[Exposure | Outcome] = [*exposures, *outcomes]
            unknown = tuple(event.id for event in events if event.subject not in keys)
        new = 0
        if self._database.dialect == "sqlite":
            new = await ingest_sqlite.ingest(tx, exposure_rows, outcome_rows, declared)
        elif exposure_rows or outcome_rows:
            instants = [row[EXPOSURE_AT] for row in exposure_rows]
            instants += [row[OUTCOME_AT] for row in outcome_rows]
            self._partitions.check(instants, made)
            new = await ingest_postgres.ingest(tx, exposure_rows, outcome_rows, declared)
        return Ingested(
            accepted=new,
            duplicates=len(exposure_rows) + len(outcome_rows) - new,
            unknown=unknown,
            rejected=[RejectedEvent(id=id, reason=_NO_SUBJECT) for id in unknown],
        )

    async def strata(
        self,
        subject: str,
        *,
        before: datetime | None = None,
        tx: Tx | None = None,
    ) -> list[ArmStratum]:
        """Each phase's arms, of units whose first exposure's hour ended by `before`.

        Raises `NotFoundError` for an unknown subject.
        """
        async with self._database.reading(tx) as own:
            return await read_strata(own, await _key(own, subject), before)

    async def exposed(
        self,
        subject: str,
        before: datetime | None = None,
        *,
        tx: Tx | None = None,
    ) -> dict[tuple[int, Arm], int]:
        """How many units were first exposed in each phase and arm: for the split's check."""
        async with self._database.reading(tx) as own:
            return await read_exposed(own, await _key(own, subject), before)

    async def any_exposed(self, *, tx: Tx | None = None) -> bool:
        """Whether any exposure is kept, of any subject."""
        async with self._database.reading(tx) as own:
            return bool((await own.execute(select(exists().select_from(exposures)))).scalar_one())

    async def requests(
        self,
        subject: str,
        *,
        since: datetime | None = None,
        phase: int | None = None,
        tx: Tx | None = None,
    ) -> dict[Arm, Requests]:
        """All requests of each arm, from `since` on or of one phase: n, errors, latencies."""
        async with self._database.reading(tx) as own:
            return await read_requests(own, await _key(own, subject), since, phase)

    async def hours(self, subject: str, *, tx: Tx | None = None) -> tuple[HourRequests, ...]:
        """The requests of both arms in each hour of each phase, oldest first."""
        async with self._database.reading(tx) as own:
            return await read_hours(own, await _key(own, subject))

    async def newest_requests(self, subject: str, *, tx: Tx | None = None) -> dict[int, Requests]:
        """The candidate's requests in a subject's newest phase, under that phase's number."""
        async with self._database.reading(tx) as own:
            query = select(func.max(phases.c.number)).where(phases.c.subject == subject)
            newest = (await own.execute(query)).scalar_one()
            if newest is None:
                return {}
            found = await read_requests(own, await _key(own, subject), None, newest)
        return {newest: found.get(Arm.CANDIDATE, Requests())}

    async def recent(
        self,
        subject: str,
        arm: Arm,
        *,
        limit: int = 20,
        since: datetime | None = None,
        until: datetime | None = None,
        tx: Tx | None = None,
    ) -> list[RecentRequest]:
        """The last requests of an arm (from `since` to `until`), oldest first."""
        table = exposures
        async with self._database.reading(tx) as own:
            key = await _key(own, subject)
            query = select(table.c.at, table.c.error, table.c.latency_us).where(
                table.c.subject == key, table.c.arm == ARMS.index(arm)
            )
            if since is not None:
                query = query.where(table.c.at >= to_micros(since))
            if until is not None:
                query = query.where(table.c.at <= to_micros(until))
            query = query.where(*await exposed_days(own, key))
            query = query.order_by(table.c.at.desc(), table.c.id.desc()).limit(limit)
            found = (await own.execute(query)).all()
        return [
            RecentRequest(
                at=from_micros(at),
                arm=arm,
                error=bool(error),
                latency_ms=None if micros is None else micros / 1000,
            )
            for at, error, micros in reversed(found)
        ]

    async def newest(
        self,
        subject: str,
        *,
        limit: int = 100,
        since: datetime | None = None,
        tx: Tx | None = None,
    ) -> list[Exposure]:
        """The last exposures of a subject (not before `since`), oldest first.

        Raises `NotFoundError` for an unknown subject.
        """
        async with self._database.reading(tx) as own:
            key = await _key(own, subject)
            query = select(exposures).where(exposures.c.subject == key)
            if since is not None:
                query = query.where(exposures.c.at >= to_micros(since))
            query = query.where(*await exposed_days(own, key))
            query = query.order_by(exposures.c.at.desc(), exposures.c.id.desc()).limit(limit)
            found = (await own.execute(query)).all()
        return [_exposure(subject, dict(row._mapping)) for row in reversed(found)]

    async def subjects_of(
        self,
        names: Sequence[str],
        *,
        among: Sequence[str],
        tx: Tx | None = None,
    ) -> list[tuple[str, str]]:
        """Which of these units were exposed in which of these subjects, as (unit, subject)."""
        found: list[tuple[str, str]] = []
        async with self._database.reading(tx) as own:
            keys = {key: id for id, key in (await _keys(own, among)).items()}
            for start in range(0, len(names), 500):
                part = names[start : start + 500]
                query = select(units.c.unit, units.c.subject).where(
                    units.c.subject.in_(keys),
                    units.c.unit.in_(part),
                    or_(units.c.b_at.is_not(None), units.c.c_at.is_not(None)),
                )
                rows = await own.execute(query.order_by(units.c.unit, units.c.subject))
                found += [(unit, keys[key]) for unit, key in rows]
        return found

    async def evidence(
        self,
        subject: str,
        *,
        before: datetime | None = None,
        halfway: datetime | None = None,
        segments: Sequence[str] = (),
        tx: Tx | None = None,
    ) -> Evidence:
        """All that a look is made from: matured units, exposures, shares, requests.

        Exposures of a phase that the subject never had are left out, with a warning.
        `halfway` asks for the units before it as well; `segments` names attributes of the
        exposures to split the units by, which reads units instead of rollups.
        """
        async with self._database.reading(tx) as own:
            key, shares, scored, declared = await _key_and_shares(own, subject)
            seen, first, exposed = await read_looked(
                own, key, before, halfway, declared=declared.sums_more
            )
            qualities = await read_qualities(own, key, before) if scored else None
            found = Evidence(
                cells=tuple(_cell(s, qualities) for s in seen),
                exposed=exposed,
                shares=shares,
                requests=await read_requests(own, key, None, None),
                first_half=tuple(_cell(s) for s in first),
                segments=(
                    await read_segments(own, key, before, segments, declared) if segments else {}
                ),
            )
        return _without_strays(subject, found)

    async def recount(self, subject: str, *, tx: Tx | None = None) -> Rollups:
        """The rollups made anew from the raw events: equal to `stored` unless there is a bug.

        Raises `StateError` where the raw events are gone (`retention_days`).
        """
        async with self._database.reading(tx) as own:
            key = await _key(own, subject)
            if not await _keys(own, [subject], open_only=True):
                raise StateError(
                    f"The raw events of {subject} are gone, so they cannot be counted again.",
                    mend="Nothing is wrong: retention_days says how long they are kept.",
                )
            return await recounted_rollups(own, key)

    async def stored(self, subject: str, *, tx: Tx | None = None) -> Rollups:
        """The rollups as they are stored."""
        async with self._database.reading(tx) as own:
            key = await _key(own, subject)
            rows = {}
            for table in (cells, engagement, requests):
                found = await own.execute(select(table).where(table.c.subject == key))
                rows[table.name] = list(found)
        return stored_rollups(rows)


async def _keys(tx: Tx, ids: Iterable[str], *, open_only: bool = False) -> dict[str, int]:
    wanted = list(dict.fromkeys(ids))
    query = select(subjects.c.id, subjects.c.key)
    if open_only:
        query = query.where(subjects.c.purged_at.is_(None))
    found: dict[str, int] = {}
    for start in range(0, len(wanted), 1000):
        part = query.where(subjects.c.id.in_(wanted[start : start + 1000]))
        found.update((id, key) for id, key in await tx.execute(part))
    return found


def _without_strays(subject: str, evidence: Evidence) -> Evidence:
    """The evidence of the phases that the subject had; units of others are told and left out."""
    shares = evidence.shares
    strays = {at: n for at, n in evidence.exposed.items() if shares and at[0] not in shares}
    if not strays:  # each cell's units were exposed, so none of them is of another phase
        return evidence
    log.warning(
        "%d units of %s were exposed in phase %s, which it never had: they are left out.",
        sum(strays.values()),
        subject,
        ", ".join(str(phase) for phase in sorted({phase for phase, _ in strays})),
    )

    def known(cells: Iterable[Cell]) -> tuple[Cell, ...]:
        return tuple(cell for cell in cells if cell.phase in shares)

    split = {part: known(cells) for part, cells in evidence.segments.items()}
    return replace(
        evidence,
        cells=known(evidence.cells),
        exposed={at: n for at, n in evidence.exposed.items() if at not in strays},
        first_half=known(evidence.first_half),
        segments={part: cells for part, cells in split.items() if cells},
    )


async def _key_and_shares(tx: Tx, subject: str) -> tuple[int, dict[int, float], bool, DeclaredKeys]:
    """The subject's key, each phase's share, whether a text of it was scored, what it declares."""
    scored = exists().where(scores.c.subject == subjects.c.key, scores.c.state == ScoreState.SCORED)
    query = (
        select(*KNOWN, phases.c.number, phases.c.share, scored.label("scored"))
        .outerjoin(phases, phases.c.subject == subjects.c.id)
        .where(subjects.c.id == subject)
    )
    rows = (await tx.execute(query)).all()
    if not rows:
        return await _key(tx, subject), {}, False, NOTHING
    shares = {row.number: row.share for row in rows if row.number is not None}
    declared = DeclaredKeys.of([rows[0][: len(KNOWN)]])
    return rows[0].key, shares, bool(rows[0].scored), declared


async def _taking(tx: Tx, ids: Iterable[str]) -> tuple[dict[str, int], DeclaredKeys]:
    """The keys of the subjects that take events, and what those declare.

    None of them is purged before `tx` ends: they are held.
    """
    wanted = list(dict.fromkeys(ids))
    query = select(subjects.c.id, *KNOWN).where(subjects.c.purged_at.is_(None))
    query = query.with_for_update(read=True)
    found: list[Any] = []
    for start in range(0, len(wanted), 1000):
        part = query.where(subjects.c.id.in_(wanted[start : start + 1000]))
        found += await tx.execute(part)
    return {row[0]: row[1] for row in found}, DeclaredKeys.of(row[1:] for row in found)


async def _key(tx: Tx, subject: str) -> int:
    found = await _keys(tx, [subject])
    if subject not in found:
        raise NotFoundError(
            f"There is no experiment or rollout {subject}.", mend="Check the id.", id=subject
        )
    return found[subject]


def _cell(stratum: ArmStratum, scored: Mapping[tuple[int, Arm], Aggregate] | None = None) -> Cell:
    """A stratum as a look reads it; where texts are scored, the quality is theirs alone."""
    cell = Cell(
        phase=stratum.phase,
        arm=stratum.arm,
        units=stratum.units,
        exposed=stratum.exposed,
        quality=stratum.quality,
        qualities=stratum.qualities,
        uncosted=stratum.uncosted,
        unmetered=stratum.unmetered,
    )
    if scored is None:
        return cell
    found = scored.get((stratum.phase, stratum.arm), Aggregate())
    return replace(cell, qualities=found, quality=found.sum_y / found.n if found.n else None)


def _exposure_row(subject: int, event: Exposure) -> tuple[Any, ...]:
    id, unit, arm = event.id, event.unit, _ARM_NUMBERS.get(event.arm)
    if not (id and unit and (id + unit + event.task).isprintable()):
        _check_names(id, unit, event.task)
    tokens, cost = event.tokens, event.cost_usd
    if (
        event.phase < 0
        or (tokens is not None and tokens < 0)
        or (cost is not None and not 0 <= cost <= MAX_VALUE)
    ):
        raise DataError(
            f"Exposure {event.id!r} has phase={event.phase}, tokens={tokens}, cost_usd={cost}.",
            mend="None of them is negative, and the cost is at most 9e9; leave out what is not "
            "known.",
        )
    if arm is None:
        raise DataError(
            f"Exposure {event.id!r} names the arm {event.arm!r}.",
            mend="There are baseline and candidate.",
        )
    latency = event.latency_ms
    if latency is not None and not 0 <= latency < MAX_VALUE:
        raise DataError(
            f"Exposure {event.id!r} took {latency} ms.", mend="Send None where it is not known."
        )
    return (
        subject,
        unit,
        id,
        event.phase,
        arm,
        to_micros(event.at),
        event.task,
        None if latency is None else round(latency * 1000),
        event.error,
        UNKNOWN if tokens is None else tokens,
        UNKNOWN if cost is None else round(cost * NANO),
        None if event.covariate is None else _covariate(event),
        dict(event.attributes) if event.attributes else None,
    )


def _covariate(event: Exposure) -> int:
    value = event.covariate or 0.0
    if not (math.isfinite(value) and abs(value) <= MAX_VALUE):
        raise DataError(
            f"The covariate of exposure {event.id!r} is {value}.",
            mend="Covariates are finite numbers between -9e9 and 9e9; leave out what is not known.",
        )
    return round(value * NANO)


def _exposure(subject: str, row: Mapping[str, Any]) -> Exposure:
    return Exposure(
        id=row["id"],
        subject=subject,
        phase=row["phase"],
        arm=ARMS[row["arm"]],
        unit=row["unit"],
        at=from_micros(row["at"]),
        task=row["task"],
        latency_ms=None if row["latency_us"] is None else row["latency_us"] / 1000,
        error=bool(row["error"]),
        tokens=None if row["tokens"] == UNKNOWN else row["tokens"],
        cost_usd=None if row["cost_nano"] == UNKNOWN else row["cost_nano"] / NANO,
        attributes=row["attributes"] or {},
        covariate=None if row["covariate"] is None else row["covariate"] / NANO,
    )


def _outcome_row(subject: int, event: Outcome) -> tuple[Any, ...]:
    id, unit, value, quality = event.id, event.unit, event.value, event.quality
    if not (id and unit and (id + unit + event.item).isprintable()):
        _check_names(id, unit, event.item)
    if not -MAX_VALUE <= value <= MAX_VALUE:
        raise _unusable(event, value)
    if quality is not None and not -MAX_VALUE <= quality <= MAX_VALUE:
        raise _unusable(event, quality)
    return (
        subject,
        unit,
        id,
        to_micros(event.at),
        round(value * NANO),
        None if quality is None else round(quality * NANO),
        event.item or None,
    )


def _unusable(event: Outcome, value: float) -> DataError:
    return DataError(
        f"Outcome {event.id!r} of unit {event.unit!r} is {value}.",
        mend="Outcomes are finite numbers between -9e9 and 9e9.",
    )


def _can_be_kept(name: str) -> bool:
    return "\x00" not in name and not any("\ud800" <= c <= "\udfff" for c in name)


def _check_names(*names: str) -> None:
    for name in names:
        if not name.isprintable() and not _can_be_kept(name):
            raise DataError(
                f"The name {name!r} has a character that no database keeps.",
                mend="Leave out NUL and lone surrogates.",
            )
    if not names[0] or not names[1]:
        raise DataError("An event has an empty id or unit.", mend="Give each event both.")
