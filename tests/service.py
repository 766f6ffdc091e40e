"""A small real server of what clients speak: /routing, /stream and /events, made to fail at will.

    with service() as served:
        served.route("hook", share=0.5)        # pushed to listening clients
        served.status = 503                    # every call fails from now on
        served.stop(); served.start()          # an outage on the same port

It keeps events by id as the real one does: each once, those without a known subject refused.
"""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tests.servers import free_port
from tests.waiting import eventually
from tests.wire import serving

__all__ = ["Service", "service"]


class Service:
    """The state of one fake service; plain attributes, changed by tests while it serves."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.routing: dict[str, dict[str, Any]] = {}
        self.events: dict[str, dict[str, Any]] = {}
        self.batches: list[int] = []
        self.subjects = {"ab-test-1"}
        self.status = 200
        self.events_status = 200
        self.hanging = False
        self.token: str | None = None
        self.streams = True
        self.listeners = 0
        self.polls = 0
        self.bad_ids: set[str] = set()
        self.bad_status = 422
        self.version = 0
        self._changed = threading.Event()
        self._stack: ExitStack | None = None

    def start(self) -> None:
        """Listen."""
        self._stack = ExitStack()
        self._stack.enter_context(serving(self._app(), self.port))

    def stop(self) -> None:
        """Go away; the port stays ours."""
        if self._stack is not None:
            self._stack.close()
        self._stack = None

    def route(self, task: str, **fields: Any) -> None:
        """Write a task's routing, as a new version."""
        self.version += 1
        old = self.routing.get(task, {})
        self.routing[task] = {
            "task": task,
            "baseline": {"model_id": "base", "version": None},
            "candidate": {"model_id": "tuned", "version": "ver-1"},
            "share": 0.0,
            "salt": "salt",
            "subject": "ab-test-1",
            "phase": 1,
            "cause": "",
            "updated_at": None,
            **old,
            **fields,
            "version": self.version,
        }

    def _app(self) -> Any:
        return Starlette(
            routes=[
                Route("/routing", self._get_routing),
                Route("/stream", self._stream),
                Route("/events", self._post_events, methods=["POST"]),
            ]
        )

    def _refusal(self, request: Request) -> Response | None:
        status = self.status
        if request.url.path == "/events" and status == 200:
            status = self.events_status
        if status != 200:
            headers = {"retry-after": "0"} if status in (429, 503) else {}
            return JSONResponse({"title": "told to fail"}, status, headers=headers)
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return JSONResponse({"title": "Denied", "detail": "no token"}, 401)
        return None

    async def _get_routing(self, request: Request) -> Response:
        self.polls += 1
        body = {"version": self.version, "routing": list(self.routing.values())}
        return self._refusal(request) or JSONResponse(body)

    async def _stream(self, request: Request) -> Response:
        if not self.streams:
            return JSONResponse({"title": "Not found"}, 404)
        return self._refusal(request) or StreamingResponse(
            self._changes(), media_type="text/event-stream"
        )

    async def _changes(self) -> AsyncIterator[str]:
        self.listeners += 1
        seen = self.version
        try:
            yield ": connected\n\n"
            while self.status == 200 and self._stack is not None:
                if self.version != seen:
                    seen = self.version
                    yield f'event: routing\ndata: {{"version": {seen}}}\nid: {seen}\n\n'
                await eventually(partial(self._differs, seen), math.inf)
        finally:
            self.listeners -= 1

    def _differs(self, seen: int) -> bool:
        return self.version != seen or self.status != 200 or self._stack is None

    async def _post_events(self, request: Request) -> Response:
        await eventually(lambda: not self.hanging, math.inf)
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        body = await request.json()
        events = [*body["exposures"], *body["outcomes"]]
        if self.bad_ids & {event["id"] for event in events}:
            return JSONResponse({"title": "Bad", "detail": "a bad event"}, self.bad_status)
        self.batches.append(len(events))
        unknown = [event["id"] for event in events if event["subject"] not in self.subjects]
        known = [event for event in events if event["subject"] in self.subjects]
        duplicates = sum(event["id"] in self.events for event in known)
        self.events |= {event["id"]: event for event in known}
        return JSONResponse(
            {
                "accepted": len(known) - duplicates,
                "duplicates": duplicates,
                "unknown": unknown,
                "rejected": [{"id": id, "reason": "no such subject"} for id in unknown],
            }
        )


@contextmanager
def service() -> Iterator[Service]:
    """Serve until the block ends."""
    served = Service()
    served.start()
    try:
        yield served
    finally:
        served.stop()
