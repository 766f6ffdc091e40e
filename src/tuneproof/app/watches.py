"""Looks after the looks: no test and no rollout under way goes unwatched, and none unseen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from tuneproof import workflow
from tuneproof.errors import TuneProofError
from tuneproof.pipeline import experiment_alone, rollout_alone
from tuneproof.rollout import DeploymentState
from tuneproof.settings import PipelineConfig
from tuneproof.store import Store, SubjectKind, WatchedSubject

__all__ = ["WatchState", "Watchdog"]

log = logging.getLogger(__name__)

LOOK_EVERY_S = 60.0

LONGEST_ROUND = timedelta(seconds=2 * LOOK_EVERY_S)
"""What a round adds at most to the time unwatched: a process that slept did not run."""

_UNWATCHED = "unwatched"
"""The key in `meta` of the seconds that each rollout has been unwatched."""

PATIENCE = timedelta(hours=1)
"""How long a look may be overdue before somebody is told."""


TOLD_OF, NEWEST = timedelta(days=1), 20
"""Which rollbacks are told of once more, if they have not been: those of a day, of the newest."""


@dataclass(frozen=True, kw_only=True)
class WatchState:
    """A test or rollout under way: when it was looked at, and when it should be."""

    subject: str
    kind: SubjectKind
    pipeline: str
    run_id: str | None
    looked_at: datetime | None
    due_at: datetime
    stalled: bool
    """Whether its look is overdue by more than an hour."""
    limit: timedelta
    """How long it may be overdue before a rollout goes back to its baseline."""
    last_error: str = ""
    """Why its newest look failed; empty where it did not."""
    last_error_at: datetime | None = None

    @property
    def blind(self) -> bool:
        """Whether nobody judges its candidate now: its looks fail, or none comes."""
        return self.stalled or bool(self.last_error)

    def sentence(self) -> str:
        """How it stands, in words."""
        if self.last_error and not self.stalled:
            return f"The look at {self.subject}{_at(self.last_error_at)} failed: {self.last_error}"
        seen = "it was never looked at"
        if self.looked_at is not None:
            seen = f"its last look was{_at(self.looked_at)}"
        said = f"{self.subject} has been due since{_at(self.due_at).removeprefix(' at')}; {seen}."
        return f"{said} It failed: {self.last_error}" if self.last_error else said


def _at(instant: datetime | None) -> str:
    return "" if instant is None else f" at {instant:%Y-%m-%d %H:%M} UTC"


class TakeBack(Protocol):
    """Gives a rollout's traffic back to its baseline."""

    async def __call__(self, target: str, *, reason: str, actor: str) -> object: ...


class Alert(Protocol):
    """Tells whoever is to be told."""

    def __call__(self, kind: str, subject: str, summary: str, *, once: str = "") -> None: ...


class Watchdog:
    """Finds watches that stand still, tells of them, and starts again those that have ended; takes
    back rollouts that could not be watched for too long.

    `config_of` says how a pipeline is set now; None for one that left the settings. How long a
    rollout goes unwatched is counted while the service runs, over its restarts: on start there is
    time to look first.
    """

    def __init__(
        self,
        *,
        store: Store,
        engine: workflow.Engine,
        clock: workflow.Clock,
        config_of: Callable[[str], PipelineConfig | None],
        alert: Alert,
        take_back: TakeBack,
    ) -> None:
        self._store = store
        self._engine = engine
        self._clock = clock
        self._config_of = config_of
        self._alert = alert
        self._take_back = take_back
        self._seen_at: datetime | None = None
        self._ended: set[str] = set()

    async def states(self) -> Sequence[WatchState]:
        """How each watch stands, oldest first."""
        now = self._clock.now()
        return [self._state(one, now) for one in await self._store.watches.under_way()]

    def _state(self, watched: WatchedSubject, now: datetime) -> WatchState:
        config = self._config_of(watched.pipeline) or PipelineConfig()
        since = watched.looked_at or watched.since
        due = since + timedelta(hours=config.look_interval_hours)
        return WatchState(
            subject=watched.subject,
            kind=watched.kind,
            pipeline=watched.pipeline,
            run_id=watched.run_id,
            looked_at=watched.looked_at,
            due_at=due,
            stalled=now - due > PATIENCE,
            limit=timedelta(hours=config.unwatched_limit_hours),
            last_error=watched.failure,
            last_error_at=watched.failed_at,
        )

    async def look(self) -> None:
        """Tell of each watch that stands still, and take up what ended before its subject did."""
        states = await self.states()
        await self._take_back_unwatched(states)
        for state in states:
            if state.stalled:
                said = state.sentence()
                log.warning("a watch stands still: %s", said)
                once = "" if state.looked_at is None else state.looked_at.isoformat()
                self._alert("watch_stalled", state.subject, said, once=once)
        await self._tell_of_rollbacks()
        await self._take_up()

    async def recall(self, subjects: Collection[str]) -> None:
        """Take back those of these rollouts whose look is overdue beyond their limit: the database
        was away, and workers served their baselines meanwhile."""
        now = self._clock.now()
        for state in await self.states():
            overdue = now - state.due_at
            if state.subject in subjects and overdue > state.limit:
                await self._go_back(state, overdue)

    async def _take_back_unwatched(self, states: Sequence[WatchState]) -> None:
        """Add this round to the time that each has been unwatched, and take back whose is up."""
        now = self._clock.now()
        passed = min(now - (self._seen_at or now), LONGEST_ROUND)
        self._seen_at = now
        before: Mapping[str, float] = await self._store.meta.get(_UNWATCHED) or {}
        unwatched = {
            state.subject: before.get(state.subject, 0.0) + passed.total_seconds()
            for state in states
            if state.kind is SubjectKind.ROLLOUT and now > state.due_at
        }
        if unwatched != before:
            await self._store.meta.set(_UNWATCHED, unwatched)
        for state in states:
            overdue = timedelta(seconds=unwatched.get(state.subject, 0.0))
            if overdue > state.limit:
                await self._go_back(state, overdue)

    async def _go_back(self, state: WatchState, overdue: timedelta) -> None:
        if state.kind is not SubjectKind.ROLLOUT:
            return
        hours = overdue.total_seconds() / 3600
        reason = f"Nobody could look at it for {hours:.1f} h after a look was due."
        log.error("%s goes back to its baseline: %s", state.subject, reason)
        try:
            await self._take_back(state.subject, reason=reason, actor="guardrail")
        except TuneProofError as error:  # tried again in the next round; the others are not kept
            log.error("%s could not be given back: %s", state.subject, error)

    async def _tell_of_rollbacks(self) -> None:
        """Tell of each of the last day: who took a rollout back may have died before telling."""
        since = self._clock.now() - TOLD_OF
        for done in (await self._store.deployments.page(limit=NEWEST)).items:
            ended = done.state is DeploymentState.ROLLED_BACK and done.ended_at
            if ended and ended > since:
                said = done.cause or "rolled back"
                self._alert("rolled_back", done.id, said, once=str(done.version))

    async def _take_up(self) -> None:
        alone = {
            one.workflow: one for one in await self._store.watches.under_way() if one.run_id is None
        }
        ended = {id for id in alone if await self._engine.ended(id)}
        # One that ends, or was declared, just now is seen once: only what is seen twice is dead.
        dead, self._ended = ended & self._ended, ended
        for id in sorted(dead):
            await self._start_again(id, alone[id])

    async def _start_again(self, id: str, watched: WatchedSubject) -> None:
        why = await self._engine.given_up(id) or "nothing of it is left"
        said = f"The watch had ended before its subject ({why}); it was started again."
        log.error("%s: %s", id, said)
        if await self._engine.exists(id):
            await self._engine.begin_again(id)
        else:
            config = self._config_of(watched.pipeline) or PipelineConfig(name=watched.pipeline)
            alone = experiment_alone if watched.kind is SubjectKind.TEST else rollout_alone
            await self._engine.start(alone, id, replace(config, tasks=watched.tasks))
        now = self._clock.now()
        await self._store.activity.add(now, "system", "watch start", watched.subject, said)
        self._alert("watch_stalled", watched.subject, said, once=f"ended:{now.isoformat()}")
