"""Calls that go past the breakers: who looks at a service's health must not change it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["aside", "stands_aside"]

_ASIDE: ContextVar[bool] = ContextVar("tuneproof_breakers_aside", default=False)


@contextmanager
def aside() -> Iterator[None]:
    """Within this block no breaker refuses a call, counts it, or takes it for its probe."""
    token = _ASIDE.set(True)
    try:
        yield
    finally:
        _ASIDE.reset(token)


def stands_aside() -> bool:
    """Whether a call made now goes past the breakers."""
    return _ASIDE.get()
