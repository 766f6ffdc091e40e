"""What stands before every route: a bound on bodies, a time for each answer, safe headers.

Plain ASGI, so that streams pass through untouched.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException

from tuneproof.errors import InputError
from tuneproof.server.auth import misdirected
from tuneproof.server.events import MAX_BYTES, too_large
from tuneproof.server.framing import answered_when_sent
from tuneproof.server.models import kept_text
from tuneproof.server.problems import problem, respond

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tuneproof.settings import ServerConfig
    from tuneproof.telemetry import Metrics


class Guard:
    """ASGI middleware around the whole service."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        receive, send = answered_when_sent(scope, receive, send)
        status = 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        try:
            refusal = _refusal(scope)
            if refusal is not None:
                answer = respond(problem(refusal, quote(scope["path"])))
                await answer(scope, receive, sending)
            else:
                await self._app(scope, _bounded(receive), sending)
        finally:
            seconds = time.perf_counter() - began
            self._metrics.request_finished(scope["method"], _route(scope), status, seconds)


async def refused(scope: Scope, send: Send, server: ServerConfig) -> bool:
    """Whether a request was answered here, since it is by a name that is not ours."""
    if scope["type"] != "http":
        return False
    refusal = misdirected(Headers(scope=scope), server)
    if refusal is None:
        return False

    async def nothing() -> Message:
        return {"type": "http.disconnect"}

    await respond(problem(refusal, quote(scope["path"])))(scope, nothing, send)
    return True


def _announced(scope: Scope) -> int:
    length = Headers(scope=scope).get("content-length", "0")
    return int(length) if length.isascii() and length.isdigit() else 0


def _bounded(receive: Receive) -> Receive:
    taken = 0

    async def receiving() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MAX_BYTES:
            raise HTTPException(413, f"the body is larger than {MAX_BYTES} bytes")
        return message

    return receiving


def _refusal(scope: Scope) -> InputError | None:
    """Why a request gets to no route: its size, or a character that no database keeps."""
    try:
        kept_text("The path", scope["path"])
        if b"%" in scope["query_string"]:
            for name, value in parse_qsl(scope["query_string"].decode("latin-1")):
                kept_text(f"The parameter {name!r}", value)
    except InputError as error:
        return error
    return too_large(MAX_BYTES) if _announced(scope) > MAX_BYTES else None


def _route(scope: Scope) -> str:
    """The route's pattern, so that ids do not make a series each."""
    route = scope.get("route")
    return str(getattr(route, "path", "unknown"))
