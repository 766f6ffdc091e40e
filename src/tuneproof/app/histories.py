"""Use cases of histories: opened by the first event of a week, read to plan a test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from tuneproof.app.board import Board
from tuneproof.collection import Window
from tuneproof.errors import NotFoundError
from tuneproof.experiments import Exposure
from tuneproof.experiments.histories import WEEK, history_of, shadow_of, week_of
from tuneproof.experiments.planning import History
from tuneproof.settings import PipelineConfig, Shadow
from tuneproof.stats.aggregates import Aggregate
from tuneproof.store import Store, SubjectKind
from tuneproof.workflow import Clock

__all__ = ["KEPT", "HistoryService"]

KEPT = timedelta(days=7)
"""How long after its week the raw events of a history are kept at most: they come from the first
call on and for ever, and what is summed up of them stays."""

HOUR = timedelta(hours=1)

LONGEST_ANSWER = timedelta(days=1)
"""How long before its exposure is dated a request may have been decided on."""


class HistoryService:
    """What can be asked of histories."""

    def __init__(
        self, *, store: Store, clock: Clock, board: Board, shadows: Mapping[str, Shadow]
    ) -> None:
        self._shadows = shadows
        self._store = store
        self._clock = clock
        self._board = board
        self._known: set[str] = set()

    async def open_for(self, exposures: Sequence[Exposure]) -> None:
        """Take the events of the histories and shadows among the subjects of these exposures."""
        one_of_each = {event.subject: event for event in exposures}
        for subject in one_of_each.keys() - self._known:
            event = one_of_each[subject]
            await self.open(subject, event.task, event.at)

    async def open(self, subject: str, task: str, at: datetime) -> None:
        """Take the events of a history or shadow, if it is the one of a task at an instant."""
        if subject in self._known:
            return
        for decided in (at, at - LONGEST_ANSWER):
            kind = self._kind(subject, task, decided)
            if kind is not None and self._is_taken(week_of(decided)):
                await self._store.histories.open(subject, week_of(decided), kind=kind)
                self._known.add(subject)
                return

    def _kind(self, subject: str, task: str, at: datetime) -> SubjectKind | None:
        """What this subject is of a task at this instant; None where it is nothing of it."""
        if task not in self._board.snapshot.by_task:
            return None
        if subject == history_of(task, at):
            return SubjectKind.HISTORY
        shadow = self._shadows.get(task)
        same = shadow is not None and subject == shadow_of(task, shadow.model, at)
        return SubjectKind.SHADOW if same else None

    def _is_taken(self, began: datetime) -> bool:
        """Whether the week that began then takes events: it is not long over, nor to come."""
        now = self._clock.now()
        return now - KEPT - WEEK < began <= now

    async def read(self, task: str, window: Window, config: PipelineConfig) -> History:
        """What is known of the task's baseline from the weeks that this window touches.

        Of units that had `maturation_hours` for their outcome; stretches in which a test or a
        rollout served the task count neither as units nor as hours. Raises `NotFoundError` for a
        task that nobody serves.
        """
        if task not in self._board.snapshot.by_task:
            known = ", ".join(self._board.snapshot.by_task) or "none yet"
            raise NotFoundError(
                f"No routing is known for task {task!r} (known: {known}).", mend="Check the name."
            )
        until = window.until - timedelta(hours=config.maturation_hours)
        weeks = [history_of(task, at) for at in _weeks(window.since, until)]
        hours = await self._store.histories.hours(weeks)
        if not hours:
            return History(units=Aggregate(), hours=0.0, noun="unit")
        units, exposed, tokens = Aggregate(), 0, 0
        there = await self._store.subjects.kinds(weeks)
        for subject in there:
            for stratum in await self._store.events.strata(subject, before=until):
                counted = stratum.units
                n = stratum.exposed if config.missing == "zero" else counted.n
                units += Aggregate(n=n, sum_y=counted.sum_y, sum_yy=counted.sum_yy)
                exposed += stratum.exposed
                tokens += stratum.tokens
        served = await self._store.histories.served(task, hours[0], until)
        return History(
            units=units,
            hours=max(_free_hours(hours, until, served), 1.0),
            tokens=tokens / exposed if exposed else None,
            noun="unit",
        )


def _weeks(since: datetime, until: datetime) -> Iterable[datetime]:
    at = week_of(since)
    while at <= until:
        yield at
        at += WEEK


def _free_hours(
    hours: Sequence[datetime], until: datetime, served: Sequence[tuple[datetime, datetime]]
) -> int:
    """How many hours there were from the first on, but for those that others served alone."""
    seen, at, free = set(hours), hours[0], 0
    while at + HOUR <= until:
        free += at in seen or not any(began <= at < ended for began, ended in served)
        at += HOUR
    return free
