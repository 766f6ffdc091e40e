"""What the service says about itself: metrics, health, alerts, memory, traces.

The logic imports none of this. It calls hooks that the app connects to `Metrics`; what can be
read when somebody asks (pools, breakers, the cache, memory) is read then and never pushed.
"""

from tuneproof.telemetry.alerts import Alerts
from tuneproof.telemetry.health import (
    BreakerCheck,
    CallCheck,
    ComponentHealth,
    HealthCheck,
    HealthReport,
    HealthStatus,
    run_checks,
)
from tuneproof.telemetry.memory import MemoryWatch, ProcessFigures
from tuneproof.telemetry.metrics import Metrics, ResponseTimes
from tuneproof.telemetry.tracing import Tracing
from tuneproof.telemetry.watched import ModelFigures

__all__ = [
    "Alerts",
    "BreakerCheck",
    "CallCheck",
    "ComponentHealth",
    "HealthCheck",
    "HealthReport",
    "HealthStatus",
    "MemoryWatch",
    "Metrics",
    "ModelFigures",
    "ProcessFigures",
    "ResponseTimes",
    "Tracing",
    "run_checks",
]
