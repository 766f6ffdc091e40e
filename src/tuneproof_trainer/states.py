"""Where a job stands."""

from __future__ import annotations

import enum

__all__ = ["ENDED", "JobState"]


class JobState(enum.StrEnum):
    """Where a job stands."""

    VALIDATING = "validating_files"
    """Its files are being checked."""

    QUEUED = "queued"
    """Waits for a free place to train."""

    RUNNING = "running"
    """Trains."""

    PAUSING = "pausing"
    """Will stop at the next step and keep a snapshot."""

    PAUSED = "paused"
    """Stopped; `resume` queues it again."""

    SUCCEEDED = "succeeded"
    """Its model can be used."""

    FAILED = "failed"
    """Ended with an error that its owner can read."""

    CANCELLED = "cancelled"
    """Its owner gave it up."""


ENDED = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
