"""Who owns a run: one process a SQLite directory; on PostgreSQL, whoever holds its lock.

Each worker holds a session-level advisory lock while it lives, and one for each role that it
leads. A lock is asked for in the database each time: what was true of a connection that broke is
not remembered. The others resume the runs of a worker whose lock stays free, within seconds, also
when a whole host died. A lock that is free for a moment is no death: when the database restarts
all are free, and each worker takes its own again before any may take another's.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import sqlalchemy as sa

from tuneproof import errors

if TYPE_CHECKING:
    from psycopg import AsyncConnection

log = logging.getLogger(__name__)

LOCK_SPACE = 0x7450  # "tP": keeps our advisory locks apart from the user's

GRACE_ROUNDS = 3
"""For how many rounds a lock must be seen free: a living worker needs two to take it again."""

ANSWER_WITHIN_S = 5.0

_SETTINGS = (
    # The server must notice a dead host too: it frees that host's locks.
    "SET tcp_keepalives_idle = 5",
    "SET tcp_keepalives_interval = 2",
    "SET tcp_keepalives_count = 3",
)

KNOWS_SPACE = 0x7451
"""What a worker knows that workers of before do not: a lock of each, shared by all who do."""

PROMPTS = "prompts"
"""Workers that serve variants by their prompts (from version 0.3)."""

_IGNORANT = """
    SELECT count(DISTINCT pid) FROM pg_locks AS worker
    WHERE locktype = 'advisory' AND granted AND classid = %s AND objsubid = 2
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND NOT EXISTS (
        SELECT 1 FROM pg_locks AS known
        WHERE known.pid = worker.pid AND known.locktype = 'advisory' AND known.granted
          AND known.classid = %s AND known.objid = %s AND known.objsubid = 2
      )
"""

_HELD = """
    SELECT objid::bigint FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND classid = %s AND objsubid = 2
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class DirectoryLock:
    """One process owns an embedded data directory; the lock dies with the process."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "lock"
        self._file: TextIO | None = None

    def acquire(self) -> None:
        """Take the lock or raise `StateError` naming the process that holds it."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.touch(mode=0o600)
        file = open(self._path, "a+")  # noqa: SIM115 - held until release
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise errors.StateError(
                f"{self._path.parent} is in use by process {holder}.",
                mend="Speak to the running service, stop it, or choose another --dir.",
            ) from e
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file = file

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Keeper:
    """Holds this worker's advisory lock and resumes the runs of workers that lost theirs.

    `pending` are the ids of runs under way by their owner's executor id; `resume` takes such runs
    up. `look` is to be called every `interval_s` by whoever supervises it.
    """

    def __init__(
        self,
        executor_id: str,
        url: str,
        interval_s: float,
        *,
        pending: Callable[[], Awaitable[Mapping[str, Sequence[str]]]],
        resume: Callable[[Sequence[str]], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._executor_id = executor_id
        self._url = sa.make_url(url).set(drivername="postgresql")
        self._grace_s = GRACE_ROUNDS * interval_s
        self._pending = pending
        self._resume = resume
        self._clock = clock
        self._connection: AsyncConnection | None = None
        self._free_since: dict[str, float] = {}

    async def stop(self) -> None:
        """Give all locks back."""
        if self._connection is not None:
            with contextlib.suppress(errors.StoreUnavailableError):
                await self._ask("SELECT pg_advisory_unlock_all()")
        await self._drop()

    async def leads(self, role: str) -> bool:
        """Whether this session holds the lock of this role now; it is taken where it is free.

        A worker without its own lock leads nothing: others may take it for dead.
        """
        if self._connection is None:
            return False
        try:
            return await self._take(f"role:{role}")
        except errors.StoreUnavailableError as e:
            log.warning("%s is not led from here any more: %s", role, e.message)
            return False

    async def look(self) -> None:
        """Make sure of the own lock, then resume the runs of workers that are gone.

        Raises `StoreUnavailableError` where the database does not answer, and `StateError` where
        somebody else took this worker's lock.
        """
        await self.own()
        pending = await self._pending()
        held, now = await self._held(), self._clock()
        free = {
            owner
            for owner in pending
            if owner != self._executor_id and _lock_key(owner) not in held
        }
        self._free_since = {owner: self._free_since.get(owner, now) for owner in free}
        for owner, since in self._free_since.items():
            if now - since >= self._grace_s:
                await self._take_over(owner)

    async def _take_over(self, owner: str) -> None:
        if not await self._take(owner):
            return
        try:
            # Listed again under the lock: somebody else may have resumed them meanwhile.
            ids = (await self._pending()).get(owner, ())
            if ids:
                log.warning("worker %s is gone; resuming %s", owner, ", ".join(ids))
                await self._resume(ids)
        finally:
            await self._ask("SELECT pg_advisory_unlock(%s, %s)", LOCK_SPACE, _lock_key(owner))

    async def ignorant_of(self, what: str) -> int:
        """How many living workers do not know this.

        Raises `StoreUnavailableError` where the database does not answer.
        """
        key = _lock_key(what) % 2**32
        [[found]] = await self._ask(_IGNORANT, LOCK_SPACE, KNOWS_SPACE, key)
        return int(found)

    async def own(self) -> None:
        """Hold the lock of this executor id. Raises `StateError` where another worker has it."""
        if self._connection is None:
            await self._connect()
            await self._ask(
                "SELECT pg_advisory_lock_shared(%s, %s)", KNOWS_SPACE, _lock_key(PROMPTS)
            )
        if not await self._take(self._executor_id):
            await self._drop()
            raise errors.StateError(
                f"Another worker runs as {self._executor_id!r}.",
                mend="Give each worker an executor id of its own.",
            )

    async def _connect(self) -> None:
        import psycopg

        self._free_since.clear()  # what a broken session saw says nothing of now
        try:
            self._connection = await psycopg.AsyncConnection.connect(
                self._url.render_as_string(hide_password=False),
                autocommit=True,
                connect_timeout=round(ANSWER_WITHIN_S),
                keepalives=1,
                keepalives_idle=5,
                keepalives_interval=2,
                keepalives_count=3,
                tcp_user_timeout=10_000,
            )
        except psycopg.Error as e:
            raise _away(e) from e
        for statement in _SETTINGS:
            await self._ask(statement)

    async def _take(self, name: str) -> bool:
        """Whether this session holds the lock of this name; it is taken where it is free."""
        [[taken]] = await self._ask(
            "SELECT pg_try_advisory_lock(%s, %s)", LOCK_SPACE, _lock_key(name)
        )
        return bool(taken)

    async def _held(self) -> set[int]:
        """The keys of all our locks that somebody holds."""
        return {_signed(row[0]) for row in await self._ask(_HELD, LOCK_SPACE)}

    async def _ask(self, statement: str, *values: int) -> Sequence[tuple[int | bool, ...]]:
        """What the session says; one that breaks is dropped with all that it held."""
        import psycopg

        connection = self._connection
        if connection is None:
            raise _away("the session is gone")
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                cursor = await connection.execute(statement, values or None)
                return await cursor.fetchall() if cursor.description else ()
        except (psycopg.Error, TimeoutError) as e:
            await self._drop(connection)
            raise _away(e) from e

    async def _drop(self, broken: AsyncConnection | None = None) -> None:
        connection = self._connection
        if connection is None or (broken is not None and broken is not connection):
            return
        self._connection = None
        await connection.close()


def _away(reason: object) -> errors.StoreUnavailableError:
    return errors.StoreUnavailableError(
        f"The database does not answer for this worker's locks: {reason or type(reason).__name__}.",
        mend="It is asked again; start it, or mend DATABASE_URL.",
    )


def _lock_key(name: str) -> int:
    return zlib.crc32(name.encode()) - 2**31


def _signed(objid: int) -> int:
    """A lock's key as it was given: pg_locks shows it without its sign."""
    return objid - 2**32 if objid >= 2**31 else objid
