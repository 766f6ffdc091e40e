"""A backup is taken while a service works, and goes on elsewhere as if nothing had happened."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.line import EXECUTABLE, Line, clean_env, write_posts
from tests.servers import PostgresServer, postgres_binary
from tests.waiting import until

from tuneproof.cli.output import FAILED, OK, USAGE
from tuneproof.store import open_store

SETTINGS = """\
[pipelines.default.training]
poll_seconds = 1
[pipelines.default.data_collection]
training_data_threshold = 50
days_back = 30
[pipelines.default.evaluation]
traffic_split = 0.5
[pipelines.default.schedule]
driver = "external"
"""

A_SECOND = 200
"""Events that arrive in a second."""

A_BATCH = 20


class Serving:
    """`tuneproof serve` on a data directory."""

    def __init__(self, directory: Path, process: subprocess.Popen[str], address: str) -> None:
        self.directory, self.process, self.address = directory, process, address
        token = json.loads((directory / "service.json").read_text())["token"]
        self.client = httpx2.Client(
            base_url=address, headers={"Authorization": f"Bearer {token}"}, trust_env=False
        )

    def get(self, path: str) -> Any:
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def run(self, run_id: str) -> Any:
        return self.get(f"/fine-tuning/status/{run_id}")

    def phase(self) -> int:
        """The phase that the test's events are of, once the routing says so."""
        routing = {r["task"]: r for r in self.get("/routing")["routing"]}
        return int(routing["hook"]["phase"]) if "hook" in routing else 0

    def in_test(self, run_id: str) -> bool:
        run = self.run(run_id)
        assert run["state"] in ("pending", "running"), run
        return bool(run["stage"] == "experiment" and run["result"].get("ab_test_id"))


@contextmanager
def serving(directory: Path, database: str | None = None) -> Iterator[Serving]:
    env = clean_env(PROMETHEUS_METRICS_ENABLED="false", OMP_NUM_THREADS="1")
    env |= {"DATABASE_URL": database} if database else {}
    command = [*EXECUTABLE, "serve", "--port", "0", "--json", "--dir", str(directory)]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            started = process.stdout.readline()
            assert started, process.stderr.read() if process.stderr else ""
            yield Serving(directory, process, json.loads(started)["address"])
        finally:
            process.kill()


class Sender(threading.Thread):
    """Sends `A_SECOND` events a second until it is told to stop; keeps what was taken."""

    def __init__(self, service: Serving, subject: str, phase: int) -> None:
        super().__init__(daemon=True)
        self._service, self._subject, self._phase = service, subject, phase
        self.batches: list[dict[str, Any]] = []
        self.answers: list[dict[str, Any]] = []
        self.stopping = threading.Event()
        self.began = time.monotonic()

    def run(self) -> None:
        while not self.stopping.is_set():
            number = len(self.batches)
            due = self.began + number * A_BATCH / A_SECOND
            until(lambda due=due: time.monotonic() >= due, every_s=0.005)
            self.batches.append(self._batch(number))
            answer = self._service.client.post("/events", json=self.batches[-1], timeout=30)
            assert answer.status_code == 200, answer.text
            self.answers.append(answer.json())

    def _batch(self, number: int) -> dict[str, Any]:
        at = datetime.now(UTC).isoformat()
        same = {"subject": self._subject, "at": at}
        units = [f"unit-{number}-{i}" for i in range(A_BATCH // 2)]
        return {
            "exposures": [
                {**same, "id": f"e-{unit}", "unit": unit, "phase": self._phase, "task": "hook",
                 "arm": "candidate" if i % 2 else "baseline", "tokens": 9, "latency_ms": 3.0}
                for i, unit in enumerate(units)
            ],
            "outcomes": [
                {**same, "id": f"o-{unit}", "unit": unit, "value": 0.01 * (i + 1)}
                for i, unit in enumerate(units)
            ],
        }  # fmt: skip


async def counted(database: str, subject: str) -> int:
    """How many raw events there are; the sums are what a recount of them finds."""
    store = await open_store(database)
    try:
        assert await store.events.stored(subject) == await store.events.recount(subject)
        baseline, candidate = (await store.events.requests(subject)).values()
        return int(baseline.n + candidate.n)
    finally:
        await store.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def databases(request: pytest.FixtureRequest) -> Iterator[tuple[str | None, Callable[[], Any]]]:
    """The address of the store (None: in the data directory), and what saves it; that answers
    what makes another database of what was saved, and gives its address."""
    if request.param == "sqlite":
        yield None, lambda: lambda: None
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url, other = server.create_database(), server.create_database()

    def plain(address: str) -> str:
        return re.sub(r"^postgresql\+\w+", "postgresql", address)

    def dump() -> Callable[[], str]:
        command = [postgres_binary("pg_dump"), "--format=custom", "--dbname", plain(url)]
        saved = subprocess.run(command, check=True, capture_output=True).stdout

        def load() -> str:
            command = [postgres_binary("pg_restore"), "--no-owner", "--dbname", plain(other)]
            subprocess.run(command, check=True, input=saved)
            return other

        return load

    yield url, dump
    server.drop_database(url)
    server.drop_database(other)


def test_a_backup_under_200_events_a_second_goes_on_elsewhere_and_nothing_is_doubled(
    tmp_path: Path,
    databases: tuple[str | None, Callable[[], Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    database, dump = databases
    here, there = tmp_path / "here", tmp_path / "there"
    Path("tuneproof.toml").write_text(SETTINGS)
    write_posts(Path("posts.csv"))
    if database:
        monkeypatch.setenv("DATABASE_URL", database)
    line = Line(here, capsys)
    line.json("posts", "import", "posts.csv")
    early, archive = tmp_path / "early.tar.gz", tmp_path / "backup.tar.gz"
    with serving(here, database) as service:
        begun = line.json("run", "start", "--as-of", "2025-01-28", "--no-wait")
        run_id = begun["pipeline_id"]
        if database is None:
            line.json("backup", str(early))  # before or while it trains
        until(partial(service.in_test, run_id))
        subject = service.run(run_id)["result"]["ab_test_id"]
        sender = Sender(service, subject, until(service.phase))
        sender.start()
        until(lambda: len(sender.answers) >= 10)
        load = dump()
        before = len(sender.answers)
        saved = line.json("backup", str(archive))
        after = len(sender.answers)
        until(lambda: len(sender.answers) >= after + 10)
        sender.stopping.set()
        sender.join(30)
        assert not sender.is_alive()
        assert len(sender.answers) == len(sender.batches)
        service.process.kill()
    assert saved["store"] == ("postgresql" if database else "sqlite")
    assert oct(archive.stat().st_mode & 0o777) == "0o600"
    there_database = load()
    if there_database:
        monkeypatch.setenv("DATABASE_URL", there_database)
    shutil.move(here, tmp_path / "gone")
    line = Line(there, capsys)
    line.json("restore", str(archive))
    if database is None:
        kept = asyncio.run(counted(f"sqlite:///{there / 'tuneproof.db'}", subject))
        assert before * A_BATCH / 2 <= kept <= after * A_BATCH / 2
    with serving(there, there_database) as service:
        assert service.in_test(run_id)
        taken = [service.client.post("/events", json=b, timeout=30).json() for b in sender.batches]
        new = sum(answer["accepted"] for answer in taken)
        again = sum(answer["duplicates"] for answer in taken)
        assert new + again == A_BATCH * len(sender.batches)
        assert again >= before * A_BATCH * (database is None)
        assert all(not answer["unknown"] and not answer["rejected"] for answer in taken)
        assert [run["pipeline_id"] for run in service.get("/fine-tuning/runs")["items"]] == [run_id]
        assert len(service.get("/evaluation/tests")["items"]) == 1
        ended = service.client.post(f"/evaluation/end/{subject}", json={"reason": "enough"})
        assert ended.status_code == 200, ended.text
        until(lambda: service.run(run_id)["state"] not in ("running", "pending"))
        service.process.kill()
    store = there_database or f"sqlite:///{there / 'tuneproof.db'}"
    assert asyncio.run(counted(store, subject)) == A_BATCH / 2 * len(sender.batches)
    assert jobs_of(there) == 1
    if database is None:
        comes_to_its_test(early, tmp_path / "third", run_id, capsys)


def jobs_of(directory: Path) -> int:
    with sqlite3.connect(directory / "trainer" / "trainer.sqlite") as trainer:
        return int(trainer.execute("SELECT count(*) FROM jobs").fetchone()[0])


def comes_to_its_test(
    archive: Path, directory: Path, run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that had hardly begun goes on from there, and trains once."""
    Line(directory, capsys).json("restore", str(archive))
    with serving(directory) as service:
        until(partial(service.in_test, run_id))
        service.process.kill()
    assert jobs_of(directory) == 1


# --- what is taken, and what stays ------------------------------------------------------------


@pytest.fixture
def data(line: Line) -> Path:
    """A data directory with something of everything in it."""
    line.json("token", "create", "first", "--scope", "read")
    directory = line.directory
    for name in ("datasets/abc/work/train.jsonl", "trainer/files/file-1", "trainer/lock",
                 "trainer/models/job/work/task.json", "datasets/.writing-1/train.jsonl",
                 "service.json", "gateway.json", "own.txt",
                 "trainer/models/job/step-1/a"):  # fmt: skip
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("secret-token")
    spool = directory / "spool" / "0123"
    spool.mkdir(parents=True)
    (spool / "lock").touch()
    (spool / "000000001.jsonl").write_text('{"id": "whole"}\n{"id": "half')
    return directory


def names(archive: Path) -> set[str]:
    with tarfile.open(archive) as tar:
        return {name.removeprefix("data/") for name in tar.getnames()}


def test_secrets_locks_and_half_written_things_stay(line: Line, data: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    told = line.json("backup", str(archive))
    assert names(archive) == {
        "tuneproof.db", "datasets/abc/work/train.jsonl", "trainer/files/file-1", "manifest.json",
        "trainer/models/job/step-1/a", "spool/0123/lock", "spool/0123/000000001.jsonl",
    }  # fmt: skip
    assert told["left_out"] == ["gateway.json", "own.txt", "service.json"]
    assert told["schema"] == "0005"
    assert sorted(path.name for path in data.iterdir() if path.name.startswith(".")) == []
    there = Line(tmp_path / "there", line._capsys)
    there.json("restore", str(archive))
    assert (there.directory / "spool/0123/000000001.jsonl").read_text() == '{"id": "whole"}\n'
    assert {oct(path.stat().st_mode & 0o077) for path in there.directory.rglob("*")} == {"0o0"}
    assert there.json("run", "list")["items"] == []


def test_an_archive_that_is_there_is_not_overwritten_unasked(
    line: Line, data: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "a.tar.gz"
    line.json("backup", str(archive))
    code, _, err = line("backup", str(archive))
    assert code == FAILED
    assert f"{archive} is there already." in err
    assert line("backup", str(archive), "--yes")[0] == OK
    assert list(tmp_path.glob(".*.part")) == []


def test_nothing_to_save_is_said(line: Line, tmp_path: Path) -> None:
    code, _, err = line("backup", str(tmp_path / "a.tar.gz"))
    assert code == FAILED
    assert "nothing has run here yet" in err
    assert not (tmp_path / "a.tar.gz").exists()


# --- a restore is all or nothing --------------------------------------------------------------


def test_a_directory_that_is_in_use_or_not_empty_is_refused(
    line: Line, data: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "a.tar.gz"
    line.json("backup", str(archive))
    code, _, err = line("restore", str(archive))
    assert code == FAILED
    assert f"{data} is not empty: datasets" in err
    busy = tmp_path / "busy"
    busy.mkdir()
    with serving(busy):
        code, _, err = Line(busy, line._capsys)("restore", str(archive))
    assert code == FAILED
    assert f"{busy} is in use by process" in err


def changed(archive: Path, how: str) -> Path:
    """A copy of an archive that something has happened to."""
    made = archive.with_name("changed.tar.gz")
    content = bytearray(archive.read_bytes())
    if how == "cut off":
        made.write_bytes(content[: len(content) // 2])
        return made
    if how == "no archive":
        made.write_bytes(b"PK not a tar")
        return made
    with tarfile.open(archive) as before, tarfile.open(made, "w:gz") as after:
        for member in before:
            body = before.extractfile(member).read()
            if how == "another byte" and member.name == "data/trainer/files/file-1":
                body = b"x" + body[1:]
            if how == "no manifest" and member.name == "manifest.json":
                continue
            if how == "newer schema" and member.name == "manifest.json":
                body = body.replace(b'"schema": "0005"', b'"schema": "9999"')
            if how == "newer format" and member.name == "manifest.json":
                body = body.replace(b'"format": 1', b'"format": 2')
            member.size = len(body)
            if how == "outside" and member.name == "data/trainer/files/file-1":
                member.name = "data/../../outside"
            after.addfile(member, io.BytesIO(body))
    return made


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("cut off", "it is damaged or cut off"),
        ("no archive", "it is damaged or cut off"),
        ("another byte", "trainer/files/file-1 is not what was saved"),
        ("no manifest", "its end, with the manifest, is missing"),
        ("outside", "data/../../outside leads elsewhere"),
        ("newer schema", "The backup has schema 9999; this TuneProof knows up to 0005."),
        ("newer format", "a newer TuneProof"),
    ],
)
def test_an_archive_that_is_not_whole_or_not_ours_writes_nothing(
    line: Line, data: Path, tmp_path: Path, how: str, said: str
) -> None:
    archive = tmp_path / "a.tar.gz"
    line.json("backup", str(archive))
    there = Line(tmp_path / "there", line._capsys)
    code, _, err = there("restore", str(changed(archive, how)))
    assert code == FAILED
    assert said in err
    assert not there.directory.exists()
    assert not (tmp_path / "outside").exists()


def test_another_kind_of_store_is_refused(line: Line, data: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    line.json("backup", str(archive))
    Path("tuneproof.toml").write_text('[store]\nurl = "postgresql://u@127.0.0.1:9/d"\n')
    code, _, err = Line(tmp_path / "there", line._capsys)("restore", str(archive))
    assert code == USAGE
    assert "whose store was sqlite; the settings name postgresql" in err
    Path("tuneproof.toml").write_text('[store]\nurl = "sqlite:///elsewhere.db"\n')
    code, _, err = Line(tmp_path / "there", line._capsys)("restore", str(archive))
    assert code == USAGE
    assert "Leave [store] url out for the restore" in err


def killed(tokens: list[str], directory: Path, when: Callable[[], bool]) -> int:
    """A command that is killed as soon as something is so; its exit code."""
    command = [*EXECUTABLE, *tokens, "--dir", str(directory)]
    with subprocess.Popen(command, env=clean_env(), stderr=subprocess.DEVNULL) as process:
        until(lambda: when() or process.poll() is not None, every_s=0.001)
        process.send_signal(signal.SIGKILL)
        return process.wait(30)


def test_a_restore_that_is_killed_leaves_nothing_that_a_service_begins_on(
    line: Line, data: Path, tmp_path: Path
) -> None:
    for number in range(60):
        (data / "datasets" / f"large-{number}").write_bytes(os.urandom(500_000))
    archive, there = tmp_path / "a.tar.gz", tmp_path / "there"
    line.json("backup", str(archive))
    half = there / ".restoring" / "data" / "datasets"
    code = killed(["restore", str(archive)], there, lambda: half.is_dir() and any(half.iterdir()))
    assert code == -signal.SIGKILL
    assert (there / ".restoring").exists()
    again = Line(there, line._capsys)
    for command in (["run", "list"], ["serve", "--port", "0"], ["backup", str(tmp_path / "b.gz")]):
        code, _, err = again(*command)
        assert code == FAILED
        assert "was broken off" in err or "There is no database" in err
    assert "was broken off" in again("serve", "--port", "0")[2]
    assert again("restore", str(archive))[0] == OK
    assert {p.name for p in there.iterdir()} == {
        "datasets", "trainer", "spool", "tuneproof.db", "lock"
    }  # fmt: skip
    assert again.json("run", "list")["items"] == []


def test_a_restore_that_is_killed_while_things_are_moved_is_taken_back_and_done_anew(
    line: Line, data: Path, tmp_path: Path
) -> None:
    archive, there = tmp_path / "a.tar.gz", tmp_path / "there"
    line.json("backup", str(archive))
    again = Line(there, line._capsys)
    assert again("restore", str(archive))[0] == OK
    half = there / ".restoring"  # as a kill leaves it after the first of two moves
    (half / "data").mkdir(parents=True)
    (there / "tuneproof.db").rename(half / "data" / "tuneproof.db")
    (half / "names.json").write_text('["datasets", "spool", "trainer", "tuneproof.db"]')
    assert "was broken off" in again("serve", "--port", "0")[2]
    assert again("restore", str(archive))[0] == OK
    assert not half.exists()
    assert again.json("run", "list")["items"] == []


def test_a_backup_that_is_killed_leaves_no_file_and_the_next_one_cleans_up(
    line: Line, data: Path, tmp_path: Path
) -> None:
    for number in range(60):
        (data / "datasets" / f"large-{number}").write_bytes(os.urandom(500_000))
    archive = tmp_path / "a.tar.gz"
    part = tmp_path / ".a.tar.gz.part"
    code = killed(["backup", str(archive)], data, lambda: part.exists() and part.stat().st_size > 0)
    assert code == -signal.SIGKILL
    assert not archive.exists()
    assert list(data.glob(".backup-*"))
    line.json("backup", str(archive))
    assert list(data.glob(".backup-*")) == []
    assert not part.exists()
