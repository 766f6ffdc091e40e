"""A small real server of the fine-tuning wire on a free loopback port, which can be told to fail.

    with wire_server() as wire:
        wire.url                                   # http://127.0.0.1:PORT/v1
        wire.fail("POST /fine_tuning/jobs", status=403, code="training_not_available")
        wire.hang("GET /models")                   # never answers
        wire.job_states = ["queued", "dreaming", "succeeded"]   # one step a poll
        wire.requests                              # ["POST /files", ...]

It keeps no disk and trains nothing: a job walks through `job_states` as it is polled.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.servers import free_port
from tests.waiting import until

__all__ = ["Fault", "Wire", "serving", "wire_server"]


@dataclass(kw_only=True)
class Fault:
    """How a call fails, for the next `times` calls whose "METHOD /path" starts with `call`."""

    call: str
    status: int = 500
    error: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1_000_000
    hang: bool = False


class Wire:
    """The state of one fake server; plain attributes, changed by tests while it serves."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.faults: list[Fault] = []
        self.files: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.uploads: dict[str, dict[str, Any]] = {}
        self.parts: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.job_states = ["validating_files", "queued", "running", "succeeded"]
        self.job_error: dict[str, Any] = {}
        self.file_states = ["processed"]
        self.filters_jobs = True
        self.prompt_logprobs: list[Any] | None = None
        self.answer: Callable[[str, list[dict[str, str]], int], str] = lambda model, messages, i: (
            f"{model} answers {i}"
        )
        self.page = 100
        self._numbers = itertools.count(1)

    def fail(
        self,
        call: str,
        *,
        status: int = 500,
        code: str | None = None,
        type: str = "error",
        message: str = "told to fail",
        headers: dict[str, str] | None = None,
        times: int = 1_000_000,
    ) -> None:
        """Let calls like `call` ("POST /files") fail."""
        error = {"message": message, "type": type, "param": None, "code": code}
        self.faults.append(
            Fault(call=call, status=status, error=error, headers=headers or {}, times=times)
        )

    def hang(self, call: str, *, times: int = 1_000_000) -> None:
        """Let calls like `call` never be answered."""
        self.faults.append(Fault(call=call, times=times, hang=True))

    def heal(self) -> None:
        """Stop failing."""
        self.faults.clear()

    def number(self, prefix: str) -> str:
        """A new id."""
        return f"{prefix}{next(self._numbers):06d}"

    def count(self, call: str) -> int:
        """How many calls began with `call`."""
        return sum(request.startswith(call) for request in self.requests)


@contextmanager
def wire_server() -> Iterator[Wire]:
    """Serve the wire until the block ends."""
    port = free_port()
    wire = Wire(f"http://127.0.0.1:{port}/v1")
    with serving(_app(wire), port):
        yield wire


@contextmanager
def serving(app: Any, port: int) -> Iterator[None]:
    """Serve an ASGI app on a loopback port, in a thread, until the block ends."""
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=port,
        log_level="error",
        timeout_graceful_shutdown=1,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started or not thread.is_alive(), every_s=0.005)
    assert thread.is_alive(), "the server ended at once"
    try:
        yield
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=10)


def _app(wire: Wire) -> Any:
    routes = [
        Route(f"/v1{path}", _endpoint(wire, handler), methods=[method])
        for method, path, handler in (
            ("POST", "/files", _create_file),
            ("GET", "/files", _list_files),
            ("GET", "/files/{id}", _get_file),
            ("POST", "/uploads", _create_upload),
            ("POST", "/uploads/{id}/parts", _add_part),
            ("POST", "/uploads/{id}/complete", _complete_upload),
            ("POST", "/uploads/{id}/cancel", _cancel_upload),
            ("POST", "/fine_tuning/jobs", _create_job),
            ("GET", "/fine_tuning/jobs", _list_jobs),
            ("GET", "/fine_tuning/jobs/{id}", _get_job),
            ("POST", "/fine_tuning/jobs/{id}/cancel", _cancel_job),
            ("GET", "/fine_tuning/jobs/{id}/events", _list_events),
            ("GET", "/models", _list_models),
            ("POST", "/chat/completions", _complete),
        )
    ]
    return Starlette(routes=routes)


def _endpoint(wire: Wire, handler: Any) -> Any:
    async def endpoint(request: Request) -> Response:
        call = f"{request.method} {request.url.path.removeprefix('/v1')}"
        wire.requests.append(call)
        fault = next((f for f in wire.faults if f.times > 0 and call.startswith(f.call)), None)
        if fault is None:
            return await handler(wire, request)
        fault.times -= 1
        if fault.hang:
            await asyncio.Event().wait()
        return JSONResponse(
            {"error": fault.error},
            status_code=fault.status,
            headers={"x-request-id": "req_test", **fault.headers},
        )

    return endpoint


def _error(status: int, message: str, *, code: str | None = None) -> JSONResponse:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": error}, status_code=status)


def _page(wire: Wire, request: Request, rows: list[dict[str, Any]]) -> JSONResponse:
    """One page of rows that are in their order already, after the cursor."""
    after = request.query_params.get("after")
    start = next((i + 1 for i, row in enumerate(rows) if row["id"] == after), 0)
    limit = min(int(request.query_params.get("limit", 20)), wire.page)
    page = rows[start : start + limit]
    return JSONResponse({"object": "list", "data": page, "has_more": start + limit < len(rows)})


def _file(wire: Wire, name: str, content: bytes) -> dict[str, Any]:
    file = {
        "id": wire.number("file-"),
        "object": "file",
        "bytes": len(content),
        "created_at": int(time.time()),
        "filename": name,
        "purpose": "fine-tune",
        "status": wire.file_states[0],
        "states": list(wire.file_states),
    }
    wire.files[file["id"]] = file
    wire.contents[file["id"]] = content
    return file


async def _create_file(wire: Wire, request: Request) -> Response:
    form = await request.form()
    upload: Any = form["file"]
    return JSONResponse(_file(wire, upload.filename, await upload.read()))


async def _list_files(wire: Wire, request: Request) -> Response:
    return _page(wire, request, list(wire.files.values())[::-1])


async def _get_file(wire: Wire, request: Request) -> Response:
    file = wire.files.get(request.path_params["id"])
    if file is None:
        return _error(404, "No such file")
    states = file["states"]
    file["status"] = states.pop(0) if len(states) > 1 else states[0]
    return JSONResponse(file)


async def _create_upload(wire: Wire, request: Request) -> Response:
    body = await request.json()
    upload = {
        "id": wire.number("upload_"),
        "object": "upload",
        "bytes": body["bytes"],
        "created_at": int(time.time()),
        "expires_at": int(time.time()) + 3600,
        "filename": body["filename"],
        "purpose": body["purpose"],
        "status": "pending",
    }
    wire.uploads[upload["id"]] = upload
    return JSONResponse(upload)


async def _add_part(wire: Wire, request: Request) -> Response:
    form = await request.form()
    data: Any = form["data"]
    part = wire.number("part_")
    wire.parts[part] = await data.read()
    return JSONResponse({"id": part, "object": "upload.part", "created_at": 0, "upload_id": ""})


async def _complete_upload(wire: Wire, request: Request) -> Response:
    upload = wire.uploads[request.path_params["id"]]
    parts = (await request.json())["part_ids"]
    content = b"".join(wire.parts[part] for part in parts)
    if len(content) != upload["bytes"]:
        return _error(400, "The parts do not have the declared size")
    upload |= {"status": "completed", "file": _file(wire, upload["filename"], content)}
    return JSONResponse(upload)


async def _cancel_upload(wire: Wire, request: Request) -> Response:
    upload = wire.uploads[request.path_params["id"]]
    upload["status"] = "cancelled"
    return JSONResponse(upload)


async def _create_job(wire: Wire, request: Request) -> Response:
    body = await request.json()
    wire.bodies.append(body)
    if body["training_file"] not in wire.files:
        return _error(400, f"file {body['training_file']} does not exist", code="file_not_found")
    job = {
        "id": wire.number("ftjob-"),
        "object": "fine_tuning.job",
        "created_at": int(time.time()),
        "error": {},
        "fine_tuned_model": None,
        "finished_at": None,
        "hyperparameters": {"n_epochs": "auto"},
        "method": body.get("method"),
        "metadata": body.get("metadata", {}),
        "model": body["model"],
        "organization_id": "org-test",
        "result_files": [],
        "seed": body.get("seed", 0),
        "status": wire.job_states[0],
        "suffix": body.get("suffix"),
        "trained_tokens": None,
        "training_file": body["training_file"],
        "validation_file": body.get("validation_file"),
        "polls": 0,
    }
    wire.jobs[job["id"]] = job
    return JSONResponse(job)


async def _list_jobs(wire: Wire, request: Request) -> Response:
    wanted = {
        key.removeprefix("metadata[").removesuffix("]"): value
        for key, value in request.query_params.items()
        if key.startswith("metadata[") and wire.filters_jobs
    }
    jobs = [
        job
        for job in list(wire.jobs.values())[::-1]
        if all(job["metadata"].get(key) == value for key, value in wanted.items())
    ]
    return _page(wire, request, jobs)


async def _get_job(wire: Wire, request: Request) -> Response:
    job = wire.jobs.get(request.path_params["id"])
    if job is None:
        return _error(404, "No such job", code="fine_tune_not_found")
    if job["status"] not in ("succeeded", "failed", "cancelled"):
        job["polls"] += 1
        _move_job(wire, job)
    return JSONResponse(job)


def _move_job(wire: Wire, job: dict[str, Any]) -> None:
    job["status"] = wire.job_states[min(job["polls"], len(wire.job_states) - 1)]
    if job["status"] == "failed":
        job["error"] = wire.job_error
    if job["status"] == "succeeded":
        job["fine_tuned_model"] = f"ft:{job['model']}:test:{job['suffix'] or ''}:{job['id'][6:]}"
        job["trained_tokens"] = len(wire.contents[job["training_file"]]) // 4
        job["finished_at"] = int(time.time())


async def _cancel_job(wire: Wire, request: Request) -> Response:
    job = wire.jobs[request.path_params["id"]]
    if job["status"] in ("succeeded", "failed", "cancelled"):
        return _error(400, f"Job has already {job['status']}", code="invalid_job_state")
    job["status"] = "cancelled"
    return JSONResponse(job)


async def _list_events(wire: Wire, request: Request) -> Response:
    job = wire.jobs[request.path_params["id"]]
    events = [
        {
            "id": f"ftevent-{i:03d}",
            "object": "fine_tuning.job.event",
            "created_at": job["created_at"] + i,
            "level": "info",
            "type": "metrics",
            "message": f"Step {i}",
            "data": {"step": i, "train_loss": 3.0 / (i + 1)},
        }
        for i in range(job["polls"] + 1)
    ]
    return _page(wire, request, events[::-1])


async def _list_models(wire: Wire, request: Request) -> Response:
    names = ["base-model", *(j["fine_tuned_model"] for j in wire.jobs.values())]
    data = [
        {
            "id": name,
            "object": "model",
            "created": 1700000000,
            "owned_by": "test",
            "shutdown_date": "2027-01-14" if name == "base-model" else None,
        }
        for name in names
        if name
    ]
    return JSONResponse({"object": "list", "data": data})


async def _complete(wire: Wire, request: Request) -> Response:
    body = await request.json()
    wire.bodies.append(body)
    texts = [wire.answer(body["model"], body["messages"], i) for i in range(body.get("n", 1))]
    prompt = sum(len(m["content"].split()) + 1 for m in body["messages"])
    replies = sum(len(text.split()) for text in texts)
    answer: dict[str, Any] = {
        "id": wire.number("chatcmpl-"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [
            {
                "index": i,
                "finish_reason": "stop",
                "logprobs": None,
                "message": {"role": "assistant", "content": text},
            }
            for i, text in enumerate(texts)
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": replies,
            "total_tokens": prompt + replies,
        },
    }
    if "prompt_logprobs" in body and wire.prompt_logprobs is not None:
        answer["prompt_logprobs"] = wire.prompt_logprobs
    return JSONResponse(answer)
