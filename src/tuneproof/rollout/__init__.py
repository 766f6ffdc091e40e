"""Rollout: the stepwise move of traffic to a promoted version, and the way back.

`machine` is the state machine, `watch` what its guardrails say, `manager` does it, `routing` is
what comes of it; where a share is applied outside our own router is a `Target`.
"""

from tuneproof.rollout.machine import (
    Deployment,
    DeploymentResult,
    DeploymentState,
    Plan,
    RollbackResult,
    TakesPrompts,
    Target,
    plan,
    routing_of,
)
from tuneproof.rollout.manager import DeploymentManager, SafetyCheck
from tuneproof.rollout.routing import Lane, Routing, Served
from tuneproof.rollout.store import RolloutStore
from tuneproof.rollout.watch import Advice, Watch, watch

__all__ = [
    "Advice",
    "Deployment",
    "DeploymentManager",
    "DeploymentResult",
    "DeploymentState",
    "Lane",
    "Plan",
    "RollbackResult",
    "RolloutStore",
    "Routing",
    "SafetyCheck",
    "Served",
    "TakesPrompts",
    "Target",
    "Watch",
    "plan",
    "routing_of",
    "watch",
]
