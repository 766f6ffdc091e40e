"""The door for events: what no test or rollout can mean is turned away by name, the rest goes in.

Kept in the store, an exposure of a phase that never was, or from before its phase began, would
count in looks as if it had been drawn then. Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from tuneproof.experiments import Arm, Comment, Exposure, Outcome, RejectedEvent
from tuneproof.store import Store, SubjectKind

__all__ = ["Admitted", "Door"]

SKEW = timedelta(minutes=5)
"""How far a sender's clock may be off."""

COARSE = timedelta(days=1)
"""How long before its test an outcome may be dated: many a table knows only the day."""

SMALLEST = 1e-7
"""The smallest outcome beside 0: what is kept of it is then right to 1 %."""

_ARMS = frozenset(Arm)

_Event = TypeVar("_Event", Exposure, Outcome, Comment)
_Later = TypeVar("_Later", Outcome, Comment)

PhaseStarts = Mapping[int, datetime]
"""When each phase of a subject began, by the phase's number."""


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """The events of a batch that may be kept, and those that may not."""

    exposures: Sequence[Exposure]
    outcomes: Sequence[Outcome]
    comments: Sequence[Comment] = ()
    rejected: Sequence[RejectedEvent] = ()
    unknown: Sequence[str] = ()
    """Those of `rejected` whose subject takes no events."""


class Door:
    """Knows when the phases of each test and rollout began; phases are only ever added."""

    def __init__(self, *, store: Store, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now
        self._phases: dict[str, PhaseStarts] = {}
        self._kinds: dict[str, SubjectKind] = {}

    async def admit(
        self,
        exposures: Sequence[Exposure] = (),
        outcomes: Sequence[Outcome] = (),
        comments: Sequence[Comment] = (),
    ) -> Admitted:
        """Divide events. An instant that is off by no more than a clock may be is set right.

        An exposure has an arm, and a phase that its subject had, and is not from before that
        phase began; outcomes and comments are not from before their subject's first phase. Nothing
        is from the future.
        """
        await self._learn(exposures, [*outcomes, *comments])
        latest = self._now() + SKEW
        rejected: list[RejectedEvent] = []
        events: list[Exposure | Outcome | Comment] = [*exposures, *outcomes, *comments]
        return Admitted(
            exposures=_kept(exposures, lambda e: self._exposure(e, latest), rejected),
            outcomes=_kept(outcomes, lambda o: self._outcome(o, latest), rejected),
            comments=_kept(comments, lambda c: self._later(c, latest), rejected),
            rejected=rejected,
            unknown=[event.id for event in events if event.subject not in self._phases],
        )

    async def _learn(
        self, exposures: Sequence[Exposure], later: Sequence[Outcome | Comment]
    ) -> None:
        """Read the phases of subjects that are new here, or have one that is new here."""
        known = self._phases
        asked = {e.subject for e in exposures if e.phase not in known.get(e.subject, ())}
        asked |= {one.subject for one in later if one.subject not in known}
        if asked:
            new = asked - known.keys()
            known |= await self._store.experiments.phase_starts(sorted(asked))
            self._kinds |= await self._store.subjects.kinds(sorted(new))

    def _exposure(self, event: Exposure, latest: datetime) -> Exposure | str:
        phases = self._phases.get(event.subject)
        if phases is None:
            return _unknown(event.subject)
        if event.arm not in _ARMS:
            return f"arm is {str(event.arm)!r}; there are baseline and candidate"
        history = self._kinds.get(event.subject) is SubjectKind.HISTORY
        if event.arm is Arm.CANDIDATE and history:
            return f"arm is {str(event.arm)!r}; {event.subject} is a history, of the baseline alone"
        began = phases.get(event.phase)
        if began is None:
            had = ", ".join(map(str, sorted(phases)))
            return f"phase {event.phase} was never open; {event.subject} had {had}"
        if event.at > latest:
            return _future(event.at)
        if event.at >= began:
            return event
        if event.at < began - SKEW:
            return f"at is {event.at.isoformat()}, before phase {event.phase} began at {began}"
        return replace(event, at=began)

    def _outcome(self, event: Outcome, latest: datetime) -> Outcome | str:
        found = self._later(event, latest)
        if not isinstance(found, str) and 0 < abs(event.value) < SMALLEST:
            return (
                f"value is {event.value:g}: outcomes are kept in billionths, so one is 0 or at "
                f"least {SMALLEST:g} in size; measure in a smaller unit"
            )
        return found

    def _later(self, event: _Later, latest: datetime) -> _Later | str:
        """What comes of an answer, at some time after it."""
        phases = self._phases.get(event.subject)
        if phases is None:
            return _unknown(event.subject)
        if self._kinds.get(event.subject) is SubjectKind.SHADOW:
            return f"{event.subject} is a shadow: nobody saw its answers"
        if event.at > latest:
            return _future(event.at)
        began = min(phases.values())
        if event.at >= began:
            return event
        if event.at < began - COARSE:
            return f"at is {event.at.isoformat()}, before {event.subject} began at {began}"
        return replace(event, at=began)


def _kept(
    events: Sequence[_Event], admit: Callable[[_Event], _Event | str], rejected: list[RejectedEvent]
) -> Sequence[_Event]:
    """The events that `admit` lets in; of the others it says why."""
    kept: list[_Event] = []
    for event in events:
        found = admit(event)
        if isinstance(found, str):
            rejected.append(RejectedEvent(id=event.id, reason=found))
        else:
            kept.append(found)
    return kept


def _unknown(subject: str) -> str:
    return (
        f"subject {subject!r} is no test or rollout that serves, or served, anybody, nor a history"
    )


def _future(at: datetime) -> str:
    return f"at is {at.isoformat()}, which is yet to come"
