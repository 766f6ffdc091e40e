"""The shelf, on folders and in memory by fsspec's own protocols: whole, absent, or an error."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import threading
import time
import traceback
import uuid
from pathlib import Path

import pytest
from tests.servers import free_port
from tests.waiting import until

from tuneproof.errors import ConfigError, DataError, FilesUnavailableError
from tuneproof.settings import Url
from tuneproof.shelf import PART, Shelf

NAME = "datasets/abc"


@pytest.fixture(params=["file", "memory"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    root = tmp_path / "bucket" / "prefix" if request.param == "file" else f"/{uuid.uuid4().hex}"
    return Shelf(Url(f"{request.param}://{root}"))


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    return tmp_path / "bucket"


@pytest.fixture
def folders(bucket: Path) -> Shelf:
    """A shelf whose store is a folder, to look into."""
    return Shelf(Url(f"file://{bucket}"))


def folder(path: Path, **files: str) -> Path:
    path.mkdir(parents=True)
    for name, text in files.items():
        place = path / name.replace("__", "/")
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)
    return path


def content(path: Path) -> dict[str, str]:
    return {
        file.relative_to(path).as_posix(): file.read_text()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def test_folder_comes_back_as_it_was_put(shelf: Shelf, tmp_path: Path) -> None:
    made = folder(tmp_path / "made", hook__train="lines", manifest="{}", other="left out")
    shelf.put(NAME, made, ["hook/train", "manifest"])
    assert shelf.fetch(NAME, tmp_path / "back")
    assert content(tmp_path / "back") == {"hook/train": "lines", "manifest": "{}"}


def test_what_was_never_put_is_absent_and_leaves_nothing(shelf: Shelf, tmp_path: Path) -> None:
    assert not shelf.fetch(NAME, tmp_path / "back")
    assert (shelf.holds(NAME), shelf.names("datasets")) == (False, [])
    shelf.delete(NAME)
    assert content(tmp_path / "back") == {}


def test_second_put_takes_the_place_of_the_first(shelf: Shelf, tmp_path: Path) -> None:
    for number in (1, 2):
        shelf.put(NAME, folder(tmp_path / str(number), said=str(number)), ["said"])
    shelf.fetch(NAME, tmp_path / "back")
    assert content(tmp_path / "back") == {"said": "2"}
    assert shelf.names("datasets") == [NAME]


def test_deleted_is_gone_and_its_neighbour_stays(shelf: Shelf, tmp_path: Path) -> None:
    made = folder(tmp_path / "made", said="yes")
    for name in (NAME, "datasets/def", "other/abc"):
        shelf.put(name, made, ["said"])
    shelf.delete(NAME)
    assert [shelf.holds(name) for name in (NAME, "datasets/def")] == [False, True]
    assert shelf.names("datasets") == ["datasets/def"]


def test_readers_never_see_half_while_two_write(folders: Shelf, tmp_path: Path) -> None:
    size = 300_000
    made = [folder(tmp_path / text, one=text * size, two=text * size) for text in ("a", "b")]
    folders.put(NAME, made[0], ["one", "two"])
    done = threading.Event()

    def write(path: Path) -> None:
        while not done.is_set():
            folders.put(NAME, path, ["one", "two"])

    writers = [threading.Thread(target=write, args=[path]) for path in made]
    for writer in writers:
        writer.start()
    try:
        for number in range(30):
            back = tmp_path / f"back{number}"
            assert folders.fetch(NAME, back)
            assert content(back) in [content(path) for path in made]
    finally:
        done.set()
        for writer in writers:
            writer.join()


def test_writer_that_was_killed_is_not_seen_and_is_swept_a_day_later(
    folders: Shelf, bucket: Path, tmp_path: Path
) -> None:
    made = folder(tmp_path / "made", said="yes")
    folders.put("datasets/def", made, ["said"])
    old, new = (bucket / "datasets" / f"{PART}{name}" for name in ("old", "new"))
    for part in (old, new):
        part.write_bytes(b"half of")
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    assert not folders.fetch(NAME, tmp_path / "back")
    assert folders.names("datasets") == ["datasets/def"]
    folders.put(NAME, made, ["said"])
    assert (old.exists(), new.exists()) == (False, True)


def test_process_that_is_killed_while_it_writes_leaves_what_was_there(
    folders: Shelf, bucket: Path, tmp_path: Path
) -> None:
    made = folder(tmp_path / "made", said="before")
    folders.put(NAME, made, ["said"])
    (made / "said").write_text("x" * 50_000_000)
    program = (
        "import sys; from pathlib import Path\n"
        "from tuneproof.settings import Url; from tuneproof.shelf import Shelf\n"
        "while True: Shelf(Url(sys.argv[1])).put(sys.argv[2], Path(sys.argv[3]), ['said'])\n"
    )
    command = [sys.executable, "-c", program, f"file://{bucket}", NAME, str(made)]
    with subprocess.Popen(command) as process:
        assert until(lambda: list((bucket / "datasets").glob(f"{PART}*")))
        process.kill()
    assert folders.fetch(NAME, tmp_path / "back")
    assert content(tmp_path / "back") in [content(made), {"said": "before"}]
    assert folders.names("datasets") == [NAME]


@pytest.mark.parametrize("kept", [0, 100, 700])
def test_what_was_cut_off_is_an_error(
    folders: Shelf, bucket: Path, tmp_path: Path, kept: int
) -> None:
    folders.put(NAME, folder(tmp_path / "made", said="yes" * 100), ["said"])
    place = bucket / f"{NAME}.tar"
    place.write_bytes(place.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"datasets/abc in file://.* is not what was put there"):
        folders.fetch(NAME, tmp_path / "back")


@pytest.mark.parametrize("name", ["../said", "/etc/said", "a/../../said", ".."])
def test_what_leads_elsewhere_is_an_error_and_is_written_nowhere(
    folders: Shelf, bucket: Path, tmp_path: Path, name: str
) -> None:
    (bucket / "datasets").mkdir(parents=True)
    write_tar(bucket / f"{NAME}.tar", tarfile.TarInfo(name))
    with pytest.raises(DataError, match="is no file of it"):
        folders.fetch(NAME, tmp_path / "there" / "back")
    assert content(tmp_path / "there") == {}


def test_link_is_an_error(folders: Shelf, bucket: Path, tmp_path: Path) -> None:
    (bucket / "datasets").mkdir(parents=True)
    link = tarfile.TarInfo("said")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    write_tar(bucket / f"{NAME}.tar", link)
    with pytest.raises(DataError, match="'said' is no file of it"):
        folders.fetch(NAME, tmp_path / "back")


def write_tar(path: Path, member: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w") as tar:
        member.size = 3 if member.isreg() else 0
        tar.addfile(member, io.BytesIO(b"bad"))


def test_check_leaves_nothing(shelf: Shelf) -> None:
    shelf.check()
    assert shelf.names("checks") == []


def test_store_that_is_away_is_said_with_what_it_said(folders: Shelf, bucket: Path) -> None:
    bucket.write_text("a file where the bucket should be")
    with pytest.raises(FilesUnavailableError, match=r"file://.*NotADirectoryError"):
        folders.check()
    bucket.unlink()
    folders.check()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nobody://bucket", "Protocol not known: nobody"),
        ("gs://bucket", "gcsfs"),
    ],
)
def test_address_that_nothing_speaks_to_is_refused_before_it_is_asked(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Shelf(Url(url)).open()
    assert caught.value.details["field"] == "files.url"


def test_server_that_is_away_stops_nobody_and_no_secret_is_told() -> None:
    """What speaks FTP connects as soon as it is made, and tells the address that it was given."""
    shelf = Shelf(Url(f"ftp://me:canary@127.0.0.1:{free_port()}/files"))
    shelf.open()
    with pytest.raises(
        FilesUnavailableError, match=r"ftp://me:\*\*\*@127.*: ConnectionRefused"
    ) as e:
        shelf.check()
    assert "canary" not in "".join(traceback.format_exception(e.value))
