"""Who owns a run: one process a SQLite directory; on PostgreSQL, whoever holds its lock.

Each worker holds a session-level advisory lock while it lives. The others resume the runs of a
worker whose lock is free, within seconds, also when a whole host died.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from dbos import DBOS

from tuneproof import errors

log = logging.getLogger(__name__)

TAKEOVER_QUEUE = "takeover"
"""Where runs of dead workers are put for the living."""

_LOCK_SPACE = 0x7450  # "tP": keeps our advisory locks apart from the user's


class DirectoryLock:
    """One process owns an embedded data directory; the lock dies with the process."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "lock"
        self._file: Any = None

    def acquire(self) -> None:
        """Take the lock or raise `StateError` naming the process that holds it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
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
    """Holds this worker's advisory lock and resumes the runs of workers that lost theirs."""

    def __init__(self, executor_id: str, url: str, interval_s: float) -> None:
        self._executor_id = executor_id
        self._url = sa.make_url(url)
        self._interval_s = interval_s
        self._connection: Any = None
        self._task: asyncio.Task[None] | None = None
        self._roles: set[str] = set()

    async def start(self) -> None:
        """Take the lock of this executor id."""
        await self._connect()

    def watch(self) -> None:
        """Begin to look for dead workers."""
        self._task = asyncio.create_task(self._watch(), name="tuneproof-takeover")

    async def stop(self) -> None:
        """Stop looking and give the lock back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._connection is not None:
            await self._connection.close()

    async def leads(self, role: str) -> bool:
        """Whether the lock of this role is ours; it is free again when this process dies."""
        if self._connection is None or self._connection.closed:
            return False
        if role not in self._roles and await self._try_lock(f"role:{role}"):
            self._roles.add(role)
        return role in self._roles

    async def _connect(self) -> None:
        import psycopg

        self._roles.clear()

        url = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection = await psycopg.AsyncConnection.connect(
            url,
            autocommit=True,
            keepalives=1,
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
        )
        if not await self._try_lock(self._executor_id):
            raise errors.StateError(
                f"Another worker runs as {self._executor_id!r}.",
                mend="Give each worker an executor id of its own.",
            )

    async def _try_lock(self, executor_id: str) -> bool:
        return await self._ask("SELECT pg_try_advisory_lock(%s, %s)", executor_id)

    async def _ask(self, statement: str, executor_id: str) -> bool:
        cursor = await self._connection.execute(statement, (_LOCK_SPACE, _lock_key(executor_id)))
        return bool((await cursor.fetchone())[0])

    async def _watch(self) -> None:
        while True:
            try:
                if self._connection is None or self._connection.closed:
                    await self._connect()
                await self._take_over()
            except Exception as e:
                log.warning("takeover of dead workers' runs failed, will try again: %s", e)
                await self._drop()
            await asyncio.sleep(self._interval_s)

    async def _drop(self) -> None:
        if self._connection is not None:
            await self._connection.close()
        self._connection = None

    async def _take_over(self) -> None:
        for owner in {s.executor_id for s in await self._pending()}:
            if owner == self._executor_id or not await self._try_lock(owner):
                continue
            try:
                # Listed again under the lock: somebody else may have resumed them meanwhile.
                ids = [s.workflow_id for s in await self._pending(owner)]
                if ids:
                    log.warning("worker %s is gone; resuming %s", owner, ", ".join(ids))
                    await DBOS.resume_workflows_async(ids, queue_name=TAKEOVER_QUEUE)
            finally:
                await self._ask("SELECT pg_advisory_unlock(%s, %s)", owner)

    async def _pending(self, owner: str | None = None) -> Sequence[Any]:
        found = await DBOS.list_workflows_async(
            status="PENDING", executor_id=owner, load_input=False, load_output=False
        )
        return [s for s in found if s.executor_id]


def _lock_key(executor_id: str) -> int:
    return zlib.crc32(executor_id.encode()) - 2**31
