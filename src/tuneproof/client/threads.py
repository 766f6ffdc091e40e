"""Threads that do not die unseen: what ends one is logged, and it begins again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("tuneproof.client")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""How long it takes at first, and at most, until a thread's work begins again."""


def lasting(
    name: str,
    work: Callable[[], None],
    *,
    stop: threading.Event,
    failed: Callable[[str], None],
    first_pause_s: float = FIRST_PAUSE_S,
) -> threading.Thread:
    """A daemon thread, not yet started, that does `work` until `stop` is set.

    `work` itself returns once `stop` is set. What it raises is a bug of ours or an odd fault of
    the machine: it is logged, told to `failed`, and the work begins again after a pause that grows.
    """

    def run() -> None:
        pause_s = first_pause_s
        while not stop.is_set():
            try:
                work()
            except Exception as error:
                log.exception("%s died and begins again in %g s", name, pause_s)
                failed(f"{type(error).__name__}: {error}")
                stop.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    return threading.Thread(target=run, name=name, daemon=True)
