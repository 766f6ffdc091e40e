"""The board: the routing in memory, who is told of a change, and what stays in an outage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import replace

import pytest
from tests.waiting import eventually

from tuneproof.app import Board, Live
from tuneproof.app.board import WATCH_S
from tuneproof.errors import StoreUnavailableError
from tuneproof.experiments import Variant
from tuneproof.resilience import Supervisor
from tuneproof.rollout import Lane, Routing

BASE, NEW = Variant(model_id="base"), Variant(model_id="new", version="v1")
HOOK = Routing(task="hook", baseline=BASE, salt="s", version=1)
TESTED = replace(HOOK, lanes=(Lane(subject="ab-test-1", candidate=NEW, share=0.5),), version=2)


class Rows:
    """A store of routing that can be away, and tells of writes where it is asked to."""

    def __init__(self, *, notifies: bool = False) -> None:
        self.rows: dict[str, Routing] = {"hook": HOOK}
        self.notifies = notifies
        self.away = False
        self.reads = 0
        self.gate: asyncio.Event | None = None
        self.told: asyncio.Queue[str] = asyncio.Queue()

    async def all(self) -> Sequence[Routing]:
        self.reads += 1
        rows = [self.rows[task] for task in sorted(self.rows)]
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise StoreUnavailableError("away")
        return rows

    async def renew(self, task: str, above: int) -> None:
        if self.rows[task].version <= above:
            self.rows[task] = replace(self.rows[task], version=above + 1)

    async def notices(self) -> AsyncIterator[str]:
        yield ""
        while True:
            yield await self.told.get()


class Models:
    """Hears which models are to be prepared."""

    def __init__(self) -> None:
        self.prepared: list[frozenset[Variant]] = []
        self.error: Exception | None = None
        self.shown: Callable[[], object] = lambda: None

    async def prepare(self, models: Iterable[Variant]) -> None:
        self.prepared.append(frozenset(models))
        self.shown()
        if self.error is not None:
            raise self.error


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def live() -> Live:
    return Live()


@pytest.fixture
def board(rows: Rows, models: Models, live: Live) -> Board:
    return Board(rows, live, prepare=models.prepare)


async def test_nothing_is_shown_before_the_first_read(board):
    assert board.age_s is None
    with pytest.raises(StoreUnavailableError):
        _ = board.snapshot
    await board.refresh()
    assert board.snapshot.routing == (HOOK,)


async def test_a_change_is_told_once_and_after_it_is_shown(board, rows, live):
    await board.refresh()
    with live.listen() as events:
        rows.rows |= {"hook": TESTED, "body": replace(HOOK, task="body")}
        await board.refresh()
        await board.refresh()
        found = [events.get_nowait() for _ in range(events.qsize())]
    assert [(e.kind, e.id, e.version) for e in found] == [
        ("routing", "body", 1),
        ("routing", "hook", 2),
    ]
    assert board.snapshot.by_task["hook"] == TESTED


async def test_who_serves_new_models_is_found_before_they_are_shown(board, rows, models):
    await board.refresh()
    rows.rows["hook"] = TESTED
    before = []
    models.shown = lambda: before.append(board.snapshot.by_task["hook"])
    await board.refresh()
    assert models.prepared == [frozenset({BASE}), frozenset({BASE, NEW})]
    assert before == [HOOK]


async def test_a_change_is_shown_also_where_nobody_can_say_who_serves_it(board, rows, models):
    await board.refresh()
    rows.rows["hook"], models.error = TESTED, RuntimeError("a defect")
    await board.refresh()
    assert board.snapshot.by_task["hook"] == TESTED


async def test_those_who_ask_at_once_share_a_read_that_began_after_they_asked(board, rows):
    rows.gate = asyncio.Event()
    first = asyncio.create_task(board.refresh())
    await eventually(lambda: rows.reads == 1)
    rows.rows["hook"] = TESTED  # too late for the read under way
    later = [asyncio.create_task(board.refresh()) for _ in range(10)]
    await asyncio.sleep(0)
    rows.gate.set()
    assert (await first).routing == (HOOK,)
    assert {(await one).routing for one in later} == {(TESTED,)}
    assert rows.reads == 2


async def test_the_last_known_state_stays_while_the_store_is_away(rows, live, models):
    now = [10.0]
    board = Board(rows, live, prepare=models.prepare, clock=lambda: now[0])
    await board.refresh()
    rows.away, now[0] = True, 15.0
    with pytest.raises(StoreUnavailableError):
        await board.refresh()
    assert (await board.refresh_if_possible()).routing == (HOOK,)
    assert board.age_s == 5.0


async def test_nobody_gets_a_candidate_that_nobody_could_look_at_for_too_long(rows, live, models):
    """Before: it was served for as long as the outage lasted."""
    now, decided, seen = [0.0], asyncio.Event(), []

    async def recall(subjects: Collection[str]) -> None:
        seen.append((subjects, board.snapshot.by_task["hook"].lanes))
        await decided.wait()
        rows.rows["hook"] = replace(HOOK, version=3)  # it was rolled back

    board = Board(
        rows, live, prepare=models.prepare, clock=lambda: now[0], trust_s=lambda _: 60.0,
        recall=recall, watch_s=0.001,
    )  # fmt: skip
    rows.rows["hook"] = TESTED
    await board.refresh()
    rows.away, now[0] = True, 60.0
    await board.doubt()
    assert board.snapshot.routing == (TESTED,)
    now[0] = 61.0
    with live.listen() as events:
        await board.doubt()
        await board.doubt()
        assert events.qsize() == 1
    shown = board.snapshot.by_task["hook"]
    assert (shown.lanes, shown.baseline, shown.version) == ((), BASE, TESTED.version + 1)

    rows.away = False
    supervisor = Supervisor()
    board.watch(supervisor)
    try:
        await eventually(lambda: seen)
        assert seen == [(frozenset(TESTED.subjects), ())]
        assert board.snapshot.by_task["hook"].lanes == ()
        decided.set()
        await eventually(lambda: board.snapshot.routing == (rows.rows["hook"],))
        assert board.snapshot.version > shown.version
        rows.rows["hook"] = again = replace(TESTED, version=9)
        await eventually(lambda: board.snapshot.routing == (again,))
        assert len(seen) == 1
    finally:
        await supervisor.close()


@pytest.mark.parametrize("notified", [True, False])
async def test_a_write_is_seen_by_notice_by_word_or_by_and_by(rows, models, live, notified):
    rows.notifies = notified
    watch_s = 3600.0 if notified else WATCH_S
    board = Board(rows, live, prepare=models.prepare, watch_s=watch_s)
    supervisor = Supervisor()
    await board.refresh()
    board.watch(supervisor)
    try:
        rows.rows["hook"] = TESTED
        rows.told.put_nowait("hook")
        await eventually(lambda: board.snapshot.routing == (TESTED,))
        rows.rows["hook"] = replace(TESTED, version=3)
        board.stale.set()
        await eventually(lambda: board.snapshot.version == 3)
        assert supervisor.runs("routing-notices") == notified
    finally:
        await supervisor.close()


async def test_an_outage_ends_with_the_state_read_anew(rows, board):
    async def at_once(_seconds: float) -> None:
        await asyncio.sleep(0)

    supervisor = Supervisor(sleep=at_once)
    await board.refresh()
    board.watch(supervisor)
    try:
        rows.away = True
        await eventually(lambda: supervisor.tasks[0].restarts > 2)
        assert board.snapshot.routing == (HOOK,)
        rows.rows["hook"], rows.away = TESTED, False
        await eventually(lambda: board.snapshot.routing == (TESTED,))
    finally:
        await supervisor.close()
