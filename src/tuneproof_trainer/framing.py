"""Where HTTP itself goes wrong: bytes that are no request, requests that never end, answers that
nobody reads, and more connections than there is room for.

`Protocol` is what uvicorn speaks HTTP by. It refuses in the shape that clients of the original
read, and never inside another answer. Where the room is full, whoever has kept the server waiting
longest makes way for whoever comes: a client that means it sends its request at once.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
import resource
import socket
import struct
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tuneproof_trainer.errors import ApiError, bad_request

__all__ = ["ConnectionLimits", "Protocol", "Rarely", "protocol_for"]

logger = logging.getLogger(__name__)

_MOST_HEAD_BYTES = 64 * 1024
_MOST_HEADERS = 256
"""Of one request, with what comes behind a chunked body."""

_MOST_WAITING = 16
"""Requests that may come behind one that is being answered."""

_LEAST_BYTES = 16 * 1024
"""What a body must grow by within `slowest_s` to be one that goes on."""

_DRAINED_BYTES = 64 * 1024 * 1024
"""How much is read of a body that was answered before it was whole: its sender is to read why."""

_NO_LINGER = struct.pack("ii", 1, 0)
_SLACK_S = 15.0
"""After which a connection is cut that uvicorn should have closed, as one with unread bytes."""

_KEPT_DESCRIPTORS = 100
"""Open files that are left for the database, the log and connections that are being closed."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionLimits:
    """How many connections are held, and how long one may keep the server waiting."""

    most: int = 1000
    """At once, as far as the process may have so many open files: each may need two."""

    most_of_address: int | None = None
    """At once from one address; None is three quarters of all."""

    slowest_s: float = 60.0
    """How long nothing may come before a first request, a request's head may take, its body may
    stand still, and an answer may go unread."""

    def room(self) -> int:
        """How many connections this process has room for."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files == resource.RLIM_INFINITY:
            return self.most
        return max(8, min(self.most, (files - _KEPT_DESCRIPTORS) // 2))


class _Crowd:
    """All connections of one server."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.slowest_s = limits.slowest_s
        self._most = limits.room()
        self._most_of_address = limits.most_of_address or max(1, self._most - self._most // 4)
        self._all: set[Protocol] = set()
        self._by_address: collections.Counter[str] = collections.Counter()

    def let_in(self, newcomer: Protocol) -> bool:
        """Whether there is room for one more, made if need be."""
        address = newcomer.address
        if self._by_address[address] >= self._most_of_address:
            made = _let_go(one for one in self._all if one.address == address)
        else:
            made = len(self._all) < self._most or _let_go(self._all)
        if made:
            self._all.add(newcomer)
            self._by_address[address] += 1
        return made

    def leave(self, one: Protocol) -> None:
        """Make room."""
        if one in self._all:
            self._all.discard(one)
            self._by_address[one.address] -= 1
            if not self._by_address[one.address]:
                del self._by_address[one.address]


def _let_go(among: Iterable[Protocol]) -> bool:
    """End the connection that keeps the server waiting longest; says whether any does."""
    waiting = [(since, one) for one in among if (since := one.waits_since) is not None]
    waiting = [(since, one) for since, one in waiting if not one.held_up]
    if not waiting:
        return False
    _, longest = min(waiting, key=lambda pair: pair[0])
    longest.crowd.leave(longest)
    longest.cut()
    return True


def protocol_for(limits: ConnectionLimits) -> type[Protocol]:
    """What one server speaks HTTP by."""
    return type("Protocol", (Protocol,), {"crowd": _Crowd(limits)})


class Protocol(HttpToolsProtocol):
    """HTTP as uvicorn speaks it, but for its refusals, and for what never ends."""

    crowd: _Crowd
    address = ""
    waits_since: float | None = None
    """Since when the server waits for this client: to ask, to go on, or to read."""

    _idle = False  # between two requests; how long that may last is uvicorn's
    _in_head = _in_body = False
    _head_bytes = _body_bytes = _drained = 0
    _look: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **how)
        self.logger = logger

    @property
    def held_up(self) -> bool:
        """Whether it is the server that does not read on."""
        return self.flow.read_paused and not self.flow.write_paused

    # -- connections ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection where there is room, and look from now on whether it gets on."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        if not self.crowd.let_in(self):
            transport.write(_refusal(_crowded()))
            transport.close()
            return
        self.waits_since = self.loop.time()
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no more."""
        self.crowd.leave(self)
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _look_again(self) -> None:
        pause_s = self.crowd.slowest_s / 6
        self._look = self.loop.call_later(pause_s, self._end_what_stands_still)

    def _end_what_stands_still(self) -> None:
        now, since = self.loop.time(), self.waits_since
        allowed_s = self.timeout_keep_alive + _SLACK_S if self._idle else self.crowd.slowest_s
        if since is not None and self.held_up:
            self.waits_since = now
        elif since is not None and now - since > allowed_s:
            self._end_for_slowness()
            return
        self._look_again()

    def _end_for_slowness(self) -> None:
        answered = self.cycle is not None and self.cycle.response_complete
        if self._idle or self.flow.write_paused:
            self.cut()
        elif self._in_head or (self._in_body and not answered):
            self._refuse(_too_slow())
        else:
            self.transport.close()

    def cut(self) -> None:
        """End the connection at once, with what is still to be sent."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()

    # -- requests ---------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Read on; a head without an end is not kept."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > _MOST_HEAD_BYTES and self.parser is not None:
            self._refuse(_head_too_large())

    def on_message_begin(self) -> None:
        """A request begins."""
        if len(self.pipeline) >= _MOST_WAITING:
            raise ValueError("more requests than may wait behind one")
        self._in_head, self._idle, self._head_bytes = True, False, 0
        self.waits_since = self.loop.time()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header of it."""
        if len(self.headers) >= _MOST_HEADERS:
            raise ValueError("more headers than a request may have")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        self._in_head, self._in_body, self._body_bytes, self._drained = False, True, 0, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Its body goes on."""
        self._body_bytes += len(body)
        if self._body_bytes >= _LEAST_BYTES:
            self._body_bytes, self.waits_since = 0, self.loop.time()
        super().on_body(body)
        if self.cycle.response_complete:
            self._drained += len(body)
            if self._drained > _DRAINED_BYTES:
                self.transport.close()

    def on_message_complete(self) -> None:
        """It is whole."""
        self._in_body, self.waits_since = False, None
        if self.cycle.response_complete:
            self._now_idle()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """It was answered."""
        if self._in_body and not self.pipeline:
            self._answered_early()
        elif not self.pipeline and not self._in_head:
            self._now_idle()
        super().on_response_complete()

    def _answered_early(self) -> None:
        """What was to come after `Expect: 100-continue` will not come: then nothing else can."""
        if self.expect_100_continue and not self._body_bytes:
            self.transport.close()

    def _now_idle(self) -> None:
        self._idle, self.waits_since = True, self.loop.time()

    def pause_writing(self) -> None:
        """The client does not read."""
        self.waits_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It reads on."""
        if not self._in_body:
            self.waits_since = self.loop.time() if self._idle else None
        super().resume_writing()

    # -- refusals ---------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Refuse what is framed wrongly and close the connection."""
        error = bad_request("The request is not framed as HTTP/1.1 says.", code="bad_framing")
        self._refuse(error)

    def _refuse(self, error: ApiError) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and not self.cycle.more_body:  # it came behind a whole request
            self.pipeline.clear()
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if not (answering and self.cycle.response_started):
            self.transport.write(_refusal(error))
        self.transport.close()


def _refusal(error: ApiError) -> bytes:
    body = orjson.dumps(error.body())
    lines = [
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
        "content-type: application/json",
        *(f"{name}: {value}" for name, value in error.headers.items()),
        f"content-length: {len(body)}",
        "connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _too_slow() -> ApiError:
    message = "The request did not come to its end. Send all of it at once."
    return ApiError(408, message, code="request_timeout")


def _head_too_large() -> ApiError:
    message = f"The head of the request is larger than {_MOST_HEAD_BYTES} bytes."
    return ApiError(431, message, code="headers_too_large")


def _crowded() -> ApiError:
    return ApiError(
        503,
        "The server has as many connections as it may, and all are being answered. Please try "
        "again later.",
        type="server_error",
        code="too_many_connections",
        headers={"retry-after": "1"},
    )


class Rarely(logging.Filter):
    """Lets the same message through a few times a minute, and tells how many were left out."""

    _MOST, _WITHIN_S = 5, 60.0

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to tell this one."""
        now, message = time.monotonic(), str(record.msg)[:200]
        since, times = self._told.get(message, (now, 0))
        if now - since > self._WITHIN_S:
            left_out = times - self._MOST
            if left_out > 0:
                record.msg = f"{record.msg} ({left_out} more since the last one)"
            since, times = now, 0
        if len(self._told) > 1000:
            self._told.clear()
        self._told[message] = (since, times + 1)
        return times < self._MOST


logger.addFilter(Rarely())
