"""Runs jobs: checks their files, waits for a free place, trains, keeps what came of it.

A job is driven by one task of the server's loop; reading files and training happen in threads.
The status in the database decides: a step is taken only by whoever moved the row, so a job is
never trained twice at once, and after a kill the next server finds each job where it stood.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from sqlite3 import Connection
from typing import Any

import orjson

from tuneproof_trainer.database import Row
from tuneproof_trainer.datasets import Checked, LineFile, check_file, find_lines
from tuneproof_trainer.engines.protocol import (
    EngineError,
    Hyperparameters,
    StopReason,
    TrainingOutcome,
    TrainingTask,
)
from tuneproof_trainer.errors import ApiError, JobFailure, is_disk_full
from tuneproof_trainer.files import FileStore
from tuneproof_trainer.jobs import JobStore
from tuneproof_trainer.models import Models, Resolved
from tuneproof_trainer.reporting import JobReporter
from tuneproof_trainer.settings import TrainerSettings
from tuneproof_trainer.states import JobState

__all__ = ["Runner"]

logger = logging.getLogger(__name__)
_AUTO_EPOCHS = 3
"""What quotas reckon with where a job leaves its epochs to the engine."""

_AGAIN_S = 1.0
"""Time between two tries to record that a job has failed."""

_RESTARTED = "The server was restarted; training goes on from its last snapshot."
_RESTARTS = 5
"""Restarts during a job without a single step between them after which it is given up: it may be
what ends the server."""

_CHECKING = "Validating training file: "
"""Said whenever the check of a job's files begins, and so counted like a restart."""

_UNDERWAY = (JobState.VALIDATING, JobState.QUEUED, JobState.RUNNING, JobState.PAUSING)


class Runner:
    """Drives all jobs of one server."""

    def __init__(
        self,
        settings: TrainerSettings,
        files: FileStore,
        jobs: JobStore,
        models: Models,
        folder: Path,
    ) -> None:
        self._settings, self._files, self._jobs, self._models = settings, files, jobs, models
        self._folder = folder
        self._db = jobs.db
        self._stop_requests: dict[str, StopReason] = {}
        self._stopping = False
        self._training: set[str] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(settings.concurrency)
        self._one_by_one = asyncio.Lock()
        """Files whose check ended with the server once are checked alone: one may be why."""

        self._threads = ThreadPoolExecutor(
            max_workers=settings.concurrency + 1, thread_name_prefix="trainer-job"
        )

    # -- from outside -----------------------------------------------------------------------

    async def start(self) -> None:
        """Take up every job that the last server left."""
        rows = self._db.rows(
            f"SELECT * FROM jobs WHERE status IN ({', '.join('?' * len(_UNDERWAY))}) ORDER BY seq",
            *_UNDERWAY,
        )
        for row in rows:
            await self._recover(row)

    async def _recover(self, row: Row) -> None:
        job_id = row["id"]
        checks = self._checks_begun(row) if row["status"] == JobState.VALIDATING else 0
        if self._jobs.told_since_step(job_id, _RESTARTED) >= _RESTARTS or checks >= _RESTARTS:
            await self._fail(job_id, *_given_up())
            return

        def work(connection: Connection) -> None:
            self._jobs.move(
                connection,
                job_id,
                JobState.QUEUED,
                since=(JobState.RUNNING,),
                message=_RESTARTED,
            )
            self._jobs.move(
                connection,
                job_id,
                JobState.PAUSED,
                since=(JobState.PAUSING,),
                message=_RESTARTED,
            )

        await self._db.awrite(work)
        self.drive(job_id)

    def drive(self, job_id: str) -> None:
        """See to it that this job goes on."""
        earlier = self._tasks.get(job_id)
        task = asyncio.create_task(self._drive(job_id, earlier), name=f"job {job_id}")
        self._tasks[job_id] = task
        task.add_done_callback(lambda done: self._forget(job_id, done))

    def _forget(self, job_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(job_id) is task:
            del self._tasks[job_id]
        if not task.cancelled() and task.exception() is not None:
            logger.error("job %s lost its driver", job_id, exc_info=task.exception())

    def interrupt(self, job_id: str, reason: StopReason) -> None:
        """Ask a training job to stop at its next step."""
        self._stop_requests[job_id] = reason

    async def stop(self) -> None:
        """Stop all jobs at their next step, each with a snapshot, and wait for them."""
        self._stopping = True
        tasks = dict(self._tasks)
        for job_id, task in tasks.items():
            if job_id not in self._training:
                task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def discard(self, job_id: str) -> None:
        """Clean up after a job that was cancelled before it trained."""
        if job_id not in self._training:
            await self._in_thread(self._clean, job_id)

    def active(self) -> int:
        """Jobs that are being driven."""
        return len(self._tasks)

    # -- one job ----------------------------------------------------------------------------

    async def _drive(self, job_id: str, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            await asyncio.wait([earlier])
        try:
            await self._advance(job_id)
            return
        except InterruptedError:
            return
        except Exception as error:
            failure = _failure(error)
            if failure[0] == "server_error":
                logger.error("job %s failed", job_id, exc_info=error)
        # Here the exception is gone, and with its frames whatever filled the memory.
        await self._fail(job_id, *failure)

    async def _advance(self, job_id: str) -> None:
        row = self._row(job_id)
        if row["status"] == JobState.VALIDATING:
            await self._validate(row)
        async with self._places:
            if self._stopping or not await self._begin(job_id):
                return
            self._training.add(job_id)
            try:
                await self._record_end(job_id, await self._in_thread(self._run_engine, job_id))
            finally:
                self._training.discard(job_id)

    def _row(self, job_id: str) -> Row:
        row = self._db.row("SELECT * FROM jobs WHERE id = ?", job_id)
        assert row is not None
        return row

    async def _in_thread(self, work: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def _checks_begun(self, row: Row) -> int:
        return self._jobs.told_since_step(row["id"], _CHECKING + row["training_file"])

    async def _validate(self, row: Row) -> None:
        if self._checks_begun(row):
            async with self._one_by_one:
                tokens = await self._in_thread(self._check, row)
        else:
            tokens = await self._in_thread(self._check, row)
        epochs = orjson.loads(row["requested"]).get("n_epochs") or _AUTO_EPOCHS
        await self._db.awrite(lambda c: self._let_train(c, row, tokens * epochs))

    def _let_train(self, connection: Connection, row: Row, tokens: int) -> None:
        """Queue the job, and charge what it will train; raises JobFailure beyond the quota."""
        quota = self._settings.token_quota
        spent = self._jobs.charged(connection, row["org"])
        if quota is not None and spent + tokens > quota:
            raise JobFailure(
                "exceeded_quota",
                f"This job needs about {tokens} tokens, and {spent} of this month's quota of "
                f"{quota} are used or will be by jobs that are under way. Use fewer examples or "
                "epochs, or have the quota raised.",
            )
        self._jobs.move(
            connection,
            row["id"],
            JobState.QUEUED,
            since=(JobState.VALIDATING,),
            message="Files validated, moving job to queued state",
            charged_tokens=tokens,
        )

    def _check(self, row: Row) -> int:
        """Check the job's files; returns the tokens of one epoch."""
        begun = _CHECKING + row["training_file"]
        self._db.write(lambda c: self._jobs.say(c, row["id"], begun))
        checked = self._checked(row, "training_file")
        if row["validation_file"]:
            self._checked(row, "validation_file")
        return checked.tokens

    def _checked(self, row: Row, param: str) -> Checked:
        model = self._models.resolve(row["org"], row["model"], deleted=True)
        path = self._files.path(row[param])
        if not path.exists():
            raise JobFailure(f"invalid_{param}", f"The {param} was deleted.", param)
        return check_file(
            path,
            method=row["method"],
            param=param,
            count_tokens=model.engine.count_tokens,
            min_examples=self._settings.min_examples if param == "training_file" else 1,
            blocklist=self._settings.blocklist,
            tools=model.engine.trains_tools,
            stopping=lambda: (
                self._stopping or self._stop_requests.get(row["id"]) is StopReason.CANCEL
            ),
        )

    async def _begin(self, job_id: str) -> bool:
        self._stop_requests.pop(job_id, None)
        now = self._jobs.clock()
        return await self._db.awrite(
            lambda c: self._jobs.move(
                c,
                job_id,
                JobState.RUNNING,
                since=(JobState.QUEUED,),
                message="Fine-tuning job started",
                started_at=now,
            )
        )

    async def _fail(self, job_id: str, code: str, message: str, param: str | None) -> None:
        """End the job as failed, as soon as the machine has the room to record it."""
        while True:
            try:
                await self._in_thread(self._record_failure, job_id, code, message, param)
                return
            except Exception as error:
                if self._stopping:
                    raise
                logger.warning("job %s cannot be ended yet (%s); trying again", job_id, error)
            await asyncio.sleep(_AGAIN_S)

    def _record_failure(self, job_id: str, code: str, message: str, param: str | None) -> None:
        def work(connection: Connection) -> None:
            if self._jobs.fail(connection, job_id, code, message, param):
                self._drop_models(connection, job_id)

        shutil.rmtree(self._work_folder(job_id), ignore_errors=True)
        self._db.write(work)
        self._clean(job_id)

    def _drop_models(self, connection: Connection, job_id: str) -> None:
        sql = "UPDATE models SET deleted_at = ? WHERE job_id = ? AND deleted_at IS NULL"
        connection.execute(sql, (self._jobs.now(), job_id))
        connection.execute("DELETE FROM checkpoints WHERE job_id = ?", (job_id,))

    def _work_folder(self, job_id: str) -> Path:
        return self._folder / job_id / "work"

    def _run_engine(self, job_id: str) -> TrainingOutcome:
        row = self._row(job_id)
        model = self._models.resolve(row["org"], row["model"], deleted=True)
        folder = self._work_folder(job_id)
        folder.mkdir(parents=True, exist_ok=True)
        reporter = JobReporter(self._jobs, row, model.root, self._folder, self._settings)

        def should_stop() -> StopReason | None:
            return StopReason.SHUTDOWN if self._stopping else self._stop_requests.get(job_id)

        with self._opened(row, "training_file") as training:
            if row["validation_file"] is None:
                task = self._task(row, model, training, None, folder)
                return model.engine.train(task, reporter, should_stop)
            with self._opened(row, "validation_file") as validation:
                task = self._task(row, model, training, validation, folder)
                return model.engine.train(task, reporter, should_stop)

    def _opened(self, row: Row, param: str) -> LineFile:
        path = self._files.path(row[param])
        if not path.exists():
            raise JobFailure(f"invalid_{param}", f"The {param} was deleted.", param)
        return LineFile(path, find_lines(path), row["method"])

    def _task(
        self,
        row: Row,
        model: Resolved,
        training: LineFile,
        validation: LineFile | None,
        folder: Path,
    ) -> TrainingTask:
        return TrainingTask(
            job_id=row["id"],
            model=row["model"],
            model_path=model.path,
            method=row["method"],
            hyperparameters=Hyperparameters(**orjson.loads(row["requested"])),
            seed=row["seed"],
            training=training,
            validation=validation,
            folder=folder,
        )

    async def _record_end(self, job_id: str, outcome: TrainingOutcome) -> None:
        if outcome.stopped is None:
            await self._in_thread(self._succeed, job_id, outcome)
        elif outcome.stopped is StopReason.PAUSE:
            await self._db.awrite(
                lambda c: self._jobs.move(
                    c,
                    job_id,
                    JobState.PAUSED,
                    since=(JobState.PAUSING,),
                    message="The job has been paused",
                    estimated_finish=None,
                )
            )
        elif outcome.stopped is StopReason.CANCEL:
            await self._in_thread(self._clean, job_id)

    def _succeed(self, job_id: str, outcome: TrainingOutcome) -> None:
        row = self._row(job_id)
        model = self._models.resolve(row["org"], row["model"], deleted=True)
        reporter = JobReporter(self._jobs, row, model.root, self._folder, self._settings)
        result = self._files.land([reporter.result_csv()], 2**40)

        def work(connection: Connection) -> bool:
            moved = reporter.finish(connection, outcome, result.id)
            if moved:
                self._files.record(
                    connection,
                    result,
                    org=row["org"],
                    filename="step_metrics.csv",
                    purpose="fine-tune-results",
                )
            return moved

        if not self._db.write(work):
            self._files.path(result.id).unlink(missing_ok=True)
        self._clean(job_id)

    def _clean(self, job_id: str) -> None:
        """Remove what only an unfinished job needs, and models of a job that did not succeed."""
        row = self._row(job_id)
        shutil.rmtree(self._work_folder(job_id), ignore_errors=True)
        if row["status"] != JobState.SUCCEEDED:
            shutil.rmtree(self._folder / job_id, ignore_errors=True)
            if row["status"] != JobState.FAILED:
                self._db.write(lambda c: self._drop_models(c, job_id), frees=True)
        for name in ("training_file", "validation_file"):
            self._release(row[name])

    def _release(self, file_id: str | None) -> None:
        """Remove the content of a file that was deleted while the job needed it."""
        if file_id is None:
            return
        gone = self._db.row("SELECT 1 FROM files WHERE id = ? AND deleted_at IS NOT NULL", file_id)
        if gone is not None and not self._files.needed(file_id):
            self._files.path(file_id).unlink(missing_ok=True)


def _given_up() -> tuple[str, str, str | None]:
    message = (
        f"The server ended {_RESTARTS} times while it worked on this job, without one step in "
        "between. The machine may have too little memory for it: its log says more."
    )
    return "server_error", message, None


def _failure(error: Exception) -> tuple[str, str, str | None]:
    """The code, message and parameter under which an exception ends its job."""
    if isinstance(error, EngineError | JobFailure):
        return error.code, error.message, error.param
    if isinstance(error, ApiError):
        return error.code or "server_error", error.message, error.param
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        message = "The server ran out of memory. Use a smaller file, or train on a larger machine."
        return "out_of_memory", message, None
    if is_disk_full(error):
        return "disk_full", "The server's disk is full. Free some space and start again.", None
    return "server_error", f"The engine failed: {type(error).__name__}: {error}", None
