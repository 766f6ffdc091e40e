"""Experiments, their phases and their looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from tuneproof.errors import ConflictError, DataError, NotFoundError
from tuneproof.experiments import (
    ABTest,
    ArmMetrics,
    Criterion,
    CriterionResult,
    ExpectedLift,
    ExperimentStatus,
    Halves,
    Look,
    Part,
    Segment,
    Spent,
    Variant,
    Verdict,
)
from tuneproof.settings import Declaration
from tuneproof.store.database import Database
from tuneproof.store.paging import Page, page_by_time
from tuneproof.store.rows import to_json_types, to_row
from tuneproof.store.subjects import SubjectKind, add_subject
from tuneproof.store.tables import experiments, looks, phases
from tuneproof.workflow import Tx

__all__ = ["Experiments", "Phase"]

R = TypeVar("R")

_RUNNING = experiments.c.status == str(ExperimentStatus.RUNNING)
"""The guard of each write that a test's end forbids."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of an experiment or a rollout with one fixed share, from `at` on."""

    subject: str
    number: int
    share: float
    at: datetime


class Experiments:
    """The tables of experiments, phases and looks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, test: ABTest, *, tx: Tx | None = None) -> None:
        """Declare an experiment; its events are taken from now on.

        Raises `ConflictError` where its id is taken.
        """
        try:
            async with self._database.writing(tx) as own:
                row = {**to_row(test), "declaration": test.declaration.to_stored()}
                await own.execute(insert(experiments), row)
                await add_subject(own, test, SubjectKind.TEST)
        except IntegrityError as error:
            raise ConflictError(
                f"There is an experiment {test.id} already.", mend="Take a new id.", id=test.id
            ) from error

    async def get(self, id: str, *, tx: Tx | None = None) -> ABTest:
        """The experiment with this id. Raises `NotFoundError`."""
        async with self._database.reading(tx) as own:
            query = select(experiments).where(experiments.c.id == id)
            row = (await own.execute(query)).one_or_none()
        if row is None:
            raise NotFoundError(f"There is no experiment {id}.", mend="Check the id.", id=id)
        return _experiment(row)

    async def family(
        self, family: str, *, lock: bool = False, tx: Tx | None = None
    ) -> list[ABTest]:
        """The tests of a family by lane. Raises `NotFoundError`.

        `lock`: whoever else looks at them or ends them waits until this transaction is over.
        """
        query = select(experiments).where(experiments.c.family == family)
        query = query.order_by(experiments.c.lane)
        async with self._database.reading(tx) as own:
            rows = (await own.execute(query.with_for_update() if lock else query)).all()
        if not rows:
            raise NotFoundError(f"There is no family {family}.", mend="Check the id.", id=family)
        return [_experiment(row) for row in rows]

    async def named(self, id: str, *, lock: bool = False, tx: Tx | None = None) -> list[ABTest]:
        """The test with this id, or all of the family, by lane. Raises `NotFoundError`.

        `lock` as in `family`.
        """
        names = or_(experiments.c.id == id, experiments.c.family == id)
        query = select(experiments).where(names).order_by(experiments.c.lane)
        async with self._database.reading(tx) as own:
            rows = (await own.execute(query.with_for_update() if lock else query)).all()
        if not rows:
            raise NotFoundError(f"There is no experiment {id}.", mend="Check the id.", id=id)
        return [_experiment(row) for row in rows]

    async def page(
        self,
        pipeline: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
        *,
        run_id: str | None = None,
        tx: Tx | None = None,
    ) -> Page[ABTest]:
        """Experiments, newest first, of one pipeline or run, or of all."""
        query = select(experiments)
        if pipeline is not None:
            query = query.where(experiments.c.pipeline == pipeline)
        if run_id is not None:
            query = query.where(experiments.c.run_id == run_id)
        at, key = experiments.c.start_at, experiments.c.id
        async with self._database.reading(tx) as own:
            rows, after = await page_by_time(own, query, at, key, cursor, limit)
        return Page(items=tuple(_experiment(row) for row in rows), next_cursor=after)

    async def end(
        self,
        id: str,
        *,
        status: ExperimentStatus,
        verdict: Verdict,
        reason: str,
        tx: Tx | None = None,
    ) -> bool:
        """End a running test. Whether it did: one that has ended stays as it is."""
        values = {"status": str(status), "verdict": str(verdict), "reason": reason}
        async with self._database.writing(tx) as own:
            done = await own.execute(
                update(experiments).where(experiments.c.id == id, _RUNNING).values(values)
            )
        return done.rowcount == 1

    async def open_phase(
        self,
        subject: str,
        number: int,
        share: float,
        at: datetime,
        *,
        tx: Tx | None = None,
    ) -> Phase:
        """Begin a phase; again with the same share changes nothing.

        Raises `ConflictError` where the phase began with another share.
        """
        async with self._database.writing(tx) as own:
            known = {p.number: p for p in await self.phases(subject, tx=own)}
            if number in known:
                return _same_share(known[number], share)
            phase = Phase(subject=subject, number=number, share=share, at=at)
            await own.execute(insert(phases), to_row(phase))
        return phase

    async def phase_starts(
        self, subjects: Sequence[str], *, tx: Tx | None = None
    ) -> dict[str, dict[int, datetime]]:
        """When each phase of these subjects began, by subject and number; without those that have
        none."""
        found: dict[str, dict[int, datetime]] = {}
        query = select(phases.c.subject, phases.c.number, phases.c.at)
        async with self._database.reading(tx) as own:
            for start in range(0, len(subjects), 1000):
                part = subjects[start : start + 1000]
                for subject, number, at in await own.execute(
                    query.where(phases.c.subject.in_(part))
                ):
                    found.setdefault(subject, {})[number] = at
        return found

    async def phases(self, subject: str, *, tx: Tx | None = None) -> list[Phase]:
        """The phases of an experiment or a rollout, in order."""
        query = select(phases).where(phases.c.subject == subject).order_by(phases.c.number)
        async with self._database.reading(tx) as own:
            return [Phase(**row._mapping) for row in await own.execute(query)]

    async def add_look(self, look: Look, *, tx: Tx | None = None) -> None:
        """Keep a look at a running test for ever; the same look again changes nothing.

        Raises `ConflictError` where the test has ended, or another look has its number or a later
        one, `DataError` for NaN in it.
        """
        row = _look_row(look)
        async with self._database.writing(tx) as own:
            # The test's row counts its looks, so that of two transactions which both took this
            # number one is refused here, and on PostgreSQL begun again, in place of the insert.
            counted = await own.execute(
                update(experiments)
                .where(
                    experiments.c.id == look.experiment_id,
                    _RUNNING,
                    experiments.c.looks < look.number,
                )
                .values(looks=look.number)
            )
            if counted.rowcount == 1:
                await own.execute(insert(looks), row)
                return
            known = await self._look(own, look.experiment_id, look.number)
            if known is None or _look_row(known) != row:
                raise ConflictError(
                    f"Experiment {look.experiment_id} takes no look {look.number}: it has ended, "
                    "or has had it.",
                    mend="Looks are never changed; read the test again.",
                )

    async def looks(
        self,
        id: str,
        *,
        after: int = 0,
        limit: int = 10_000,
        tx: Tx | None = None,
    ) -> list[Look]:
        """The looks of an experiment with a number above `after`, in order."""
        query = select(looks).where(looks.c.experiment_id == id, looks.c.number > after)
        async with self._database.reading(tx) as own:
            rows = await own.execute(query.order_by(looks.c.number).limit(limit))
            return [_look(row) for row in rows]

    async def last_look(self, id: str, *, tx: Tx | None = None) -> Look | None:
        """The newest look of an experiment, or None."""
        query = select(looks).where(looks.c.experiment_id == id)
        async with self._database.reading(tx) as own:
            row = (await own.execute(query.order_by(looks.c.number.desc()).limit(1))).one_or_none()
        return None if row is None else _look(row)

    async def numbers_of_looks(
        self, ids: Sequence[str], *, tx: Tx | None = None
    ) -> Mapping[str, int]:
        """The number of the newest look of each of these tests; 0 where it has none."""
        query = select(experiments.c.id, experiments.c.looks).where(experiments.c.id.in_(ids))
        async with self._database.reading(tx) as own:
            return {row.id: row.looks for row in await own.execute(query)}

    async def spent(self, pipeline: str, *, tx: Tx | None = None) -> list[Spent]:
        """What each experiment of a pipeline has taken of the loop's error, oldest first."""
        query = (
            select(experiments)
            .where(experiments.c.pipeline == pipeline)
            .order_by(experiments.c.start_at, experiments.c.id)
        )
        async with self._database.reading(tx) as own:
            return _spent([_experiment(row) for row in await own.execute(query)])

    async def final_lifts(
        self, pipeline: str, *, tx: Tx | None = None
    ) -> list[tuple[float, float]]:
        """(lift, standard error of its logarithm) at the last look of each finished experiment."""
        newest = (
            select(looks.c.experiment_id, func.max(looks.c.number).label("number"))
            .group_by(looks.c.experiment_id)
            .subquery()
        )
        query = (
            select(looks.c.lift, looks.c.standard_error)
            .join(
                newest,
                (looks.c.experiment_id == newest.c.experiment_id)
                & (looks.c.number == newest.c.number),
            )
            .join(experiments, experiments.c.id == looks.c.experiment_id)
            .where(
                experiments.c.pipeline == pipeline,
                experiments.c.status != str(ExperimentStatus.RUNNING),
                looks.c.lift > -1,
                looks.c.standard_error > 0,
                looks.c.verdict != str(Verdict.INVALID),
            )
            .order_by(experiments.c.start_at, experiments.c.id)
        )
        async with self._database.reading(tx) as own:
            return [(row.lift, row.standard_error) for row in await own.execute(query)]

    async def _look(self, tx: Tx, id: str, number: int) -> Look | None:
        query = select(looks).where(looks.c.experiment_id == id, looks.c.number == number)
        row = (await tx.execute(query)).one_or_none()
        return None if row is None else _look(row)


def stored_variant(data: Mapping[str, Any]) -> Variant:
    """The model that JSON describes."""
    return Variant(
        model_id=data["model_id"],
        version=data.get("version"),
        provider=data.get("provider"),
        label=data.get("label"),
        prompt=data.get("prompt"),
    )


def _same_share(phase: Phase, share: float) -> Phase:
    if phase.share == share:
        return phase
    raise ConflictError(
        f"Phase {phase.number} of {phase.subject} has share {phase.share}, not {share}.",
        mend="A phase has one fixed share: open the next one.",
    )


def _experiment(row: Any) -> ABTest:
    values = dict(row._mapping)
    del values["looks"]
    verdict = values["verdict"]
    return ABTest(
        **{
            **values,
            "tasks": tuple(values["tasks"]),
            "baseline": stored_variant(values["baseline"]),
            "candidate": stored_variant(values["candidate"]),
            "declaration": Declaration.from_stored(values["declaration"]),
            "status": ExperimentStatus(values["status"]),
            "verdict": None if verdict is None else Verdict(verdict),
            "identity": tuple(values["identity"]),
        }
    )


def _spent(tests: Sequence[ABTest]) -> list[Spent]:
    """What each test has taken; a family takes once what its candidates have together."""
    together: dict[str, list[ABTest]] = {}
    for test in tests:
        together.setdefault(test.family, []).append(test)
    return [_taken(name, family) for name, family in together.items()]


def _taken(name: str, family: Sequence[ABTest]) -> Spent:
    verdicts = [test.verdict for test in family]
    running = any(test.status is ExperimentStatus.RUNNING for test in family)
    return Spent(
        experiment=name,
        identity=tuple(dict.fromkeys(part for test in family for part in test.identity)),
        alpha=sum(_alpha(test) for test in family),
        promoted=None if running else Verdict.PROMOTE in verdicts,
        candidates=len(family),
    )


def _alpha(test: ABTest) -> float:
    declared = test.declaration.significance_threshold / test.lanes
    return declared if test.alpha is None else test.alpha


def _look_row(look: Look) -> dict[str, Any]:
    values = to_row(look)
    for name, value in values.items():
        if isinstance(value, float) and value != value:
            raise DataError(f"{name} of a look is NaN.", mend="Use None for what is not known.")
    return values


def look_document(look: Look) -> dict[str, Any]:
    """A look as JSON types; `look_of_document` makes it again."""
    times = {"at": look.at.isoformat(), "matured_before": look.matured_before.isoformat()}
    return {**to_json_types(to_row(look)), **times}


def look_of_document(document: Mapping[str, Any]) -> Look:
    """The look that `look_document` was made of."""
    times = ("at", "matured_before")
    return _look_of({**document, **{n: datetime.fromisoformat(document[n]) for n in times}})


def _look(row: Any) -> Look:
    return _look_of(row._mapping)


def _look_of(values: Mapping[str, Any]) -> Look:
    return Look(
        **{
            **values,
            "baseline": ArmMetrics(**values["baseline"]),
            "candidate": ArmMetrics(**values["candidate"]),
            "verdict": Verdict(values["verdict"]),
            "expected": _record(ExpectedLift, values["expected"]),
            "halves": _halves(values["halves"]),
            "reweighted": _record(Part, values["reweighted"]),
            "criteria": tuple(_result(r) for r in values["criteria"] or ()),
            "segments": tuple(Segment(**s) for s in values["segments"] or ()),
        }
    )


def _record(cls: type[R], data: Mapping[str, Any] | None) -> R | None:
    return None if data is None else cls(**data)


def _halves(data: Mapping[str, Any] | None) -> Halves | None:
    if data is None:
        return None
    return Halves(**{**data, "first": Part(**data["first"]), "second": Part(**data["second"])})


def _result(data: Mapping[str, Any]) -> CriterionResult:
    return CriterionResult(**{**data, "criterion": _record(Criterion, data["criterion"])})
