"""How far a job is, when it will end, and whether it stands still: from what polls see of it.

No length is right for all jobs, so none ends one unless the settings name it. What ends a job is
that nothing new is told of it, for longer than its own pace explains. Time in which nobody asked
(a laptop that slept, a provider that was away) says nothing of the job, and does not count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tuneproof.training.records import Job, JobEvent, JobStatus

__all__ = ["JobProgress", "JobWatch", "progress_of"]

STILL_S = 1800.0
"""How long a job that trains may tell nothing new, at least."""

GAPS = 10.0
"""Or this many times its longest silence until now: a machine may be slow all along."""

FIRST_STEP_S = 3600.0
"""How long a job may take to its first step, and after its last, at least, where it is known how
long jobs take."""

EXPECTATIONS = 4.0
"""Or this many times as long as the whole job is expected to take."""

PATIENCE_S = 24 * 3600.0
"""How long a job may wait for a machine, tell no steps, or not be asked after since its provider
is away."""

FORESEEN_S = 366 * 24 * 3600.0
"""Nothing is said of what lies further ahead."""

LEAST_GAP_S = 60.0
"""What counts of the time between two polls is twice their interval, or this."""


@dataclass(frozen=True, kw_only=True)
class JobProgress:
    """A job as one poll saw it.

    `metrics` are the last ones of a job that has ended. `mark` is another one each time that the
    job has told anything new, and empty where its events could not be read; `step` and
    `total_steps` are None where its provider tells none.
    """

    job: Job
    metrics: Mapping[str, float] = field(default_factory=dict)
    step: int | None = None
    total_steps: int | None = None
    mark: str = ""


def progress_of(job: Job, events: Sequence[JobEvent] | None) -> JobProgress:
    """A job and its newest events (oldest first), as one poll saw them; None: unread."""
    if events is None:
        return JobProgress(job=job)
    step, total = _steps(events)
    return JobProgress(
        job=job,
        metrics=_metrics(events) if job.status.final else {},
        step=step,
        total_steps=total,
        mark=_mark(job, events),
    )


def _steps(events: Sequence[JobEvent]) -> tuple[int | None, int | None]:
    """How many steps the newest event that says so tells of, and of how many."""
    for event in reversed(events):
        step, total = event.data.get("step"), event.data.get("total_steps")
        if step is None and "percent" in event.data:
            step, total = event.data["percent"], 100
        if isinstance(step, int | float):
            return int(step), int(total) if isinstance(total, int | float) else None
    return None, None


def _metrics(events: Sequence[JobEvent]) -> dict[str, float]:
    found: dict[str, float] = {}
    for event in events:
        found.update({k: v for k, v in event.data.items() if isinstance(v, (int, float))})
    return found


def _mark(job: Job, events: Sequence[JobEvent]) -> str:
    newest = events[-1] if events else None
    told = [newest.id, dict(newest.data)] if newest else []
    return json.dumps([job.raw_status, job.trained_tokens, *told], default=str, sort_keys=True)


def _later(at: datetime, seconds: float) -> datetime | None:
    """The instant so many seconds later; None beyond what can be foreseen."""
    return at + timedelta(seconds=seconds) if seconds <= FORESEEN_S else None


class JobWatch:
    """Follows one job by what polls see of it.

    `limit_s` is the time that the settings give it; None: as long as it moves on. `expected_s` is
    how long such jobs took, where that is known. Instants are the caller's, so that a run that is
    taken up again comes to the same ends.
    """

    def __init__(
        self,
        at: datetime,
        *,
        limit_s: float | None = None,
        poll_s: float = 10.0,
        expected_s: float | None = None,
    ) -> None:
        self._limit_s, self._expected_s = limit_s, expected_s
        self._gap_s = max(LEAST_GAP_S, 2 * poll_s)
        self._begun = self._asked = at
        self._seen: JobProgress | None = None
        self._still_s = self._away_s = self._longest_s = 0.0
        self._ran: tuple[datetime, int] | None = None
        self._stepped: tuple[datetime, int] | None = None
        self._ends_at: datetime | None = None

    # --- what polls see -----------------------------------------------------------------

    def saw(self, progress: JobProgress, at: datetime) -> None:
        """A poll saw the job like this."""
        if not progress.mark and self._seen is not None and not progress.job.status.final:
            self.missed(at)
            return
        passed = self._passed(at)
        self._away_s = 0.0
        self._still_s += passed
        if self._seen is None or progress.mark != self._seen.mark:
            if self._steps_told:
                self._longest_s = max(self._longest_s, self._still_s)
            self._still_s = 0.0
        self._seen = progress
        if progress.job.status is JobStatus.RUNNING:
            self._run(progress, at)
        self._ends_at = self._end(progress, at)

    def missed(self, at: datetime) -> None:
        """A poll was not answered, or the job's events could not be read."""
        self._away_s += self._passed(at)

    def _passed(self, at: datetime) -> float:
        """Seconds since the last poll, as far as they count."""
        passed = min((at - self._asked).total_seconds(), self._gap_s)
        self._asked = at
        return max(0.0, passed)

    def _run(self, progress: JobProgress, at: datetime) -> None:
        step = progress.step or 0
        self._ran = self._ran or (at, step)
        if step and (self._stepped is None or step < self._stepped[1]):
            self._stepped = at, step

    # --- when it is over ----------------------------------------------------------------

    def over(self, at: datetime) -> bool:
        """Whether the job is to be given up now."""
        if self._limit_s is not None:
            return (at - self._begun).total_seconds() >= self._limit_s
        return self._still_s >= self.patience_s or self._away_s >= PATIENCE_S

    def gives_up_at(self, at: datetime) -> datetime:
        """When the job is given up, unless it moves on."""
        if self._limit_s is not None:
            return self._begun + timedelta(seconds=self._limit_s)
        return _later(at, min(max(0.0, self.patience_s - self._still_s), FORESEEN_S)) or at

    @property
    def patience_s(self) -> float:
        """How long the job may tell nothing new, as it stands now."""
        if self._seen is None or self._seen.job.status is not JobStatus.RUNNING:
            return PATIENCE_S
        if self._steps_told and not self._steps_done:
            return max(STILL_S, GAPS * self._longest_s)
        if self._expected_s is not None:
            return max(FIRST_STEP_S, EXPECTATIONS * self._expected_s)
        return PATIENCE_S

    @property
    def _steps_told(self) -> bool:
        return self._seen is not None and bool(self._seen.step)

    @property
    def _steps_done(self) -> bool:
        """Whether only what follows the last step is left: some providers evaluate for hours."""
        seen = self._seen
        return seen is not None and bool(seen.total_steps) and seen.step == seen.total_steps

    def why(self) -> str:
        """Why the job is given up, in words that go on from what state it was in."""
        if self._limit_s is not None:
            return f"after {self._limit_s:g} s"
        if self._away_s >= PATIENCE_S:
            return "when its provider went away a day ago,"
        seen = self._seen
        told = f" at step {seen.step} of {seen.total_steps or '?'}" if seen and seen.step else ""
        return f"and had told nothing new{told} for {self._still_s:,.0f} s"

    @property
    def code(self) -> str:
        """The code of the error that says so: `timeout` of the settings, or `stalled`."""
        return "timeout" if self._limit_s is not None else "stalled"

    # --- how long it takes --------------------------------------------------------------

    @property
    def ends_at(self) -> datetime | None:
        """When the job will be done, as far as that is known."""
        return self._ends_at

    def _end(self, progress: JobProgress, at: datetime) -> datetime | None:
        """By its provider's word, else by the pace of its own steps, else as was expected."""
        told = progress.job.estimated_finish
        if progress.job.status is not JobStatus.RUNNING or self._ran is None:
            return None
        if told is not None and told > at:
            return told
        by_steps = self._end_by_steps(progress, at)
        if by_steps is not None or self._expected_s is None:
            return by_steps
        expected = _later(self._ran[0], self._expected_s)
        return expected if expected and expected > at else None

    def _end_by_steps(self, progress: JobProgress, at: datetime) -> datetime | None:
        if self._stepped is None or not progress.step or not progress.total_steps:
            return None
        began, first = self._stepped
        done = progress.step - first
        if done <= 0:
            return None
        left = max(0, progress.total_steps - progress.step)
        return _later(at, (at - began).total_seconds() / done * left)

    def took_s(self, ended: JobProgress, at: datetime) -> float | None:
        """How long a job that has ended trained, to about the polls' interval; None: unknown.

        Of one whose beginning was not seen, such as one that an earlier attempt made, the steps
        that were seen stand for all.
        """
        job = ended.job
        whole = None
        if job.created_at is not None and job.finished_at is not None:
            whole = max(0.0, (job.finished_at - job.created_at).total_seconds())
        if self._ran is None:
            return whole
        since, step = self._ran
        share = 1 - step / ended.total_steps if ended.total_steps else 1.0
        if share <= 0:
            return whole
        seen = (at - since).total_seconds() / share
        return seen if whole is None else min(seen, whole)
