"""A small real server of Fireworks' control plane and chat on a free loopback port.

with fireworks_server() as wire:
    wire.url                       # http://127.0.0.1:PORT/v1
    wire.states = ["JOB_STATE_CREATING", "JOB_STATE_COMPLETED"]       # one step a poll
    wire.suspended = "CREDIT_DEPLETED"
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.servers import free_port
from tests.together_wire import answer
from tests.wire import serving

KEY = "fireworks-key"
BASE = "accounts/fireworks/models/llama-v3p1-8b-instruct"
FINAL = ("JOB_STATE_COMPLETED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED")


class FireworksWire:
    """The state of one fake server; plain attributes, changed by tests while it serves."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.accounts = ["accounts/acme"]
        self.suspended = "UNSUSPENDED"
        self.datasets: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.states = [
            "JOB_STATE_CREATING",
            "JOB_STATE_VALIDATING",
            "JOB_STATE_RUNNING",
            "JOB_STATE_COMPLETED",
        ]
        self.dataset_states = ["UPLOADING", "READY"]
        self.dataset_status: dict[str, Any] = {"code": "OK"}
        self.status: dict[str, Any] = {"code": "OK"}
        self.models: dict[str, dict[str, Any]] = {
            BASE: {
                "name": BASE,
                "tunable": True,
                "deprecationDate": {"year": 2027, "month": 3, "day": 1},
            },
            "accounts/fireworks/models/frozen": {
                "name": "accounts/fireworks/models/frozen",
                "tunable": False,
            },
        }

    def count(self, call: str) -> int:
        return sum(request == call for request in self.requests)


@contextmanager
def fireworks_server() -> Iterator[FireworksWire]:
    port = free_port()
    wire = FireworksWire(f"http://127.0.0.1:{port}/v1")
    with serving(_app(wire), port):
        yield wire


def _app(wire: FireworksWire) -> Any:
    root = "/v1/accounts/{account}"
    table = (
        ("GET", "/v1/accounts", _accounts),
        ("GET", root, _account),
        ("POST", f"{root}/datasets", _create_dataset),
        ("POST", f"{root}/datasets/{{id}}", _dataset_action),
        ("GET", f"{root}/datasets/{{id}}", _dataset),
        ("PUT", "/signed/{id}", _put),
        ("POST", f"{root}/supervisedFineTuningJobs", _create),
        ("POST", f"{root}/dpoJobs", _create),
        ("GET", f"{root}/supervisedFineTuningJobs/{{id}}", _job),
        ("GET", f"{root}/dpoJobs/{{id}}", _job),
        ("POST", f"{root}/supervisedFineTuningJobs/{{id}}", _cancel),
        ("POST", f"{root}/dpoJobs/{{id}}", _cancel),
        ("GET", f"{root}/models", _models),
        ("GET", f"{root}/models/{{id}}", _model),
        ("POST", "/inference/v1/chat/completions", _chat),
    )
    return Starlette(routes=[Route(p, _endpoint(wire, h), methods=[m]) for m, p, h in table])


def _endpoint(wire: FireworksWire, handler: Any) -> Any:
    async def endpoint(request: Request) -> Response:
        wire.requests.append(f"{request.method} {request.url.path.removeprefix('/v1')}")
        signed = request.url.path.startswith("/signed")
        if not signed and request.headers.get("authorization") != f"Bearer {KEY}":
            return _error(401, 16, "no key")
        return await handler(wire, request)

    return endpoint


def _error(status: int, code: int, message: str) -> JSONResponse:
    return JSONResponse({"code": code, "message": message, "details": []}, status_code=status)


async def _accounts(wire: FireworksWire, request: Request) -> Response:
    return JSONResponse({"accounts": [{"name": n, "email": "a@b"} for n in wire.accounts]})


async def _account(wire: FireworksWire, request: Request) -> Response:
    name = f"accounts/{request.path_params['account']}"
    return JSONResponse({"name": name, "email": "a@b", "suspendState": wire.suspended})


async def _create_dataset(wire: FireworksWire, request: Request) -> Response:
    body = await request.json()
    name = f"accounts/{request.path_params['account']}/datasets/{body['datasetId']}"
    if name in wire.datasets:
        return _error(409, 6, "dataset exists")
    wire.datasets[name] = {
        "name": name,
        "state": "UPLOADING",
        "status": {"code": "OK"},
        "exampleCount": body["dataset"]["exampleCount"],
    }
    return JSONResponse(wire.datasets[name])


async def _dataset_action(wire: FireworksWire, request: Request) -> Response:
    dataset, _, action = request.path_params["id"].partition(":")
    name = f"accounts/{request.path_params['account']}/datasets/{dataset}"
    if action == "upload":
        form = await request.form()
        file: Any = form["file"]
        wire.contents[name] = await file.read()
        wire.datasets[name]["states"] = list(wire.dataset_states)
        return JSONResponse({"id": dataset, "object": "file"})
    body = await request.json()
    if action == "getUploadEndpoint":
        [(file_name, _)] = body["filenameToSize"].items()
        place = f"{wire.url.removesuffix('/v1')}/signed/{dataset}"
        return JSONResponse({"filenameToSignedUrls": {file_name: place}})
    wire.datasets[name]["states"] = list(wire.dataset_states)
    return JSONResponse({})


async def _put(wire: FireworksWire, request: Request) -> Response:
    assert "authorization" not in request.headers
    wire.contents[f"accounts/acme/datasets/{request.path_params['id']}"] = await request.body()
    return Response(status_code=200)


async def _dataset(wire: FireworksWire, request: Request) -> Response:
    name = f"accounts/{request.path_params['account']}/datasets/{request.path_params['id']}"
    found = wire.datasets.get(name)
    if found is None:
        return _error(404, 5, "no such dataset")
    states = found.get("states")
    if states:
        found["state"] = states.pop(0) if len(states) > 1 else states[0]
        found["status"] = wire.dataset_status
    return JSONResponse(found)


async def _create(wire: FireworksWire, request: Request) -> Response:
    body = await request.json()
    wire.bodies.append(body)
    kind = request.url.path.rpartition("/")[2]
    param = "dpoJobId" if kind == "dpoJobs" else "supervisedFineTuningJobId"
    name = f"accounts/acme/{kind}/{request.query_params[param]}"
    if name in wire.jobs:
        return _error(409, 6, "job exists")
    training = body.get("trainingConfig", body)
    wire.jobs[name] = {
        **body,
        "name": name,
        "state": wire.states[0],
        "status": {"code": "OK"},
        "createTime": "2026-11-20T10:00:00Z",
        "polls": 0,
        "base": training["baseModel"],
    }
    return JSONResponse(wire.jobs[name])


def _name(request: Request) -> str:
    return request.url.path.removeprefix("/v1/").partition(":")[0]


async def _job(wire: FireworksWire, request: Request) -> Response:
    job = wire.jobs.get(_name(request))
    if job is None:
        return _error(404, 5, "no such job")
    if job["state"] not in FINAL:
        job["polls"] += 1
        job["state"] = wire.states[min(job["polls"], len(wire.states) - 1)]
    training = job.get("trainingConfig", job)
    job["jobProgress"] = {"percent": 10 * job["polls"], "epoch": 0}
    if job["state"] in ("JOB_STATE_COMPLETED", "JOB_STATE_EARLY_STOPPED"):
        training["outputModel"] = f"accounts/acme/models/{job['name'].rpartition('/')[2]}"
        job["completedTime"] = "2026-11-20T10:30:00Z"
        job["estimatedCost"] = {"currencyCode": "USD", "units": "1", "nanos": 250_000_000}
        job["jobProgress"]["inputTokens"] = 1000
    if job["state"] == "JOB_STATE_FAILED":
        job["status"] = wire.status
    return JSONResponse(job)


async def _cancel(wire: FireworksWire, request: Request) -> Response:
    job = wire.jobs[_name(request)]
    if job["state"] in FINAL:
        return _error(400, 9, "job is over")
    job["state"] = "JOB_STATE_CANCELLED"
    return JSONResponse({})


async def _models(wire: FireworksWire, request: Request) -> Response:
    first = "pageToken" not in request.query_params
    rows = [{"name": f"accounts/acme/models/own-{1 if first else 2}"}]
    return JSONResponse({"models": rows, "nextPageToken": "next" if first else ""})


async def _model(wire: FireworksWire, request: Request) -> Response:
    found = wire.models.get(_name(request))
    return JSONResponse(found) if found else _error(404, 5, "no such model")


async def _chat(wire: FireworksWire, request: Request) -> Response:
    return JSONResponse(answer(await request.json()))
