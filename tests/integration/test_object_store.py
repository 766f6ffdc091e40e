"""Workers that share an object store and no folder: datasets of one are those of the other."""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from s3fs import S3FileSystem
from tests.integration.loop import T0, Loop, open_loop

from tuneproof.app import App
from tuneproof.app.backup import back_up
from tuneproof.app.restore import restore
from tuneproof.errors import ConfigError
from tuneproof.pipeline import StepName
from tuneproof.settings import FilesConfig, Settings, StoreConfig, Url
from tuneproof.store import Run, RunStatus
from tuneproof.testing import MemoryProvider, MemorySource
from tuneproof.training import ModelInfo
from tuneproof.workflow import Moment


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    return tmp_path / "bucket"


def files(bucket: Path) -> FilesConfig:
    return FilesConfig(url=Url(f"file://{bucket}/prefix"))


class NobodyAnswers(MemoryProvider):
    """A provider whose list of models never comes; `asked` is set once it is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def models(self) -> Sequence[ModelInfo]:
        self.asked.set()
        await asyncio.Event().wait()
        return []


@asynccontextmanager
async def handed_over(
    tmp_path: Path, database: str, config: FilesConfig, silent: NobodyAnswers
) -> AsyncIterator[tuple[Loop, str]]:
    """A worker that goes on with a run that another one began, and the run's id.

    It has another folder, and the posts are gone: it cannot build the dataset again.
    """
    async with open_loop(tmp_path / "one", database, provider=silent, files=config) as loop:
        run = await loop.app.runs.start()
        await asyncio.wait_for(silent.asked.wait(), 60)
    (tmp_path / "one").rename(tmp_path / "lost")
    async with open_loop(
        tmp_path / "two",
        database,
        files=config,
        source=MemorySource([]),
        takeover_s=0.05,
    ) as loop:
        yield loop, run.id


async def carried_on(
    tmp_path: Path, database: str, config: FilesConfig, silent: NobodyAnswers
) -> Run:
    """How a run ends that was handed over."""
    async with handed_over(tmp_path, database, config, silent) as (loop, run_id):
        return await loop.end(run_id)


@pytest.mark.postgres
async def test_run_of_a_worker_that_is_gone_goes_on_with_its_dataset(
    tmp_path: Path, postgres_store_url: str, bucket: Path
) -> None:
    ended = await carried_on(tmp_path, postgres_store_url, files(bucket), NobodyAnswers())
    assert ended.status is RunStatus.SUCCESS, ended.reason
    fetched = tmp_path / "two" / "datasets" / ended.result["training_data"]["hash"]
    assert (fetched / "train.jsonl").is_file()


@pytest.mark.postgres
async def test_dataset_that_was_changed_in_the_store_is_trained_on_by_nobody(
    tmp_path: Path, postgres_store_url: str, bucket: Path
) -> None:
    class Changes(NobodyAnswers):
        async def models(self) -> Sequence[ModelInfo]:
            [place] = (bucket / "prefix" / "datasets").iterdir()
            place.write_bytes(place.read_bytes().replace(b"topic number 7", b"topic number 8"))
            return await super().models()

    ended = await carried_on(tmp_path, postgres_store_url, files(bucket), Changes())
    assert ended.status is RunStatus.FAILED
    assert "was changed: its content has the hash" in ended.reason


async def test_worker_ends_while_the_store_hangs(
    tmp_path: Path, sqlite_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that takes connections and answers nothing keeps s3fs for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        config = FilesConfig(url=Url("s3://bucket"))
        async with open_loop(tmp_path, sqlite_store_url, files=config) as loop:
            await loop.app.runs.start()
            connected, _ = await asyncio.get_running_loop().sock_accept(silent)
            began = time.monotonic()
        assert time.monotonic() - began < 15
        connected.close()
    S3FileSystem.clear_instance_cache()


async def test_backup_has_the_datasets_that_only_the_store_has(
    tmp_path: Path, bucket: Path
) -> None:
    directory, config = tmp_path / "data", files(bucket)
    async with open_loop(
        directory, f"sqlite:///{directory / 'tuneproof.db'}", files=config
    ) as loop:
        ended = await loop.turn(last_stage="gate")
        settings = loop.app.settings
    datasets = directory / "datasets"
    before = contents(datasets)
    shutil.rmtree(datasets)
    (bucket / "prefix" / "datasets" / "damaged.tar").write_bytes(b"nothing of ours")
    made = back_up(settings, tmp_path / "backup.tar.gz", now=T0)
    assert "datasets/damaged" in made.left_out
    restored = replace(
        settings,
        dir=tmp_path / "restored",
        store=StoreConfig(),
        files=files(tmp_path / "another bucket"),
    )
    restore(restored, tmp_path / "backup.tar.gz")
    assert contents(restored.dir / "datasets") == before
    digest = ended.result["training_data"]["hash"]
    assert (tmp_path / "another bucket" / "prefix" / "datasets" / f"{digest}.tar").is_file()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


async def test_store_that_is_away_is_waited_for(
    tmp_path: Path, sqlite_store_url: str, bucket: Path
) -> None:
    def comes_back(name: str, moment: Moment) -> None:
        if (name, moment) == (StepName.COLLECT_NOTE, Moment.AFTER):
            bucket.unlink()

    bucket.write_text("a file where the bucket should be")
    async with open_loop(
        tmp_path / "data", sqlite_store_url, files=files(bucket), on_step=comes_back
    ) as loop:
        ended = await loop.turn()
    assert ended.status is RunStatus.SUCCESS, ended.reason
    assert f"file://{bucket}/prefix" in ended.stages["collect"]["detail"]["note"]
    assert [path.stem for path in (bucket / "prefix" / "datasets").iterdir()] == [
        ended.result["training_data"]["hash"]
    ]


async def test_doctor_writes_reads_and_deletes_a_file(
    tmp_path: Path, sqlite_store_url: str, bucket: Path
) -> None:
    async with open_loop(tmp_path / "data", sqlite_store_url, files=files(bucket)) as loop:
        found = {finding.name: finding for finding in await loop.app.doctor.examine()}
        assert found["files"].status == "ok"
        (bucket / "prefix").rename(bucket / "moved")
        (bucket / "prefix").write_text("a file where the folder should be")
        found = {finding.name: finding for finding in await loop.app.doctor.examine()}
    assert (found["files"].status, "Error" in found["files"].detail) == ("failed", True)


async def test_address_that_nothing_speaks_to_keeps_the_service_from_starting(
    tmp_path: Path,
) -> None:
    settings = Settings(dir=tmp_path, files=FilesConfig(url=Url("nobody://bucket")))
    with pytest.raises(ConfigError, match=r"files\.url is nobody://bucket"):
        async with App.open(settings):
            pass
