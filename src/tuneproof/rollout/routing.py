"""Routing: which model serves a task, the one state that client, gateway and targets read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tuneproof import assignment
from tuneproof.experiments import Arm, ModelRef


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One candidate's part of the units, where several are tested at once.

    `share` of *all* units, out of this lane's, gets `candidate`, the rest of the lane the
    baseline; both belong to the experiment `subject`. A stopped candidate's lane stays, with
    share 0, and goes on recording its baseline.
    """

    subject: str | None
    candidate: ModelRef | None = None
    share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """Who answers a unit, and whose evidence that is."""

    model: ModelRef
    arm: Arm
    subject: str | None


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Which model serves a task.

    `share` of the units gets `candidate`, the rest `baseline`; `subject` is the experiment
    or rollout whose events these decisions belong to (None: nothing is tested). Where several
    candidates are tested at once there are `lanes` instead, one each, and the three are empty.
    `version` counts the writes of this task's routing.
    """

    task: str
    baseline: ModelRef
    candidate: ModelRef | None = None
    share: float = 0.0
    salt: str = ""
    subject: str | None = None
    phase: int = 0
    version: int = 0
    updated_at: datetime | None = None
    cause: str = ""
    lanes: tuple[Lane, ...] = ()

    @property
    def subjects(self) -> tuple[str, ...]:
        """The experiments or the rollout that events of this task may belong to."""
        return tuple(part.subject for part in self.parts if part.subject is not None)

    @property
    def candidates_share(self) -> float | None:
        """The share of the units that any candidate serves; None where there is none."""
        shares = [part.share for part in self.parts if part.candidate is not None]
        return sum(shares) if shares else None

    @property
    def parts(self) -> tuple[Lane, ...]:
        """The lanes; outside families one, which has all units."""
        alone = Lane(subject=self.subject, candidate=self.candidate, share=self.share)
        return self.lanes or (alone,)

    def serve(self, unit: str) -> Served:
        """Who answers this unit: the same everywhere, by `assignment`."""
        bucket, lanes = assignment.bucket(self.salt, unit), self.parts
        lane = lanes[assignment.lane_of(bucket, len(lanes))]
        chosen = assignment.arm_among(bucket, [part.share for part in lanes]) is not None
        if lane.candidate is None or not chosen:
            return Served(model=self.baseline, arm=Arm.BASELINE, subject=lane.subject)
        return Served(model=lane.candidate, arm=Arm.CANDIDATE, subject=lane.subject)
