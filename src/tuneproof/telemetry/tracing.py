"""Spans for OpenTelemetry where the process has set it up, and nothing where it has not.

OpenTelemetry is never imported here: a process that records traces has imported it already
(by its SDK or by `opentelemetry-instrument`), and any other pays one dictionary lookup.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["span"]


@contextmanager
def span(name: str, **attributes: str | int | float | bool) -> Iterator[Any]:
    """Record what happens inside as the span `name`; yields it, or None where none is recorded.

    An error that leaves the block is recorded on the span and goes on.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        yield None
        return
    tracer = trace.get_tracer("tuneproof")
    prefixed = {f"tuneproof.{key}": value for key, value in attributes.items()}
    with tracer.start_as_current_span(name, attributes=prefixed) as current:
        yield current
