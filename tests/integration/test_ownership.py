"""Who leads and who takes over, on a PostgreSQL server that restarts and breaks connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

import psycopg
import pytest
from tests.servers import PostgresServer, postgres_server
from tests.waiting import eventually, until

from tuneproof.errors import StateError, StoreUnavailableError
from tuneproof.workflow.ownership import LOCK_SPACE, PROMPTS, Keeper

pytestmark = pytest.mark.postgres

INTERVAL_S = 2.0
GRACE_S = 3 * INTERVAL_S


class Runs:
    """The runs under way by their owner; resumed ones are whose they were."""

    def __init__(self) -> None:
        self.owned: dict[str, list[str]] = {}
        self.resumed: list[str] = []

    async def pending(self) -> Mapping[str, Sequence[str]]:
        return {owner: list(ids) for owner, ids in self.owned.items() if ids}

    async def resume(self, ids: Sequence[str]) -> None:
        self.resumed += ids
        for owned in self.owned.values():
            owned[:] = [id for id in owned if id not in ids]


class Hand:
    """A clock that a test turns."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def runs() -> Runs:
    return Runs()


@pytest.fixture
def clock() -> Hand:
    return Hand()


class Workers:
    """Keepers by name, on one database."""

    def __init__(self, url: str, runs: Runs, clock: Hand) -> None:
        self.url, self._runs, self._clock = url, runs, clock
        self.all: list[Keeper] = []

    async def start(self, name: str) -> Keeper:
        keeper = Keeper(
            name,
            self.url,
            INTERVAL_S,
            pending=self._runs.pending,
            resume=self._runs.resume,
            clock=self._clock,
        )
        await keeper.own()
        self.all.append(keeper)
        return keeper


@pytest.fixture
async def workers(server: PostgresServer, runs: Runs, clock: Hand) -> AsyncIterator[Workers]:
    url = server.create_database()
    made = Workers(url, runs, clock)
    yield made
    for keeper in made.all:
        await keeper.stop()
    server.drop_database(url)


def end_sessions(server: PostgresServer) -> None:
    """End all sessions but ours, as an administrator does, and wait until they are gone."""
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        ended = connection.execute(
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        ).fetchall()
        living = "SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)"
        until(lambda: not connection.execute(living, [[pid for pid, _ in ended]]).fetchall())


async def restart(server: PostgresServer) -> None:
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)


async def test_one_worker_leads_and_the_next_when_it_is_gone(workers: Workers) -> None:
    one, two = await workers.start("one"), await workers.start("two")
    assert [await one.leads("schedule"), await two.leads("schedule")] == [True, False]
    assert [await one.leads("schedule"), await two.leads("schedule")] == [True, False]
    await one.stop()
    assert await two.leads("schedule")
    assert not await one.leads("schedule")


async def test_worker_whose_session_was_ended_does_not_believe_that_it_leads(
    workers: Workers, server: PostgresServer
) -> None:
    one, two = await workers.start("one"), await workers.start("two")
    assert await one.leads("schedule")
    end_sessions(server)
    assert [await one.leads("schedule"), await two.leads("schedule")] == [False, False]
    await two.look()
    assert await two.leads("schedule")
    await one.look()
    assert not await one.leads("schedule")


async def test_after_a_restart_of_the_database_one_leads_and_nobody_alive_is_taken_over(
    workers: Workers, server: PostgresServer, runs: Runs, clock: Hand
) -> None:
    one, two = await workers.start("one"), await workers.start("two")
    runs.owned = {"one": ["run-1"], "two": ["run-2"], "three": ["run-3"]}
    assert await one.leads("schedule")
    await restart(server)
    with pytest.raises(StoreUnavailableError):
        await one.look()
    await one.look()  # its own lock is there again; that of `two` is free for now
    clock.now += GRACE_S - 0.5
    await one.look()
    assert runs.resumed == []
    with pytest.raises(StoreUnavailableError):
        await two.look()
    await two.look()
    clock.now += GRACE_S
    await one.look()
    assert runs.resumed == ["run-3"]
    clock.now += GRACE_S
    await two.look()
    assert runs.resumed == ["run-3"]
    assert [await two.leads("schedule"), await one.leads("schedule")] == [True, False]


async def test_lock_that_is_free_for_a_moment_again_and_again_is_no_death(
    workers: Workers, server: PostgresServer, runs: Runs, clock: Hand
) -> None:
    one, two = await workers.start("one"), await workers.start("two")
    runs.owned = {"two": ["run-2"]}
    await two.stop()
    await one.look()
    clock.now += GRACE_S - 0.5
    await two.look()
    await one.look()
    clock.now += GRACE_S
    await two.stop()
    await one.look()  # free again, but only since now
    assert runs.resumed == []
    clock.now += GRACE_S
    await one.look()
    assert runs.resumed == ["run-2"]


async def test_gone_workers_runs_are_taken_up_once(
    workers: Workers, runs: Runs, clock: Hand
) -> None:
    one, two = await workers.start("one"), await workers.start("two")
    runs.owned = {"gone": ["run-1", "run-2"], "one": ["run-3"]}
    await asyncio.gather(one.look(), two.look())
    clock.now += GRACE_S
    await asyncio.gather(one.look(), two.look())
    await asyncio.gather(one.look(), two.look())
    assert sorted(runs.resumed) == ["run-1", "run-2"]


async def test_worker_whose_name_was_taken_leads_nothing_and_says_so(
    workers: Workers, server: PostgresServer
) -> None:
    one = await workers.start("one")
    with pytest.raises(StateError, match="Another worker runs as 'one'"):
        await workers.start("one")
    await one.stop()
    thief = await workers.start("one")
    with pytest.raises(StateError):
        await one.look()
    assert not await one.leads("schedule")
    await thief.stop()
    await one.look()
    assert await one.leads("schedule")


async def test_roles_are_held_by_one_session_each_by_the_databases_own_word(
    workers: Workers, server: PostgresServer
) -> None:
    keepers = [await workers.start(name) for name in ("one", "two", "three")]
    for _ in range(3):
        found = [await keeper.leads("tracking") for keeper in keepers]
        assert sum(found) == 1
        end_sessions(server)
        found = [await keeper.leads("tracking") for keeper in keepers]
        assert sum(found) == 0
        for keeper in reversed(keepers):
            await keeper.look()
        keepers.append(keepers.pop(0))


async def test_workers_that_know_no_prompts_are_counted_while_they_live(
    server: PostgresServer, workers: Workers
) -> None:
    """Those of before hold the lock of their id, and none of what they know."""
    first = await workers.start("first")
    await workers.start("second")
    assert await first.ignorant_of(PROMPTS) == 0
    assert await first.ignorant_of("what nobody knows") == 2
    older = await psycopg.AsyncConnection.connect(
        workers.url.replace("+psycopg", ""), autocommit=True
    )
    await older.execute("SELECT pg_advisory_lock(%s, %s)", [LOCK_SPACE, 7])
    assert await first.ignorant_of(PROMPTS) == 1
    await older.close()
    await eventually(lambda: _none_is(first), 30)


async def _none_is(keeper: Keeper) -> bool:
    return await keeper.ignorant_of(PROMPTS) == 0
