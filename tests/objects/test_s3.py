"""The shelf by S3's wire: a server on loopback, and the library that the image has."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
import s3fs
from tests.chaos.faults import Proxy
from tests.integration.loop import open_loop
from tests.integration.test_object_store import NobodyAnswers, carried_on
from tests.servers import Server
from tests.unit.test_shelf import content, folder

from tuneproof.errors import DataError, FilesUnavailableError
from tuneproof.pipeline import StepName
from tuneproof.settings import FilesConfig, Url
from tuneproof.shelf import PART, Shelf
from tuneproof.store import RunStatus
from tuneproof.workflow import Moment

pytestmark = pytest.mark.objects

NAME = "datasets/abc"
MIB = 1 << 20


def make_bucket() -> s3fs.S3FileSystem:
    store = s3fs.S3FileSystem(use_listings_cache=False)
    store.mkdir("bucket")
    return store


@pytest.fixture
def store(objects: Server) -> s3fs.S3FileSystem:
    objects.start()
    return make_bucket()


@pytest.fixture
def shelf(store: s3fs.S3FileSystem) -> Shelf:
    return Shelf(Url("s3://bucket/some/prefix"))


def test_folder_comes_back_and_nothing_else_is_left(
    shelf: Shelf, store: s3fs.S3FileSystem, tmp_path: Path
) -> None:
    made = folder(tmp_path / "made", hook__train="lines", manifest="{}")
    assert not shelf.fetch(NAME, tmp_path / "back")
    for _ in range(2):
        shelf.put(NAME, made, ["hook/train", "manifest"])
    shelf.check()
    assert shelf.fetch(NAME, tmp_path / "back")
    assert content(tmp_path / "back") == content(made)
    assert store.find("bucket") == [f"bucket/some/prefix/{NAME}.tar"]
    shelf.delete(NAME)
    assert (shelf.holds(NAME), shelf.names("datasets")) == (False, [])


def test_folder_of_several_parts_comes_back(shelf: Shelf, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    lines = b"".join(b"%015d\n" % number for number in range(120 * MIB // 16))
    (made / "lines").write_bytes(lines)
    shelf.put(NAME, made, ["lines"])
    assert shelf.fetch(NAME, tmp_path / "back")
    assert (tmp_path / "back" / "lines").read_bytes() == lines


def test_readers_never_see_half_while_two_write(shelf: Shelf, tmp_path: Path) -> None:
    made = [folder(tmp_path / text, one=text * MIB, two=text * MIB) for text in ("a", "b")]
    shelf.put(NAME, made[0], ["one", "two"])
    done = threading.Event()

    def write(path: Path) -> None:
        while not done.is_set():
            shelf.put(NAME, path, ["one", "two"])

    writers = [threading.Thread(target=write, args=[path]) for path in made]
    for writer in writers:
        writer.start()
    try:
        for number in range(20):
            assert shelf.fetch(NAME, tmp_path / f"back{number}")
            assert content(tmp_path / f"back{number}") in [content(path) for path in made]
    finally:
        done.set()
        for writer in writers:
            writer.join()


def test_part_of_a_killed_writer_is_not_seen(
    shelf: Shelf, store: s3fs.S3FileSystem, tmp_path: Path
) -> None:
    store.pipe_file(f"bucket/some/prefix/datasets/{PART}killed", b"half of")
    assert shelf.names("datasets") == []
    shelf.put(NAME, folder(tmp_path / "made", said="yes"), ["said"])
    assert shelf.names("datasets") == [NAME]


def test_object_that_was_cut_off_is_an_error(
    shelf: Shelf, store: s3fs.S3FileSystem, tmp_path: Path
) -> None:
    shelf.put(NAME, folder(tmp_path / "made", said="yes" * 1000), ["said"])
    place = f"bucket/some/prefix/{NAME}.tar"
    store.pipe_file(place, store.cat_file(place)[:1000])
    with pytest.raises(DataError, match="is not what was put there"):
        shelf.fetch(NAME, tmp_path / "back")


def test_bucket_that_is_not_there_is_not_made(store: s3fs.S3FileSystem) -> None:
    shelf = Shelf(Url("s3://other/prefix"))
    with pytest.raises(FilesUnavailableError, match="s3://other/prefix"):
        shelf.check()
    assert not store.exists("other")


def test_server_that_is_away_is_said_and_is_found_again(objects: Server, tmp_path: Path) -> None:
    shelf = Shelf(Url("s3://bucket"))
    with pytest.raises(FilesUnavailableError, match="s3://bucket"):
        shelf.fetch(NAME, tmp_path)
    objects.start()
    make_bucket()
    shelf.check()


def test_key_that_is_refused_is_said(objects: Server, tmp_path: Path) -> None:
    objects.environment["INITIAL_NO_AUTH_ACTION_COUNT"] = "0"
    objects.start()
    with pytest.raises(FilesUnavailableError, match="PermissionError"):
        Shelf(Url("s3://bucket")).check()


async def test_connections_that_are_cut_give_all_or_an_error(
    objects: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.start()
    store, shelf = make_bucket(), Shelf(Url("s3://bucket"))
    made = [folder(tmp_path / text, said=text * 20 * MIB) for text in ("a", "b")]
    shelf.put(NAME, made[0], ["said"])
    store.clear_instance_cache()
    proxy = Proxy(objects.port)
    await proxy.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    shelf = Shelf(Url("s3://bucket"))

    for number, path in enumerate(made * 2):
        back = tmp_path / f"back{number}"
        putting = asyncio.create_task(asyncio.to_thread(shelf.put, NAME, path, ["said"]))
        fetching = asyncio.create_task(asyncio.to_thread(shelf.fetch, NAME, back))
        for _ in range(4):  # at different places of their ways
            await asyncio.wait([putting, fetching], timeout=0.05)
            proxy.cut()
        await asyncio.wait([putting, fetching])
        assert isinstance(putting.exception(), FilesUnavailableError | type(None))
        if fetching.exception() is None:
            assert content(back) in [content(one) for one in made]
        else:
            assert isinstance(fetching.exception(), FilesUnavailableError)
    await proxy.stop()


async def test_run_waits_for_the_server(
    objects: Server, tmp_path: Path, sqlite_store_url: str
) -> None:
    def comes_back(name: str, moment: Moment) -> None:
        if (name, moment) == (StepName.COLLECT_NOTE, Moment.AFTER):
            objects.start()
            make_bucket()

    files = FilesConfig(url=Url("s3://bucket"))
    async with open_loop(
        tmp_path / "data", sqlite_store_url, files=files, on_step=comes_back
    ) as loop:
        ended = await loop.turn()
    assert ended.status is RunStatus.SUCCESS, ended.reason
    assert "s3://bucket" in ended.stages["collect"]["detail"]["note"]


@pytest.mark.postgres
async def test_run_of_a_worker_that_is_gone_goes_on_with_its_dataset(
    tmp_path: Path, postgres_store_url: str, store: s3fs.S3FileSystem
) -> None:
    files = FilesConfig(url=Url("s3://bucket/prefix"))
    ended = await carried_on(tmp_path, postgres_store_url, files, NobodyAnswers())
    assert ended.status is RunStatus.SUCCESS, ended.reason
    assert store.ls("bucket/prefix/datasets", detail=False) == [
        f"bucket/prefix/datasets/{ended.result['training_data']['hash']}.tar"
    ]
