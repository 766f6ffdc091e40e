"""The trainer by itself: one upload for each content, one job for each key, clear ends."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tuneproof.collection import Dataset, TrainingDataBatch, Window
from tuneproof.errors import (
    ConfigError,
    DataError,
    NotFoundError,
    ProviderUnavailableError,
    TrainingFailedError,
)
from tuneproof.testing import MemoryProvider
from tuneproof.training import ModelTrainer, VersionStatus, new_version_id

T0 = datetime(2025, 1, 20, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.at = T0

    def now(self) -> datetime:
        return self.at

    async def sleep_until(self, at: datetime) -> None:
        self.at = at

    def waiting(self, run_id: str, until: datetime) -> None: ...
    def awake(self, run_id: str) -> None: ...
    def ended(self, run_id: str) -> None: ...


def batch(directory: Path, text: str = "hello") -> TrainingDataBatch:
    line = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": text}]}
    paths = {}
    for name, lines in (("train", 10), ("validation", 2)):
        path = directory / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for _ in range(lines)))
        paths[name] = str(path)
    dataset = Dataset(
        task="hook",
        hash="h",
        train_path=paths["train"],
        validation_path=paths["validation"],
        train_examples=10,
        validation_examples=2,
    )
    return TrainingDataBatch(
        pipeline="default",
        window=Window(since=T0 - timedelta(days=7), until=T0),
        hash=f"hash-{text}",
        posts=12,
        total_records=12,
        examples={"hook": 12},
        datasets={"hook": dataset},
        train_path=paths["train"],
        validation_path=paths["validation"],
        manifest_path="",
    )


def trainer(provider: MemoryProvider, **more: Any) -> ModelTrainer:
    return ModelTrainer("base", provider=provider, clock=Clock(), **more)


async def test_training_makes_one_job_and_ends_with_a_model(tmp_path: Path) -> None:
    provider = MemoryProvider()
    started = await trainer(provider).start_fine_tuning(batch(tmp_path))
    assert started.status is VersionStatus.TRAINING
    trained = await trainer(provider).monitor_training_job(started)
    assert trained.status is VersionStatus.TRAINED
    assert (trained.model_id or "").startswith("ft:base")
    assert provider.calls["create_job"] == 1


async def test_started_again_it_finds_files_and_job(tmp_path: Path) -> None:
    provider = MemoryProvider()
    data = batch(tmp_path)
    first = await trainer(provider).start_fine_tuning(data, run_id="run-1")
    again = await trainer(provider).start_fine_tuning(data, run_id="run-1")
    assert again.training_job_id == first.training_job_id
    assert (provider.calls["create_job"], provider.calls["upload"]) == (1, 2)


async def test_another_run_on_the_same_data_uploads_nothing_but_trains_anew(
    tmp_path: Path,
) -> None:
    provider = MemoryProvider()
    data = batch(tmp_path)
    await trainer(provider).start_fine_tuning(data, run_id="run-1")
    await trainer(provider).start_fine_tuning(data, run_id="run-2")
    assert (provider.calls["create_job"], provider.calls["upload"]) == (2, 2)


async def test_hyperparameters_are_sent_only_where_the_user_set_them(tmp_path: Path) -> None:
    provider = MemoryProvider()
    made = trainer(provider, hyperparameters={"n_epochs": 2}, seed=5, suffix="x" * 80)
    await made.start_fine_tuning(batch(tmp_path))
    [request] = provider.requests.values()
    assert request.hyperparameters == {"n_epochs": 2}
    assert (request.seed, len(request.suffix or "")) == (5, 64)


@pytest.mark.parametrize("code", ["invalid_training_file", "exceeded_quota", "other"])
async def test_failed_job_says_code_message_and_mend(tmp_path: Path, code: str) -> None:
    provider = MemoryProvider()
    provider.fail_job = (code, "Example 3, message 2 has no content.")
    started = await trainer(provider).start_fine_tuning(batch(tmp_path))
    with pytest.raises(TrainingFailedError, match="Example 3, message 2") as failed:
        await trainer(provider).monitor_training_job(started)
    assert failed.value.details["code"] == code
    assert failed.value.mend


async def test_job_that_outlasts_its_time_is_cancelled(tmp_path: Path) -> None:
    provider = MemoryProvider(polls=10**9)
    made = trainer(provider, timeout_s=100, poll_s=30)
    started = await made.start_fine_tuning(batch(tmp_path))
    with pytest.raises(TrainingFailedError, match="after 100 s and was cancelled"):
        await made.monitor_training_job(started)
    assert provider.calls["cancel_job"] == 1


async def test_job_that_vanishes_ends_in_a_clear_error(tmp_path: Path) -> None:
    provider = MemoryProvider()
    started = await trainer(provider).start_fine_tuning(batch(tmp_path))
    provider.raises["job"] = NotFoundError("No such job.")
    with pytest.raises(TrainingFailedError, match="vanished at memory"):
        await trainer(provider).monitor_training_job(started)


async def test_base_model_is_found_where_there_is_only_one() -> None:
    assert await ModelTrainer(provider=MemoryProvider(base_models=("only",))).base() == "only"
    with pytest.raises(ConfigError, match="offers 2 base models") as refused:
        await ModelTrainer(provider=MemoryProvider(base_models=("a", "b"))).base()
    assert "a, b" in refused.value.mend


async def test_missing_training_file_is_named(tmp_path: Path) -> None:
    data = batch(tmp_path)
    Path(data.train_path).unlink()
    with pytest.raises(DataError, match=r"train\.jsonl cannot be read"):
        await trainer(MemoryProvider()).start_fine_tuning(data)


def test_version_ids_sort_by_time() -> None:
    ids = [new_version_id(T0 + timedelta(milliseconds=i)) for i in range(50)]
    assert ids == sorted(ids)
    assert all(i.startswith("ver-") and i[18] == "7" for i in ids)


class Reader(MemoryProvider):
    """Reads a file for as many questions as it is told before a job may use it."""

    asked = 0
    slow = 3

    async def file_ready(self, file_id: str) -> bool:
        self.asked += 1
        return self.asked > self.slow


async def test_file_is_waited_for_until_the_provider_has_read_it(tmp_path: Path) -> None:
    provider = Reader()
    made = trainer(provider, poll_s=60)
    await made.start_fine_tuning(batch(tmp_path))
    assert made._clock.now() == T0 + timedelta(seconds=180)
    assert provider.calls["upload"] == 2


async def test_caller_with_a_timer_is_told_of_a_file_that_is_being_read(tmp_path: Path) -> None:
    provider = Reader()
    made = trainer(provider, waits=False)
    for _ in range(3):
        with pytest.raises(ProviderUnavailableError, match=r"still reading train\.jsonl"):
            await made.start_fine_tuning(batch(tmp_path))
    await made.start_fine_tuning(batch(tmp_path))
    assert provider.calls["upload"] == 2  # training and validation, once each
    assert provider.calls["create_job"] == 1


async def test_job_without_a_log_ends_all_the_same(tmp_path: Path) -> None:
    provider = MemoryProvider()
    provider.raises["events"] = NotFoundError("There are no events here.")
    made = trainer(provider)
    started = await made.start_fine_tuning(batch(tmp_path))
    assert (await made.monitor_training_job(started)).status is VersionStatus.TRAINED
