"""The routes that applications call all the time, answered before anything else is woken.

`GET /decide` and `GET /routing` are ordinary routes. This stands in front of the whole
service and repeats what they would say, where that is plain: the routing is held in memory,
the question is well formed, and the ordinary route let the same caller in a moment ago.
Everything else (a new caller, a bad question, a task that nobody knows) is theirs.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from tuneproof.errors import TuneProofError

if TYPE_CHECKING:
    from starlette.types import Scope, Send

    from tuneproof.app import App
    from tuneproof.server.board import Board, Table

TRUST_S = 1.0
"""How long a token that was let in is not checked again. While one request checks it anew the
others go on, so a revoked token ends within twice this."""

GRACE_S = 0.1
PATHS = frozenset({"/decide", "/routing"})
MAX_CALLERS = 1000
MAX_UNIT = 500

Caller = tuple[bytes, bytes]
"""The Host and the Authorization header."""


class Callers:
    """Who was let in to read a moment ago."""

    def __init__(self) -> None:
        self._open: set[bytes] = set()
        self._tokens: dict[Caller, tuple[float, float]] = {}

    def remember(self, scope: Scope) -> None:
        """This request was let in; its like will be, for a while."""
        caller = _caller(scope)
        if caller is None:
            return
        host, authorization = caller
        if not authorization:  # let in by its name, which settings alone decide
            if len(self._open) < MAX_CALLERS:
                self._open.add(host)
            return
        if len(self._tokens) >= MAX_CALLERS:
            self._tokens.clear()
        now = time.monotonic()
        self._tokens[caller] = (now + TRUST_S, now + 2 * TRUST_S)

    def know(self, caller: Caller) -> bool:
        """Whether it needs no check now."""
        host, authorization = caller
        if not authorization:
            return host in self._open
        trusted, end = self._tokens.get(caller, (0.0, 0.0))
        now = time.monotonic()
        if trusted > now:
            return True
        if end > now:  # this request checks it anew, those beside it do not wait
            self._tokens[caller] = (min(now + GRACE_S, end), end)
        return False


class Hot:
    """Answers what it can; `answered` is false where the service must."""

    def __init__(self, app: App, board: Board, callers: Callers) -> None:
        self._app = app
        self._board = board
        self._callers = callers

    async def answered(self, scope: Scope, send: Send) -> bool:
        """Serve a request for one of `PATHS`, or say that it is not that plain."""
        began = time.perf_counter()
        path: str = scope["path"]
        caller = _caller(scope)
        if scope["method"] != "GET" or caller is None or not self._callers.know(caller):
            return False
        try:
            table = self._board.held or await self._board.current()
        except TuneProofError:
            return False  # the route says so
        found = _answer(table, path, scope)
        if found is None:
            return False
        status, body, headers = found
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self._app.observe_request("GET", path, status, time.perf_counter() - began)
        return True


_SAFE = (b"x-content-type-options", b"nosniff")
_JSON = (b"content-type", b"application/json")


def _answer(
    table: Table, path: str, scope: Scope
) -> tuple[int, bytes, list[tuple[bytes, bytes]]] | None:
    """Status, body and headers; None for a question that is not plain."""
    if path == "/decide":
        body = _decision(table, scope["query_string"])
        return None if body is None else (200, body, _headers(body))
    if scope["query_string"]:
        return None
    tag = b'"%d"' % table.version
    if (b"if-none-match", tag) in scope["headers"]:
        return 304, b"", [(b"etag", tag), _SAFE]
    return 200, table.body, [*_headers(table.body), (b"etag", tag)]


def _headers(body: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"content-length", b"%d" % len(body)), _JSON, _SAFE]


def _caller(scope: Scope) -> Caller | None:
    """The caller; None where a page of another site may speak."""
    host = authorization = b""
    for name, value in scope["headers"]:
        if name == b"host":
            host = value
        elif name == b"authorization":
            authorization = value
        elif name == b"origin":
            return None
    return host, authorization


def _decision(table: Table, query: bytes) -> bytes | None:
    """The answer to `task=…&unit=…`; None where it is not as plain as that."""
    first, _, second = query.partition(b"&")
    if first.startswith(b"unit="):
        first, second = second, first
    if not (first.startswith(b"task=") and second.startswith(b"unit=") and query.isascii()):
        return None
    sides = table.sides.get(first[5:].decode())
    unit = _text(second[5:])
    if sides is None or unit is None or not 0 < len(unit) <= MAX_UNIT:
        return None
    return sides.answer(unit)


def _text(quoted: bytes) -> str | None:
    if b"&" in quoted:
        return None
    try:
        if b"%" in quoted or b"+" in quoted:
            return unquote_to_bytes(quoted.replace(b"+", b" ")).decode()
        return quoted.decode()
    except UnicodeDecodeError:
        return None
