"""A small real server of Together's fine-tuning wire on a free loopback port.

with together_server() as wire:
    wire.url                       # http://127.0.0.1:PORT/v1
    wire.states = ["pending", "running", "completed"]       # one step a poll
    wire.fail("POST /fine-tunes", status=402, message="no credit")
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.servers import free_port
from tests.wire import serving

KEY = "together-key"


class TogetherWire:
    """The state of one fake server; plain attributes, changed by tests while it serves."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.put_headers: list[dict[str, str]] = []
        self.faults: dict[str, tuple[int, dict[str, Any]]] = {}
        self.files: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.states = ["pending", "queued", "running", "compressing", "uploading", "completed"]
        self.file_states = ["QUEUED", "COMPLETED"]
        self.tunable = {"meta-llama/Llama-3.1-8B-Instruct"}
        self.reason = "the file is bad"
        self._numbers = itertools.count(1)

    def fail(self, call: str, *, status: int, message: str, code: str | None = None) -> None:
        self.faults[call] = (status, {"error": {"message": message, "code": code}})

    def count(self, call: str) -> int:
        return sum(request == call for request in self.requests)

    def number(self, prefix: str) -> str:
        return f"{prefix}{next(self._numbers):06d}"


@contextmanager
def together_server() -> Iterator[TogetherWire]:
    port = free_port()
    wire = TogetherWire(f"http://127.0.0.1:{port}/v1")
    with serving(_app(wire), port):
        yield wire


def _app(wire: TogetherWire) -> Any:
    table = (
        ("POST", "/v1/files", _ask),
        ("GET", "/v1/files", _files),
        ("GET", "/v1/files/{id}", _file),
        ("POST", "/v1/files/{id}/preprocess", _preprocess),
        ("PUT", "/storage/{id}", _put),
        ("POST", "/v1/fine-tunes", _create),
        ("GET", "/v1/fine-tunes", _jobs),
        ("GET", "/v1/fine-tunes/models/limits", _limits),
        ("GET", "/v1/fine-tunes/{id}", _job),
        ("POST", "/v1/fine-tunes/{id}/cancel", _cancel),
        ("GET", "/v1/fine-tunes/{id}/events", _events),
        ("GET", "/v1/fine-tunes/{id}/metrics", _metrics),
        ("GET", "/v1/models", _models),
        ("POST", "/v1/chat/completions", _chat),
    )
    return Starlette(routes=[Route(p, _endpoint(wire, h), methods=[m]) for m, p, h in table])


def _endpoint(wire: TogetherWire, handler: Any) -> Any:
    async def endpoint(request: Request) -> Response:
        call = f"{request.method} {request.url.path.removeprefix('/v1')}"
        wire.requests.append(call)
        if call in wire.faults:
            status, body = wire.faults[call]
            return JSONResponse(body, status_code=status)
        storage = request.url.path.startswith("/storage")
        if not storage and request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": {"message": "no key"}}, status_code=401)
        return await handler(wire, request)

    return endpoint


def _missing(what: str) -> JSONResponse:
    return JSONResponse({"error": {"message": f"{what} not found"}}, status_code=404)


async def _ask(wire: TogetherWire, request: Request) -> Response:
    form = await request.form()
    assert form["purpose"] == "fine-tune"
    assert form["file_type"] == "jsonl"
    file_id = wire.number("file-")
    wire.files[file_id] = {
        "id": file_id,
        "object": "file",
        "filename": form["file_name"],
        "bytes": 0,
        "created_at": 1_700_000_000 + len(wire.files),
        "purpose": "fine-tune",
        "FileType": "jsonl",
        "processing_status": "PENDING",
        "states": list(wire.file_states),
        "checksum": form["checksum"],
    }
    place = f"{wire.url.removesuffix('/v1')}/storage/{file_id}?signature=s"
    headers = {"location": place, "x-together-file-id": file_id}
    return Response(status_code=302, headers=headers)


async def _put(wire: TogetherWire, request: Request) -> Response:
    file_id = request.path_params["id"]
    wire.put_headers.append(dict(request.headers))
    wire.contents[file_id] = await request.body()
    wire.files[file_id]["bytes"] = len(wire.contents[file_id])
    return Response(status_code=200)


async def _preprocess(wire: TogetherWire, request: Request) -> Response:
    return JSONResponse(wire.files[request.path_params["id"]])


async def _files(wire: TogetherWire, request: Request) -> Response:
    return JSONResponse({"data": list(wire.files.values())})


async def _file(wire: TogetherWire, request: Request) -> Response:
    file = wire.files.get(request.path_params["id"])
    if file is None:
        return _missing("file")
    states = file["states"]
    file["processing_status"] = states.pop(0) if len(states) > 1 else states[0]
    if file["processing_status"] == "INVALID_FORMAT":
        file["validation_report"] = {"valid": False, "error": "line 3 has no messages"}
    return JSONResponse(file)


async def _create(wire: TogetherWire, request: Request) -> Response:
    body = await request.json()
    wire.bodies.append(body)
    if body["training_file"] not in wire.files:
        return JSONResponse({"error": {"message": "no such file"}}, status_code=400)
    job = {
        "id": wire.number("ft-"),
        "status": wire.states[0],
        "created_at": f"2026-11-20T10:00:{len(wire.jobs):02d}.000Z",
        "updated_at": "2026-11-20T10:30:00.000Z",
        "user_id": "user",
        "model": body["model"],
        "suffix": body.get("suffix"),
        "n_epochs": body["n_epochs"],
        "batch_size": body["batch_size"],
        "learning_rate": body["learning_rate"],
        "training_file": body["training_file"],
        "polls": 0,
    }
    wire.jobs[job["id"]] = job
    return JSONResponse(job)


async def _jobs(wire: TogetherWire, request: Request) -> Response:
    return JSONResponse({"data": list(wire.jobs.values())})


async def _job(wire: TogetherWire, request: Request) -> Response:
    job = wire.jobs.get(request.path_params["id"])
    if job is None:
        return _missing("job")
    if job["status"] not in ("completed", "error", "user_error", "cancelled"):
        job["polls"] += 1
        job["status"] = wire.states[min(job["polls"], len(wire.states) - 1)]
    if job["status"] == "completed":
        job |= {
            "model_output_name": f"team/{job['model'].rpartition('/')[2]}-{job['suffix']}",
            "token_count": 123_456,
            "total_price": 59_258_880,
        }
    return JSONResponse(job)


async def _cancel(wire: TogetherWire, request: Request) -> Response:
    job = wire.jobs[request.path_params["id"]]
    if job["status"] in ("completed", "error", "user_error", "cancelled"):
        return JSONResponse({"error": {"message": "job is over"}}, status_code=400)
    job["status"] = "cancelled"
    return JSONResponse(job)


async def _events(wire: TogetherWire, request: Request) -> Response:
    job = wire.jobs[request.path_params["id"]]
    rows = [_event("job_start", "started", 0)]
    if job["status"] in ("error", "user_error"):
        rows.append(_event("job_error", wire.reason, 1))
    return JSONResponse({"data": rows[::-1]})


def _event(kind: str, message: str, second: int) -> dict[str, Any]:
    return {
        "object": "fine-tune-event",
        "created_at": f"2026-11-20T10:00:{second:02d}Z",
        "level": "legacy_info",
        "type": kind,
        "message": message,
    }


async def _metrics(wire: TogetherWire, request: Request) -> Response:
    rows = [{"step": 1.0, "train/loss": 2.5}, {"step": 2.0, "train/loss": 2.0, "eval/loss": 2.1}]
    return JSONResponse({"metrics": rows})


async def _limits(wire: TogetherWire, request: Request) -> Response:
    model = request.query_params["model_name"]
    if model not in wire.tunable:
        return _missing(f"model {model}")
    limits = {"max_batch_size": 32, "max_batch_size_dpo": 16, "max_rank": 64}
    return JSONResponse({"model_name": model, "lora_training": limits})


async def _models(wire: TogetherWire, request: Request) -> Response:
    rows = [
        {"id": m, "object": "model", "created": 1, "organization": "Meta"} for m in wire.tunable
    ]
    return JSONResponse(rows)


async def _chat(wire: TogetherWire, request: Request) -> Response:
    body = await request.json()
    return JSONResponse(answer(body))


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """A chat completion."""
    return {
        "id": "chat-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": f"{body['model']} answers"},
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    }
