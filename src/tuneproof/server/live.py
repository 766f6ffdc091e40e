"""Live events: one stream that says what changed; the client fetches what it shows.

Events carry kind, id and version, never state. `Last-Event-ID` replays what was missed; a
comment every 15 s keeps proxies from closing the stream. Plain ASGI behind the route's checks:
a rollback reaches a thousand streams at once, so each event is written out once for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Header
from fastapi.responses import Response
from fastapi.sse import format_sse_event

from tuneproof.errors import InputError
from tuneproof.server.auth import Reader
from tuneproof.server.problems import RESPONSES
from tuneproof.server.state import TheApp

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from tuneproof.app.live import Live, LiveEvent

HEARTBEAT_S = 15.0
BEGINNING = format_sse_event(comment="connected", retry=2000)
HEARTBEAT = format_sse_event(comment="")


async def _after(
    header: Annotated[str | None, Header(alias="Last-Event-ID", max_length=50)] = None,
) -> int | None:
    """The last event that the client saw; a dependency, so checked before the answer begins."""
    if header is None or not header.strip():
        return None
    if not header.isascii() or not header.isdigit():
        raise InputError(
            f"Last-Event-ID is {header!r}, not an id of this stream.",
            mend="Leave it out to start with what comes next.",
        )
    return int(header)


class EventStream(Response):
    """Events from now on, or after one that the client saw, until it leaves."""

    media_type = "text/event-stream"

    def __init__(self, live: Live, after: int | None) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._live = live
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the client leaves or the App closes."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        with self._live.listen(after=self._after) as queue:
            leaving = asyncio.create_task(_leave(receive, queue))
            try:
                await send(start)
                await _part(send, BEGINNING)
                with contextlib.suppress(asyncio.CancelledError):  # the service stops: end it well
                    while (found := await _next(queue)) is not None:
                        await _part(send, found)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            finally:
                leaving.cancel()


async def _part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _leave(receive: Receive, queue: asyncio.Queue[LiveEvent | None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    queue.put_nowait(None)


async def _next(queue: asyncio.Queue[LiveEvent | None]) -> bytes | None:
    """All that has come, or a heartbeat; None at the end."""
    try:
        async with asyncio.timeout(HEARTBEAT_S):
            events = [await queue.get()]
    except TimeoutError:
        return HEARTBEAT
    while not queue.empty():
        events.append(queue.get_nowait())
    return None if None in events else b"".join(_encoded(e) for e in events if e is not None)


@lru_cache(maxsize=64)
def _encoded(event: LiveEvent) -> bytes:
    data = {"kind": event.kind, "id": event.id, "version": event.version}
    return format_sse_event(data_str=json.dumps(data), event=event.kind, id=str(event.seq))


def router() -> APIRouter:
    """`/stream`."""
    routes = APIRouter(tags=["live"], responses=RESPONSES)

    @routes.get(
        "/stream",
        status_code=200,
        response_class=EventStream,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
        summary="What changes, as it does",
    )
    async def stream(
        app: TheApp, _: Reader, after: Annotated[int | None, Depends(_after)]
    ) -> Response:
        return EventStream(app.live, after)

    return routes
