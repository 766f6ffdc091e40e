"""Retries: which errors, how often, how long a pause."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import stamina

from tuneproof.errors import (
    CircuitBreakerError,
    CredentialsError,
    ProviderUnavailableError,
    RateLimitedError,
)
from tuneproof.resilience import retrying


class Flaky:
    """Raises each of its errors once, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


@pytest.fixture
def no_pauses() -> Iterator[None]:
    stamina.set_testing(True, attempts=3)
    yield
    stamina.set_testing(False)


@pytest.fixture
def pauses() -> Iterator[list[float]]:
    """The pauses that stamina announces before it makes them."""
    seen: list[float] = []
    hooks = stamina.instrumentation.get_on_retry_hooks()
    stamina.instrumentation.set_on_retry_hooks([lambda details: seen.append(details.wait_for)])
    yield seen
    stamina.instrumentation.set_on_retry_hooks(hooks)


@pytest.mark.usefixtures("no_pauses")
async def test_answers_after_two_failures() -> None:
    fn = Flaky(ProviderUnavailableError("1"), ProviderUnavailableError("2"))
    assert await retrying(fn) == "answer"
    assert fn.calls == 3


@pytest.mark.usefixtures("no_pauses")
async def test_raises_the_last_error_after_three_tries() -> None:
    fn = Flaky(*(ProviderUnavailableError(str(n)) for n in range(5)))
    with pytest.raises(ProviderUnavailableError, match="2"):
        await retrying(fn)
    assert fn.calls == 3


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("error", [CircuitBreakerError("open"), CredentialsError("no"), OSError()])
async def test_some_errors_are_never_retried(error: Exception) -> None:
    fn = Flaky(error)
    with pytest.raises(type(error)):
        await retrying(fn)
    assert fn.calls == 1


@pytest.mark.usefixtures("no_pauses")
async def test_on_is_an_argument_and_still_spares_open_circuits() -> None:
    fn = Flaky(OSError())
    assert await retrying(fn, on=OSError) == "answer"
    fn = Flaky(CircuitBreakerError("open"))
    with pytest.raises(CircuitBreakerError):
        await retrying(fn, on=Exception)
    assert fn.calls == 1


async def test_pauses_double(pauses: list[float]) -> None:
    fn = Flaky(*(ProviderUnavailableError(str(n)) for n in range(3)))
    await retrying(fn, attempts=4, wait_initial=0.001, wait_jitter=0)
    assert pauses == pytest.approx([0.001, 0.002, 0.004])


async def test_waits_as_long_as_the_server_asked(pauses: list[float]) -> None:
    fn = Flaky(RateLimitedError("slow down", retry_after_s=0.003))
    assert await retrying(fn, wait_initial=10) == "answer"
    assert pauses == [0.003]


async def test_does_not_wait_for_longer_than_two_minutes(pauses: list[float]) -> None:
    fn = Flaky(RateLimitedError("slow down", retry_after_s=120.1))
    with pytest.raises(RateLimitedError):
        await retrying(fn)
    assert fn.calls == 1
    assert pauses == []


async def test_no_try_begins_after_the_timeout() -> None:
    fn = Flaky(*(ProviderUnavailableError(str(n)) for n in range(50)))
    with pytest.raises(ProviderUnavailableError):
        await retrying(fn, attempts=50, timeout=0.01, wait_initial=0.005, wait_jitter=0)
    assert fn.calls <= 4
