"""What a user would write for a decision over HTTP, and the floor below it, by uvicorn.

python serve.py fastapi|raw      prints {"port", "pid"}, serves until it is stopped
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI

ANSWER: dict[str, Any] = {
    "task": "hook",
    "model": "ft:base:hook:7f3a",
    "model_version": "1.0.0",
    "arm": "candidate",
    "subject": "deploy-20261120-001",
    "phase": 1,
    "version": 1,
}
fastapi = FastAPI()


@fastapi.get("/decide")
async def decide(task: str, unit: str) -> dict[str, Any]:
    """A dict, as the framework's first page shows it; nothing is decided or counted."""
    return {**ANSWER, "unit": unit}


async def raw(scope: Any, receive: Any, send: Any) -> None:
    """Constant bytes: what uvicorn costs."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


BODY = json.dumps({**ANSWER, "unit": "post-1"}).encode()


async def serve(app: Any) -> None:
    """Serve as the service is served: asyncio, httptools, no access log."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(2048)
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False)
    print(json.dumps({"port": listening.getsockname()[1], "pid": os.getpid()}), flush=True)
    await uvicorn.Server(config).serve(sockets=[listening])


if __name__ == "__main__":
    asyncio.run(serve({"fastapi": fastapi, "raw": raw}[sys.argv[1]]))
