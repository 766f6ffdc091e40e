"""The routes that clients poll, bare in Starlette: the same JSON, no database, keys or limits.

    python poll_peer.py OBJECTS      OBJECTS: a JSON file, the job and the page of its events by id

Prints {"port", "pid"} and serves until it is stopped.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

OBJECTS: dict[str, dict[str, Any]] = json.loads(Path(sys.argv[1]).read_text())
JOB = "/v1/fine_tuning/jobs/{job_id}"


async def retrieve(request: Request) -> JSONResponse:
    """One job."""
    return JSONResponse(OBJECTS[request.path_params["job_id"]]["job"])


async def events(request: Request) -> JSONResponse:
    """The first page of its events."""
    return JSONResponse(OBJECTS[request.path_params["job_id"]]["events"])


async def serve() -> None:
    """Serve as the trainer is served: asyncio, httptools, no access log."""
    app = Starlette(routes=[Route(JOB, retrieve), Route(f"{JOB}/events", events)])
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(2048)
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False)
    print(json.dumps({"port": listening.getsockname()[1], "pid": os.getpid()}), flush=True)
    await uvicorn.Server(config).serve(sockets=[listening])


if __name__ == "__main__":
    asyncio.run(serve())
