"""What would take the server down for all: the one request is refused, and memory stays small.

`TUNEPROOF_SIEGE=1` (`make fuzz`) sends a line of 2 GiB and opens 10,000 connections.
"""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI
from tests.trainer.integration.conftest import BASE, ended, lines, upload
from tests.trainer.integration.process import Process

MIB = 1024 * 1024
LONG = bool(os.environ.get("TUNEPROOF_SIEGE"))
MOST_MIB = 300


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    running = Process(tmp_path / "trainer")
    running.start()
    yield running
    running.stop()


def highest_mib(process: Process) -> float:
    """The most memory that the process ever had."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(found.split()[1]) / 1024


def sent_in_parts(client: OpenAI, piece: bytes, count: int) -> str:
    made = client.uploads.create(
        bytes=len(piece) * count,
        filename="one-line.jsonl",
        mime_type="application/jsonl",
        purpose="fine-tune",
    )
    parts = [client.uploads.parts.create(made.id, data=piece).id for _ in range(count)]
    whole = client.uploads.complete(made.id, part_ids=parts)
    assert whole.file is not None
    return whole.file.id


def test_one_endless_line_fails_its_job_and_takes_no_memory(process: Process) -> None:
    """Seen with 400 MiB: 886 MB of memory, and the job in `validating_files` for ever."""
    client = process.client
    file = sent_in_parts(client, b"x" * (64 * MIB), 32 if LONG else 1)
    job = client.fine_tuning.jobs.create(model=BASE, training_file=file)
    job = ended(client, job)
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "invalid_file_format")
    assert "Line 1 of the training file is longer than 8 MiB" in job.error.message
    assert highest_mib(process) < MOST_MIB
    again = client.fine_tuning.jobs.create(model=BASE, training_file=upload(client, lines()))
    assert ended(client, again).status == "succeeded"


CROWD = 10_000 if LONG else 500


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[Process]:
    """A trainer that may open 200 files, and a test that may open many."""
    mine = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(mine[1], CROWD + 1000), mine[1]))
    running = Process(tmp_path / "trainer", within="ulimit -n 200")
    running.start()
    yield running
    running.stop()
    resource.setrlimit(resource.RLIMIT_NOFILE, mine)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/files HTTP/1.1\r\nHost: ", b"\0garbage\r\n\r\n"])
def test_a_crowd_of_half_open_connections_starves_nobody(cramped: Process, sent: bytes) -> None:
    """Seen with 240 of them and 200 open files: nobody was served, and 192 MB of log."""
    held = []
    for _ in range(CROWD):
        sock = socket.create_connection(("127.0.0.1", cramped.port), timeout=60)
        sock.sendall(sent)
        held.append(sock)
    client = cramped.client
    job = client.fine_tuning.jobs.create(model=BASE, training_file=upload(client, lines()))
    assert ended(client, job).status == "succeeded"
    for sock in held:
        sock.close()
    assert client.models.list().data
    assert highest_mib(cramped) < MOST_MIB
    assert cramped.log.stat().st_size < 10_000


@pytest.mark.parametrize("nested", [b"{},", b"[],", b'{"a":[{}]},'])
def test_a_line_of_brackets_is_not_spread_in_memory(process: Process, nested: bytes) -> None:
    client = process.client
    size = 7 * MIB
    line = b'{"messages":[' + nested * (size // len(nested)) + b"0]}\n"
    job = client.fine_tuning.jobs.create(model=BASE, training_file=upload(client, line * 12))
    job = ended(client, job)
    assert job.error is not None
    assert job.error.code == "invalid_file_format"
    assert "objects and lists" in job.error.message
    assert highest_mib(process) < MOST_MIB


FLOOD = {
    "strings": b'{"model":"x","messages":[{"role":"user","content":"a"}],"stop":['
    + b'"ab",' * 1_400_000
    + b'"a"]}',
    "keys": b'{"model":"x","logit_bias":{'
    + b",".join(b'"%d":1' % n for n in range(700_000))
    + b"}}",
}


@pytest.mark.parametrize("body", FLOOD.values(), ids=FLOOD)
def test_a_flood_of_large_bodies_is_refused_within_bounds(process: Process, body: bytes) -> None:
    url = f"http://127.0.0.1:{process.port}/v1/chat/completions"
    headers = {"content-type": "application/json"}

    def answered(_: int) -> int:
        return httpx2.post(url, content=body, headers=headers, timeout=60).status_code

    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(answered, range(10))) <= {400, 503}
    assert process.client.models.list().data
    assert highest_mib(process) < MOST_MIB
