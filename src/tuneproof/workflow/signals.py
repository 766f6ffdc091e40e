"""Signals, which wake a waiting run, and the states that a run can be in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tuneproof.workflow.codec import register

CONTROL = "control"
"""The one topic on which a waiting run listens."""


class RunStatus(StrEnum):
    """Where a run stands; the last six are how it can end."""

    PENDING = "pending"  # recorded, not begun
    RUNNING = "running"  # a stage is at work or waits
    HOLDING = "holding"  # the rollout holds; the next run may start
    SUCCESS = "success"  # the version is the model in use
    SKIPPED = "skipped"  # too few examples; nothing was spent
    REJECTED = "rejected"  # the gate or the experiment said no
    ROLLED_BACK = "rolled_back"  # taken back for harm
    ABORTED = "aborted"  # somebody ended it
    FAILED = "failed"  # an error ended it; it can be retried from that stage

    @property
    def final(self) -> bool:
        """Whether the run is over."""
        return self not in (RunStatus.PENDING, RunStatus.RUNNING, RunStatus.HOLDING)


@dataclass(frozen=True, kw_only=True)
class Signal:
    """A message that wakes a waiting run: who wants what, and why."""

    kind: str
    actor: str = "system"
    reason: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


TICK = Signal(kind="tick")
"""Only says "look at the clock again"."""

register(Signal, RunStatus)
