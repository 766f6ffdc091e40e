"""Parts used by themselves: what they were not given is opened from the settings, a call long.

`ModelEvaluator()` and its like need a database, maybe a provider. In the service `App` gives them
its own; in a program of a user's they open what the settings name, do the call, and close it
again: nothing is left open when the program's event loop ends, and no two calls need the same
loop. `async with part.opened() as same:` keeps it open over many calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import wraps
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, cast

from tuneproof.errors import ConfigError, ProviderUnavailableError, StateError
from tuneproof.outgoing import Rules, told
from tuneproof.resilience import CircuitBreaker, DatabasePool, Pool, RedisPool, redis_pool
from tuneproof.settings import (
    CacheConfig,
    ProviderConfig,
    Secret,
    Settings,
    StoreConfig,
    TargetConfig,
    Url,
    resolved,
)
from tuneproof.workflow import SystemClock

if TYPE_CHECKING:
    from redis.asyncio import BlockingConnectionPool
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = [
    "Opening",
    "cache_pool",
    "database_pool",
    "ensure_open",
    "loaded",
    "opened_provider",
    "opened_store",
    "opened_target",
    "opened_targets",
    "opening",
    "pool_arguments",
    "pools_of",
]

ENGINE = "tuneproof.store:make_engine"
"""What makes the database's engine, by name: imports point down."""

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])


class Opening(Protocol):
    """A part that can open what it was not given."""

    def opened(self) -> AbstractAsyncContextManager[Self]:
        """The part with all that it needs, for as long as the block."""
        ...


def opening(method: Method) -> Method:
    """Have a method of an `Opening` run on its part `opened`."""

    @wraps(method)
    async def run(self: Opening, /, *args: Any, **kwargs: Any) -> Any:
        async with self.opened() as part:
            return await method(part, *args, **kwargs)

    return cast(Method, run)


async def loaded(settings: Settings | None) -> Settings:
    """These settings, or those of the environment and the file."""
    return settings if settings is not None else await asyncio.to_thread(lambda: Settings.load())


def pool_arguments(config: StoreConfig) -> dict[str, Any] | None:
    """How large the database's pool is, for the store; None: SQLite's own."""
    if config.url.scheme == "sqlite":
        return None
    return {
        "pool_size": config.pool_size,
        "max_overflow": config.max_overflow,
        "pool_timeout_s": config.pool_timeout,
        "max_queries": config.max_queries,
        "max_idle_s": config.max_idle_seconds,
    }


def database_pool(engine: AsyncEngine, config: StoreConfig) -> DatabasePool:
    """The pool of the store's engine, with the size that the settings say."""
    return DatabasePool(engine, min_size=config.pool_min_size, max_idle_s=config.max_idle_seconds)


def cache_pool(config: CacheConfig) -> BlockingConnectionPool:
    """The connections to the Redis that the settings name."""
    return redis_pool(
        config.url.reveal(),
        max_connections=config.max_connections,
        socket_keepalive=config.keepalive,
        health_check_interval_s=config.health_check_interval,
    )


def pools_of(settings: Settings | None) -> dict[str, Pool]:
    """The pools that the settings name by the names of `ConnectionPoolManager`; none connects."""
    known = settings if settings is not None else Settings.load()
    store, cache = known.store, known.cache
    engine = resolve_name(ENGINE)(store.url.reveal(), **pool_arguments(store) or {})
    pools: dict[str, Pool] = {"database": database_pool(engine, store)}
    if cache.url.scheme != "mem":
        pools["redis"] = RedisPool(cache_pool(cache))
    return pools


def ensure_open(given: T | None, part: str, what: str) -> T:
    """What a part was given or has open. Raises `StateError` where it has neither."""
    if given is None:
        raise StateError(
            f"This {part} has no {what} open.", mend="Use it in `async with x.opened()`."
        )
    return given


@asynccontextmanager
async def opened_store(settings: Settings, clock: object) -> AsyncIterator[Any]:
    """The database that the settings name, its schema brought up to date."""
    url, pool = settings.store.url, pool_arguments(settings.store)
    store = await settings.adapter("store")(url.reveal(), pool=pool, clock=clock)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def opened_provider(settings: Settings, name: str) -> AsyncIterator[Any]:
    """The provider of this name; where it is the embedded trainer, that runs as long.

    Raises `ProviderUnavailableError` where the trainer cannot run in this process.
    """
    config = settings.providers[name]
    async with AsyncExitStack() as stack:
        if config.embedded:
            config = await _with_trainer(settings, config, stack)
        make = settings.adapter("provider")
        provider = make(
            config,
            clock=SystemClock(),
            breaker=CircuitBreaker.named(name, **settings.breakers.of("openai")),
            timeout_s=config.timeout_seconds,
            **told(make, Rules(settings.outgoing)),
        )
        stack.push_async_callback(provider.close)
        yield provider


async def _with_trainer(
    settings: Settings, config: ProviderConfig, stack: AsyncExitStack
) -> ProviderConfig:
    place = settings.dir / "trainer"
    try:
        trainer = await stack.enter_async_context(settings.adapter("trainer")(place))
    except Exception as error:
        raise ProviderUnavailableError(
            f"The embedded trainer of {place} cannot run in this process: {error}",
            mend="Where `tuneproof serve` runs on this directory, ask it over HTTP; or name a "
            "provider by its base_url.",
        ) from error
    address, key = Url(str(trainer.base_url)), config.api_key or Secret("embedded")
    return replace(config, base_url=address, api_key=key)


def opened_target(settings: Settings, config: TargetConfig) -> Any:
    """The target that the settings describe, ours or one of the user's own.

    Raises `ConfigError` for one that cannot be opened.
    """
    own, where = ":" in config.kind, f"targets.{config.name}.kind"
    make = resolved(where, config.kind) if own else settings.adapter("target")
    return make(settings.target(config.name), **told(make, Rules(settings.outgoing)))


def opened_targets(settings: Settings, *, lenient: bool = False) -> list[Any]:
    """The targets that the settings name, in their order; `lenient` leaves out bad ones."""
    made = []
    for config in settings.targets.values():
        try:
            made.append(opened_target(settings, config))
        except ConfigError:
            if not lenient:
                raise
    return made
