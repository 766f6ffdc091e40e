"""An upload as Starlette's documentation shows it: the form is read, its file is copied.

python upload_peer.py FOLDER      prints {"port", "pid"}, serves until it is stopped
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

TARGET = Path(sys.argv[1]) / "file"


async def upload(request: Request) -> JSONResponse:
    """Keep the form's file; it is neither hashed nor synced."""
    async with request.form() as form:
        sent = form["file"]
        assert isinstance(sent, UploadFile)
        with TARGET.open("wb") as target:
            await asyncio.to_thread(shutil.copyfileobj, sent.file, target, 1024 * 1024)
        return JSONResponse({"bytes": sent.size})


async def serve() -> None:
    """Serve as the trainer is served: asyncio, httptools, no access log."""
    app = Starlette(routes=[Route("/v1/files", upload, methods=["POST"])])
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(64)
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False)
    print(json.dumps({"port": listening.getsockname()[1], "pid": os.getpid()}), flush=True)
    await uvicorn.Server(config).serve(sockets=[listening])


if __name__ == "__main__":
    asyncio.run(serve())
