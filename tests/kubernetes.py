"""A small real HTTP server that speaks the Kubernetes API as targets use it.

    with api_server() as cluster:
        cluster.url, cluster.token
        cluster.put("/api/v1/namespaces/ns/configmaps/models", {"data": {...}})
        cluster.meddle = 2            # somebody else changes the object before the next 2 patches
        cluster.forbidden.add("PATCH")

Optimistic locking as the real one: each write gets a new `resourceVersion`, and a patch that
names an old one is answered 409. Merge patches by RFC 7396.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.servers import free_port
from tests.wire import serving

__all__ = ["ApiServer", "api_server"]


class ApiServer:
    """The objects of one fake cluster, by their path."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.token = "secret"
        self.objects: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.forbidden: set[str] = set()
        self.meddle = 0
        self.status = 200
        self._version = 100

    def put(self, path: str, fields: dict[str, Any]) -> None:
        """Make an object, or replace it."""
        self._version += 1
        metadata = {**fields.get("metadata", {}), "resourceVersion": str(self._version)}
        self.objects[path] = {**copy.deepcopy(fields), "metadata": metadata}

    def count(self, method: str) -> int:
        """How many calls used this method."""
        return sum(call.startswith(method) for call in self.calls)

    def app(self) -> Any:
        """The server as an ASGI app."""
        methods = ["GET", "POST", "PATCH"]
        return Starlette(routes=[Route("/{path:path}", self._answer, methods=methods)])

    async def _answer(self, request: Request) -> Response:
        path = request.url.path
        self.calls.append(f"{request.method} {path}")
        if self.status != 200:
            return _status(self.status, "told to fail")
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return _status(401, "Unauthorized")
        if request.method in self.forbidden:
            return _status(403, f'User "tuneproof" cannot {request.method.lower()} resource')
        if request.method == "POST":
            return self._create(path, await request.json())
        if path not in self.objects:
            return _status(404, f'"{path.rpartition("/")[2]}" not found')
        if request.method == "PATCH":
            return self._patch(path, request, await request.json())
        return JSONResponse(self.objects[path])

    def _create(self, folder: str, body: dict[str, Any]) -> Response:
        path = f"{folder}/{body['metadata']['name']}"
        if path in self.objects:
            return _status(409, "already exists")
        self.put(path, body)
        return JSONResponse(self.objects[path], 201)

    def _patch(self, path: str, request: Request, body: dict[str, Any]) -> Response:
        kind = request.headers["content-type"].partition(";")[0]
        if kind != "application/merge-patch+json":
            return _status(415, f"the body of the request was in an unknown format: {kind}")
        if self.meddle > 0:
            self.meddle -= 1
            self.put(path, _merged(self.objects[path], {"data": {"OTHER": str(self.meddle)}}))
        found = self.objects[path]
        wanted = body.get("metadata", {}).get("resourceVersion")
        if wanted is not None and wanted != found["metadata"]["resourceVersion"]:
            return _status(409, "the object has been modified; please apply your changes again")
        self.put(path, _merged(found, body))
        return JSONResponse(self.objects[path])


def _merged(old: Any, patch: Any) -> Any:
    if not isinstance(patch, dict) or not isinstance(old, dict):
        return patch
    merged = {key: value for key, value in old.items() if patch.get(key, "") is not None}
    for key, value in patch.items():
        if value is not None:
            merged[key] = _merged(old.get(key, {} if isinstance(value, dict) else None), value)
    return merged


def _status(code: int, message: str) -> Response:
    body = {"kind": "Status", "status": "Failure", "message": message, "code": code}
    return JSONResponse(body, code)


@contextmanager
def api_server() -> Iterator[ApiServer]:
    """Serve until the block ends."""
    cluster = ApiServer()
    with serving(cluster.app(), cluster.port):
        yield cluster
