"""A file of 500 MB sent to the trainer, whole and in parts: memory and throughput.

Memory is the growth of the server's peak resident size (VmHWM, reset before each upload). The
peer is Starlette's own form on the same machine, which neither hashes nor syncs what it keeps;
the trainer does both before it answers. Rounds take turns; memory is the largest, throughput the
median.
"""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.serving import Trainer, running

MB = 1_000_000
BYTES = 500 * MB
PART = 64 * 1024 * 1024
PIECE = b"x" * 1023 + b"\n"
ROUNDS = 3
LIMIT_MB = 32
PEER_SERVER = Path(__file__).with_name("upload_peer.py")
PEER = f"Starlette {version('starlette')}, request.form()"


@dataclass(frozen=True)
class Sent:
    """One upload: how much the server's memory grew, and how long it took."""

    grown_mb: float
    mb_per_s: float


def records() -> list[dict[str, Any]]:
    """Upload by each way in turn."""
    found: dict[str, list[Sent]] = {"whole": [], "parts": [], "peer": []}
    with ExitStack() as stack:
        trainer = stack.enter_context(running())
        port, pid = stack.enter_context(_peer())
        for _ in range(ROUNDS):
            found["whole"].append(_measured(trainer.pid, lambda: _whole(trainer)))
            found["parts"].append(_measured(trainer.pid, lambda: _parts(trainer)))
            found["peer"].append(_measured(pid, lambda: _form(port, "/v1/files", "file", BYTES)))
    return [
        _memory("whole", "as one form", found),
        _memory("parts", "in parts of 64 MiB", found),
        _throughput("whole", "as one form", found),
        _throughput("parts", "in parts of 64 MiB", found),
    ]


def _measured(pid: int, upload: Callable[[], object]) -> Sent:
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = _status(pid, "VmRSS")
    begun = time.perf_counter()
    upload()
    taken = time.perf_counter() - begun
    return Sent((_status(pid, "VmHWM") - before) / MB, BYTES / MB / taken)


def _status(pid: int, name: str) -> int:
    """A size of the process in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _whole(trainer: Trainer) -> None:
    file = _form(trainer.port, "/v1/files", "file", BYTES)
    assert file["bytes"] == BYTES, file
    trainer.client.files.delete(file["id"])


def _parts(trainer: Trainer) -> None:
    uploads = trainer.client.uploads
    made = uploads.create(
        bytes=BYTES, filename="x.jsonl", mime_type="text/plain", purpose="fine-tune"
    )
    sizes = [PART] * (BYTES // PART) + [BYTES % PART]
    path = f"/v1/uploads/{made.id}/parts"
    parts = [_form(trainer.port, path, "data", size)["id"] for size in sizes]
    done = uploads.complete(made.id, part_ids=parts)
    assert done.file is not None
    assert done.file.bytes == BYTES, done
    trainer.client.files.delete(done.file.id)


def _form(port: int, path: str, name: str, size: int) -> dict[str, Any]:
    """Send a form with a file of `size` bytes, piece by piece."""
    head = (
        '--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        f'--b\r\ncontent-disposition: form-data; name="{name}"; filename="x.jsonl"\r\n\r\n'
    ).encode()
    tail = b"\r\n--b--\r\n"
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    line.putrequest("POST", path)
    line.putheader("content-type", "multipart/form-data; boundary=b")
    line.putheader("content-length", str(len(head) + size + len(tail)))
    line.endheaders()
    line.send(head)
    for piece in _pieces(size):
        line.send(piece)
    line.send(tail)
    answer = line.getresponse()
    body: dict[str, Any] = json.loads(answer.read())
    line.close()
    if answer.status != 200:
        raise SystemExit(f"the upload was answered with {answer.status}: {body}")
    return body


def _pieces(size: int) -> Iterator[bytes]:
    whole = PIECE * 1024
    for _ in range(size // len(whole)):
        yield whole
    yield whole[: size % len(whole)]


@contextmanager
def _peer() -> Iterator[tuple[int, int]]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(PEER_SERVER), folder]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            found = json.loads(process.stdout.readline())
            yield found["port"], found["pid"]
        finally:
            process.terminate()
            process.wait(20)


def _memory(way: str, told: str, found: dict[str, list[Sent]]) -> dict[str, Any]:
    ours, theirs = (max(sent.grown_mb for sent in found[name]) for name in (way, "peer"))
    return {
        "name": f"trainer: memory that 500 MB {told} add to the server at most",
        "ours": round(ours, 1),
        "unit": "MB",
        "peer": PEER,
        "peer_value": round(theirs, 1),
        "ratio": None,
        "goal": f"< {LIMIT_MB} MB",
        "met": ours < LIMIT_MB,
    }


def _throughput(way: str, told: str, found: dict[str, list[Sent]]) -> dict[str, Any]:
    ours, theirs = (
        statistics.median(sent.mb_per_s for sent in found[name]) for name in (way, "peer")
    )
    return {
        "name": f"trainer: 500 MB {told}",
        "ours": round(ours),
        "unit": "MB/s",
        "peer": PEER,
        "peer_value": round(theirs),
        "ratio": round(ours / theirs, 2),
        "goal": "",
        "met": None,
    }


if __name__ == "__main__":
    for record in records():
        print(record)
