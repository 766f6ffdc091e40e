"""Datasets on a shelf: what another worker built is fetched, and only if it is what it says."""

from __future__ import annotations

import asyncio
import os
import tarfile
import time
from pathlib import Path

import pytest
from tests.posts import post

from tuneproof.collection import Task, TrainingDataBatch
from tuneproof.curation import CurationOptions, ShelvedDatasets, curate_posts, read_examples
from tuneproof.errors import DataError
from tuneproof.settings import Url
from tuneproof.shelf import Shelf

HOOK = Task(name="hook", prompt="{original_input}", completion="hook")
BODY = Task(name="body", prompt="{hook}", completion="body")
ALL_IN = CurationOptions(kept_back_share=0.0)


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    return tmp_path / "bucket"


def worker(bucket: Path, directory: Path, *, cache_bytes: int = 10**9) -> ShelvedDatasets:
    return ShelvedDatasets(Shelf(Url(f"file://{bucket}")), directory, cache_bytes=cache_bytes)


async def built(
    directory: Path, first: int = 1, tasks: tuple[Task, ...] = (HOOK, BODY)
) -> TrainingDataBatch:
    posts = [post(number) for number in range(first, first + 30)]
    return await curate_posts(posts, tasks, directory, options=ALL_IN)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def unused(folder: Path, days: float = 2) -> None:
    os.utime(folder, (time.time() - days * 24 * 3600,) * 2)


@pytest.mark.parametrize("tasks", [(HOOK,), (HOOK, BODY)], ids=len)
async def test_other_worker_has_the_same_files(
    tmp_path: Path, bucket: Path, tasks: tuple[Task, ...]
) -> None:
    batch = await built(tmp_path / "one", tasks=tasks)
    worker(bucket, tmp_path / "one").put(batch.hash)
    place = worker(bucket, tmp_path / "two").find(batch.hash)
    assert place is not None
    assert place == tmp_path / "two" / "datasets" / batch.hash
    assert files(place) == files(Path(batch.manifest_path).parent)
    assert read_examples(batch.within(place), "hook") == batch.hook_examples


async def test_what_the_shelf_lacks_is_put_there(tmp_path: Path, bucket: Path) -> None:
    batches = [await built(tmp_path / "one", first) for first in (1, 101)]
    one = worker(bucket, tmp_path / "one")
    one.put(batches[0].hash)
    assert [one.put_all(), one.put_all()] == [1, 0]
    assert set(worker(bucket, tmp_path / "two").all()) == {batch.hash for batch in batches}
    assert worker(bucket, tmp_path / "nothing").put_all() == 0


async def test_dataset_that_is_here_is_used_while_the_store_is_away(
    tmp_path: Path, bucket: Path
) -> None:
    batch = await built(tmp_path)
    bucket.write_text("a file where the bucket should be")
    assert worker(bucket, tmp_path).find(batch.hash) == Path(batch.manifest_path).parent


async def test_two_workers_that_build_the_same_dataset_keep_one(
    tmp_path: Path, bucket: Path
) -> None:
    batches = [await built(tmp_path / name) for name in ("one", "two")]
    assert batches[0].hash == batches[1].hash
    workers = [worker(bucket, tmp_path / name) for name in ("one", "two")]
    putting = [asyncio.to_thread(one.put, batches[0].hash) for one in workers * 10]
    await asyncio.gather(*putting)
    assert [path.name for path in (bucket / "datasets").iterdir()] == [f"{batches[0].hash}.tar"]
    place = worker(bucket, tmp_path / "three").find(batches[0].hash)
    assert place is not None
    assert files(place) == files(Path(batches[0].manifest_path).parent)


async def test_dataset_that_nobody_put_is_absent(tmp_path: Path, bucket: Path) -> None:
    assert worker(bucket, tmp_path).find("0" * 32) is None
    assert list((tmp_path / "datasets").iterdir()) == []


async def test_file_that_was_changed_is_refused_and_nothing_of_it_is_kept(
    tmp_path: Path, bucket: Path
) -> None:
    batch = await built(tmp_path / "one")
    worker(bucket, tmp_path / "one").put(batch.hash)
    change(bucket / "datasets" / f"{batch.hash}.tar", "hook/train.jsonl", b"topic", b"TOPIC")
    two = worker(bucket, tmp_path / "two")
    with pytest.raises(DataError, match=f"Dataset {batch.hash} was changed") as caught:
        two.find(batch.hash)
    assert "file://" in caught.value.message
    assert "--stage collect" in caught.value.mend
    assert list((tmp_path / "two" / "datasets").iterdir()) == []
    worker(bucket, tmp_path / "one").put(batch.hash)
    assert two.find(batch.hash) is not None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"hook": {', b'"home": {'),
        (b'"hook": {', b'"..": {  '),
        (b'"tasks": {', b'"tasks": 1,"x":{'),
        (b'"tasks": {', b'"tusks": {'),
        (b"{", b"["),
    ],
)
async def test_manifest_that_was_changed_is_refused(
    tmp_path: Path, bucket: Path, old: bytes, new: bytes
) -> None:
    batch = await built(tmp_path / "one")
    worker(bucket, tmp_path / "one").put(batch.hash)
    change(bucket / "datasets" / f"{batch.hash}.tar", "manifest.json", old, new)
    with pytest.raises(DataError, match=batch.hash):
        worker(bucket, tmp_path / "two").find(batch.hash)


def change(place: Path, name: str, old: bytes, new: bytes) -> None:
    """Change the first `old` in a file of an object, as whoever may write to the bucket can."""
    folder = place.parent / "changed"
    with tarfile.open(place) as tar:
        names = tar.getnames()
        tar.extractall(folder)
    before = (folder / name).read_bytes()
    assert old in before
    (folder / name).write_bytes(before.replace(old, new, 1))
    with tarfile.open(place, "w") as tar:
        for one in names:
            tar.add(folder / one, one)


async def test_cache_loses_what_was_needed_longest_ago(tmp_path: Path, bucket: Path) -> None:
    batches = [await built(tmp_path, first) for first in (1, 101, 201)]
    datasets = worker(bucket, tmp_path, cache_bytes=1)
    places = [Path(batch.manifest_path).parent for batch in batches]
    for batch, place, days in zip(batches, places, (3, 2, 0.5), strict=True):
        datasets.put(batch.hash)
        unused(place, days)
    datasets.put(batches[2].hash)
    assert [place.exists() for place in places] == [False, False, True]
    assert datasets.find(batches[0].hash) == places[0]


async def test_cache_that_has_room_keeps_all(tmp_path: Path, bucket: Path) -> None:
    old, new = await built(tmp_path), await built(tmp_path, 101)
    datasets = worker(bucket, tmp_path)
    datasets.put(old.hash)
    unused(Path(old.manifest_path).parent)
    datasets.put(new.hash)
    assert Path(old.train_path).exists()


async def test_cache_keeps_what_the_shelf_does_not_have(tmp_path: Path, bucket: Path) -> None:
    only_here, new = await built(tmp_path), await built(tmp_path, 101)
    unused(Path(only_here.manifest_path).parent)
    worker(bucket, tmp_path, cache_bytes=1).put(new.hash)
    assert Path(only_here.train_path).exists()


async def test_dataset_that_is_needed_again_is_not_the_oldest(tmp_path: Path, bucket: Path) -> None:
    old, new = await built(tmp_path), await built(tmp_path, 101)
    datasets = worker(bucket, tmp_path, cache_bytes=1)
    datasets.put(old.hash)
    unused(Path(old.manifest_path).parent)
    datasets.find(old.hash)
    datasets.put(new.hash)
    assert Path(old.train_path).exists()
