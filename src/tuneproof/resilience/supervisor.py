"""Starts every background task of the process under a name, and starts again what dies.

A loop that ends with an error, also with a bug of ours, or that returns when it should not, is
logged with its reason, counted and started again after a pause that grows; only cancellation ends
it. What each task did last can be read, so that health, doctor and page show one that stands
still.

    every(name, seconds, fn)   calls `fn` again and again; with `leader`, on one worker only
    keep(name, fn)             keeps a long-lived `fn` alive
    soon(name, fn)             calls `fn` in the background until it has returned once
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from tuneproof.errors import StateError, TuneProofError
from tuneproof.resilience.cancellation import cancellation_first, end_tasks

__all__ = ["Supervisor", "TaskHealth", "TaskState"]

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 15.0
"""Below the half minute within which each task runs again once what it needs is back."""

STANDBY_S = 15.0
"""The longest until a worker asks again whether it leads now: the leader may have died."""

JOB_ATTEMPTS = 10

Work = Callable[[], Awaitable[object]]


class TaskState(StrEnum):
    """How a task stands."""

    RUNNING = "running"  # at work, or between two rounds
    STANDBY = "standby"  # another worker does it
    FAILING = "failing"  # it died and is started again after a pause
    GIVEN_UP = "given_up"  # a job that failed at each of its attempts


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskHealth:
    """What is known of a task: since when it is supervised, and how it went."""

    name: str
    state: TaskState
    started_at: datetime
    every_s: float | None = None
    """How often it is to run; None for one that lives on, and for jobs."""
    last_success: datetime | None = None
    restarts: int = 0
    last_error: str = ""
    last_error_at: datetime | None = None

    def overdue(self, now: datetime) -> bool:
        """Whether a periodic task has missed two rounds and a minute: it hangs, or fails."""
        if self.every_s is None or self.state is TaskState.STANDBY:
            return False
        allowed = timedelta(seconds=3 * self.every_s + 60)
        return now - (self.last_success or self.started_at) > allowed

    def stands_still(self, now: datetime) -> bool:
        """Whether it does not do its work now, and should."""
        return self.state in (TaskState.FAILING, TaskState.GIVEN_UP) or self.overdue(now)

    def sentence(self) -> str:
        """How it goes, in words."""
        success = (
            "none yet" if self.last_success is None else f"{self.last_success:%Y-%m-%d %H:%M:%S}"
        )
        summary = f"{str(self.state).replace('_', ' ')}; last success {success}"
        if self.restarts:
            summary += f"; started again {self.restarts} times"
        if self.last_error:
            summary += f"; last error: {self.last_error}"
        return summary


async def _always(_role: str) -> bool:
    return True


def _unheard(_task: str) -> None:
    """Nobody counts."""


class Supervisor:
    """Runs tasks by name in one event loop; `close` ends them all.

    `leads` says whether this worker is the one that does a role; `restarted` is called with a
    task's name each time that it is started again. `now` and `sleep` are the clock.
    """

    def __init__(
        self,
        *,
        leads: Callable[[str], Awaitable[bool]] = _always,
        restarted: Callable[[str], None] = _unheard,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._leads = leads
        self._restarted = restarted
        self.now = now
        self._sleep = sleep
        self._records: dict[str, _Record] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._closed = False

    def every(
        self,
        name: str,
        seconds: float,
        fn: Work,
        *,
        leader: str | None = None,
        longest_pause_s: float = LONGEST_PAUSE_S,
    ) -> None:
        """Call `fn` now and `seconds` after each call's end; at once where it returned True.

        With `leader` only while this worker leads that role. Raises `StateError` where a task
        of this name runs already.
        """
        record = self._record(name, seconds)

        async def rounds() -> None:
            while True:
                if leader is None or await self._leads(leader):
                    more = await fn() is True
                    record.succeeded(self.now())
                    await self._sleep(0.0 if more else seconds)
                else:
                    record.stands_by()
                    await self._sleep(min(seconds, STANDBY_S))

        pause_s = min(FIRST_PAUSE_S, seconds) if seconds > 0 else FIRST_PAUSE_S
        self._begin(name, record, rounds, pause_s, longest_pause_s)

    def keep(self, name: str, fn: Work, *, longest_pause_s: float = LONGEST_PAUSE_S) -> None:
        """Call `fn`, which is not to return, and again each time that it ends.

        It says how it goes by `succeeded`. Raises `StateError` where a task of this name runs
        already.
        """
        self._begin(name, self._record(name, None), fn, FIRST_PAUSE_S, longest_pause_s)

    def soon(
        self,
        name: str,
        fn: Work,
        *,
        attempts: int = JOB_ATTEMPTS,
        longest_pause_s: float = LONGEST_PAUSE_S,
    ) -> None:
        """Call `fn` in the background until it has returned once, at most `attempts` times.

        Jobs of one name may run side by side; once closed, nothing is begun any more.
        """
        if self._closed:
            log.debug("%s is not begun: the supervisor is closed", name)
            return
        record = self._records.setdefault(name, _Record(name, None, self.now()))
        trying = self._until_done(record, fn, attempts, longest_pause_s)
        job = asyncio.create_task(trying, name=f"tuneproof-{name}")
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    def succeeded(self, name: str) -> None:
        """A long-lived task has done a round of its work."""
        self._records[name].succeeded(self.now())

    def runs(self, name: str) -> bool:
        """Whether a task of this name is supervised."""
        return name in self._tasks

    @property
    def tasks(self) -> tuple[TaskHealth, ...]:
        """How each task does, in the order of their beginning."""
        return tuple(record.health() for record in self._records.values())

    async def stop(self, *names: str) -> None:
        """End these tasks and forget them; one that does not run is none the worse."""
        ending = [task for name in names if (task := self._tasks.pop(name, None)) is not None]
        for name in names:
            self._records.pop(name, None)
        await end_tasks(ending)

    async def close(self, *, jobs_s: float = 0.0) -> None:
        """End everything; nothing is begun from now on. Jobs may take `jobs_s` to be done."""
        self._closed = True
        if self._jobs and jobs_s > 0:
            await asyncio.wait(self._jobs, timeout=jobs_s)
        ending = [*self._tasks.values(), *self._jobs]
        self._tasks.clear()
        await end_tasks(ending)

    def _record(self, name: str, every_s: float | None) -> _Record:
        if self._closed:
            raise StateError(f"{name} cannot begin: the supervisor is closed.")
        if name in self._tasks:
            raise StateError(f"A task {name!r} runs already.", mend="Stop it first.")
        self._records[name] = record = _Record(name, every_s, self.now())
        return record

    def _begin(
        self, name: str, record: _Record, fn: Work, pause_s: float, longest_pause_s: float
    ) -> None:
        running = self._supervised(record, fn, pause_s, longest_pause_s)
        self._tasks[name] = asyncio.create_task(running, name=f"tuneproof-{name}")

    async def _supervised(
        self, record: _Record, fn: Work, first_s: float, longest_s: float
    ) -> None:
        while True:
            begun = self.now()
            error = await _death(fn) or StateError("It returned, and should have gone on.")
            if self.now() - begun > timedelta(seconds=longest_s):
                record.failures = 0  # it lived for a while: a new trouble, not the old one
            record.failed(error, self.now())
            await self._sleep(_pause_s(record.failures, first_s, longest_s))
            self._again(record)

    async def _until_done(self, record: _Record, fn: Work, attempts: int, longest_s: float) -> None:
        for attempt in range(1, attempts + 1):
            error = await _death(fn)
            if error is None:
                record.succeeded(self.now())
                return
            record.failed(error, self.now())
            if attempt < attempts:
                await self._sleep(_pause_s(attempt, FIRST_PAUSE_S, longest_s))
                self._again(record)
        record.state = TaskState.GIVEN_UP
        log.error("%s was given up after %d attempts: %s", record.name, attempts, record.last_error)

    def _again(self, record: _Record) -> None:
        record.restarts += 1
        if record.every_s is None:  # a periodic task fails until a round of it succeeds
            record.state = TaskState.RUNNING
        try:
            self._restarted(record.name)
        except Exception:
            log.exception("the hook for restarts failed")


class _Record:
    """A task's life so far."""

    def __init__(self, name: str, every_s: float | None, started_at: datetime) -> None:
        self.name = name
        self.every_s = every_s
        self.started_at = started_at
        self.state = TaskState.RUNNING
        self.failures = 0
        self.restarts = 0
        self.last_success: datetime | None = None
        self.last_error = ""
        self.last_error_at: datetime | None = None

    def succeeded(self, now: datetime) -> None:
        self.last_success = now
        if self.failures:
            log.info("%s runs again after %d failures", self.name, self.failures)
        self.failures, self.state = 0, TaskState.RUNNING

    def stands_by(self) -> None:
        self.failures, self.state = 0, TaskState.STANDBY

    def failed(self, error: BaseException, now: datetime) -> None:
        reason = _reason(error)
        if not self.failures or reason != self.last_error:
            bug = not isinstance(error, TuneProofError)
            log.warning("%s died: %s", self.name, reason, exc_info=error if bug else None)
        self.failures += 1
        self.last_error, self.last_error_at = reason, now
        self.state = TaskState.FAILING

    def health(self) -> TaskHealth:
        return TaskHealth(
            name=self.name,
            state=self.state,
            started_at=self.started_at,
            every_s=self.every_s,
            last_success=self.last_success,
            restarts=self.restarts,
            last_error=self.last_error,
            last_error_at=self.last_error_at,
        )


async def _death(fn: Work) -> BaseException | None:
    """What `fn` died of; None where it returned. Cancellation of this very task goes on."""
    try:
        with cancellation_first():
            await fn()
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return error  # something that it waited for was cancelled
    except Exception as error:
        return error
    return None


def _reason(error: BaseException) -> str:
    return (
        error.message if isinstance(error, TuneProofError) else f"{type(error).__name__}: {error}"
    )


def _pause_s(failures: int, first_s: float, longest_s: float) -> float:
    return float(min(first_s * 2 ** min(failures - 1, 30), longest_s))
