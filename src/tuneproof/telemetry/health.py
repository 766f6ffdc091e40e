"""Health by real calls, all at once, each with a time-out and a hint how to mend it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol

from tuneproof.errors import TuneProofError
from tuneproof.resilience import CircuitBreaker, Diagnosis, State, aside

__all__ = [
    "BreakerCheck",
    "CallCheck",
    "ComponentHealth",
    "HealthCheck",
    "HealthReport",
    "HealthStatus",
    "run_checks",
]

log = logging.getLogger(__name__)


class HealthStatus(StrEnum):
    """How a component, or the whole, does."""

    HEALTHY = "healthy"  # a real call came back
    DEGRADED = "degraded"  # it is missed, and the service goes on without it
    UNHEALTHY = "unhealthy"  # it does not answer, and is needed
    NOT_CONFIGURED = "not_configured"  # the settings name none; nothing is missed


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentHealth:
    """One component's health; `hint` says how to mend it.

    `state` is what the component calls its own state, where it has a word for it.
    """

    status: HealthStatus
    state: str = ""
    detail: str = ""
    hint: str = ""
    latency_ms: float | None = None

    @property
    def word(self) -> str:
        """The component in one word."""
        return self.state or self.status.value

    def to_dict(self) -> dict[str, Any]:
        """This record as JSON types."""
        return {
            "status": self.status.value,
            "detail": self.detail,
            "hint": self.hint,
            "latency_ms": None if self.latency_ms is None else round(self.latency_ms, 3),
        }


class HealthCheck(Protocol):
    """What knows how to look at one component."""

    @property
    def name(self) -> str:
        """The component, as the health page calls it."""
        ...

    async def check(self) -> ComponentHealth:
        """Look now. May raise: that is reported as unhealthy."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class CallCheck:
    """Healthy where `call` returns; a text that it returns becomes the detail.

    What it raises becomes detail and hint, and `unhealthy` where the component is `needed`, else
    `degraded`. `call` may be None: the component is then not configured.
    """

    name: str
    call: Callable[[], Awaitable[Any]] | None
    hint: str = ""
    needed: bool = False

    async def check(self) -> ComponentHealth:
        """Make the call."""
        if self.call is None:
            return ComponentHealth(status=HealthStatus.NOT_CONFIGURED, hint=self.hint)
        try:
            found = await self.call()
        except TuneProofError as error:
            return self.failed(error.message, error.mend or self.hint)
        except Exception as error:
            log.warning("the health check of %s failed", self.name, exc_info=True)
            return self.failed(f"{type(error).__name__}: {error}", self.hint)
        return ComponentHealth(
            status=HealthStatus.HEALTHY, detail=found if isinstance(found, str) else ""
        )

    def failed(self, detail: str, hint: str) -> ComponentHealth:
        """How this component's failure is reported."""
        status = HealthStatus.UNHEALTHY if self.needed else HealthStatus.DEGRADED
        return ComponentHealth(status=status, detail=detail, hint=hint)


@dataclass(frozen=True, kw_only=True, slots=True)
class BreakerCheck:
    """What a circuit breaker says about the service behind it."""

    name: str
    breaker: CircuitBreaker

    async def check(self) -> ComponentHealth:
        """Degraded unless the breaker is closed."""
        diagnosis = self.breaker.diagnose()
        closed = diagnosis.state is State.CLOSED
        return ComponentHealth(
            status=HealthStatus.HEALTHY if closed else HealthStatus.DEGRADED,
            state=diagnosis.state.value,
            detail=" ".join((f"{diagnosis.state.value}.", _limits(diagnosis), *diagnosis.issues)),
            hint=" ".join(diagnosis.recommendations),
        )


def _limits(breaker: Diagnosis) -> str:
    failures = f"{breaker.failure_threshold} failure{'s' * (breaker.failure_threshold != 1)}"
    return f"Opens after {failures} in a row, for {breaker.timeout:g} s."


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthReport:
    """All components' health, and the whole's: the worst of them."""

    status: HealthStatus
    timestamp: datetime
    components: dict[str, ComponentHealth]

    def to_dict(self) -> dict[str, Any]:
        """This report as JSON types: `components` in a word each, `checks` with all there is.

        `timestamp` is in seconds since 1970.
        """
        return {
            "status": self.status.value,
            "timestamp": self.timestamp.timestamp(),
            "components": {name: c.word for name, c in self.components.items()},
            "checks": {name: c.to_dict() for name, c in self.components.items()},
        }


async def run_checks(
    checks: Sequence[HealthCheck],
    timeout_s: float = 5.0,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> HealthReport:
    """Run all checks at once; one that takes longer than `timeout_s` seconds has failed.

    Their calls go past the breakers: looking changes nothing.
    """
    with aside():
        found = await asyncio.gather(*(_run(check, timeout_s) for check in checks))
    components = {check.name: health for check, health in zip(checks, found, strict=True)}
    statuses = {health.status for health in found}
    worst = next(
        (s for s in (HealthStatus.UNHEALTHY, HealthStatus.DEGRADED) if s in statuses),
        HealthStatus.HEALTHY,
    )
    return HealthReport(status=worst, timestamp=now(), components=components)


async def _run(check: HealthCheck, timeout_s: float) -> ComponentHealth:
    started = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            health = await check.check()
    except TimeoutError:
        health = _failed(check, f"No answer within {timeout_s:g} s.")
    except Exception as error:
        log.warning("the health check of %s failed", check.name, exc_info=True)
        health = _failed(check, f"{type(error).__name__}: {error}")
    if health.latency_ms is not None or health.status is HealthStatus.NOT_CONFIGURED:
        return health
    return replace(health, latency_ms=(time.perf_counter() - started) * 1000)


def _failed(check: HealthCheck, detail: str) -> ComponentHealth:
    if isinstance(check, CallCheck):
        return check.failed(detail, check.hint)
    return ComponentHealth(status=HealthStatus.UNHEALTHY, detail=detail)
