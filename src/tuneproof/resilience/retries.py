"""Retries over seconds: stamina with attempts and time-out both set.

One layer only. Minutes and hours belong to the workflow, and the SDKs' own retries are off. An
open circuit is never retried here: whoever called waits until the breaker says it may.
In tests, `stamina.set_testing(True, attempts=3)` takes the pauses away.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from tuneproof.errors import CircuitBreakerError, RateLimitedError, RetryableError

__all__ = ["MAX_RETRY_AFTER_S", "retrying"]

T = TypeVar("T")

MAX_RETRY_AFTER_S = 120.0
"""The longest pause that a server may ask of us in here; longer ones go to the workflow."""


async def retrying(
    fn: Callable[[], Awaitable[T]],
    *,
    on: type[Exception] | tuple[type[Exception], ...] = RetryableError,
    attempts: int = 3,
    timeout: float = 30.0,
    wait_initial: float = 1.0,
    wait_exp_base: float = 2.0,
    wait_max: float = 30.0,
    wait_jitter: float = 0.1,
) -> T:
    """What `fn()` returns, tried again after a pause each time it raises `on`.

    At most `attempts` tries, and none begins once `timeout` seconds have gone by and the last
    pause is over. Pauses are `wait_initial * wait_exp_base ** n` seconds (1, 2, 4 …) plus up to
    `wait_jitter`, at most `wait_max`; a `RateLimitedError` whose `details["retry_after_s"]` is
    120 s or less is waited for as the server asked.

    Raises the last error of `fn`; at once where it is not one of `on`, is a
    `CircuitBreakerError`, or asks for more than 120 s.
    """
    import stamina

    async for attempt in stamina.retry_context(
        on=lambda error: _pause(error, on),
        attempts=attempts,
        timeout=timeout,
        wait_initial=wait_initial,
        wait_exp_base=wait_exp_base,
        wait_max=wait_max,
        wait_jitter=wait_jitter,
    ):
        with attempt:
            return await fn()
    raise AssertionError("stamina ends with a value or an error")


def _pause(error: Exception, on: type[Exception] | tuple[type[Exception], ...]) -> bool | float:
    """Whether to try again, or the seconds to wait before that."""
    if not isinstance(error, on) or isinstance(error, CircuitBreakerError):
        return False
    retry_after_s = (
        error.details.get("retry_after_s") if isinstance(error, RateLimitedError) else None
    )
    if retry_after_s is None:
        return True
    return float(retry_after_s) if 0 <= float(retry_after_s) <= MAX_RETRY_AFTER_S else False
