"""Short-lived results, in memory or in Redis, that the service can always do without.

A Redis outage is a miss, counted in `errors` and reported by `ping`: callers compute instead.
Locks are the exception, since a lock that is not held must not look held. Values are JSON, so
nothing from Redis is ever unpickled. Built on cashews, whose own errors are switched on
(`suppress=False`) so that they can be counted here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tuneproof.errors import (
    CircuitBreakerError,
    ConfigError,
    StateError,
    StoreUnavailableError,
)
from tuneproof.resilience import CircuitBreaker, heeding_cancellation, redis_pool

if TYPE_CHECKING:
    from cashews import Cache as Cashews
    from redis.asyncio import BlockingConnectionPool

__all__ = ["METRICS_TTL_S", "Cache", "metrics_key"]

log = logging.getLogger(__name__)

METRICS_TTL_S = 7200.0
"""How long evaluation metrics are kept: beyond the next look, so that all reads until then hit."""

_MISSING = object()
_FAILED = object()
_RETRY_AFTER_S, _LONGEST_RETRY_S = 1.0, 16.0
_COMMAND_TIMEOUT_S = 1.0


def metrics_key(ab_test_id: str, arm: str, n: int) -> str:
    """The key of an arm's evaluation metrics as of version `n` of the experiment's data.

    >>> metrics_key("ab-test-20261120-001", "candidate", 4)
    'model_metrics:ab-test-20261120-001:candidate:v4'
    """
    return f"model_metrics:{ab_test_id}:{arm}:v{n}"


class Cache:
    """JSON values by key, each for a time, with a measured hit rate.

    `url` is `mem://`, `redis://…` or `rediss://…`, both also with `+sentinel`; keys begin with
    `prefix`, where one is given.
    `pool` (of `resilience.redis_pool`) makes the connections counted and bounded.
    After an error Redis is left alone for a second, and longer while it stays away (up to 16 s),
    then one caller tries it for all, so an outage costs callers little.
    Raises `ConfigError` for any other url.
    """

    def __init__(
        self,
        url: str = "mem://",
        *,
        prefix: str = "",
        pool: BlockingConnectionPool | None = None,
        size: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url
        self.hits = self.misses = self.errors = 0
        self._prefix = f"{prefix}:" if prefix else ""
        self._breaker = CircuitBreaker(
            1,
            _RETRY_AFTER_S,
            max_timeout=_LONGEST_RETRY_S,
            name="cache",
            clock=clock,
            counts=lambda error: isinstance(error, _outages()),
        )
        self._flights: dict[str, asyncio.Task[Any]] = {}
        self._cashews = _connect(url, pool, size)

    @property
    def hit_rate(self) -> float | None:
        """The share of reads that found a value, 0–1; None before the first read."""
        reads = self.hits + self.misses
        return self.hits / reads if reads else None

    async def get(self, key: str, default: Any = None) -> Any:
        """The value under `key`, or `default` where there is none or Redis does not answer."""
        value = await self._guarded("get", key, lambda k: self._cashews.get(k, default=_MISSING))
        if value is _MISSING or value is _FAILED:
            self.misses += 1
            return default
        self.hits += 1
        return value

    async def set(self, key: str, value: Any, ttl_s: float) -> bool:
        """Keep `value` (JSON types) for `ttl_s` seconds; False where Redis does not answer.

        Raises `TypeError` for a value that JSON does not know, and `ConfigError` for a time
        that is not above 0.
        """
        if ttl_s <= 0:
            raise ConfigError(
                f"ttl_s is {ttl_s} for {key!r}, and must be above 0.",
                mend="To forget the key, delete it.",
            )
        if isinstance(value, bytes):  # cashews would keep them in a form of its own
            raise TypeError("Object of type bytes is not JSON serializable")
        done = await self._guarded("set", key, lambda k: self._cashews.set(k, value, expire=ttl_s))
        return done is not _FAILED

    async def delete(self, key: str) -> bool:
        """Forget `key`; False where Redis does not answer (the value then ends by its time)."""
        return await self._guarded("delete", key, self._cashews.delete) is not _FAILED

    async def get_or_compute(self, key: str, ttl_s: float, fn: Callable[[], Awaitable[Any]]) -> Any:
        """The value under `key`, or else what `fn()` returns, which is then kept.

        Of concurrent callers in this process one computes and the others share its value or its
        error; a caller that is cancelled does not cancel it for the others.
        """
        value = await self.get(key, _MISSING)
        if value is not _MISSING:
            return value
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.ensure_future(self._compute(key, ttl_s, fn))
            self._flights[key] = flight
            flight.add_done_callback(lambda _: self._flights.pop(key, None))
        return await asyncio.shield(flight)

    @asynccontextmanager
    async def lock(self, key: str, ttl_s: float) -> AsyncIterator[None]:
        """Hold `key` alone among all processes, for `ttl_s` seconds at most.

        Raises `StateError` where somebody else holds it, and `StoreUnavailableError` where Redis
        does not answer: a lock is never assumed.
        """
        name, token = f"{self._prefix}lock:{key}", uuid4().hex
        await self._strict("exists", name)  # has the memory backend drop a lock whose time is up
        if not await self._strict("set_lock", name, token, expire=ttl_s):
            raise StateError(f"{key!r} is locked by somebody else.", mend="Try again later.")
        try:
            yield
        finally:
            await self._unlock(name, token)

    async def ping(self) -> None:
        """One round trip; raises `StoreUnavailableError` where none comes back."""
        await self._strict("ping")
        self._breaker.reset()

    async def close(self) -> None:
        """Let the connections go; computations under way are cancelled."""
        for flight in tuple(self._flights.values()):
            flight.cancel()
        await self._cashews.close()

    async def _compute(self, key: str, ttl_s: float, fn: Callable[[], Awaitable[Any]]) -> Any:
        value = await fn()
        await self.set(key, value, ttl_s)
        return value

    async def _unlock(self, name: str, token: str) -> None:
        # Redis compares the token in one step; the memory backend does not compare at all.
        in_memory = self.url.startswith("mem:")
        if not in_memory or await self._cashews.get(name) == token:
            await self._strict("unlock", name, token)

    async def _guarded(self, verb: str, key: str, fn: Callable[[str], Awaitable[Any]]) -> Any:
        """What `fn` returns, or `_FAILED` where Redis does not answer or did not a moment ago."""
        try:
            return await heeding_cancellation(self._breaker.call(fn, self._prefix + key))
        except CircuitBreakerError:
            self.errors += 1
            return _FAILED
        except _outages() as error:
            self.errors += 1
            log.warning("the cache could not %s %r: %s", verb, key, _cause(error))
            return _FAILED
        except ValueError:  # somebody else's value, or one cut short
            self.errors += 1
            log.warning("the cache holds no JSON under %r", key)
            return _FAILED

    async def _strict(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await heeding_cancellation(getattr(self._cashews, verb)(*args, **kwargs))
        except _outages() as error:
            self.errors += 1
            raise StoreUnavailableError(
                f"Redis did not answer: {_cause(error)}.",
                mend="Check that it is up, and REDIS_URL.",
            ) from error


def _outages() -> tuple[type[Exception], ...]:
    from cashews.exceptions import CacheBackendInteractionError
    from redis.exceptions import RedisError

    return (CacheBackendInteractionError, RedisError, OSError)


def _cause(error: Exception) -> str:
    """What redis-py says, which its `repr` leaves out."""
    cause = error.__cause__ or error
    return str(cause).rstrip(".") or repr(cause)


def _connect(url: str, pool: BlockingConnectionPool | None, size: int) -> Cashews:
    from cashews import Cache as Cashews
    from cashews.picklers import PicklerType

    cashews = Cashews()
    scheme = url.split(":", 1)[0].removesuffix("+sentinel")
    if scheme == "mem":
        cashews.setup(url, size=size, check_interval=0, pickle_type=PicklerType.JSON)
    elif scheme in ("redis", "rediss"):
        given: Any = _Given(pool or redis_pool(url, command_timeout_s=_COMMAND_TIMEOUT_S))
        cashews.setup(  # its address is the pool's affair
            f"{scheme}://",
            suppress=False,
            pickle_type=PicklerType.JSON,
            connection_pool_class=given,
        )
    else:
        raise ConfigError(
            f"The cache's address is {url!r}, and its scheme must be mem, redis or rediss.",
            mend="Set REDIS_URL to redis://host:port/database, or leave it out.",
        )
    return cashews


class _Given:
    """Hands cashews, which builds its pool by a class's `from_url`, the pool that we have."""

    def __init__(self, pool: BlockingConnectionPool) -> None:
        self._pool = pool

    def from_url(self, *_: Any, **__: Any) -> BlockingConnectionPool:
        return self._pool
