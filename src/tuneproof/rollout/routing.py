"""Routing: which model serves a task, the one state that client, gateway and targets read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TypedDict

from tuneproof import assignment
from tuneproof.errors import ConflictError
from tuneproof.experiments import Arm, Variant


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One candidate's part of the units.

    `share` of *all* units, out of this lane's, gets `candidate`, the rest of the lane the
    baseline; both belong to `subject`, the experiment or rollout of this candidate. A stopped
    candidate's lane stays, with share 0, and goes on recording its baseline.
    """

    subject: str
    candidate: Variant | None = None
    share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """Who answers a unit, and whose evidence that is."""

    model: Variant
    arm: Arm
    subject: str | None


class RoutingDocument(TypedDict):
    """A routing by the names of every document; see `Routing.document`."""

    task: str
    baseline: Variant
    candidate: Variant | None
    share: float
    salt: str
    subject: str | None
    phase: int
    version: int
    updated_at: datetime | None
    cause: str
    lanes: tuple[Lane, ...]


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Which model serves a task: `baseline` all units but those that the `lanes` give away.

    A test has a lane for each candidate, a rollout one, and where nothing is tested there is
    none. `version` counts the writes of this task's routing.
    """

    task: str
    baseline: Variant
    lanes: tuple[Lane, ...] = ()
    salt: str = ""
    phase: int = 0
    version: int = 0
    updated_at: datetime | None = None
    cause: str = ""
    previous: Variant | None = None
    """The baseline that served before this one, where that was not taken back."""

    @property
    def only(self) -> Lane | None:
        """The lane, where there is just one."""
        return self.lanes[0] if len(self.lanes) == 1 else None

    @property
    def subjects(self) -> tuple[str, ...]:
        """The experiments or the rollout that events of this task may belong to."""
        return tuple(lane.subject for lane in self.lanes)

    @property
    def candidates(self) -> tuple[Variant, ...]:
        """The candidates that may get units."""
        return tuple(lane.candidate for lane in self.lanes if lane.candidate is not None)

    @cached_property
    def prompts(self) -> frozenset[str]:
        """The prompts that somebody is asked by."""
        models = (self.baseline, *self.candidates)
        return frozenset(model.prompt for model in models if model.prompt is not None)

    @cached_property
    def unprompted(self) -> Routing:
        """What it is to who knows no prompts: the baseline's model for all units, and no evidence.

        Asked by the application's own prompt, a candidate would not be the one that is tested.
        """
        if not self.prompts:
            return self
        return Routing(
            task=self.task,
            baseline=self.baseline,
            version=self.version,
            updated_at=self.updated_at,
            cause=self.cause,
            previous=self.previous,
        )

    @property
    def candidates_share(self) -> float | None:
        """The share of the units that any candidate serves; None where there is none."""
        shares = [lane.share for lane in self.lanes if lane.candidate is not None]
        return sum(shares) if shares else None

    def ensure_free(self, *own: str) -> None:
        """Return where nobody's candidate serves but that of `own` subjects.

        Raises `ConflictError`, which names the others.
        """
        others = [subject for subject in self.subjects if subject not in own]
        if others:
            busy = ", ".join(others)
            raise ConflictError(
                f"Task {self.task} is busy with {busy}: one candidate at a time, or several as "
                "one family.",
                mend=f"End {busy} first, or wait for it.",
                subject=others[0],
            )

    def ensure_in_use(self, baseline: Variant, *, by: str = "the test") -> None:
        """Return where this is the model in use; raises `ConflictError`, which names both."""
        if not self.baseline.same_as(baseline):
            raise ConflictError(
                f"The baseline {baseline} is not the model in use of {self.task}, "
                f"{self.baseline}: {by} would put it into production.",
                mend=f"Test against {self.baseline}, or say replace_baseline.",
                in_use=self.baseline.model_id,
                baseline=baseline.model_id,
            )

    @cached_property
    def buckets(self) -> tuple[int, ...]:
        """How many of its lane's buckets each candidate serves."""
        return tuple(
            0 if lane.candidate is None else assignment.candidate_buckets(lane.share)
            for lane in self.lanes
        )

    def serve(self, unit: str) -> Served:
        """Who answers this unit: the same everywhere, by `assignment`."""
        if not self.lanes:
            return Served(model=self.baseline, arm=Arm.BASELINE, subject=None)
        bucket = assignment.bucket(self.salt, unit)
        number, chosen = assignment.lane_and_arm(bucket, self.buckets)
        lane = self.lanes[number]
        if lane.candidate is None or not chosen:
            return Served(model=self.baseline, arm=Arm.BASELINE, subject=lane.subject)
        return Served(model=lane.candidate, arm=Arm.CANDIDATE, subject=lane.subject)

    def document(self) -> RoutingDocument:
        """The fields as every document names them, models still as records.

        One lane's `candidate`, `share` and `subject` stand beside the task's own fields, and
        `lanes` is empty; of several lanes those three are empty, and `lanes` has them.
        """
        only = self.only
        return {
            "task": self.task,
            "baseline": self.baseline,
            "candidate": only.candidate if only else None,
            "share": only.share if only else 0.0,
            "salt": self.salt,
            "subject": only.subject if only else None,
            "phase": self.phase,
            "version": self.version,
            "updated_at": self.updated_at,
            "cause": self.cause,
            "lanes": () if only else self.lanes,
        }
