"""The supervisor, on a clock of the test's own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from tuneproof.errors import StateError, StoreUnavailableError
from tuneproof.resilience import Supervisor, TaskHealth, TaskState

START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """Sleeping makes it later, at once."""

    def __init__(self) -> None:
        self.at = START
        self.slept: list[float] = []

    def now(self) -> datetime:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += timedelta(seconds=seconds)
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def restarted() -> list[str]:
    return []


@pytest.fixture
async def supervisor(clock: Clock, restarted: list[str]) -> AsyncIterator[Supervisor]:
    made = Supervisor(restarted=restarted.append, now=clock.now, sleep=clock.sleep)
    yield made
    await made.close()


def of(supervisor: Supervisor, name: str) -> TaskHealth:
    return next(task for task in supervisor.tasks if task.name == name)


class Work:
    """Fails as told, then works; `done` is set by the `until`th call."""

    def __init__(self, *outcomes: Exception | bool | None, until: int | None = None) -> None:
        self.outcomes = list(outcomes)
        self.calls = 0
        self.until = len(outcomes) + 1 if until is None else until
        self.done = asyncio.Event()

    async def __call__(self) -> bool | None:
        self.calls += 1
        if self.calls >= self.until:
            self.done.set()
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def test_periodic_task_runs_at_once_and_again_after_each_interval(
    supervisor: Supervisor, clock: Clock
) -> None:
    work = Work(until=3)
    supervisor.every("look", 20, work)
    await work.done.wait()
    assert clock.slept[:2] == [20, 20]
    found = of(supervisor, "look")
    assert (found.state, found.restarts, found.every_s) == (TaskState.RUNNING, 0, 20)
    assert found.last_success is not None


async def test_round_that_has_more_to_do_is_followed_by_the_next_at_once(
    supervisor: Supervisor, clock: Clock
) -> None:
    work = Work(True, True, None)
    supervisor.every("scoring", 5, work)
    await work.done.wait()
    assert clock.slept[:3] == [0, 0, 5]


async def test_what_dies_is_started_again_after_growing_pauses_with_its_reason_kept(
    supervisor: Supervisor, clock: Clock, restarted: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    failures = [StoreUnavailableError("The database is away.") for _ in range(7)]
    work = Work(*failures)
    supervisor.every("schedule", 20, work)
    with caplog.at_level(logging.INFO):
        await work.done.wait()
        await asyncio.sleep(0)
    assert clock.slept[:7] == [1, 2, 4, 8, 15, 15, 15]
    assert restarted == ["schedule"] * 7
    found = of(supervisor, "schedule")
    assert (found.restarts, found.last_error) == (7, "The database is away.")
    assert (found.state, found.last_success) == (
        TaskState.RUNNING,
        clock.at - timedelta(seconds=20),
    )
    told = [r.message for r in caplog.records]
    assert told == [
        "schedule died: The database is away.",
        "schedule runs again after 7 failures",
    ]


async def test_a_bug_ends_no_task_and_is_logged_with_its_traceback(
    supervisor: Supervisor, restarted: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    work = Work(ZeroDivisionError("of ours"))
    supervisor.every("schedule", 20, work)
    await work.done.wait()
    assert restarted == ["schedule"]
    assert of(supervisor, "schedule").last_error == "ZeroDivisionError: of ours"
    assert caplog.records[0].exc_info is not None


async def test_pauses_begin_anew_after_a_round_that_succeeded(
    supervisor: Supervisor, clock: Clock
) -> None:
    work = Work(OSError(), OSError(), None, OSError(), None)
    supervisor.every("look", 20, work)
    await work.done.wait()
    assert clock.slept[:4] == [1, 2, 20, 1]


async def test_frequent_task_does_not_wait_longer_than_its_own_interval_at_first(
    supervisor: Supervisor, clock: Clock
) -> None:
    work = Work(OSError(), OSError(), OSError(), OSError())
    supervisor.every("board", 0.25, work, longest_pause_s=1)
    await work.done.wait()
    assert clock.slept[:4] == [0.25, 0.5, 1, 1]


async def test_long_lived_task_that_returns_is_started_again(
    supervisor: Supervisor, restarted: list[str]
) -> None:
    work = Work(until=3)
    supervisor.keep("stream", work)
    await work.done.wait()
    assert restarted == ["stream", "stream"]
    assert of(supervisor, "stream").last_error == "It returned, and should have gone on."


async def test_long_lived_task_tells_of_its_rounds(supervisor: Supervisor, clock: Clock) -> None:
    worked = asyncio.Event()

    async def live() -> None:
        supervisor.succeeded("recorder")
        worked.set()
        await asyncio.Event().wait()

    supervisor.keep("recorder", live)
    assert of(supervisor, "recorder").last_success is None
    await worked.wait()
    assert of(supervisor, "recorder").last_success == clock.at


async def test_cancelled_inner_work_does_not_end_its_task(
    supervisor: Supervisor, restarted: list[str]
) -> None:
    again = asyncio.Event()

    async def live() -> None:
        if restarted:
            again.set()
            await asyncio.Event().wait()
        inner = asyncio.ensure_future(asyncio.Event().wait())
        inner.cancel()
        await inner

    supervisor.keep("stream", live)
    await again.wait()
    assert of(supervisor, "stream").restarts == 1


async def test_only_the_leader_works_and_says_when_it_no_longer_leads(clock: Clock) -> None:
    answers = iter([False, True])
    asked: list[str] = []
    done = asyncio.Event()

    async def leads(role: str) -> bool:
        asked.append(role)
        if len(asked) == 3:
            done.set()
        return next(answers, False)

    supervisor = Supervisor(leads=leads, now=clock.now, sleep=clock.sleep)
    work = Work()
    supervisor.every("tick", 20, work, leader="schedule")
    await done.wait()
    await asyncio.sleep(0)
    assert (work.calls, set(asked)) == (1, {"schedule"})
    assert of(supervisor, "tick").state is TaskState.STANDBY
    await supervisor.close()


async def test_rare_task_asks_often_whether_its_leader_is_gone(clock: Clock) -> None:
    answers = iter([False, False, True])
    work = Work(until=1)

    async def leads(role: str) -> bool:
        return next(answers, False)

    supervisor = Supervisor(leads=leads, now=clock.now, sleep=clock.sleep)
    supervisor.every("retention", 3600, work, leader="retention")
    await work.done.wait()
    assert clock.slept[:2] == [15, 15]
    await supervisor.close()


async def test_leadership_that_cannot_be_asked_for_means_that_nothing_is_done(
    clock: Clock, restarted: list[str]
) -> None:
    asked = asyncio.Event()

    async def leads(role: str) -> bool:
        if restarted:
            asked.set()
        raise StoreUnavailableError("The lock's connection broke.")

    work = Work()
    supervisor = Supervisor(
        leads=leads, restarted=restarted.append, now=clock.now, sleep=clock.sleep
    )
    supervisor.every("tick", 20, work, leader="schedule")
    await asked.wait()
    assert work.calls == 0
    assert of(supervisor, "tick").last_error == "The lock's connection broke."
    await supervisor.close()


async def test_job_is_tried_until_it_returns_once(
    supervisor: Supervisor, clock: Clock, restarted: list[str]
) -> None:
    work = Work(OSError("no route"), OSError("no route"))
    supervisor.soon("alert", work)
    await work.done.wait()
    await asyncio.sleep(0)
    assert (work.calls, restarted, clock.slept) == (3, ["alert", "alert"], [1, 2])
    assert of(supervisor, "alert").state is TaskState.RUNNING


async def test_job_that_never_returns_is_given_up_loudly(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    work = Work(*[OSError("no route")] * 3, until=3)
    supervisor.soon("alert", work, attempts=3)
    await work.done.wait()
    await asyncio.sleep(0)
    assert of(supervisor, "alert").state is TaskState.GIVEN_UP
    assert caplog.records[-1].levelno == logging.ERROR


async def test_a_name_is_taken_until_its_task_is_stopped(supervisor: Supervisor) -> None:
    supervisor.every("look", 20, Work())
    with pytest.raises(StateError):
        supervisor.keep("look", Work())
    await supervisor.stop("look", "unknown")
    assert not supervisor.runs("look")
    supervisor.every("look", 20, Work())
    assert supervisor.runs("look")


async def test_cancellation_ends_tasks_and_jobs_and_nothing_is_begun_after(
    supervisor: Supervisor,
) -> None:
    ended: list[str] = []

    async def live() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("live")

    supervisor.keep("live", live)
    supervisor.soon("job", live)
    await asyncio.sleep(0)
    await supervisor.close()
    assert ended == ["live", "live"]
    supervisor.soon("late", live)
    with pytest.raises(StateError):
        supervisor.keep("later", live)
    assert [task.name for task in supervisor.tasks] == ["live", "job"]


async def test_failing_hook_does_not_end_a_task(clock: Clock) -> None:
    def broken(task: str) -> None:
        raise RuntimeError("no registry")

    supervisor = Supervisor(restarted=broken, now=clock.now, sleep=clock.sleep)
    work = Work(OSError())
    supervisor.every("look", 20, work)
    await work.done.wait()
    [look] = supervisor.tasks
    assert (look.name, look.restarts) == ("look", 1)
    await supervisor.close()


@pytest.mark.parametrize(
    ("state", "last", "expected"),
    [
        (TaskState.RUNNING, timedelta(seconds=-100), False),
        (TaskState.RUNNING, timedelta(seconds=-121), True),
        (TaskState.FAILING, None, True),
        (TaskState.STANDBY, None, False),
    ],
)
def test_periodic_task_is_overdue_when_it_missed_its_rounds(
    state: TaskState, last: timedelta | None, expected: bool
) -> None:
    task = TaskHealth(
        name="look",
        state=state,
        started_at=START - timedelta(hours=1),
        every_s=20,
        last_success=None if last is None else START + last,
    )
    assert task.overdue(START) is expected


def test_long_lived_task_is_never_overdue() -> None:
    task = TaskHealth(name="x", state=TaskState.RUNNING, started_at=START - timedelta(days=9))
    assert not task.overdue(START)
