"""Durable runs: steps that are recorded, waits that survive, signals that wake.

The one module that knows the engine (DBOS Transact). A durable function is module-level and
async; its effects go through `step` and `transaction`, its pauses through `wait`. After a
kill it is called again, and every step that had ended answers what it answered then.

On SQLite one process owns the data directory (`DirectoryLock`). On PostgreSQL each worker
holds a session-level advisory lock while it lives; the others resume the runs of a worker
whose lock is free.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import logging
import os
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import sqlalchemy as sa
from dbos import DBOS, AsyncSQLAlchemyDatasource, DBOSConfig, Serializer, SetWorkflowID
from dbos._error import DBOSException

from tuneproof import errors

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

EngineError = DBOSException
"""What the engine raises for its own reasons (cancelled, taken over): never a step's error."""

T = TypeVar("T")
log = logging.getLogger(__name__)

APPLICATION_VERSION = "run-1"
"""Pinned: the engine's default hashes the code, and each deploy would strand running weeks."""

CONTROL = "control"
"""The one topic on which a waiting run listens."""

TAKEOVER_QUEUE = "takeover"
"""Where runs of dead workers are put for the living."""

MAX_NAP_S = 3600.0
"""A wait looks at the clock at least this often: engine timers stop while a laptop sleeps."""


# --- time -------------------------------------------------------------------------------


class Clock(Protocol):
    """What time it is. `waiting` and `awake` tell a virtual clock who sleeps."""

    def now(self) -> datetime:
        """The present instant, aware, UTC."""

    async def sleep_until(self, at: datetime) -> None:
        """Return once `now()` is at or after `at`."""

    def waiting(self, run_id: str, until: datetime) -> None:
        """A durable run begins to wait."""

    def awake(self, run_id: str) -> None:
        """A durable run is at work."""

    def ended(self, run_id: str) -> None:
        """A durable run is over."""


class SystemClock:
    """The machine's wall clock."""

    def now(self) -> datetime:
        """The present instant, aware, UTC."""
        return datetime.now(UTC)

    async def sleep_until(self, at: datetime) -> None:
        """Return once the wall clock shows `at`, also after the machine slept."""
        while (left := (at - self.now()).total_seconds()) > 0:  # noqa: ASYNC110 - time itself
            await asyncio.sleep(min(left, 60.0))

    def waiting(self, run_id: str, until: datetime) -> None:
        """Nothing to do: real time passes by itself."""

    def awake(self, run_id: str) -> None:
        """Nothing to do: real time passes by itself."""

    def ended(self, run_id: str) -> None:
        """Nothing to do: real time passes by itself."""


# --- what crosses a step ----------------------------------------------------------------

_registry: dict[str, type] = {}


def register(*classes: type) -> None:
    """Let these record and enum classes cross steps: they come back as what they were.

    A class keeps its registered name (`__name__`) for as long as runs that recorded it may
    be replayed.
    """
    for cls in classes:
        known = _registry.setdefault(cls.__name__, cls)
        if known is not cls:
            raise errors.ConfigError(
                f"Two record classes are named {cls.__name__}: {known.__module__} and "
                f"{cls.__module__}.",
                mend="Rename one: replay restores records by class name.",
            )


def registered() -> Mapping[str, type]:
    """Each registered class by its name; for the test that round-trips all of them."""
    return dict(_registry)


class RecordSerializer(Serializer):
    """JSON that restores our records, enums, instants and errors by class."""

    def name(self) -> str:
        """The name under which the engine stores what this wrote."""
        return "tuneproof_json"

    def serialize(self, data: Any) -> str:
        """One value as JSON text."""
        return json.dumps(_pack(data), separators=(",", ":"), ensure_ascii=False)

    def deserialize(self, serialized_data: str) -> Any:
        """The value that `serialize` wrote."""
        return _unpack(json.loads(serialized_data))


def _pack(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)) or type(value) is str:
        return value
    if isinstance(value, Enum):
        return {"$enum": type(value).__name__, "value": value.value}
    if isinstance(value, datetime):
        return {"$at": value.isoformat()}
    if isinstance(value, timedelta):
        return {"$seconds": value.total_seconds()}
    if isinstance(value, Path):
        return {"$path": str(value)}
    if isinstance(value, Decimal):
        return {"$decimal": str(value)}
    if isinstance(value, (list, tuple, set, frozenset)):
        kind = type(value).__name__
        items = [_pack(v) for v in value]
        return items if kind == "list" else {f"${kind}": items}
    if isinstance(value, Mapping):
        if all(type(k) is str and not k.startswith("$") for k in value):
            return {k: _pack(v) for k, v in value.items()}
        return {"$pairs": [[_pack(k), _pack(v)] for k, v in value.items()]}
    if isinstance(value, errors.TuneProofError):
        return {"$error": type(value).__name__, "fields": _pack(value.to_dict())}
    if isinstance(value, BaseException):
        return {"$exception": type(value).__name__, "message": str(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = type(value).__name__
        if _registry.get(name) is not type(value):
            raise errors.ConfigError(
                f"A step returned a {name}, which is not registered.",
                mend="Pass it to workflow.register().",
            )
        fields = {f.name: _pack(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"$record": name, "fields": fields}
    if isinstance(value, str):
        return str(value)
    raise errors.ConfigError(
        f"A {type(value).__name__} cannot cross a durable step.",
        mend="Return records, numbers, text, instants, lists or mappings.",
    )


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(v) for v in value]
    if not isinstance(value, dict):
        return value
    tag = next((k for k in value if k.startswith("$")), None)
    if tag is None:
        return {k: _unpack(v) for k, v in value.items()}
    return _UNPACK[tag](value)


def _unpack_record(value: dict[str, Any]) -> Any:
    cls = _registry[value["$record"]]
    known = {f.name for f in dataclasses.fields(cls)}
    fields = {k: _unpack(v) for k, v in value["fields"].items() if k in known}
    return cls(**fields)


def _unpack_exception(value: dict[str, Any]) -> Exception:
    known: dict[str, type[Exception]] = {
        c.__name__: c for c in (ValueError, KeyError, TypeError, RuntimeError, OSError)
    }
    return known.get(value["$exception"], RuntimeError)(value["message"])


_UNPACK: dict[str, Callable[[dict[str, Any]], Any]] = {
    "$enum": lambda v: _registry[v["$enum"]](v["value"]),
    "$at": lambda v: datetime.fromisoformat(v["$at"]),
    "$seconds": lambda v: timedelta(seconds=v["$seconds"]),
    "$path": lambda v: Path(v["$path"]),
    "$decimal": lambda v: Decimal(v["$decimal"]),
    "$tuple": lambda v: tuple(_unpack(i) for i in v["$tuple"]),
    "$set": lambda v: {_unpack(i) for i in v["$set"]},
    "$frozenset": lambda v: frozenset(_unpack(i) for i in v["$frozenset"]),
    "$pairs": lambda v: {_unpack(k): _unpack(i) for k, i in v["$pairs"]},
    "$error": lambda v: errors.by_name()[v["$error"]].from_dict(_unpack(v["fields"])),
    "$exception": _unpack_exception,
    "$record": _unpack_record,
}


# --- signals ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Signal:
    """A message that wakes a waiting run: who wants what, and why."""

    kind: str
    actor: str = "system"
    reason: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


TICK = Signal(kind="tick")
"""Only says "look at the clock again"."""

register(Signal)


# --- the engine -------------------------------------------------------------------------


class Moment(StrEnum):
    """When a step hook is called."""

    BEFORE = "before"  # the step has not begun
    INSIDE = "inside"  # its effect is made, its record is not
    AFTER = "after"  # it is recorded


StepHook = Callable[[str, Moment], None]


def durable(name: str) -> Callable[[Callable[..., Awaitable[T]]], Callable[..., Awaitable[T]]]:
    """Make a module-level async function durable under a name that never changes."""
    decorate: Any = DBOS.workflow(name=name, max_recovery_attempts=None)

    def made(fn: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        return cast(Callable[..., Awaitable[T]], decorate(fn))

    return made


class Engine:
    """The durable engine of this process; there is at most one.

    `store_url` and `store_engine` are our own database, in which transactions and their
    step records commit together. `system_url` is the engine's: a file of its own beside a
    SQLite store, the same database (schema `dbos`) on PostgreSQL. `resources` is what
    durable functions get from `resources()`.
    """

    def __init__(
        self,
        *,
        store_url: str,
        store_engine: AsyncEngine,
        system_url: str,
        executor_id: str,
        clock: Clock,
        resources: Any = None,
        poll_s: float = 0.25,
        takeover_s: float = 3.0,
        on_step: StepHook | None = None,
    ) -> None:
        self._store_url = store_url
        self._store_engine = store_engine
        self._system_url = system_url
        self.executor_id = executor_id
        self.clock = clock
        self.resources = resources
        self._poll_s = poll_s
        self._takeover_s = takeover_s
        self.on_step = on_step
        self._datasource: AsyncSQLAlchemyDatasource | None = None
        self._system_engine: sa.Engine | None = None
        self._keeper: _Keeper | None = None

    @property
    def on_sqlite(self) -> bool:
        """Whether this is the embedded form: one process, SQLite."""
        return self._system_url.startswith("sqlite")

    async def launch(self) -> None:
        """Start the engine in the running loop and take up this executor's pending runs."""
        global _engine
        if _engine is not None:
            raise errors.StateError(
                "This process has a durable engine already.",
                mend="Share one App per process, or stop the other one first.",
            )
        _engine = self
        try:
            await self._launch()
        except BaseException:
            await self.stop()
            raise

    async def _launch(self) -> None:
        serializer = RecordSerializer()
        if not self.on_sqlite:
            self._keeper = _Keeper(self, self._system_url, self._takeover_s)
            await self._keeper.start()
        else:
            self._system_engine = _sqlite_engine(self._system_url)
        config: DBOSConfig = {
            "name": "tuneproof",
            "system_database_url": self._system_url,
            "application_version": APPLICATION_VERSION,
            "executor_id": self.executor_id,
            "serializer": serializer,
            "log_level": "ERROR",
            "notification_listener_polling_interval_sec": self._poll_s,
            "sys_db_pool_size": 5,
        }
        if self._system_engine is not None:
            config["system_database_engine"] = self._system_engine
        DBOS(config=config)
        self._datasource = await AsyncSQLAlchemyDatasource.create(
            self._store_url, engine=self._store_engine, serializer=serializer
        )
        for run_id in await asyncio.to_thread(self._pending_before_launch):
            self.clock.awake(run_id)
        DBOS.launch()
        await DBOS.register_queue_async(TAKEOVER_QUEUE, polling_interval_sec=1.0)
        if self._keeper is not None:
            self._keeper.watch()

    def _pending_before_launch(self) -> list[str]:
        # The virtual clock must not run ahead of runs that recovery is about to resume.
        made = self._system_engine or sa.create_engine(self._system_url)
        table = "workflow_status" if self.on_sqlite else "dbos.workflow_status"
        statement = f"SELECT workflow_uuid FROM {table} WHERE status IN ('PENDING', 'ENQUEUED')"
        try:
            with made.connect() as conn:
                return [row[0] for row in conn.execute(sa.text(statement))]
        except (sa.exc.OperationalError, sa.exc.ProgrammingError):
            return []  # a new database has no tables yet
        finally:
            if made is not self._system_engine:
                made.dispose()

    async def stop(self) -> None:
        """Stop the engine; sleeping runs stay pending and are resumed at the next launch."""
        global _engine
        if self._keeper is not None:
            await self._keeper.stop()
        with_instance = _instance()
        if with_instance is not None:
            tasks = list(with_instance._workflow_tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(DBOS.destroy)
            # The engine shared its pool with this loop; it is gone now.
            from concurrent.futures import ThreadPoolExecutor

            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
        if self._datasource is not None:
            # The registry outlives the engine; a rewind would touch this store again.
            _registered_datasources().remove(self._datasource)
            self._datasource = None
        if self._system_engine is not None:
            self._system_engine.dispose()
        if _engine is self:
            _engine = None

    async def leads(self, role: str) -> bool:
        """Whether this worker is the one that does `role` (the schedule, tracking)."""
        return self._keeper is None or await self._keeper.leads(role)

    async def start(self, function: Callable[..., Awaitable[Any]], run_id: str, *args: Any) -> None:
        """Start a durable function under this id; a run that exists already is left as it is."""
        self.clock.awake(run_id)
        with SetWorkflowID(run_id):
            await DBOS.start_workflow_async(cast(Any, function), run_id, *args)

    async def send(self, run_id: str, signal: Signal, *, key: str | None = None) -> None:
        """Wake a run with a signal; one with the same `key` is delivered once."""
        try:
            await DBOS.send_async(run_id, signal, CONTROL, idempotency_key=key)
        except DBOSException as e:
            raise errors.NotFoundError(
                f"No run has the id {run_id}.", mend="tuneproof run list"
            ) from e

    async def exists(self, run_id: str) -> bool:
        """Whether the engine knows this run."""
        return await DBOS.get_workflow_status_async(run_id) is not None

    async def ended(self, run_id: str) -> bool:
        """Whether the durable function returned or was given up."""
        status = await DBOS.get_workflow_status_async(run_id)
        return status is None or status.status not in ("PENDING", "ENQUEUED", "DELAYED")

    async def result(self, run_id: str) -> Any:
        """Wait for the durable function's end and return what it returned."""
        handle: Any = await DBOS.retrieve_workflow_async(run_id)
        return await handle.get_result()

    async def pending(self) -> list[str]:
        """The ids of all runs that have not ended, on any worker."""
        rows = await DBOS.list_workflows_async(
            status=["PENDING", "ENQUEUED"], load_input=False, load_output=False
        )
        return [row.workflow_id for row in rows]

    async def rewind(self, run_id: str, step_name: str) -> None:
        """Take an ended run up again from the first step of this name; it keeps its id."""
        steps = await DBOS.list_workflow_steps_async(run_id)
        ids = [s["function_id"] for s in steps if s["function_name"] == step_name]
        if not ids:
            known = sorted({s["function_name"] for s in steps})
            raise errors.StateError(
                f"Run {run_id} never came to {step_name!r}; it knows {', '.join(known)}.",
                mend=f"tuneproof run show {run_id}",
            )
        self.clock.awake(run_id)
        await DBOS.rewind_workflow_async(run_id, start_step=min(ids))

    async def run_transaction(self, name: str, body: Callable[[], Awaitable[T]]) -> T:
        """Run `body` in a transaction of the store, recorded in the same commit."""
        assert self._datasource is not None, "the engine is not launched"
        level = "SERIALIZABLE" if self._store_url.startswith("sqlite") else "REPEATABLE READ"
        options: Any = {"name": name, "isolation_level": level}
        return cast(T, await self._datasource.run_tx_step_async(options, cast(Any, body)))

    async def connection(self) -> AsyncConnection:
        """The connection of the transaction that runs now."""
        assert self._datasource is not None, "the engine is not launched"
        return await self._datasource.sql_session().connection()


_engine: Engine | None = None


def _instance() -> Any:
    from dbos import _dbos

    return _dbos._dbos_global_instance


def _registered_datasources() -> list[Any]:
    from dbos import _dbos

    return cast(list[Any], _dbos._get_or_create_dbos_registry().datasources)


def engine() -> Engine:
    """The process's engine. Raises `StateError` when none was launched."""
    if _engine is None:
        raise errors.StateError(
            "No durable engine runs in this process.",
            mend="Open an App (or FineTuningPipeline) first.",
        )
    return _engine


def resources() -> Any:
    """What the process gave its durable functions (adapters by name)."""
    return engine().resources


def _sqlite_engine(url: str) -> sa.Engine:
    made = sa.create_engine(url, connect_args={"check_same_thread": False})

    @sa.event.listens_for(made, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = "IMMEDIATE"
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    return made


# --- what a durable function calls ------------------------------------------------------


async def step(name: str, fn: Callable[..., Any], *args: Any) -> Any:
    """Call `fn` once, recorded: after a kill the recorded answer (or error) is given again.

    A step is at-least-once: a kill between its effect and its record repeats it. So `fn`
    finds its effect before it makes it.
    """
    here = engine()

    async def body() -> Any:
        result = fn(*args)
        if asyncio.iscoroutine(result):
            result = await result
        _hook(here, name, Moment.INSIDE)
        return result

    _hook(here, name, Moment.BEFORE)
    result = await DBOS.run_step_async({"name": name}, body)
    _hook(here, name, Moment.AFTER)
    return result


async def transaction(name: str, fn: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Call `fn(tx, *args)` in one transaction of the store, exactly once."""
    here = engine()

    async def body() -> T:
        result = await fn(await here.connection(), *args)
        _hook(here, name, Moment.INSIDE)
        return result

    _hook(here, name, Moment.BEFORE)
    result = await here.run_transaction(name, body)
    _hook(here, name, Moment.AFTER)
    return result


async def now() -> datetime:
    """The present instant, recorded."""
    return cast(datetime, await step("now", engine().clock.now))


async def wait(until: datetime) -> Signal | None:
    """Sleep until an instant or the next signal; None when the instant came first."""
    here = engine()
    run_id = cast(str, DBOS.workflow_id)
    while True:
        left = (until - await now()).total_seconds()
        if left <= 0:
            return None
        here.clock.waiting(run_id, until)
        signal = await DBOS.recv_async(CONTROL, min(left, MAX_NAP_S))
        here.clock.awake(run_id)
        if signal is not None and signal.kind != TICK.kind:
            return cast(Signal, signal)


def _hook(here: Engine, name: str, moment: Moment) -> None:
    if here.on_step is not None:
        here.on_step(name, moment)


# --- one owner --------------------------------------------------------------------------


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


class _Keeper:
    """Holds this worker's advisory lock and resumes the runs of workers that lost theirs."""

    def __init__(self, owner: Engine, url: str, interval_s: float) -> None:
        self._engine = owner
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
        if not await self._try_lock(self._engine.executor_id):
            raise errors.StateError(
                f"Another worker runs as {self._engine.executor_id!r}.",
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
            if owner == self._engine.executor_id or not await self._try_lock(owner):
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


_LOCK_SPACE = 0x7450  # "tP": keeps our advisory locks apart from the user's


def _lock_key(executor_id: str) -> int:
    return zlib.crc32(executor_id.encode()) - 2**31
