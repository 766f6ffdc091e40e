"""A provider that answers each completion after 50 ms, and can go away for a while.

    python provider.py      prints {"port"}

`POST /away?seconds=5` makes every call fail with 503 for so long; `GET /count` says how many
calls came while it was away, and at which instant (of the clock that processes share) it was
back and the first call came through.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any
from urllib.parse import parse_qs

import uvicorn

ANSWER_S = 0.05
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "base",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "A hook."},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
}


class Provider:
    """The server's state, and the server."""

    def __init__(self) -> None:
        self.back_at = 0.0
        self.first_at: float | None = None
        self.wasted = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        status, body = await self._answer(scope["path"], scope["query_string"].decode())
        data = json.dumps(body).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    async def _answer(self, path: str, query: str) -> tuple[int, Any]:
        if path == "/away":
            self.back_at = time.monotonic() + float(parse_qs(query)["seconds"][0])
            self.first_at, self.wasted = None, 0
            return 200, {"back_at": self.back_at}
        if path == "/count":
            return 200, {"back_at": self.back_at, "first_at": self.first_at, "wasted": self.wasted}
        if time.monotonic() < self.back_at:
            self.wasted += 1
            return 503, {"error": {"message": "away", "type": "server_error", "code": None}}
        if self.first_at is None:
            self.first_at = time.monotonic()
        await asyncio.sleep(ANSWER_S)
        return 200, ANSWER


async def main() -> None:
    """Serve on a free port until stopped."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(512)
    config = uvicorn.Config(Provider(), log_config=None, access_log=False, lifespan="off")
    print(json.dumps({"port": listening.getsockname()[1]}), flush=True)
    await uvicorn.Server(config).serve(sockets=[listening])


if __name__ == "__main__":
    asyncio.run(main())
