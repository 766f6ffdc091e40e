"""Live events: one stream that says what changed; the client fetches what it shows.

Events carry kind, id and version, never state. `Last-Event-ID` replays what was missed; a
comment every 15 s keeps proxies from closing the stream.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent

from tuneproof.errors import InputError
from tuneproof.server.auth import Reader
from tuneproof.server.problems import RESPONSES
from tuneproof.server.state import TheApp


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


def router() -> APIRouter:
    """`/stream`."""
    routes = APIRouter(tags=["live"], responses=RESPONSES)

    @routes.get("/stream", response_class=EventSourceResponse, summary="What changes, as it does")
    async def stream(
        app: TheApp, _: Reader, after: Annotated[int | None, Depends(_after)]
    ) -> AsyncIterator[ServerSentEvent]:
        yield ServerSentEvent(comment="connected", retry=2000)
        events = app.subscribe(after=after)
        try:
            async for event in events:
                data = {"kind": event.kind, "id": event.id, "version": event.version}
                yield ServerSentEvent(
                    raw_data=json.dumps(data), event=event.kind, id=str(event.seq)
                )
        finally:
            await events.aclose()

    return routes
