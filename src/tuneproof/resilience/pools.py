"""Connection pools: bounded, recycled, counted.

PostgreSQL connections come from SQLAlchemy's pool on psycopg 3, Redis connections from
redis-py's blocking pool; `ConnectionPoolManager` holds whichever a process has and counts them
for health and metrics. The drivers are imported when a pool is made, not before.
"""

from __future__ import annotations

import asyncio
import pkgutil
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tuneproof.errors import ConfigError, ConflictError, NotFoundError, StoreUnavailableError
from tuneproof.resilience.cancellation import heeding_cancellation

if TYPE_CHECKING:
    from redis.asyncio import BlockingConnectionPool
    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = [
    "ConnectionPoolManager",
    "DatabasePool",
    "Pool",
    "PoolCounts",
    "PoolLimits",
    "RedisPool",
    "postgres_engine",
    "prewarm",
    "redis_pool",
]

KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 30, 10, 3
_PREFIXES = {"database": "db"}

POOLS = "tuneproof.standalone:pools_of"
"""What makes the pools that the settings name. A name, since imports point down."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolCounts:
    """Connections in use and connections waiting for use."""

    active: int = 0
    idle: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolLimits:
    """How many connections stay open when all are idle, and how many may be open at all."""

    at_least: int = 0
    at_most: int = 0


class Pool(Protocol):
    """What the manager needs of a pool."""

    def counts(self) -> PoolCounts:
        """Connections in use and idle, now."""
        ...

    def limits(self) -> PoolLimits:
        """How many connections stay open, and how many may be."""
        ...

    async def ping(self) -> None:
        """Make one round trip; raises `StoreUnavailableError` where none comes back."""
        ...

    async def trim(self) -> int:
        """Close connections that were idle for too long; says how many."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


class DatabasePool:
    """The pool of a SQLAlchemy engine, PostgreSQL or SQLite.

    `trim` leaves `min_size` connections open; `max_idle_s` should be the engine's.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        min_size: int = 2,
        max_idle_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self._min_size = min_size
        self._max_idle_s = max_idle_s
        self._clock = clock

    def counts(self) -> PoolCounts:
        """Connections in use and idle; zeros for a pool that keeps none."""
        pool: Any = self.engine.pool
        if not hasattr(pool, "checkedin"):
            return PoolCounts()
        return PoolCounts(active=pool.checkedout(), idle=pool.checkedin())

    def limits(self) -> PoolLimits:
        """`min_size`, and the engine's size with its overflow; zeros for a pool that keeps none."""
        pool: Any = self.engine.pool
        if not hasattr(pool, "checkedin"):
            return PoolLimits()
        return PoolLimits(at_least=self._min_size, at_most=pool.size() + pool._max_overflow)

    async def ping(self) -> None:
        """Run `SELECT 1`."""
        from sqlalchemy import text
        from sqlalchemy.exc import SQLAlchemyError

        try:
            async with self.engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        except (SQLAlchemyError, OSError) as error:
            raise StoreUnavailableError(
                f"The database {self.engine.url.render_as_string()} did not answer: {error}",
                mend="Check that it is up, and DATABASE_URL.",
            ) from error

    async def trim(self) -> int:
        """Close what has been idle for `max_idle_s`, down to `min_size` connections."""
        from sqlalchemy.util import greenlet_spawn

        closed: int = await greenlet_spawn(self._trim)
        return closed

    async def close(self) -> None:
        """Close every connection of the engine."""
        await self.engine.dispose()

    def _trim(self) -> int:
        pool: Any = self.engine.pool
        if not hasattr(pool, "_do_return_conn"):
            return 0
        oldest = self._clock() - self._max_idle_s
        spare = pool.checkedin() + pool.checkedout() - self._min_size
        records = [pool._pool.get(False) for _ in range(pool.checkedin())]
        stale = [r for r in records if r.info.get("idle_since", oldest + 1) <= oldest]
        leaving = stale[: max(0, spare)]
        for record in reversed(records):  # the pool is a stack
            if record not in leaving:
                pool._do_return_conn(record)
        for record in leaving:
            try:
                record.close()
            finally:
                pool._dec_overflow()
        return len(leaving)


class RedisPool:
    """A redis-py pool."""

    def __init__(self, pool: BlockingConnectionPool) -> None:
        self.pool = pool

    def counts(self) -> PoolCounts:
        """Connections in use and idle."""
        (idle, _), (active, _) = self.pool.get_connection_count()
        return PoolCounts(active=active, idle=idle)

    def limits(self) -> PoolLimits:
        """None stays open; as many may be as the pool was made for."""
        return PoolLimits(at_most=self.pool.max_connections)

    async def ping(self) -> None:
        """Send `PING`."""
        from redis.asyncio import Redis
        from redis.exceptions import RedisError

        client = Redis(connection_pool=self.pool)
        try:
            await heeding_cancellation(client.ping())
        except (RedisError, OSError) as error:
            raise StoreUnavailableError(
                f"Redis did not answer: {error}", mend="Check that it is up, and REDIS_URL."
            ) from error

    async def trim(self) -> int:
        """Nothing: redis-py checks idle connections itself before it uses them."""
        return 0

    async def close(self) -> None:
        """Close every connection."""
        await self.pool.disconnect()


class ConnectionPoolManager:
    """The connection pools of this process by name: `database`, `redis`.

    The service gives it its own. By itself it is empty until `initialize_pools`.
    """

    def __init__(self, **pools: Pool) -> None:
        self._pools: dict[str, Pool] = dict(pools)

    def add(self, name: str, pool: Pool) -> None:
        """Hold `pool` under `name`; raises `ConflictError` where the name is taken."""
        if name in self._pools:
            raise ConflictError(f"A pool {name!r} is held already.", mend="Close it first.")
        self._pools[name] = pool

    def __contains__(self, name: object) -> bool:
        return name in self._pools

    def pool(self, name: str) -> Pool:
        """The pool of this name; raises `NotFoundError`."""
        if name not in self._pools:
            raise NotFoundError(
                f"There is no pool {name!r}.", mend=f"One of: {', '.join(self._pools) or 'none'}."
            )
        return self._pools[name]

    async def initialize_pools(self, settings: object = None) -> None:
        """Open what is not held yet of the pools that the settings name, ready for use.

        That is the database, and Redis where the cache is one. Raises `StoreUnavailableError`
        where one does not answer; nothing of this call stays open then.
        """
        named: dict[str, Pool] = await asyncio.to_thread(pkgutil.resolve_name(POOLS), settings)
        opened = {name: pool for name, pool in named.items() if name not in self._pools}
        try:
            for pool in opened.values():
                await pool.ping()
        except BaseException:
            await asyncio.gather(*(pool.close() for pool in opened.values()))
            raise
        self._pools |= opened

    def get_pool_stats(self) -> dict[str, int]:
        """What `counts` says: connections active and idle, of the database and of Redis."""
        return self.counts()

    def counts(self) -> dict[str, int]:
        """`db_connections_active`, `db_connections_idle` and the same of Redis; 0 if absent."""
        found: dict[str, int] = {}
        for name in dict.fromkeys(("database", "redis", *self._pools)):
            pool = self._pools.get(name)
            counts = pool.counts() if pool is not None else PoolCounts()
            prefix = _PREFIXES.get(name, name)
            found[f"{prefix}_connections_active"] = counts.active
            found[f"{prefix}_connections_idle"] = counts.idle
        return found

    def limits(self) -> dict[str, int]:
        """`db_connections_min`, `db_connections_max` and the same of each other pool held."""
        found: dict[str, int] = {}
        for name, pool in self._pools.items():
            limits, prefix = pool.limits(), _PREFIXES.get(name, name)
            found[f"{prefix}_connections_min"] = limits.at_least
            found[f"{prefix}_connections_max"] = limits.at_most
        return found

    async def ping(self, name: str) -> None:
        """One round trip over the pool `name`; raises `StoreUnavailableError`."""
        await self.pool(name).ping()

    async def trim(self) -> int:
        """Close connections of all pools that were idle for too long; says how many."""
        return sum([await pool.trim() for pool in self._pools.values()])

    async def close(self) -> None:
        """Close and forget every pool; the first error is raised after all were tried."""
        pools, self._pools = list(self._pools.values()), {}
        results = await asyncio.gather(*(pool.close() for pool in pools), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result


def postgres_engine(
    url: str | URL,
    *,
    pool_size: int = 10,
    max_overflow: int = 0,
    pool_timeout_s: float = 30.0,
    max_queries: int = 50_000,
    max_idle_s: float = 300.0,
    command_timeout_s: float = 60.0,
    connect_timeout_s: int = 10,
    application_name: str = "tuneproof",
    clock: Callable[[], float] = time.monotonic,
    **engine_arguments: Any,
) -> AsyncEngine:
    """An engine on psycopg 3 whose pool opens up to `pool_size + max_overflow` connections.

    A connection is replaced at its next use once it has run `max_queries` statements or was idle
    for `max_idle_s`, and one that the server closed is found out before it is used. The server
    ends a statement after `command_timeout_s`; TCP keepalives (30 s, 10 s, 3 times) find a dead
    peer. `prewarm` opens the first connections. Raises `ConfigError` for another database's URL.
    """
    from sqlalchemy.ext.asyncio import create_async_engine

    address = _postgres_url(url)
    engine = create_async_engine(
        address,
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_timeout=pool_timeout_s,
        pool_pre_ping=True,
        pool_use_lifo=True,
        connect_args=_postgres_arguments(
            address, command_timeout_s, connect_timeout_s, application_name
        ),
        **engine_arguments,
    )
    _recycle(engine, max_queries, max_idle_s, clock)
    return engine


async def prewarm(engine: AsyncEngine, size: int = 2) -> None:
    """Open `size` connections at once, so that the first callers don't wait for them."""
    connections = [engine.connect() for _ in range(size)]
    opened = await asyncio.gather(*(c.start() for c in connections), return_exceptions=True)
    for connection, result in zip(connections, opened, strict=True):
        if not isinstance(result, BaseException):
            await connection.close()
    for result in opened:
        if isinstance(result, BaseException):
            raise result


def redis_pool(
    url: str,
    *,
    max_connections: int = 20,
    socket_keepalive: bool = True,
    health_check_interval_s: int = 30,
    command_timeout_s: float = 5.0,
    wait_timeout_s: float = 5.0,
    client_name: str = "tuneproof",
) -> BlockingConnectionPool:
    """A pool of up to `max_connections` Redis connections, for which callers wait their turn.

    A command that times out is tried once more, and a connection that was idle for
    `health_check_interval_s` is checked before use. With `redis+sentinel://` connections go to
    whom the Sentinels say. Raises `ConfigError` for a malformed URL.
    """
    arguments: dict[str, Any] = {
        "max_connections": max_connections,
        "timeout": wait_timeout_s,
        "retry_on_timeout": True,
        "health_check_interval": health_check_interval_s,
        "socket_timeout": command_timeout_s,
        "socket_connect_timeout": command_timeout_s,
        "client_name": client_name,
    }
    if socket_keepalive and not url.startswith("unix:"):
        arguments["socket_keepalive"] = True
        arguments["socket_keepalive_options"] = _tcp_keepalive()
    try:
        return _redis_pool(url, arguments)
    except ValueError as error:
        raise ConfigError(
            f"REDIS_URL is {_shown(url)!r}: {error}",
            mend="Write redis://[user:password@]host[:port]/database, or "
            "redis+sentinel://[user:password@]host[:port],host[:port]/NAME/database.",
        ) from error


def _shown(url: str) -> str:
    """An address without what may be secret in it: user, password and parameters."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2].partition('?')[0]}"


def _redis_pool(url: str, arguments: Mapping[str, Any]) -> BlockingConnectionPool:
    if url.partition(":")[0].endswith("+sentinel"):
        from tuneproof.resilience.sentinels import sentinel_pool

        return sentinel_pool(url, **arguments)
    from redis.asyncio import BlockingConnectionPool

    return BlockingConnectionPool.from_url(url, **arguments)


def _postgres_url(url: str | URL) -> URL:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        address = make_url(url)
    except ArgumentError as error:
        raise ConfigError(
            "The database address is malformed.",
            mend="Write postgresql://user:password@host:port/database.",
        ) from error
    if address.get_backend_name() not in ("postgresql", "postgres"):
        raise ConfigError(
            f"{address.render_as_string()} is not a PostgreSQL address.",
            mend="Write postgresql://user:password@host:port/database.",
        )
    return address.set(drivername="postgresql+psycopg")


def _postgres_arguments(
    url: URL, command_timeout_s: float, connect_timeout_s: int, application_name: str
) -> dict[str, Any]:
    own = url.query.get("options", "")
    own = own if isinstance(own, str) else " ".join(own)
    return {
        "connect_timeout": connect_timeout_s,
        "application_name": url.query.get("application_name", application_name),
        "options": f"{own} -c statement_timeout={round(command_timeout_s * 1000)}".strip(),
        "keepalives": 1,
        "keepalives_idle": KEEPALIVE_IDLE_S,
        "keepalives_interval": KEEPALIVE_INTERVAL_S,
        "keepalives_count": KEEPALIVE_COUNT,
        "tcp_user_timeout": round(command_timeout_s * 1000),
    }


def _recycle(
    engine: AsyncEngine, max_queries: int, max_idle_s: float, clock: Callable[[], float]
) -> None:
    """Have the pool replace connections by use and by idleness; `info` goes with each of them."""
    from sqlalchemy import event
    from sqlalchemy.exc import DisconnectionError

    def count(connection: Any, *_: Any) -> None:
        info = connection.info
        info["queries"] = info.get("queries", 0) + 1

    def checkin(_connection: Any, record: Any) -> None:
        record.info["idle_since"] = clock()

    def checkout(_connection: Any, record: Any, _fairy: Any) -> None:
        info = record.info
        if info.get("queries", 0) >= max_queries:
            raise DisconnectionError(f"replaced after {info['queries']} queries")
        since = info.get("idle_since")
        if since is not None and clock() - since >= max_idle_s:
            raise DisconnectionError(f"replaced after {clock() - since:.0f} s without use")

    event.listen(engine.sync_engine, "before_cursor_execute", count)
    event.listen(engine.sync_engine, "checkin", checkin)
    event.listen(engine.sync_engine, "checkout", checkout)


def _tcp_keepalive() -> dict[int, int]:
    options = {
        "TCP_KEEPIDLE": KEEPALIVE_IDLE_S,
        "TCP_KEEPINTVL": KEEPALIVE_INTERVAL_S,
        "TCP_KEEPCNT": KEEPALIVE_COUNT,
    }
    return {getattr(socket, k): v for k, v in options.items() if hasattr(socket, k)}
