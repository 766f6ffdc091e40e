"""Rollout: the stepwise move of traffic to a promoted version, and the way back.

The state machine and its guardrails are here; where a share is applied is a `Target`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from tuneproof.experiments import ModelRef


class DeploymentState(StrEnum):
    """Where a rollout stands."""

    PENDING = "pending"  # checked, not started
    STEPPING = "stepping"  # serves a share, waits for the next step
    PAUSED = "paused"  # waits for data or for a person; the share stays
    HOLDING = "holding"  # all but the holdback moved; late harm is still seen
    COMPLETE = "complete"  # over: the version is the model in use
    ROLLED_BACK = "rolled_back"  # traffic is back on the baseline
    FAILED = "failed"  # could not be carried out

    @property
    def final(self) -> bool:
        """Whether nothing moves any more."""
        return self in (
            DeploymentState.COMPLETE,
            DeploymentState.ROLLED_BACK,
            DeploymentState.FAILED,
        )


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Which model serves a task: the one state that client, gateway and targets read.

    `share` of the units gets `candidate`, the rest `baseline`; `subject` is the experiment
    or rollout whose events these decisions belong to (None: nothing is tested). `version`
    counts the writes of this task's routing.
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


class Target(Protocol):
    """A place outside our router that must learn of a new share or model."""

    name: str

    async def apply(self, routing: Routing) -> None:
        """Make the target serve this routing; idempotent."""

    async def observe(self, task: str) -> Mapping[str, Any] | None:
        """What the target serves now, read back; None where it cannot say."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of a rollout: shares 0–1 in rising order, the last before the holdback."""

    strategy: str
    steps: tuple[float, ...]
    interval_hours: float
    holdback: float
    holdback_days: float


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A rollout of one version."""

    id: str
    run_id: str | None
    pipeline: str
    tasks: tuple[str, ...]
    ab_test_id: str | None
    version_id: str | None
    candidate: ModelRef
    previous: ModelRef
    plan: Plan
    state: DeploymentState
    step: int
    share: float
    salt: str
    created_at: datetime
    step_started_at: datetime | None = None
    next_at: datetime | None = None
    ended_at: datetime | None = None
    cause: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    version: int = 0


@dataclass(frozen=True, kw_only=True)
class DeploymentResult:
    """What `deploy_model` answers."""

    deployment_id: str
    status: DeploymentState
    strategy: str
    current_traffic: float
    previous_model: str
    triggers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RollbackResult:
    """What `rollback_model` answers. `seconds` is the time from the call to the routing write."""

    deployment_id: str
    status: DeploymentState
    restored_model: str
    reason: str
    seconds: float
