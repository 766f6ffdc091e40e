"""Raw events by day: an event counts once whatever its day, days come when needed and go whole."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from tests.conftest import HandClock
from tests.integration.store.records import experiment
from tests.waiting import eventually

from tuneproof.experiments import Arm, Exposure, Outcome
from tuneproof.store import Store, open_store

DAY = timedelta(days=1)
T0 = datetime(2025, 1, 20, 10, 0, tzinfo=UTC)
_numbers = count()


async def subject_of(store: Store) -> str:
    id = f"ab-test-20250120-{next(_numbers):06d}"
    await store.experiments.add(experiment(id))
    return id


def shown(subject: str, unit: str, day: float = 0, *, arm: Arm = Arm.BASELINE, id: str = "") -> Any:
    return Exposure(
        id=id or f"e-{unit}-{day}-{arm}",
        subject=subject,
        phase=0,
        arm=arm,
        unit=unit,
        at=T0 + day * DAY,
        task="hook",
        tokens=7,
    )


def told(subject: str, unit: str, value: float, day: float = 0, *, id: str = "") -> Any:
    return Outcome(
        id=id or f"o-{unit}-{day}", subject=subject, unit=unit, at=T0 + day * DAY, value=value
    )


async def days_of(store: Store, table: str = "exposures") -> dict[str, int]:
    """The partitions with their numbers of rows."""
    query = text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = :t ::regclass")
    async with store.database.read() as tx:
        names = [name for (name,) in await tx.execute(query, {"t": table})]
        rows = {
            n: (await tx.execute(text(f"SELECT count(*) FROM {n}"))).scalar_one() for n in names
        }
    return {name.removeprefix(f"{table}_"): n for name, n in sorted(rows.items())}


async def assert_exact(store: Store, subject: str) -> None:
    assert await store.events.stored(subject) == await store.events.recount(subject)


# --- an event counts once -----------------------------------------------------------------


async def test_same_id_on_another_day_is_the_same_event(store: Store) -> None:
    subject = await subject_of(store)
    first = await store.events.ingest(
        [shown(subject, "u", 3, id="e")], [told(subject, "u", 0.5, 4, id="o")]
    )
    assert first.accepted == 2
    for day in (0, 3.5, 9, 400):
        again = await store.events.ingest(
            [shown(subject, "u", day, id="e")], [told(subject, "u", 0.1, day, id="o")]
        )
        assert (again.accepted, again.duplicates) == (0, 2)
    assert [e.at for e in await store.events.newest(subject)] == [T0 + 3 * DAY]
    await assert_exact(store, subject)


async def test_same_id_on_two_days_of_one_batch_counts_once(store: Store) -> None:
    subject = await subject_of(store)
    events = [shown(subject, "u", day, id="e") for day in (2, 0, 1)]
    got = await store.events.ingest(events)
    assert (got.accepted, got.duplicates) == (1, 2)
    assert [e.at for e in await store.events.newest(subject)] == [T0 + 2 * DAY]


async def test_outcome_that_does_not_count_is_known_when_it_comes_again(store: Store) -> None:
    subject = await subject_of(store)
    await store.events.ingest(
        [shown(subject, "u", 0), shown(subject, "u", 1, arm=Arm.CANDIDATE)],
        [told(subject, "u", 0.9, 5, id="after the move")],
    )
    for day in (5, 0.5, 30):
        got = await store.events.ingest([], [told(subject, "u", 0.9, day, id="after the move")])
        assert got.accepted == 0
    await assert_exact(store, subject)


async def test_move_that_comes_late_finds_the_outcome_of_another_day(store: Store) -> None:
    subject = await subject_of(store)
    await store.events.ingest(
        [shown(subject, "u", 0)], [told(subject, "u", 0.2, 2), told(subject, "u", 0.9, 20)]
    )
    await store.events.ingest([shown(subject, "u", 10, arm=Arm.CANDIDATE)])
    (stratum,) = await store.events.strata(subject)
    assert (stratum.arm, stratum.units.sum_y) == (Arm.BASELINE, 0.2)
    await assert_exact(store, subject)


async def test_ids_that_wander_over_days_and_arms_give_the_recount(store: Store) -> None:
    subject = await subject_of(store)
    order = random.Random(11)
    seen: set[tuple[str, str, str]] = set()
    accepted = 0
    for _ in range(25):
        exposures: list[Exposure] = []
        outcomes: list[Outcome] = []
        for _ in range(order.randrange(1, 12)):
            unit, day = f"u{order.randrange(6)}", order.randrange(0, 12) / 2
            id = str(order.randrange(9))
            if order.random() < 0.5:
                exposures.append(shown(subject, unit, day, arm=order.choice(list(Arm)), id=id))
                seen.add(("e", unit, id))
            else:
                outcomes.append(told(subject, unit, order.random(), day, id=id))
                seen.add(("o", unit, id))
        accepted += (await store.events.ingest(exposures, outcomes)).accepted
    assert accepted == len(seen)
    await assert_exact(store, subject)


async def test_events_in_two_parts_of_one_transaction_count_once(store: Store) -> None:
    subject = await subject_of(store)
    async with store.database.begin() as tx:
        for part in (0, 1, 1):
            events = [shown(subject, f"u{i}", i) for i in range(3 * part + 3)]
            outcomes = [told(subject, "u0", 0.5, day) for day in range(part + 1)]
            await store.events.ingest(events, outcomes, tx=tx)
    assert sum(r.n for r in (await store.events.requests(subject)).values()) == 6
    await assert_exact(store, subject)


async def test_unit_that_another_makes_in_between_is_waited_for(store: Store) -> None:
    if store.database.dialect == "sqlite":
        pytest.skip("one writer at a time")
    subject = await subject_of(store)
    await store.events.ingest([shown(subject, "a")])
    async with store.database.begin() as tx:
        await store.events.ingest(
            [shown(subject, "new", 0, id="1"), shown(subject, "new", 1, id="2")],
            [told(subject, "new", 0.3, 2)],
            tx=tx,
        )
        events = [shown(subject, unit, 0, id="1") for unit in ("new", "a", "b")]
        other = asyncio.create_task(
            store.events.ingest(
                [*events, shown(subject, "new", -1)], [told(subject, "new", 0.3, 2)]
            )
        )
        await _waits_for_a_lock(tx)
    assert (await other).accepted == 3
    await assert_exact(store, subject)


async def _waits_for_a_lock(tx: AsyncConnection) -> None:
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")

    async def found() -> int:
        return int((await tx.execute(waiting)).scalar_one())

    await eventually(found)


# --- days come and go ---------------------------------------------------------------------


@pytest.mark.postgres
async def test_each_day_gets_a_partition_when_needed_and_the_next_one_ahead(
    postgres_store_url: str,
) -> None:
    store = await open_store(postgres_store_url, clock=HandClock())
    assert list(await days_of(store)) == ["future", "past"]
    subject = await subject_of(store)
    await store.events.ingest([shown(subject, "u", 0), shown(subject, "u", 3)])
    assert await days_of(store) == {
        "2025_01_20": 1, "2025_01_23": 1, "2025_01_24": 0, "future": 0, "past": 0,
    }  # fmt: skip
    assert list(await days_of(store, "outcomes")) == list(await days_of(store))
    await store.events.ingest([shown(subject, "u", 1)])
    assert (await days_of(store))["2025_01_21"] == 1
    await store.close()


@pytest.mark.postgres
async def test_times_that_nobody_means_share_a_partition(postgres_store_url: str) -> None:
    store = await open_store(postgres_store_url, clock=HandClock())
    subject = await subject_of(store)
    for days in (-20_000, -10_000, 50_000, 90_000):
        await store.events.ingest([shown(subject, "u", days)], [told(subject, "u", 0.1, days)])
    assert await days_of(store) == {"future": 2, "past": 2}
    await assert_exact(store, subject)
    await store.close()


@pytest.mark.postgres
async def test_workers_that_need_a_day_at_once_make_it_once(postgres_store_url: str) -> None:
    stores = [await open_store(postgres_store_url, clock=HandClock()) for _ in range(3)]
    subject = await subject_of(stores[0])
    await asyncio.gather(
        *(
            store.events.ingest([shown(subject, f"u{i}", day) for day in range(5)])
            for i, store in enumerate(stores * 4)
        )
    )
    found = await days_of(stores[0])
    assert [n for n in found.values() if n] == [12] * 5
    await assert_exact(stores[0], subject)
    for store in stores:
        await store.close()


@pytest.mark.postgres
async def test_events_of_a_transaction_with_the_last_connection_get_their_day(
    postgres_store_url: str,
) -> None:
    pool = {"pool_size": 1, "max_overflow": 0, "pool_timeout_s": 5}
    store = await open_store(postgres_store_url, clock=HandClock(), pool=pool)
    subject = await subject_of(store)
    async with store.database.begin() as tx:
        assert (await store.events.ingest([shown(subject, "u")], tx=tx)).accepted == 1
    assert (await days_of(store))["2025_01_20"] == 1
    await store.close()


@pytest.mark.postgres
async def test_purge_drops_days_whole_and_leaves_those_that_others_need(
    postgres_store_url: str,
) -> None:
    store = await open_store(postgres_store_url, clock=HandClock())
    mine, other = await subject_of(store), await subject_of(store)
    await store.events.ingest(
        [shown(mine, f"u{day}", day) for day in (-20_000, 0, 1, 2)], [told(mine, "u0", 0.1, 3)]
    )
    await store.events.ingest([shown(other, "v", 1)], [told(other, "v", 0.5, 1)])
    assert await store.retention.purge(mine, T0) == 5
    left = {"2025_01_21": 1, "2025_01_24": 0, "future": 0, "past": 0}
    assert await days_of(store) == left
    assert await days_of(store, "outcomes") == left
    assert await store.retention.purge(mine, T0) == 0
    await assert_exact(store, other)
    await store.close()


@pytest.mark.postgres
async def test_day_that_another_process_dropped_is_made_again(postgres_store_url: str) -> None:
    store = await open_store(postgres_store_url, clock=HandClock())
    retention = await open_store(postgres_store_url, clock=HandClock())
    mine, other = await subject_of(store), await subject_of(store)
    await store.events.ingest([shown(mine, "u")], [told(mine, "u", 0.1)])
    await retention.retention.purge(mine, T0)
    got = await store.events.ingest([shown(other, "u")], [told(other, "u", 0.2)])
    assert got.accepted == 2
    await assert_exact(store, other)
    await store.close()
    await retention.close()


@pytest.mark.postgres
async def test_purge_waits_for_events_on_their_way_in(postgres_store_url: str) -> None:
    store = await open_store(postgres_store_url, clock=HandClock())
    mine, other = await subject_of(store), await subject_of(store)
    await store.events.ingest([shown(mine, "u")])
    async with store.database.begin() as tx:
        events = [shown(mine, "late", 1), shown(other, "late", 1), shown(other, "late", 0)]
        await store.events.ingest(events, tx=tx)
        purge = asyncio.create_task(store.retention.purge(mine, T0))
        await _waits_for_a_lock(tx)
    assert await purge == 2
    assert {day: n for day, n in (await days_of(store)).items() if n} == {
        "2025_01_20": 1,
        "2025_01_21": 1,
    }
    await assert_exact(store, other)
    await store.close()
