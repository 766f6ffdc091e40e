"""Connection pools against a real PostgreSQL and a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from tests.servers import PostgresServer, Server, postgres_server, redis_server
from tests.waiting import eventually

from tuneproof.errors import ConfigError, ConflictError, NotFoundError, StoreUnavailableError
from tuneproof.resilience import (
    ConnectionPoolManager,
    DatabasePool,
    RedisPool,
    postgres_engine,
    prewarm,
    redis_pool,
)

pytestmark = pytest.mark.postgres


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def redis() -> Iterator[Server]:
    with redis_server() as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def engine(postgres: PostgresServer, clock: Clock) -> AsyncIterator[AsyncEngine]:
    engine = postgres_engine(
        postgres.dsn, pool_size=4, max_queries=5, command_timeout_s=0.3, clock=clock
    )
    yield engine
    await engine.dispose()


async def backend_pid(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        pid: int = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        return pid


async def backends(engine: AsyncEngine) -> int:
    """How many connections of the pool the server knows of."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tuneproof'"
    async with engine.connect() as connection:
        count: int = (await connection.execute(text(query))).scalar_one()
        return count


async def test_counts_active_and_idle_connections(engine: AsyncEngine) -> None:
    pool = DatabasePool(engine)
    await prewarm(engine, 2)
    assert (pool.counts().active, pool.counts().idle) == (0, 2)
    async with engine.connect(), engine.connect(), engine.connect():
        assert (pool.counts().active, pool.counts().idle) == (3, 0)
    assert (pool.counts().active, pool.counts().idle) == (0, 3)


async def test_never_opens_more_than_its_size(postgres: PostgresServer) -> None:
    engine = postgres_engine(postgres.url, pool_size=2, pool_timeout_s=0.05)
    async with engine.connect(), engine.connect():
        with pytest.raises(PoolTimeoutError):
            await engine.connect()
    await engine.dispose()


async def test_connection_is_replaced_after_its_number_of_queries(engine: AsyncEngine) -> None:
    pids = [await backend_pid(engine) for _ in range(12)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [5, 5, 2]


async def test_connection_is_replaced_after_idling(engine: AsyncEngine, clock: Clock) -> None:
    first = await backend_pid(engine)
    clock.now += 299
    assert await backend_pid(engine) == first
    clock.now += 300
    assert await backend_pid(engine) != first


async def test_trim_closes_idle_connections_down_to_the_minimum(
    engine: AsyncEngine, clock: Clock
) -> None:
    pool = DatabasePool(engine, min_size=2, clock=clock)
    await prewarm(engine, 4)
    assert await pool.trim() == 0
    clock.now += 301
    assert await pool.trim() == 2
    assert pool.counts().idle == 2
    assert await pool.trim() == 0

    async def closed() -> bool:
        return await backends(engine) <= 2

    await eventually(closed)
    await prewarm(engine, 4)  # and the places are free again
    assert pool.counts().idle == 4


async def test_server_ends_a_command_that_takes_too_long(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError, match="statement timeout"):
            await connection.execute(text("SELECT pg_sleep(5)"))
    assert await backend_pid(engine) > 0


async def test_tcp_keepalives_are_set_on_the_socket(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        raw = await connection.get_raw_connection()
        parameters = raw.driver_connection.info.get_parameters()
    wanted = ("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count")
    assert [parameters[name] for name in wanted] == ["1", "30", "10", "3"]


async def test_options_of_the_address_are_kept(postgres: PostgresServer) -> None:
    engine = postgres_engine(
        postgres.dsn + "?application_name=mine&options=-c%20lock_timeout%3D1234"
    )
    async with engine.connect() as connection:
        lock = (await connection.execute(text("SHOW lock_timeout"))).scalar_one()
        limit = (await connection.execute(text("SHOW statement_timeout"))).scalar_one()
        name = (await connection.execute(text("SHOW application_name"))).scalar_one()
    assert (lock, limit, name) == ("1234ms", "1min", "mine")
    await engine.dispose()


async def test_restarted_server_is_used_again_without_an_error() -> None:
    with postgres_server() as server:
        engine = postgres_engine(server.url)
        await prewarm(engine, 3)
        server.stop()
        with pytest.raises(StoreUnavailableError, match="did not answer"):
            await DatabasePool(engine).ping()
        server.start()
        await DatabasePool(engine).ping()
        assert await backend_pid(engine) > 0
        await engine.dispose()


async def test_error_of_an_unreachable_database_hides_the_password(
    postgres: PostgresServer,
) -> None:
    engine = postgres_engine("postgresql://user:secret@127.0.0.1:1/nothing")
    with pytest.raises(StoreUnavailableError) as raised:
        await DatabasePool(engine).ping()
    assert "secret" not in str(raised.value)
    assert "DATABASE_URL" in raised.value.mend
    with pytest.raises(DBAPIError):
        await prewarm(engine)


@pytest.mark.parametrize("url", ["sqlite:///x.db", "mysql://localhost/x", "nonsense"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        postgres_engine(url)


async def test_sqlite_engines_are_counted_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("db") / "x.db"
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    pool = DatabasePool(engine)
    async with engine.connect():
        assert pool.counts().active == 1
    await pool.ping()
    assert await pool.trim() == 0
    await pool.close()


async def test_redis_pool_counts_bounds_and_pings(redis: Server) -> None:
    pool = redis_pool(redis.url, max_connections=2, wait_timeout_s=0.05)
    held = RedisPool(pool)
    await held.ping()
    assert (held.counts().active, held.counts().idle) == (0, 1)
    first = await pool.get_connection()
    assert held.counts().active == 1
    second = await pool.get_connection()
    with pytest.raises(StoreUnavailableError):
        await held.ping()
    await pool.release(first)
    await pool.release(second)
    await held.ping()
    await held.close()


async def test_redis_connections_are_kept_alive_and_checked(redis: Server) -> None:
    pool = redis_pool(redis.url)
    connection = await pool.get_connection()
    assert pool.max_connections == 20
    assert connection.retry_on_timeout
    assert connection.health_check_interval == 30
    assert connection.socket_keepalive
    await pool.release(connection)
    await pool.disconnect()


async def test_redis_outage_is_an_error_and_its_end_is_noticed() -> None:
    with redis_server() as server:
        held = RedisPool(redis_pool(server.url))
        await held.ping()
        server.stop()
        with pytest.raises(StoreUnavailableError, match="Redis"):
            await held.ping()
        server.start()
        await held.ping()
        await held.close()


def test_malformed_redis_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="REDIS_URL"):
        redis_pool("http://localhost")


async def test_manager_counts_every_pool_and_closes_them(
    postgres: PostgresServer, redis: Server
) -> None:
    engine, pool = postgres_engine(postgres.url), redis_pool(redis.url)
    manager = ConnectionPoolManager(database=DatabasePool(engine))
    assert manager.counts() == {
        "db_connections_active": 0,
        "db_connections_idle": 0,
        "redis_connections_active": 0,
        "redis_connections_idle": 0,
    }
    manager.add("redis", RedisPool(pool))
    assert "redis" in manager
    await prewarm(engine, 2)
    await Redis(connection_pool=pool).ping()
    async with engine.connect():
        await manager.ping("redis")
        assert manager.counts() == {
            "db_connections_active": 1,
            "db_connections_idle": 1,
            "redis_connections_active": 0,
            "redis_connections_idle": 1,
        }
    with pytest.raises(ConflictError):
        manager.add("redis", RedisPool(pool))
    with pytest.raises(NotFoundError, match="database, redis"):
        await manager.ping("mongo")
    await manager.close()
    assert "redis" not in manager
    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]


async def test_manager_trims_all_its_pools(postgres: PostgresServer, clock: Clock) -> None:
    engine = postgres_engine(postgres.url, clock=clock)
    manager = ConnectionPoolManager(database=DatabasePool(engine, min_size=1, clock=clock))
    await prewarm(engine, 3)
    clock.now += 300
    assert await manager.trim() == 2
    assert manager.counts()["db_connections_idle"] == 1
    await manager.close()
