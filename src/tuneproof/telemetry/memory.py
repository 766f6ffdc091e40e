"""The memory of this process while a run works, and its warning limit."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

__all__ = ["MemoryWatch", "ProcessFigures", "Usage"]

log = logging.getLogger(__name__)

_MB = 1024 * 1024
_REARM_SHARE = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Resident memory in MiB at the start, at most and at the end (or now)."""

    initial_mb: float
    peak_mb: float
    final_mb: float

    def to_dict(self) -> dict[str, float]:
        """The three figures, rounded to 0.1 MiB."""
        return {
            "initial_mb": round(self.initial_mb, 1),
            "peak_mb": round(self.peak_mb, 1),
            "final_mb": round(self.final_mb, 1),
        }


def _resident_mb() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss) / _MB


class MemoryWatch:
    """Samples resident memory in a thread of its own, so a busy event loop hides no peak.

        with MemoryWatch(limit_mb=2048, on_warning=hook) as watch:
            ...
        watch.usage  # Usage(initial_mb=…, peak_mb=…, final_mb=…)

    At `limit_mb` it warns by log and calls `on_warning(resident_mb, limit_mb)` from that thread:
    once, and again only after memory fell below nine tenths of the limit.
    """

    def __init__(
        self,
        limit_mb: float = 2048.0,
        *,
        on_warning: Callable[[float, float], None] | None = None,
        interval_s: float = 0.25,
        resident_mb: Callable[[], float] = _resident_mb,
    ) -> None:
        self.limit_mb = limit_mb
        self._on_warning = on_warning
        self._interval_s = interval_s
        self._resident_mb = resident_mb
        self._over = False
        self._initial = self._peak = self._last = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def usage(self) -> Usage:
        """The figures until now; zeros before the start."""
        return Usage(initial_mb=self._initial, peak_mb=self._peak, final_mb=self._last)

    def __enter__(self) -> Self:
        self._stop.clear()
        self._peak = 0.0
        self._initial = self.sample()
        self._thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.sample()

    def sample(self) -> float:
        """Look now; returns resident memory in MiB. Stages call it where they expect a peak."""
        now = self._last = self._resident_mb()
        self._peak = max(self._peak, now)
        if now >= self.limit_mb and not self._over:
            self._over = True
            self._warn(now)
        elif now < self.limit_mb * _REARM_SHARE:
            self._over = False
        return now

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.sample()

    def _warn(self, now: float) -> None:
        log.warning("memory is at %.0f MB, over the limit of %.0f MB", now, self.limit_mb)
        if self._on_warning is not None:
            try:
                self._on_warning(now, self.limit_mb)
            except Exception:
                log.exception("the hook for memory warnings failed")


class ProcessFigures:
    """Memory and processor use of this process, for health."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._process.cpu_percent()  # the first answer is always 0: ask it away

    def read(self) -> dict[str, float]:
        """`memory_usage_mb`, and `cpu_usage_percent` of one core since the last reading."""
        return {
            "memory_usage_mb": round(self._process.memory_info().rss / _MB, 1),
            "cpu_usage_percent": self._process.cpu_percent(),
        }
