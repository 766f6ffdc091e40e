"""Health: real calls at once, time-outs, hints."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from tuneproof.errors import ProviderUnavailableError, StoreUnavailableError
from tuneproof.resilience import CircuitBreaker
from tuneproof.telemetry import (
    BreakerCheck,
    CallCheck,
    ComponentHealth,
    HealthStatus,
    run_checks,
)

NOW = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)


async def well() -> str:
    return "PostgreSQL 15"


async def silent() -> None:
    await asyncio.Event().wait()


async def refused() -> None:
    raise StoreUnavailableError("The database did not answer.", mend="Start it.")


async def broken() -> None:
    raise KeyError("surprise")


async def test_healthy_components_say_so_with_their_latency() -> None:
    report = await run_checks([CallCheck(name="database", call=well)], now=lambda: NOW)
    found = report.to_dict()
    assert found["status"] == "healthy"
    assert found["timestamp"] == NOW.timestamp()
    assert found["components"] == {"database": "healthy"}
    assert found["checks"]["database"]["detail"] == "PostgreSQL 15"
    assert 0 <= found["checks"]["database"]["latency_ms"] < 5000


@pytest.mark.parametrize(("needed", "status"), [(True, "unhealthy"), (False, "degraded")])
async def test_our_errors_become_detail_and_hint(needed: bool, status: str) -> None:
    report = await run_checks([CallCheck(name="database", call=refused, needed=needed)])
    found = report.to_dict()
    check = found["checks"]["database"]
    assert found["status"] == found["components"]["database"] == check["status"] == status
    assert check["detail"] == "The database did not answer."
    assert check["hint"] == "Start it."


async def test_unexpected_errors_are_reported_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    report = await run_checks([CallCheck(name="x", call=broken, hint="Look at the log.")])
    assert report.components["x"].detail == "KeyError: 'surprise'"
    assert report.components["x"].hint == "Look at the log."
    assert "surprise" in caplog.text


async def test_silent_component_fails_by_time_and_delays_no_other() -> None:
    checks = [
        *(CallCheck(name=f"silent{n}", call=silent, hint="Restart it.") for n in range(20)),
        CallCheck(name="database", call=well, needed=True),
    ]
    async with asyncio.timeout(1):
        report = await run_checks(checks, 0.05)
    assert report.status is HealthStatus.DEGRADED
    assert report.components["silent0"].detail == "No answer within 0.05 s."
    assert report.components["silent0"].hint == "Restart it."
    assert report.components["database"].status is HealthStatus.HEALTHY


async def test_component_that_is_not_configured_is_not_missed() -> None:
    report = await run_checks(
        [CallCheck(name="mlflow", call=None, hint="Set MLFLOW_TRACKING_URI.")]
    )
    assert report.status is HealthStatus.HEALTHY
    assert report.components["mlflow"].status is HealthStatus.NOT_CONFIGURED
    assert report.components["mlflow"].latency_ms is None


async def test_open_breaker_degrades_and_explains() -> None:
    breaker = CircuitBreaker(1, 120, name="openai")
    check = BreakerCheck(name="openai_circuit_breaker", breaker=breaker)
    report = await run_checks([check])
    assert report.status is HealthStatus.HEALTHY
    assert report.to_dict()["components"] == {check.name: "CLOSED"}

    async def fail() -> None:
        raise ProviderUnavailableError("down")

    with pytest.raises(ProviderUnavailableError):
        await breaker.call(fail)
    report = await run_checks([check])
    assert report.status is HealthStatus.DEGRADED
    assert report.to_dict()["components"] == {check.name: "OPEN"}
    assert "OPEN" in report.components[check.name].detail
    assert "openai" in report.components[check.name].hint


async def test_own_checks_may_raise() -> None:
    class Own:
        name = "own"

        async def check(self) -> ComponentHealth:
            raise OSError("gone")

    report = await run_checks([Own()])
    assert report.components["own"].status is HealthStatus.UNHEALTHY
    assert report.components["own"].detail == "OSError: gone"
