"""Answers that wait to be scored, and what came of them.

A text is queued in the transaction that takes its exposure in, at most one of a unit and task; it
ends as `scored` or as `dropped`, once, and then the text is gone. A unit's quality is the mean of
its tasks' scores, and counts in the phase and arm of its first exposure, as its outcome does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Select, and_, case, delete, func, or_, select, update

from tuneproof.evaluation import Messages, Scored, Text
from tuneproof.experiments import Arm
from tuneproof.stats.aggregates import Aggregate
from tuneproof.store.database import Database
from tuneproof.store.rollups import ARMS
from tuneproof.store.sums import HOUR_US, NANO
from tuneproof.store.tables import scores, scoring_days, subjects, units
from tuneproof.store.types import hour_of, to_micros
from tuneproof.store.upserts import insert_or_ignore, insert_or_ignore_all
from tuneproof.workflow import Tx

__all__ = [
    "ScoreState",
    "Scores",
    "ScoringSpend",
    "Tally",
    "Waiting",
    "forget_scores",
    "read_qualities",
]


class ScoreState(StrEnum):
    """Where a text stands."""

    WAITING = "waiting"  # it is asked about when it is due
    SCORED = "scored"  # it has a score; the text is gone
    DROPPED = "dropped"  # it gets none, for a reason that is kept; the text is gone


Key = tuple[int, str, str]
"""Subject's key, unit, task."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A text that waits for its score; `attempts` counts the calls that gave none."""

    key: Key
    subject: str
    pipeline: str
    attempts: int
    messages: Messages
    text: str


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How many texts of an arm were scored, wait, were dropped; `mean` is over its scores."""

    scored: int = 0
    waiting: int = 0
    dropped: int = 0
    mean: float | None = None
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Why texts were dropped, with how many."""


@dataclass(frozen=True, kw_only=True)
class ScoringSpend:
    """What scoring took on a day: calls made, and USD."""

    calls: int = 0
    cost_usd: float = 0.0


class Scores:
    """The queue of texts to score, with its budget."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, texts: Sequence[Text], at: datetime, *, tx: Tx | None = None) -> int:
        """Queue texts; how many were new. A second one of a unit and task is left out.

        Those of unknown subjects, and of those whose raw events are gone, are left out too.
        """
        async with self._database.writing(tx) as own:
            query = select(subjects.c.id, subjects.c.key).where(
                subjects.c.id.in_({text.subject for text in texts}),
                subjects.c.purged_at.is_(None),
            )
            keys: dict[str, int] = dict((await own.execute(query)).tuples().all())
            rows = [_row(keys[t.subject], t, at) for t in texts if t.subject in keys]
            # In one order everywhere, so that two writers cannot wait for each other.
            rows.sort(key=lambda row: (row["subject"], row["unit"], row["task"]))
            return await insert_or_ignore_all(own, scores, rows)

    async def due(self, now: datetime, *, limit: int = 64, tx: Tx | None = None) -> list[Waiting]:
        """Texts whose time has come, those that waited longest first."""
        query = (
            select(scores, subjects.c.id)
            .join(subjects, subjects.c.key == scores.c.subject)
            .where(scores.c.state == ScoreState.WAITING, scores.c.due_at <= to_micros(now))
            .order_by(scores.c.due_at, scores.c.subject, scores.c.unit, scores.c.task)
            .limit(limit)
        )
        async with self._database.reading(tx) as own:
            rows = (await own.execute(query)).all()
        return [
            Waiting(
                key=(row.subject, row.unit, row.task),
                subject=row.id,
                pipeline=row.pipeline,
                attempts=row.attempts,
                messages=row.messages or (),
                text=row.text or "",
            )
            for row in rows
        ]

    async def pipelines_waiting(self, *, tx: Tx | None = None) -> list[str]:
        """The pipelines of which a text waits, due or not."""
        query = select(scores.c.pipeline).where(scores.c.state == ScoreState.WAITING).distinct()
        async with self._database.reading(tx) as own:
            return sorted((await own.execute(query)).scalars())

    async def finish(
        self,
        key: Key,
        scorer: str,
        found: Scored,
        at: datetime,
        *,
        tx: Tx | None = None,
    ) -> bool:
        """Keep a text's score and forget the text; False where it had ended before."""
        values = {"score": found.value, "scorer": scorer, "reason": found.reason}
        return await self._end(key, ScoreState.SCORED, values, at, tx)

    async def drop(self, key: Key, reason: str, at: datetime, *, tx: Tx | None = None) -> bool:
        """Forget a text that gets no score; False where it had ended before."""
        return await self._end(key, ScoreState.DROPPED, {"reason": reason}, at, tx)

    async def _end(
        self,
        key: Key,
        state: ScoreState,
        values: dict[str, Any],
        at: datetime,
        tx: Tx | None,
    ) -> bool:
        gone = {"messages": None, "text": None, "ended_at": to_micros(at)}
        async with self._database.writing(tx) as own:
            query = update(scores).where(_is(key), scores.c.state == ScoreState.WAITING)
            found = await own.execute(query.values(state=state, **values, **gone))
        return found.rowcount == 1

    async def postpone(
        self,
        key: Key,
        due_at: datetime,
        *,
        failed: bool = False,
        tx: Tx | None = None,
    ) -> None:
        """Try a text again at `due_at`; `failed` counts this as an attempt of its own."""
        more = scores.c.attempts + int(failed)
        async with self._database.writing(tx) as own:
            query = update(scores).where(_is(key), scores.c.state == ScoreState.WAITING)
            await own.execute(query.values(due_at=to_micros(due_at), attempts=more))

    async def postpone_all(self, pipeline: str, due_at: datetime, *, tx: Tx | None = None) -> None:
        """Try no text of a pipeline before `due_at`: its budget is used up."""
        due = to_micros(due_at)
        async with self._database.writing(tx) as own:
            await own.execute(
                update(scores)
                .where(
                    scores.c.state == ScoreState.WAITING,
                    scores.c.pipeline == pipeline,
                    scores.c.due_at < due,
                )
                .values(due_at=due)
            )

    async def expire(
        self,
        pipeline: str,
        before: datetime,
        at: datetime,
        *,
        tx: Tx | None = None,
    ) -> int:
        """Forget a pipeline's texts that have waited since before this instant; how many."""
        gone = {"messages": None, "text": None, "ended_at": to_micros(at)}
        query = update(scores).where(
            scores.c.state == ScoreState.WAITING,
            scores.c.pipeline == pipeline,
            scores.c.queued_at < to_micros(before),
        )
        async with self._database.writing(tx) as own:
            found = await own.execute(
                query.values(state=ScoreState.DROPPED, reason="waited too long", **gone)
            )
        return int(found.rowcount)

    # --- the day's budget -------------------------------------------------------------

    async def reserve(
        self,
        pipeline: str,
        day: str,
        cost_usd: float,
        *,
        max_calls: int,
        max_cost_usd: float | None,
        tx: Tx | None = None,
    ) -> bool:
        """Take one call of at most `cost_usd` from a day's budget; False where it does not fit.

        It is taken before the call is made, so that a kill never leaves a call uncounted.
        """
        nano = round(cost_usd * NANO)
        fits = [scoring_days.c.calls < max_calls]
        if max_cost_usd is not None:
            fits.append(scoring_days.c.cost_nano + nano <= round(max_cost_usd * NANO))
        async with self._database.writing(tx) as own:
            empty = {"pipeline": pipeline, "day": day, "calls": 0, "cost_nano": 0}
            await insert_or_ignore(own, scoring_days, empty)
            taken = await own.execute(
                update(scoring_days)
                .where(_on(pipeline, day), *fits)
                .values(calls=scoring_days.c.calls + 1, cost_nano=scoring_days.c.cost_nano + nano)
            )
        return taken.rowcount == 1

    async def settle(
        self,
        pipeline: str,
        day: str,
        reserved_usd: float,
        cost_usd: float,
        *,
        called: bool = True,
        tx: Tx | None = None,
    ) -> None:
        """Put what a call really cost in place of what was reserved for it."""
        change = round(cost_usd * NANO) - round(reserved_usd * NANO)
        async with self._database.writing(tx) as own:
            await own.execute(
                update(scoring_days)
                .where(_on(pipeline, day))
                .values(
                    calls=scoring_days.c.calls - int(not called),
                    cost_nano=scoring_days.c.cost_nano + change,
                )
            )

    async def spent(self, pipeline: str, day: str, *, tx: Tx | None = None) -> ScoringSpend:
        """What scoring took of a pipeline's budget on a day (UTC, "2026-11-20")."""
        query = select(scoring_days).where(_on(pipeline, day))
        async with self._database.reading(tx) as own:
            row = (await own.execute(query)).one_or_none()
        return (
            ScoringSpend()
            if row is None
            else ScoringSpend(calls=row.calls, cost_usd=row.cost_nano / NANO)
        )

    # --- what came of it --------------------------------------------------------------

    async def tally(self, subject: str, *, tx: Tx | None = None) -> dict[Arm, Tally]:
        """How a subject's texts stand, by arm."""
        query = (
            select(
                scores.c.arm,
                scores.c.state,
                case((scores.c.state == ScoreState.DROPPED, scores.c.reason), else_="").label(
                    "why"
                ),
                func.count(),
                func.avg(scores.c.score),
            )
            .join(subjects, subjects.c.key == scores.c.subject)
            .where(subjects.c.id == subject)
            .group_by("arm", "state", "why")
        )
        async with self._database.reading(tx) as own:
            rows = (await own.execute(query)).all()
        return {arm: _tally([r for r in rows if ARMS[r[0]] is arm]) for arm in ARMS}


def _tally(rows: Sequence[Any]) -> Tally:
    counts: dict[str, int] = defaultdict(int)
    reasons: dict[str, int] = defaultdict(int)
    mean = None
    for _, state, why, n, average in rows:
        counts[state] += n
        if state == ScoreState.DROPPED:
            reasons[why] += n
        mean = float(average) if state == ScoreState.SCORED else mean
    return Tally(
        scored=counts[ScoreState.SCORED],
        waiting=counts[ScoreState.WAITING],
        dropped=counts[ScoreState.DROPPED],
        mean=mean,
        reasons=dict(sorted(reasons.items())),
    )


async def read_qualities(
    tx: Tx, subject: int, before: datetime | None
) -> dict[tuple[int, Arm], Aggregate]:
    """The units' scores by phase and arm, of units first exposed in an hour ended by `before`.

    y is a unit's quality. A text that the other arm wrote, after a move, does not count.
    """
    moved = or_(
        units.c.b_at.is_(None),
        units.c.c_at < units.c.b_at,
        and_(units.c.c_at == units.c.b_at, units.c.c_id < units.c.b_id),
    )
    in_candidate = and_(units.c.c_at.is_not(None), moved)
    first = select(
        scores.c.unit,
        scores.c.arm,
        scores.c.score,
        case((in_candidate, 1), else_=0).label("counts_in"),
        case((in_candidate, units.c.c_phase), else_=units.c.b_phase).label("phase"),
        case((in_candidate, units.c.c_at), else_=units.c.b_at).label("at"),
    ).join(units, and_(units.c.subject == scores.c.subject, units.c.unit == scores.c.unit))
    seen = first.where(scores.c.subject == subject, scores.c.state == ScoreState.SCORED).subquery()
    a_unit = select(seen.c.phase, seen.c.arm, func.avg(seen.c.score).label("q")).where(
        seen.c.arm == seen.c.counts_in, seen.c.at.is_not(None)
    )
    if before is not None:
        a_unit = a_unit.where(seen.c.at < hour_of(before) * HOUR_US)
    means = a_unit.group_by(seen.c.unit, seen.c.phase, seen.c.arm).subquery()
    rows = await tx.execute(_summed(means))
    return {
        (phase, ARMS[arm]): Aggregate(n=n, sum_y=float(q), sum_yy=float(qq))
        for phase, arm, n, q, qq in rows
    }


def _summed(means: Any) -> Select[Any]:
    return (
        select(
            means.c.phase,
            means.c.arm,
            func.count(),
            func.sum(means.c.q),
            func.sum(means.c.q * means.c.q),
        )
        .group_by(means.c.phase, means.c.arm)
        .order_by(means.c.phase, means.c.arm)
    )


async def forget_scores(tx: Tx, subject: int) -> None:
    """Delete all that is kept of a subject's texts."""
    await tx.execute(delete(scores).where(scores.c.subject == subject))


def _is(key: Key) -> Any:
    return and_(scores.c.subject == key[0], scores.c.unit == key[1], scores.c.task == key[2])


def _on(pipeline: str, day: str) -> Any:
    return and_(scoring_days.c.pipeline == pipeline, scoring_days.c.day == day)


def _row(subject: int, text: Text, at: datetime) -> dict[str, Any]:
    now = to_micros(at)
    return {
        "subject": subject,
        "unit": text.unit,
        "task": text.task,
        "pipeline": text.pipeline,
        "arm": ARMS.index(Arm(text.arm)),
        "at": to_micros(text.at),
        "queued_at": now,
        "messages": [dict(message) for message in text.messages],
        "text": text.text,
        "state": ScoreState.WAITING,
        "attempts": 0,
        "due_at": now,
    }
