"""Rollout: the stepwise move of traffic to a promoted version, and the way back.

`machine` is the state machine, `watch` what its guardrails say, `manager` does it; where a
share is applied outside our own router is a `Target`.
"""

from tuneproof.rollout.machine import (
    Deployment,
    DeploymentResult,
    DeploymentState,
    Plan,
    RollbackResult,
    Routing,
    Target,
    plan,
    routing_of,
)
from tuneproof.rollout.manager import DeploymentManager, RolloutStore, SafetyCheck
from tuneproof.rollout.watch import Advice, Watch, watch

__all__ = [
    "Advice",
    "Deployment",
    "DeploymentManager",
    "DeploymentResult",
    "DeploymentState",
    "Plan",
    "RollbackResult",
    "RolloutStore",
    "Routing",
    "SafetyCheck",
    "Target",
    "Watch",
    "plan",
    "routing_of",
    "watch",
]
