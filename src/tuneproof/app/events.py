"""Use cases of events: taken in, each once; and what their errors bring about."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from tuneproof.app.door import Door
from tuneproof.app.experiments import ExperimentService
from tuneproof.app.histories import HistoryService
from tuneproof.app.rollouts import RolloutService
from tuneproof.app.routing import RoutingService
from tuneproof.app.scoring import ScoringService
from tuneproof.errors import ConflictError, NotFoundError, StateError
from tuneproof.experiments import Arm, Comment, ExperimentStatus, Exposure, Ingested, Outcome
from tuneproof.stats import guardrails
from tuneproof.store import HeardComment, RecentRequest, Store, SubjectKind
from tuneproof.telemetry import Metrics, Tracing
from tuneproof.testing import VirtualClock
from tuneproof.workflow import Clock, Tx

__all__ = ["EventService"]

log = logging.getLogger(__name__)

BESIDE = timedelta(minutes=5)
"""How long before the candidate's last requests the baseline's still tell of the same time."""

LATE = timedelta(minutes=15)
"""A failure may be told this late (a time-out is), and still take the candidate back at once; what
comes later is for the hours' guardrails."""

BASELINE_WINDOW = 200
"""How many of the baseline's requests at that time are read."""

GROSS_WINDOW = 20
"""The breaker for gross failure reads this many of the candidate's requests up to its failure."""


class EventService:
    """What can be asked of events."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        metrics: Metrics,
        routing: RoutingService,
        scoring: ScoringService,
        experiments: ExperimentService,
        rollouts: RolloutService,
        histories: HistoryService,
        tracing: Tracing,
    ) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._routing = routing
        self._scoring = scoring
        self._experiments = experiments
        self._rollouts = rollouts
        self._histories = histories
        self._tracing = tracing
        now = clock.told_until if isinstance(clock, VirtualClock) else clock.now
        self._door = Door(store=store, now=now)

    async def record(
        self,
        *,
        exposures: Sequence[Exposure] = (),
        outcomes: Sequence[Outcome] = (),
        comments: Sequence[Comment] = (),
    ) -> Ingested:
        """Take events in, each once; late and out of order is fine.

        What names no phase, arm or subject that was ever open, or an instant at which it cannot
        have been, is left out and named in `rejected`. A candidate whose requests fail grossly is
        taken back at once. Texts that are to be scored are queued in the same transaction.
        """
        await self._histories.open_for(exposures)
        admitted = await self._door.admit(exposures, outcomes, comments)
        exposures, outcomes = admitted.exposures, admitted.outcomes
        subjects = {e.subject for e in exposures} | {o.subject for o in outcomes}
        with self._tracing.events(subjects, len(exposures), len(outcomes)):
            taken = await self._ingested(exposures, outcomes, admitted.comments)
        taken = replace(
            taken,
            rejected=(*admitted.rejected, *taken.rejected),
            unknown=(*admitted.unknown, *taken.unknown),
        )
        self._metrics.events_ingested(len(exposures), len(outcomes))
        self._metrics.events_rejected.inc(len(taken.rejected))
        for subject, last in self._failing(exposures).items():
            if subject not in taken.unknown:
                await self._stop_gross_failure(subject, last)
        return taken

    def _failing(self, exposures: Sequence[Exposure]) -> dict[str, datetime]:
        """Of each subject whose candidate's requests failed lately, when the last of them was."""
        late = self._clock.now() - LATE
        failed = [e for e in exposures if e.error and e.arm is Arm.CANDIDATE and e.at > late]
        return {e.subject: e.at for e in sorted(failed, key=lambda e: e.at)}

    async def _ingested(
        self,
        exposures: Sequence[Exposure],
        outcomes: Sequence[Outcome],
        comments: Sequence[Comment],
    ) -> Ingested:
        """Keep these, with what goes into other tables in the same transaction."""
        texts = await self._scoring.texts_of(exposures)
        if not (texts or comments):
            return await self._store.events.ingest(exposures, outcomes, now=self._clock.now())
        async with self._store.database.begin() as tx:
            taken = await self._store.events.ingest(exposures, outcomes, tx=tx)
            if texts:
                await self._store.scores.add(texts, self._clock.now(), tx=tx)
            return await self._with_comments(taken, comments, tx)

    async def _with_comments(
        self, taken: Ingested, comments: Sequence[Comment], tx: Tx
    ) -> Ingested:
        new = await self._store.comments.add(comments, tx=tx) if comments else 0
        return replace(
            taken,
            accepted=taken.accepted + new,
            duplicates=taken.duplicates + len(comments) - new,
        )

    async def had(self, subject: str | None, task: str) -> bool:
        """Whether there ever was this subject; without one, whether the task is served."""
        if subject is None:
            return task in self._routing.board.snapshot.by_task
        await self._histories.open(subject, task, self._clock.now())  # its exposure is on its way
        return await self._store.subjects.kind(subject) is not None

    async def comments(self, subject: str, *, limit: int = 100) -> Sequence[HeardComment]:
        """What was said of a test's or a rollout's answers, the newest, oldest first.

        Raises `NotFoundError` for a subject that never was.
        """
        if await self._store.subjects.kind(subject) is None:
            raise NotFoundError(f"There is no test or rollout {subject}.", mend="Check the id.")
        return await self._store.comments.newest(subject, limit=limit)

    async def recent(
        self, *, subject: str | None = None, since: datetime | None = None, limit: int = 100
    ) -> Sequence[Exposure]:
        """The newest exposures, oldest first: of one subject, or of all that routing serves."""
        routed = {subject for r in self._routing.board.snapshot.routing for subject in r.subjects}
        subjects = routed if subject is None else {subject}
        found = [
            event
            for name in sorted(subjects)
            for event in await self._store.events.newest(name, since=since, limit=limit)
        ]
        return sorted(found, key=lambda e: (e.at, e.id))[-limit:]

    async def _beside(
        self, subject: str, since: datetime, until: datetime, tx: Tx
    ) -> list[RecentRequest]:
        """The baseline's requests of that time; with the last ones before, where there are too few
        to tell."""
        recent = partial(self._store.events.recent, subject, Arm.BASELINE, until=until, tx=tx)
        found = await recent(limit=BASELINE_WINDOW, since=since)
        least = guardrails.BESIDE_AT_LEAST
        if len(found) < least and not any(request.error for request in found):
            return await recent(limit=least, since=since - BESIDE)
        return found

    async def _stop_gross_failure(self, subject: str, last: datetime) -> None:
        """Judge the requests up to the last that failed: a time-out is told when many newer
        requests are there already, and those that will time out, too, are not."""
        if await self._store.subjects.kind(subject) is SubjectKind.SHADOW:
            return
        found = await self._gross_failure(subject, last)
        if found.shared:
            log.warning("%s fails as its baseline does, which is waited out.", subject)
        if found.fired:
            try:
                await self._take_back(subject, found.reason)
            except (ConflictError, StateError):  # the events of this batch are kept all the same
                log.info("%s was ended by somebody else meanwhile.", subject)

    async def _gross_failure(self, subject: str, last: datetime) -> guardrails.GrossFailure:
        """Both arms as they were at one instant: events that come in between two queries would
        be those of one arm alone."""
        async with self._store.database.read() as tx:
            recent = await self._store.events.recent(
                subject, Arm.CANDIDATE, limit=GROSS_WINDOW, until=last, tx=tx
            )
            failed = [request.error for request in recent]
            found = guardrails.gross_failure(failed)
            if not found.fired:
                return found
            beside = await self._beside(subject, recent[0].at, last, tx)
        return guardrails.gross_failure(failed, baseline=[request.error for request in beside])

    async def _take_back(self, subject: str, reason: str) -> None:
        kind = await self._store.subjects.kind(subject)
        if kind is SubjectKind.ROLLOUT:
            deployment = await self._store.deployments.get(subject)
            if not deployment.state.final:
                await self._rollouts.rollback(subject, reason=reason, actor="guardrail")
        elif kind is SubjectKind.TEST:
            test = await self._store.experiments.get(subject)
            if test.status is ExperimentStatus.RUNNING:
                await self._experiments.end(subject, reason=reason, actor="guardrail")
