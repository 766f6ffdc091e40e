"""A circuit breaker for asyncio that lets exactly one probe through.

Published ones were measured first: when half-open, purgatory, aiobreaker and pybreaker's async
path let all of 50 concurrent callers through to a service that is trying to get up. Here one
caller probes and the others are refused until its answer is known.

    CLOSED ──failure_threshold failures in a row──▶ OPEN
      ▲                                              │ first call after the time-out
      └──probe succeeds── HALF_OPEN ◀────────────────┘
                              └──probe fails──▶ OPEN, for twice as long (up to max_timeout)

A breaker belongs to one event loop: it takes no lock, since nothing awaits between its reads and
writes. It sets no time limit: give one to the call that it guards.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from types import CoroutineType
from typing import Any, ParamSpec, TypeVar, cast, overload

from tuneproof.errors import CircuitBreakerError, ConfigError, InputError, StopError
from tuneproof.resilience.aside import stands_aside

__all__ = ["DEFAULTS", "BreakerEvent", "CircuitBreaker", "Diagnosis", "State", "at_fault"]

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

DEFAULTS: dict[str, tuple[int, float, float]] = {
    "openai": (3, 120.0, 300.0),
    "mlflow": (5, 60.0, 300.0),
}
"""Failure threshold, time-out and longest pause (seconds) of the services that we know by name.

Five minutes at the longest: a probe is one call, and eight times the time-out would leave a
provider that is back unused for a quarter of an hour.
"""

_BACKOFF_CAP = 8
_RECENT = 50
_PROBE_POLL_S = 1.0


class State(StrEnum):
    """Where a breaker stands."""

    CLOSED = "CLOSED"  # calls go through; failures in a row are counted
    OPEN = "OPEN"  # calls are refused until the time-out has passed
    HALF_OPEN = "HALF_OPEN"  # one probe is through; its answer decides


@dataclass(frozen=True, kw_only=True, slots=True)
class BreakerEvent:
    """A change of a breaker's state."""

    breaker: str
    kind: str
    """`opened`, `half_opened` or `closed`."""
    state: State
    failure_count: int
    retry_after_s: float
    cause: str
    """The last failure as text; empty where it did not bring this change about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """What a breaker can say about itself and about the service behind it."""

    name: str
    state: State
    health_score: float
    """100 is well, 0 is down: the percentage of recent calls that succeeded, halved while
    half-open and 0 while open."""
    failure_count: int
    failure_threshold: int
    timeout: float
    retry_after_s: float
    calls: int
    failures: int
    rejected: int
    opened: int
    last_failure: str
    issues: tuple[str, ...]
    recommendations: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """This diagnosis as JSON types."""
        return {
            **asdict(self),
            "state": self.state.value,
            "issues": list(self.issues),
            "recommendations": list(self.recommendations),
        }


Listener = Callable[[BreakerEvent], None]
Counts = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]


def at_fault(error: BaseException) -> bool:
    """Whether `error` speaks against the service that was called.

    Our own input's faults, refusals that a person must settle, and another breaker's refusal do
    not; nor does cancellation, which is no `Exception`.
    """
    return isinstance(error, Exception) and not isinstance(
        error, InputError | StopError | CircuitBreakerError
    )


class CircuitBreaker:
    """Calls a service until it has failed `failure_threshold` times in a row, then waits.

    `timeout` is the pause in seconds before one probe is let through; it doubles each time the
    probe fails, up to `max_timeout` (eight times `timeout` by default). `counts` says which
    errors are failures of the service: exception types or a predicate, `at_fault` by default.
    Errors that don't count change nothing; a probe that ends in one frees its place.
    `on_event` are called with each `BreakerEvent`, in the call that brought it about.
    """

    __slots__ = (
        "_calls",
        "_clock",
        "_counts",
        "_failure_count",
        "_failures",
        "_generation",
        "_last_failure",
        "_listeners",
        "_opened",
        "_pause",
        "_probing_since",
        "_recent",
        "_rejected",
        "_reopen_at",
        "_state",
        "failure_threshold",
        "max_timeout",
        "name",
        "timeout",
    )

    def __init__(
        self,
        failure_threshold: int = 5,
        timeout: float = 60.0,
        *,
        name: str = "",
        clock: Callable[[], float] = time.monotonic,
        max_timeout: float | None = None,
        on_event: Listener | Iterable[Listener] = (),
        counts: Counts = at_fault,
    ) -> None:
        self.failure_threshold = failure_threshold
        self.timeout = float(timeout)
        self.max_timeout = float(_BACKOFF_CAP * timeout if max_timeout is None else max_timeout)
        self.name = name
        _check(self)
        self._clock = clock
        self._counts = _predicate(counts)
        self._listeners = [on_event] if callable(on_event) else list(on_event)
        self._state = State.CLOSED
        self._generation = 0  # results of calls that began before the last change are stale
        self._failure_count = 0
        self._pause = self.timeout
        self._reopen_at = 0.0
        self._probing_since: float | None = None
        self._recent: deque[bool] = deque(maxlen=_RECENT)
        self._calls = self._failures = self._rejected = self._opened = 0
        self._last_failure = ""

    @classmethod
    def named(cls, name: str, *, like: str | None = None, **arguments: Any) -> CircuitBreaker:
        """The breaker of a known service with its `DEFAULTS`; arguments override them.

        `like` names the service whose defaults hold where `name` is not known itself.
        """
        threshold, timeout, longest = DEFAULTS.get(like or name, (5, 60.0, 300.0))
        defaults: dict[str, Any] = {"failure_threshold": threshold, "timeout": timeout}
        if "timeout" not in arguments:
            defaults["max_timeout"] = longest
        return cls(**{**defaults, **arguments}, name=name)

    @property
    def state(self) -> State:
        """Where the breaker stands; OPEN lasts until a call comes after the time-out."""
        return self._state

    @property
    def failure_count(self) -> int:
        """Failures in a row since the last success."""
        return self._failure_count

    @property
    def failures_total(self) -> int:
        """Failures since the breaker was made."""
        return self._failures

    @property
    def retry_after_s(self) -> float:
        """Seconds until a call has a chance to go through; 0 when closed."""
        if self._state is State.CLOSED:
            return 0.0
        if self._state is State.HALF_OPEN:
            return _PROBE_POLL_S if self._probing_since is not None else 0.0
        return max(0.0, self._reopen_at - self._clock())

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` with each event from now on."""
        self._listeners.append(listener)

    @overload
    async def call(
        self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...
    @overload
    async def call(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """What `fn(*args, **kwargs)` returns, awaited where it is awaitable.

        Raises `CircuitBreakerError` with `details["retry_after_s"]` without calling `fn` while
        the breaker is open, or half-open with its probe under way; else whatever `fn` raises.
        Within `aside()` it only calls.
        """
        if stands_aside():
            return await _called(fn(*args, **kwargs))
        probing = self._state is not State.CLOSED
        if probing:
            self._take_probe()
        return await self._counted(fn, args, kwargs, probing=probing)

    async def call_anyway(
        self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `call`, while the breaker is open too: for what nobody else could answer.

        The outcome counts, and a success closes the breaker.
        """
        found: T = await self._counted(fn, args, kwargs, probing=False)
        return found

    async def _counted(
        self, fn: Callable[..., Any], args: Any, kwargs: Any, *, probing: bool
    ) -> Any:
        """What `fn` returns, awaited where it is awaitable; its outcome counts."""
        generation = self._generation
        self._calls += 1
        try:
            result = fn(*args, **kwargs)
            if type(result) is CoroutineType or hasattr(result, "__await__"):
                result = await result
        except BaseException as error:
            if generation == self._generation:
                self._after_error(error, probing=probing)
            raise
        if generation == self._generation:
            self._recent.append(True)
            if self._failure_count:
                self._failure_count = 0
            if self._state is not State.CLOSED:
                self._close()
        return result

    def reset(self) -> None:
        """Close the breaker now, as an operator may who knows that the service is back."""
        if self._state is not State.CLOSED:
            self._close()
        self._failure_count = 0

    def allow_probe(self) -> None:
        """Let the next call probe, whatever is left of the pause: the service was seen to be up."""
        if self._state is State.OPEN:
            self._reopen_at = min(self._reopen_at, self._clock())

    def diagnose(self) -> Diagnosis:
        """How the service does by the last 50 calls, what is wrong, and what to do about it."""
        return Diagnosis(
            name=self.name,
            state=self._state,
            health_score=self._health_score(),
            failure_count=self._failure_count,
            failure_threshold=self.failure_threshold,
            timeout=self.timeout,
            retry_after_s=self.retry_after_s,
            calls=self._calls,
            failures=self._failures,
            rejected=self._rejected,
            opened=self._opened,
            last_failure=self._last_failure,
            issues=tuple(self._issues()),
            recommendations=tuple(self._recommendations()),
        )

    def _take_probe(self) -> None:
        """Make the caller the probe, or refuse it."""
        if self._state is State.OPEN and self._clock() >= self._reopen_at:
            self._become(State.HALF_OPEN, "half_opened")
        if self._state is State.CLOSED:  # a listener may have closed it
            return
        if self._state is State.OPEN or self._probing_since is not None:
            self._refuse()
        self._probing_since = self._clock()

    def _refuse(self) -> None:
        self._rejected += 1
        retry_after_s = self.retry_after_s
        raise CircuitBreakerError(
            f"The circuit breaker {self.name!r} is {self._state.value} after "
            f"{self._failure_count} failures in a row"
            + (f", the last: {self._last_failure}." if self._last_failure else "."),
            mend=f"It lets a probe through in {retry_after_s:.0f} s; the service must answer it.",
            breaker=self.name,
            state=self._state.value,
            retry_after_s=retry_after_s,
        )

    def _after_error(self, error: BaseException, *, probing: bool) -> None:
        if probing:
            self._probing_since = None
        if not isinstance(error, Exception) or not self._counts(error):
            return  # cancellation never counts
        self._failures += 1
        self._failure_count += 1
        self._recent.append(False)
        self._last_failure = f"{type(error).__name__}: {error}"[:200]
        if probing:
            self._open(min(self._pause * 2, self.max_timeout))
        elif self._state is State.CLOSED and self._failure_count >= self.failure_threshold:
            self._open(self.timeout)

    def _open(self, pause: float) -> None:
        self._pause = pause
        self._reopen_at = self._clock() + pause
        self._opened += 1
        self._become(State.OPEN, "opened", cause=self._last_failure)

    def _close(self) -> None:
        self._probing_since = None
        self._failure_count = 0
        self._pause = self.timeout
        self._become(State.CLOSED, "closed")

    def _become(self, state: State, kind: str, *, cause: str = "") -> None:
        self._state = state
        self._generation += 1
        event = BreakerEvent(
            breaker=self.name,
            kind=kind,
            state=state,
            failure_count=self._failure_count,
            retry_after_s=self.retry_after_s,
            cause=cause,
        )
        level = logging.WARNING if state is State.OPEN else logging.INFO
        log.log(level, "breaker %r %s%s", self.name, kind, f": {cause}" if cause else "")
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:
                log.exception("a listener of the breaker %r failed on %s", self.name, kind)

    def _health_score(self) -> float:
        if self._state is State.OPEN:
            return 0.0
        score = 100 * sum(self._recent) / len(self._recent) if self._recent else 100.0
        return score / 2 if self._state is State.HALF_OPEN else score

    def _issues(self) -> Iterable[str]:
        if self._state is State.OPEN:
            yield (
                f"Open after {self._failure_count} failures in a row; "
                f"the next probe may go in {self.retry_after_s:.0f} s."
            )
        if self._probing_since is not None:
            yield f"A probe has been under way for {self._clock() - self._probing_since:.0f} s."
        elif self._state is State.HALF_OPEN:
            yield "Half-open: the last probe was cancelled or said nothing about the service."
        if self._state is State.CLOSED and self._failure_count:
            left = self.failure_threshold - self._failure_count
            yield f"{self._failure_count} failures in a row; {left} more open it."
        if self._pause > self.timeout:
            yield f"Probes keep failing: the pause has grown to {self._pause:.0f} s."
        if self._last_failure and self._failure_count:
            yield f"Last failure: {self._last_failure}"

    def _recommendations(self) -> Iterable[str]:
        service = self.name or "the service"
        if self._state is State.OPEN:
            yield f"Check that {service} is up and reachable; calls resume by themselves."
        if self._pause >= self.max_timeout > self.timeout:
            yield "The pause is at its maximum: after mending the service, `reset()` skips it."
        if self._probing_since is not None:
            yield f"If the probe hangs, give the call to {service} a time-out."
        if self._state is State.CLOSED and self._recent and self._health_score() < 90:
            yield f"{service} fails now and then without opening the breaker: see its log."


async def _called(result: Any) -> Any:
    return await result if hasattr(result, "__await__") else result


def _predicate(counts: Counts) -> Callable[[BaseException], bool]:
    if isinstance(counts, type | tuple):
        kinds = cast("tuple[type[BaseException], ...]", counts)
        return lambda error: isinstance(error, kinds)
    return counts


def _check(breaker: CircuitBreaker) -> None:
    where = f"circuit breaker {breaker.name!r}"
    if breaker.failure_threshold < 1:
        raise ConfigError(
            f"{where}: failure_threshold is {breaker.failure_threshold}, and must be 1 or more.",
            mend="Set it to how many failures in a row open the breaker.",
        )
    if not 0 < breaker.timeout <= breaker.max_timeout < float("inf"):
        raise ConfigError(
            f"{where}: timeout is {breaker.timeout} s and max_timeout {breaker.max_timeout} s; "
            "the rule is 0 < timeout <= max_timeout.",
            mend="Set both in seconds.",
        )
