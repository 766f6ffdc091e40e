"""The engine of this process, and what a durable function calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, TypeVarTuple, Unpack, cast

import sqlalchemy as sa
from dbos import DBOS, AsyncSQLAlchemyDatasource, DBOSConfig, SetWorkflowID
from dbos._context import assert_current_dbos_context
from dbos._error import DBOSException, DBOSUnexpectedStepError
from sqlalchemy.ext.asyncio import AsyncConnection

from tuneproof import errors
from tuneproof.resilience import (
    Supervisor,
    cancellation_first,
    damage,
    end_tasks,
    heeding_cancellation,
)
from tuneproof.workflow.clocks import Clock
from tuneproof.workflow.codec import RecordSerializer
from tuneproof.workflow.ownership import PROMPTS, Keeper
from tuneproof.workflow.signals import CONTROL, TICK, Signal

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

EngineError = DBOSException
"""What the engine raises for its own reasons (cancelled, taken over): never a step's error."""

Tx = AsyncConnection
"""A transaction of the store: what `transaction` passes, and what the store's writes take."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

APPLICATION_VERSION = "run-1"
"""Pinned: the engine's default hashes the code, and each deploy would strand running weeks."""

TAKEOVER_QUEUE = "takeover"
"""Where runs of dead workers are put for the living."""

MAX_NAP_S = 3600.0
"""A wait looks at the clock at least this often: engine timers stop while a laptop sleeps."""

_POOL_SIZE = 5

ENGINE_CONNECTIONS = _POOL_SIZE + 2
"""Connections of a worker to PostgreSQL: the engine's pool, the one by which it listens, which it
takes out of that, and the one that holds the locks."""

TAKEOVER_S = 1.5
"""How often it is looked for runs of dead workers."""

RECONNECT_S = 1.0
"""The longest pause before a worker that lost its lock's session tries to get it again."""

_TAKEOVER = "takeover"


class Moment(StrEnum):
    """When a step hook is called."""

    BEFORE = "before"  # the step has not begun
    INSIDE = "inside"  # its effect is made, its record is not
    AFTER = "after"  # it is recorded


StepHook = Callable[[str, Moment], None]


class StepWatch(Protocol):
    """Told of each step that is really carried out, not of one that is replayed: with its name and
    its run's id."""

    def step(self, name: str, run_id: str) -> AbstractContextManager[None]:
        """Opened around it."""
        ...

    def done(self, name: str, run_id: str) -> None:
        """Called once it is recorded."""
        ...


class _Nobody:
    def step(self, name: str, run_id: str) -> AbstractContextManager[None]:
        return nullcontext()

    def done(self, name: str, run_id: str) -> None:
        return None


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
    durable functions get from `resources()`. `supervisor` keeps the engine's own tasks alive.
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
        takeover_s: float = TAKEOVER_S,
        on_step: StepHook | None = None,
        supervisor: Supervisor | None = None,
        watch: StepWatch | None = None,
    ) -> None:
        self._store_url = store_url
        self._store_engine = store_engine
        self._system_url = system_url
        self._on_sqlite = system_url.startswith("sqlite")  # the embedded form: one process
        self.executor_id = executor_id
        self.clock = clock
        self.resources = resources
        self._poll_s = poll_s
        self._takeover_s = takeover_s
        self.on_step = on_step
        self.watch: StepWatch = watch or _Nobody()
        self._supervisor = supervisor or Supervisor()
        self._datasource: AsyncSQLAlchemyDatasource | None = None
        self._system_engine: sa.Engine | None = None
        self._keeper: Keeper | None = None

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
            with damage.damage_as_error(self._told_database(), damage.OWN_FILE):
                await self._launch()
        except BaseException:
            await self.stop()
            raise

    async def _launch(self) -> None:
        serializer = RecordSerializer()
        if not self._on_sqlite:
            self._keeper = Keeper(
                self.executor_id,
                self._system_url,
                self._takeover_s,
                pending=_pending_by_owner,
                resume=_resumed_elsewhere,
            )
            await self._keeper.own()
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
            "sys_db_pool_size": _POOL_SIZE,
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
            self._supervisor.every(
                _TAKEOVER, self._takeover_s, self._keeper.look, longest_pause_s=RECONNECT_S
            )

    def _told_database(self) -> str:
        shown = sa.make_url(self._system_url).render_as_string(hide_password=True)
        return f"The engine's database {shown}"

    def _pending_before_launch(self) -> list[str]:
        # The virtual clock must not run ahead of runs that recovery is about to resume.
        made = self._system_engine or sa.create_engine(self._system_url)
        table = "workflow_status" if self._on_sqlite else "dbos.workflow_status"
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
        await self._supervisor.stop(_TAKEOVER)
        if self._keeper is not None:
            await self._keeper.stop()
        with_instance = _instance()
        if with_instance is not None:
            tasks = list(with_instance._workflow_tasks)
            await end_tasks(tasks)
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

    async def older_workers(self) -> int:
        """How many living workers are of a version that serves no variant by its prompt.

        Raises `StoreUnavailableError` where that cannot be asked.
        """
        return 0 if self._keeper is None else await self._keeper.ignorant_of(PROMPTS)

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

    async def returned(self, run_id: str, *, within_s: float = 10.0) -> bool:
        """Wait for a durable function that is about to return; False for one that goes on."""
        deadline = time.monotonic() + within_s
        while not await self.ended(run_id):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.05)
        return True

    async def given_up(self, run_id: str) -> str | None:
        """Why the engine ended a run without its function's answer; None where it did not."""
        status = await DBOS.get_workflow_status_async(run_id)
        if status is None or status.status in ("PENDING", "ENQUEUED", "DELAYED", "SUCCESS"):
            return None
        return f"{status.status}: {status.error}" if status.error else str(status.status)

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

    async def begin_again(self, run_id: str) -> None:
        """Take an ended durable function up again from its beginning; it keeps its id."""
        steps = await DBOS.list_workflow_steps_async(run_id)
        self.clock.awake(run_id)
        first = min((s["function_id"] for s in steps), default=1)
        await DBOS.rewind_workflow_async(run_id, start_step=first)

    async def rewind(self, run_id: str, step_name: str) -> None:
        """Take an ended run up again from the first step of this name; it keeps its id."""
        steps = await DBOS.list_workflow_steps_async(run_id)
        ids = [s["function_id"] for s in steps if s["function_name"] == step_name]
        if not ids:
            raise errors.StateError(
                f"Run {run_id} never came to its stage {step_name.partition('.')[0]!r}.",
                mend=f"Name a stage that it reached: tuneproof run show {run_id}",
            )
        self.clock.awake(run_id)
        await DBOS.rewind_workflow_async(run_id, start_step=min(ids))

    async def run_transaction(self, name: str, body: Callable[[], Awaitable[T]]) -> T:
        """Run `body` in a transaction of the store, recorded in the same commit.

        Its name is recorded with its answer: the engine compares the names of steps on replay,
        but keeps none of a transaction that was committed just before a kill.
        """
        assert self._datasource is not None, "the engine is not launched"
        level = "SERIALIZABLE" if self._store_url.startswith("sqlite") else "REPEATABLE READ"
        options: Any = {"name": name, "isolation_level": level}

        async def named() -> dict[str, Any]:
            with cancellation_first():  # or the engine would keep the error as the answer
                return {"transaction": name, "answer": await body()}

        with cancellation_first():
            writing = self._datasource.run_tx_step_async(options, named)
            recorded = await heeding_cancellation(writing)
        if recorded["transaction"] != name:
            here = assert_current_dbos_context()
            raise DBOSUnexpectedStepError(
                here.workflow_id, here.function_id, name, recorded["transaction"]
            )
        return cast(T, recorded["answer"])

    async def connection(self) -> Tx:
        """The connection of the transaction that runs now."""
        assert self._datasource is not None, "the engine is not launched"
        return await self._datasource.sql_session().connection()


async def _pending_by_owner() -> Mapping[str, Sequence[str]]:
    found = await DBOS.list_workflows_async(status="PENDING", load_input=False, load_output=False)
    owned: dict[str, list[str]] = {}
    for status in found:
        if status.executor_id:
            owned.setdefault(status.executor_id, []).append(status.workflow_id)
    return owned


async def _resumed_elsewhere(ids: Sequence[str]) -> None:
    await DBOS.resume_workflows_async(list(ids), queue_name=TAKEOVER_QUEUE)


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
    """An engine for the file, which is its owner's alone."""
    Path(str(sa.make_url(url).database)).touch(mode=0o600)
    made = sa.create_engine(url, connect_args={"check_same_thread": False})

    @sa.event.listens_for(made, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = "IMMEDIATE"
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    return made


async def step(name: str, fn: Callable[[Unpack[Ts]], Awaitable[T]], *args: *Ts) -> T:
    """Call `fn` once, recorded: after a kill the recorded answer (or error) is given again.

    A step is at-least-once: a kill between its effect and its record repeats it. So `fn`
    finds its effect before it makes it.
    """
    here, name, run_id = engine(), str(name), str(DBOS.workflow_id)
    carried_out = False

    async def body() -> T:
        nonlocal carried_out
        with cancellation_first(), here.watch.step(name, run_id):
            result = await fn(*args)
        _hook(here, name, Moment.INSIDE)
        carried_out = True
        return result

    _hook(here, name, Moment.BEFORE)
    result = cast(T, await DBOS.run_step_async({"name": name}, cast(Any, body)))
    if carried_out:
        here.watch.done(name, run_id)
    _hook(here, name, Moment.AFTER)
    return result


async def transaction(name: str, fn: Callable[[Tx, Unpack[Ts]], Awaitable[T]], *args: *Ts) -> T:
    """Call `fn(tx, *args)` in one transaction of the store, exactly once."""
    here, name, run_id = engine(), str(name), str(DBOS.workflow_id)
    carried_out = False

    async def body() -> T:
        nonlocal carried_out
        with here.watch.step(name, run_id):
            result = await fn(await here.connection(), *args)
        _hook(here, name, Moment.INSIDE)
        carried_out = True
        return result

    _hook(here, name, Moment.BEFORE)
    result = await here.run_transaction(name, body)
    if carried_out:
        here.watch.done(name, run_id)
    _hook(here, name, Moment.AFTER)
    return result


async def now() -> datetime:
    """The present instant, recorded."""
    return await step("now", _now)


async def _now() -> datetime:
    return engine().clock.now()


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
