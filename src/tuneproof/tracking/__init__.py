"""MLflow, by way of an outbox.

The pipeline writes what MLflow should know into the outbox, in the transaction of the change
itself, and never waits for MLflow. `MLflowExperimentTracker` delivers it when MLflow answers:
each thing is found by its tag before it is made, so a delivery that was cut off is not made
twice. What the outbox's items mean is written down in `tuneproof.tracking.outbox`.
"""

from tuneproof.tracking.outbox import Outbox, PendingItem
from tuneproof.tracking.registry import MLflowModelRegistry, TrackedVersion
from tuneproof.tracking.tracker import MLflowExperimentTracker, TrackedRun

__all__ = [
    "MLflowExperimentTracker",
    "MLflowModelRegistry",
    "Outbox",
    "PendingItem",
    "TrackedRun",
    "TrackedVersion",
]
