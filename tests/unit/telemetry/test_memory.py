"""Memory while a run works, by figures that the test gives and by the real ones."""

from __future__ import annotations

import time

import pytest

from tuneproof.telemetry import MemoryWatch, ProcessFigures


class Resident:
    """Memory that is as large as the test says."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def __call__(self) -> float:
        return self.values.pop(0)


def test_reports_initial_peak_and_final() -> None:
    watch = MemoryWatch(resident_mb=Resident(100, 150, 900, 300, 120), interval_s=3600)
    with watch:
        for _ in range(3):
            watch.sample()
    assert watch.usage.to_dict() == {"initial_mb": 100, "peak_mb": 900, "final_mb": 120}


def test_warns_once_for_each_time_over_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    warned: list[tuple[float, float]] = []
    figures = Resident(100, 2048, 3000, 1900, 2100, 1800, 2500, 100)
    watch = MemoryWatch(
        2048,
        on_warning=lambda now, limit: warned.append((now, limit)),
        resident_mb=figures,
        interval_s=3600,
    )
    with watch:
        for _ in range(6):
            watch.sample()
    assert warned == [(2048, 2048), (2500, 2048)]
    assert "over the limit of 2048 MB" in caplog.text


def test_failing_hook_is_logged_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def hook(now: float, limit: float) -> None:
        raise RuntimeError("no disk")

    watch = MemoryWatch(1, on_warning=hook, resident_mb=lambda: 2.0)
    with watch:
        pass
    assert "no disk" in caplog.text


def test_thread_sees_a_peak_that_the_busy_caller_never_samples() -> None:
    with MemoryWatch(interval_s=0.001) as watch:
        block = bytearray(64 * 1024 * 1024)
        block[::4096] = b"x" * len(block[::4096])
        while watch.usage.peak_mb < watch.usage.initial_mb + 50:
            pass
        del block
    assert watch.usage.peak_mb > watch.usage.initial_mb + 50


def test_can_be_used_again() -> None:
    watch = MemoryWatch(resident_mb=Resident(500, 500, 10, 20), interval_s=3600)
    with watch:
        pass
    with watch:
        pass
    assert watch.usage.to_dict() == {"initial_mb": 10, "peak_mb": 20, "final_mb": 20}


def test_process_figures_are_real() -> None:
    figures = ProcessFigures()
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    found = figures.read()
    assert found["memory_usage_mb"] > 10
    assert found["cpu_usage_percent"] > 0
