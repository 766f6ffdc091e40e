"""What a job's row says while an engine reports: what was chosen, and when it will be done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tuneproof_trainer.database import TrainerDatabase
from tuneproof_trainer.engines.protocol import Hyperparameters, StepMetrics
from tuneproof_trainer.jobs import JobStore, job_object
from tuneproof_trainer.reporting import JobReporter
from tuneproof_trainer.settings import TrainerSettings

ROW = {
    "id": "ftjob-1",
    "org": "local",
    "status": "running",
    "model": "base",
    "training_file": "file-1",
    "validation_file": None,
    "suffix": None,
    "tag": "tag",
    "seed": 1,
    "method": "supervised",
    "requested": "{}",
    "effective": orjson.dumps({"n_epochs": "auto", "beta": "auto"}).decode(),
    "metadata": None,
    "created_at": 0,
    "result_files": "[]",
}


class Running:
    """A job that trains, and a clock that is set by hand."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.database = TrainerDatabase(folder / "trainer.sqlite")
        jobs = JobStore(self.database, lambda: self.now)
        self.database.write(lambda connection: jobs.create(connection, ROW))
        row = jobs.get("local", "ftjob-1")
        self.reporter = JobReporter(jobs, row, "base", folder, TrainerSettings(dir=folder))
        self._jobs = jobs

    def step(self, step: int, of: int, at: float) -> int | None:
        """When the job will be done, as it says after this step."""
        self.now = at
        metrics = StepMetrics(
            step=step, total_steps=of, train_loss=1.0, train_mean_token_accuracy=0.5
        )
        self.reporter.metrics(metrics)
        found: int | None = self.job()["estimated_finish"]
        return found

    def job(self) -> Any:
        return job_object(self._jobs.get("local", "ftjob-1"))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    yield made
    made.database.close()


def test_the_end_is_told_by_the_pace_of_steps_without_the_loading_before_them(
    running: Running,
) -> None:
    assert running.step(1, 101, at=1100) == 1100 + 100 * 100 + 1  # all that is known yet
    assert running.step(2, 101, at=1110) == 1110 + 99 * 10 + 1
    assert running.step(11, 101, at=1200) == 1200 + 90 * 10 + 1


def test_what_was_chosen_is_shown_and_nothing_else(running: Running) -> None:
    running.reporter.chosen(Hyperparameters(n_epochs=3, batch_size=8, learning_rate_multiplier=1.0))
    plain = {"n_epochs": 3, "batch_size": 8, "learning_rate_multiplier": 1.0}
    assert running.job()["hyperparameters"] == plain
    more = {"learning_rate": 2e-4, "rank": 16, "max_example_tokens": 212, "threads": 4}
    running.reporter.chosen(Hyperparameters(**plain, **more))
    assert running.job()["hyperparameters"] == plain | more
    assert running.job()["method"]["supervised"]["hyperparameters"] == plain | more
