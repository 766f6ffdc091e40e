"""What keeps the loop going while something it needs is down.

`CircuitBreaker` stops calling a service that keeps failing, `retrying` calls again after a short
pause, `ConnectionPoolManager` bounds and counts connections, `Supervisor` starts background tasks
again that died. None of them knows which service it guards, and none imports a driver before a
pool is made.
"""

from tuneproof.resilience.aside import aside
from tuneproof.resilience.breaker import (
    DEFAULTS,
    BreakerEvent,
    CircuitBreaker,
    Diagnosis,
    State,
    at_fault,
)
from tuneproof.resilience.cancellation import (
    cancellation_first,
    end_tasks,
    heeding_cancellation,
)
from tuneproof.resilience.pools import (
    ConnectionPoolManager,
    DatabasePool,
    Pool,
    PoolCounts,
    PoolLimits,
    RedisPool,
    postgres_engine,
    prewarm,
    redis_pool,
)
from tuneproof.resilience.retries import retrying
from tuneproof.resilience.supervisor import Supervisor, TaskHealth, TaskState
from tuneproof.resilience.threads import in_daemon_thread

__all__ = [
    "DEFAULTS",
    "BreakerEvent",
    "CircuitBreaker",
    "ConnectionPoolManager",
    "DatabasePool",
    "Diagnosis",
    "Pool",
    "PoolCounts",
    "PoolLimits",
    "RedisPool",
    "State",
    "Supervisor",
    "TaskHealth",
    "TaskState",
    "aside",
    "at_fault",
    "cancellation_first",
    "end_tasks",
    "heeding_cancellation",
    "in_daemon_thread",
    "postgres_engine",
    "prewarm",
    "redis_pool",
    "retrying",
]
