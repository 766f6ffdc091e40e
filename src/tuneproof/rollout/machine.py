"""The rollout's state machine: values in, values out. Nothing here knows a clock or a store."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from tuneproof.errors import StateError
from tuneproof.experiments import Variant, engagement_metric
from tuneproof.prompts import Prompt
from tuneproof.rollout.routing import Lane, Routing
from tuneproof.settings import Declaration

if TYPE_CHECKING:
    from tuneproof.settings import PipelineConfig
    from tuneproof.stats.effects import Metric


class DeploymentState(StrEnum):
    """Where a rollout stands."""

    PENDING = "pending"  # checked, not started
    STEPPING = "stepping"  # serves a share, waits for the next step
    PAUSED = "paused"  # waits for a person; the share stays
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


class Target(Protocol):
    """A place outside our router that must learn of a new share or model."""

    name: str

    async def apply(self, routing: Routing) -> None:
        """Make the target serve this routing; idempotent."""

    async def observe(self, task: str) -> Mapping[str, object] | None:
        """What the target serves now, read back; None where it cannot say."""


@runtime_checkable
class TakesPrompts(Target, Protocol):
    """A target whose applications ask models by the prompts that they are told, where `prompts`."""

    prompts: bool

    async def keep(self, prompts: Mapping[str, Prompt]) -> None:
        """Have these at hand, by their hash, before a routing names them; idempotent."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of a rollout: shares 0–1 in rising order, the last before the holdback."""

    strategy: str
    steps: tuple[float, ...]
    interval_hours: float
    holdback: float
    holdback_days: float

    @property
    def most(self) -> float:
        """The share that the rollout may serve by itself: below 1 where `max_traffic` is."""
        return round(self.steps[-1] + self.holdback, 6)


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A rollout of one version."""

    id: str
    run_id: str | None
    pipeline: str
    tasks: tuple[str, ...]
    ab_test_id: str | None
    version_id: str | None
    candidate: Variant
    previous: Variant
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
    evidence: Mapping[str, object] = field(default_factory=dict)
    version: int = 0
    declaration: Declaration = field(default_factory=Declaration)
    """As its test's; the pipeline's, where it had none."""

    @property
    def metric(self) -> Metric:
        """What engagement is in this rollout."""
        return engagement_metric(self.declaration)


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
    """What `rollback_model` answers. `seconds` is the time from the call to the routing write.

    `overtook` says what somebody else did at the same moment, which this took back.
    """

    deployment_id: str
    status: DeploymentState
    restored_model: str
    reason: str
    seconds: float
    overtook: str = ""


# --- the plan ---------------------------------------------------------------------------

CANARY = (0.01, 0.05, 0.2, 0.5, 1.0)
"""Shares of the `canary` strategy."""


def plan(config: PipelineConfig) -> Plan:
    """The steps that a pipeline's settings ask for.

    The last step is `max_traffic` less the holdback; a step that would come within the holdback
    is left out.
    """
    top = config.max_traffic - config.holdback
    if config.steps is not None:
        shares: tuple[float, ...] = config.steps
    elif config.deployment_strategy == "canary":
        shares = CANARY
    elif config.deployment_strategy == "immediate":
        shares = (top,)
    else:
        count = math.ceil((1 - config.initial_traffic) / config.increment_percentage - 1e-9)
        shares = tuple(
            config.initial_traffic + i * config.increment_percentage for i in range(count + 1)
        )
    below = tuple(round(s, 6) for s in shares if s < top - 1e-9)
    return Plan(
        strategy=config.deployment_strategy if config.steps is None else "steps",
        steps=(*below, round(top, 6)),
        interval_hours=config.increment_interval_hours,
        holdback=config.holdback,
        holdback_days=config.holdback_days if config.holdback else 0.0,
    )


def begin(deployment: Deployment, now: datetime) -> Deployment:
    """Take the first step of a pending rollout."""
    _expect(deployment, "begin", DeploymentState.PENDING)
    return _to_step(deployment, 0, now)


def advance(deployment: Deployment, now: datetime) -> Deployment:
    """Take the next step; after the last one hold, and after the hold be complete.

    Complete is all of the traffic: see `waits_at_most` for who may say so.
    """
    _expect(
        deployment,
        "advance",
        DeploymentState.STEPPING,
        DeploymentState.PAUSED,
        DeploymentState.HOLDING,
    )
    if deployment.state is DeploymentState.HOLDING or _served_all(deployment):
        return replace(
            deployment,
            state=DeploymentState.COMPLETE,
            share=1.0,
            ended_at=now,
            next_at=None,
            cause=None,
        )
    return _to_step(deployment, deployment.step + 1, now)


def waits_at_most(deployment: Deployment) -> bool:
    """Whether the next step would pass `max_traffic`, so that a person must say so."""
    ends = deployment.state is DeploymentState.HOLDING or _served_all(deployment)
    return ends and deployment.plan.most < 1


def pause(deployment: Deployment, reason: str) -> Deployment:
    """Stay at this share until a person decides, also where it only holds."""
    _expect(deployment, "pause", DeploymentState.STEPPING, DeploymentState.HOLDING)
    return replace(deployment, state=DeploymentState.PAUSED, next_at=None, cause=reason)


def resume(deployment: Deployment, now: datetime) -> Deployment:
    """Go on from a pause; the step's time, or the hold's, starts anew."""
    _expect(deployment, "resume", DeploymentState.PAUSED)
    return _to_step(deployment, deployment.step, now)


def roll_back(
    deployment: Deployment, now: datetime, cause: str, evidence: Mapping[str, object]
) -> Deployment:
    """Give all traffic back to the baseline; one that is rolled back already stays as it is."""
    if deployment.state is DeploymentState.ROLLED_BACK:
        return deployment
    if deployment.state is DeploymentState.FAILED:
        _expect(deployment, "roll back", DeploymentState.STEPPING)
    return replace(
        deployment,
        state=DeploymentState.ROLLED_BACK,
        share=0.0,
        cause=cause,
        evidence=dict(evidence),
        ended_at=now,
        next_at=None,
    )


def _to_step(deployment: Deployment, step: int, now: datetime) -> Deployment:
    last = step == len(deployment.plan.steps) - 1
    holding = last and deployment.plan.holdback > 0
    days, hours = deployment.plan.holdback_days, deployment.plan.interval_hours
    return replace(
        deployment,
        state=DeploymentState.HOLDING if holding else DeploymentState.STEPPING,
        step=step,
        share=deployment.plan.steps[step],
        step_started_at=now,
        next_at=now + (timedelta(days=days) if holding else timedelta(hours=hours)),
        cause=None,
    )


def _served_all(deployment: Deployment) -> bool:
    return deployment.step >= len(deployment.plan.steps) - 1


def _expect(deployment: Deployment, verb: str, *states: DeploymentState) -> None:
    if deployment.state not in states:
        raise StateError(
            f"Rollout {deployment.id} is {deployment.state}: it cannot {verb}.",
            mend=f"tuneproof rollout show {deployment.id}",
            state=str(deployment.state),
        )


def routing_of(deployment: Deployment, task: str, phase: int) -> Routing:
    """What a rollout in this state means for a task."""
    if deployment.state is DeploymentState.COMPLETE:
        return Routing(task=task, baseline=deployment.candidate, cause=f"{deployment.id} complete")
    if deployment.state in (DeploymentState.ROLLED_BACK, DeploymentState.FAILED):
        return Routing(task=task, baseline=deployment.previous, cause=deployment.cause or "")
    lane = Lane(subject=deployment.id, candidate=deployment.candidate, share=deployment.share)
    return Routing(
        task=task,
        baseline=deployment.previous,
        lanes=(lane,),
        salt=deployment.salt,
        phase=phase,
        cause=f"{deployment.id} step {deployment.step + 1}: {deployment.share:.0%}",
    )
