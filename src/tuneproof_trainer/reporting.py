"""What a training job leaves behind as it goes: events, checkpoints, its result file."""

from __future__ import annotations

import base64
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from sqlite3 import Connection
from typing import Any, Literal

import orjson

from tuneproof_trainer.database import Row, insert
from tuneproof_trainer.engines.protocol import Hyperparameters, StepMetrics, TrainingOutcome
from tuneproof_trainer.files import sync_folder
from tuneproof_trainer.ids import new_id
from tuneproof_trainer.jobs import JobStore, model_name
from tuneproof_trainer.settings import TrainerSettings
from tuneproof_trainer.states import JobState

__all__ = ["JobReporter"]

_ALIVE = (JobState.RUNNING, JobState.PAUSING)


class JobReporter:
    """The `Reporter` of one job. Steps that were reported before a kill are not told again."""

    def __init__(
        self, jobs: JobStore, row: Row, root: str, folder: Path, settings: TrainerSettings
    ) -> None:
        self._jobs, self._db, self._row, self._folder = jobs, jobs.db, row, folder
        self._id, self._org, self._root = row["id"], row["org"], root
        self._checkpoints_kept = settings.checkpoints_kept
        self._model = model_name(root, self._org, row["suffix"], row["tag"])
        self._started_at = jobs.clock()
        self._first: tuple[float, int] | None = None
        """When a step was first reported, and which: before it, a model was loaded, too."""

    # -- the engine's side ------------------------------------------------------------------

    def chosen(self, hyperparameters: Hyperparameters) -> None:
        """Show the values in force on the job."""
        known = {k: v for k, v in dataclasses.asdict(hyperparameters).items() if v is not None}
        values = orjson.dumps(known).decode()
        self._db.write(
            lambda c: c.execute("UPDATE jobs SET effective = ? WHERE id = ?", (values, self._id))
        )

    def metrics(self, metrics: StepMetrics) -> None:
        """One metrics event, and a new guess at the end."""
        data = {k: v for k, v in dataclasses.asdict(metrics).items() if v is not None}
        message = (
            f"Step {metrics.step}/{metrics.total_steps}: training loss={metrics.train_loss:.2f}"
        )
        if metrics.valid_loss is not None:
            message += f", validation loss={metrics.valid_loss:.2f}"
        if metrics.full_valid_loss is not None:
            message += f", full validation loss={metrics.full_valid_loss:.2f}"
        if metrics.full_valid_reward_accuracy is not None:
            message += f", validation reward accuracy={metrics.full_valid_reward_accuracy:.2f}"
        finish = self._guess(metrics)

        def work(connection: Connection) -> None:
            self._jobs.tell(connection, self._id, message, data)
            connection.execute(
                "UPDATE jobs SET estimated_finish = ? WHERE id = ? AND status = ?",
                (finish, self._id, JobState.RUNNING),
            )

        self._db.write(work)

    def _guess(self, metrics: StepMetrics) -> int:
        """When the job will have done all its steps, at the pace of those that were reported."""
        now, left = self._jobs.clock(), metrics.total_steps - metrics.step
        if self._first is None:
            self._first = now, metrics.step
        since, first = self._first
        if metrics.step == first:
            since, first = self._started_at, metrics.step - 1
        return int(now + (now - since) / (metrics.step - first) * left) + 1

    def checkpoint(self, step: int, metrics: StepMetrics, save: Callable[[Path], None]) -> None:
        """Keep a model under its name; the last step's bears the job's own."""
        known = self._db.row(
            "SELECT 1 FROM checkpoints WHERE job_id = ? AND step = ?", self._id, step
        )
        if known is not None:
            return
        final = step == metrics.total_steps
        name = self._model if final else f"{self._model}:ckpt-step-{step}"
        path = self._saved(step, save)
        self._db.write(lambda c: self._add_checkpoint(c, step, metrics, name, path))
        self._thin()

    def _saved(self, step: int, save: Callable[[Path], None]) -> str:
        place = f"{self._id}/step-{step}"
        target = self._folder / place
        temporary = target.with_suffix(".part")
        for leftover in (target, temporary):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            save(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        temporary.replace(target)
        sync_folder(target.parent)
        return place

    def _add_checkpoint(
        self, connection: Connection, step: int, metrics: StepMetrics, name: str, path: str
    ) -> None:
        alive = "SELECT 1 FROM jobs WHERE id = ? AND status IN (?, ?)"
        if connection.execute(alive, (self._id, *_ALIVE)).fetchone() is None:
            return  # it was cancelled while this was saved: whoever ends the job cleans up
        now = self._jobs.now()
        names = {field.name for field in dataclasses.fields(StepMetrics)} - {"total_steps"}
        insert(
            connection,
            "checkpoints",
            id=new_id("ftckpt_"),
            job_id=self._id,
            created_at=now,
            step=step,
            model=name,
            metrics=orjson.dumps({n: getattr(metrics, n) for n in sorted(names)}).decode(),
        )
        if name != self._model:
            self._add_model(connection, name, path, final=False)
            message = f"Checkpoint created at step {step}"
            self._jobs.say(connection, self._id, message)

    def _add_model(self, connection: Connection, name: str, path: str, *, final: bool) -> None:
        connection.execute(
            "INSERT OR IGNORE INTO models (id, org, job_id, root, path, created_at, final)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (name, self._org, self._id, self._root, path, self._jobs.now(), int(final)),
        )

    def _thin(self) -> None:
        """Keep the newest checkpoints only."""
        old = self._db.rows(
            "SELECT * FROM checkpoints WHERE job_id = ? ORDER BY step DESC LIMIT -1 OFFSET ?",
            self._id,
            self._checkpoints_kept,
        )
        for row in old:

            def work(connection: Connection, row: Row = row) -> None:
                connection.execute("DELETE FROM checkpoints WHERE id = ?", (row["id"],))
                connection.execute("DELETE FROM models WHERE id = ?", (row["model"],))

            self._db.write(work)
            shutil.rmtree(self._folder / self._id / f"step-{row['step']}", ignore_errors=True)

    def message(self, text: str, level: Literal["info", "warn", "error"] = "info") -> None:
        """One message event."""
        self._db.write(lambda c: self._jobs.say(c, self._id, text, level))

    # -- the end ----------------------------------------------------------------------------

    def result_csv(self) -> bytes:
        """The result file: base64 of a CSV with one line for each reported step."""
        columns = ("train_loss", "train_mean_token_accuracy", "valid_loss")
        lines = ["step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"]
        for data in self._jobs.metrics(self._id):
            figures = [data.get(name) for name in (*columns, "valid_mean_token_accuracy")]
            shown = ["" if f is None else f"{f:.5f}" for f in figures]
            lines.append(",".join([str(data["step"]), *shown]))
        return base64.b64encode(("\n".join(lines) + "\n").encode())

    def finish(self, connection: Connection, outcome: TrainingOutcome, result_file: str) -> bool:
        """Make the job's model and end it as succeeded; says whether it was still alive."""
        values: dict[str, Any] = {
            "fine_tuned_model": self._model,
            "trained_tokens": outcome.trained_tokens,
            "charged_tokens": outcome.trained_tokens,
            "finished_at": self._jobs.now(),
            "estimated_finish": None,
            "result_files": orjson.dumps([result_file]).decode(),
        }
        moved = self._jobs.move(
            connection,
            self._id,
            JobState.SUCCEEDED,
            since=_ALIVE,
            message=f"New fine-tuned model created: {self._model}",
            **values,
        )
        if moved:
            path = f"{self._id}/step-{outcome.steps}"
            self._add_model(connection, self._model, path, final=True)
            text = "The job has successfully completed"
            self._jobs.say(connection, self._id, text)
        return moved
