"""200 clients that poll fine-tuning jobs, against the same routes bare in Starlette.

The trainer has its jobs in SQLite; half the requests retrieve a job, half list its events (20 a
page). The peer answers the same JSON from dicts in memory, with no database, keys, request ids or
limits. Both run at once, one worker each, and are asked in turn for several rounds; the figures
are medians. Once nothing is written meanwhile, once the trainer's database is written to 20 times
a second, as training jobs do, so that nothing it has answered stays good for long. The goal is
read from the worker's processor time: the load is made on the same two cores.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI

from environments import measured
from trainer.serving import MODEL, Trainer, running

CLIENTS = 200
JOBS = 20
ROUNDS = 5
SECONDS = 2.0
LOAD = Path(__file__).parents[1] / "load.py"
PEER_SERVER = Path(__file__).with_name("poll_peer.py")
PEER = f"Starlette {version('starlette')}, the same JSON from memory"
JOBS_PATH = "/v1/fine_tuning/jobs"
WRITES = 20
GOAL = 1.0


def records() -> list[dict[str, Any]]:
    """Measure both in turn."""
    with ExitStack() as stack:
        trainer = stack.enter_context(running())
        ids = _jobs(trainer.client)
        peer = stack.enter_context(_peer(_objects(trainer, ids)))
        paths = [f"{JOBS_PATH}/{job_id}{tail}" for job_id in ids for tail in ("", "/events")]
        servers = {"ours": (trainer.port, trainer.pid), "peer": peer}
        still = _rounds(servers, paths)
        with _writing(trainer.client):
            written = _rounds(servers, paths)
    return [
        *_compared(still, "nothing written"),
        *_compared(written, f"{WRITES} writes a second"),
    ]


def _compared(found: dict[str, dict[str, float]], when: str) -> list[dict[str, Any]]:
    return [_rate(found, when), _capacity(found, when), _latency(found, when)]


def _jobs(client: OpenAI) -> list[str]:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello you"}]
    content = "\n".join([json.dumps({"messages": messages})] * 200).encode()
    file = client.files.create(file=("train.jsonl", content), purpose="fine-tune")
    made = [
        client.fine_tuning.jobs.create(
            model=MODEL,
            training_file=file.id,
            suffix="poll",
            metadata={"run": str(number)},
            hyperparameters={"batch_size": 20},
        )
        for number in range(JOBS)
    ]
    for job in made:
        while job.status != "succeeded":
            if job.status in ("failed", "cancelled"):
                raise SystemExit(f"{job.id} is {job.status}: {job.error}")
            time.sleep(0.05)
            job = client.fine_tuning.jobs.retrieve(job.id)
    return [job.id for job in made]


def _objects(trainer: Trainer, ids: list[str]) -> dict[str, dict[str, Any]]:
    def asked(path: str) -> Any:
        return json.loads(trainer.client.get(path, cast_to=bytes))

    return {
        job_id: {
            "job": asked(f"/fine_tuning/jobs/{job_id}"),
            "events": asked(f"/fine_tuning/jobs/{job_id}/events"),
        }
        for job_id in ids
    }


@contextmanager
def _peer(objects: dict[str, dict[str, Any]]) -> Iterator[tuple[int, int]]:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(objects, file)
        file.flush()
        command = [sys.executable, str(PEER_SERVER), file.name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            found = json.loads(process.stdout.readline())
            yield found["port"], found["pid"]
        finally:
            process.terminate()
            process.wait(20)


@contextmanager
def _writing(client: OpenAI) -> Iterator[None]:
    """Changes the trainer's database all the time."""
    over = threading.Event()

    def write() -> None:
        while not over.wait(1 / WRITES):
            client.uploads.create(
                bytes=1, filename="x", mime_type="text/plain", purpose="fine-tune"
            )

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()


def _rounds(servers: dict[str, tuple[int, int]], paths: list[str]) -> dict[str, dict[str, float]]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    for _ in range(ROUNDS):
        for name, (port, pid) in servers.items():
            found[name].append(_asked(port, pid, paths))
    return {
        name: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        for name, rounds in found.items()
    }


def _asked(port: int, pid: int, paths: list[str]) -> dict[str, float]:
    process = psutil.Process(pid)
    before = sum(process.cpu_times()[:2])
    answer = measured(sys.executable, LOAD, str(port), str(CLIENTS), str(SECONDS), *paths)
    spent = sum(process.cpu_times()[:2]) - before
    return {**answer, "cpu_us": spent / (answer["rate"] * SECONDS) * 1e6}


def _rate(found: dict[str, dict[str, float]], when: str) -> dict[str, Any]:
    ours, theirs = found["ours"]["rate"], found["peer"]["rate"]
    return {
        "name": f"trainer: {CLIENTS} clients polling jobs and events, one worker, {when}",
        "ours": round(ours),
        "unit": "requests/s",
        "peer": PEER,
        "peer_value": round(theirs),
        "ratio": round(ours / theirs, 2),
        "goal": "",
        "met": None,
    }


def _capacity(found: dict[str, dict[str, float]], when: str) -> dict[str, Any]:
    ours, theirs = (1e6 / found[way]["cpu_us"] for way in ("ours", "peer"))
    return {
        "name": f"trainer: polls in a second of one worker's processor time, {when}",
        "ours": round(ours),
        "unit": "requests",
        "peer": PEER,
        "peer_value": round(theirs),
        "ratio": round(ours / theirs, 2),
        "goal": f"≥ {GOAL:g} ×",
        "met": ours >= GOAL * theirs,
    }


def _latency(found: dict[str, dict[str, float]], when: str) -> dict[str, Any]:
    ours, theirs = (found[way]["p99_us"] / 1000 for way in ("ours", "peer"))
    return {
        "name": f"trainer: a poll among {CLIENTS} clients, 99th percentile, {when}",
        "ours": round(ours, 1),
        "unit": "ms",
        "peer": PEER,
        "peer_value": round(theirs, 1),
        "ratio": round(theirs / ours, 2),
        "goal": "",
        "met": None,
    }


if __name__ == "__main__":
    for record in records():
        print(record)
