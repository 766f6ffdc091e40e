"""The routes that applications call all the time, as plain ASGI over the board.

`GET /decide` and `GET /routing` are ordinary routes. This stands in front of the whole
service and says what they would, where that is plain: the question is well formed, and the same
caller was let in a moment ago. Everything else (a new caller, a bad question, a task that nobody
knows) is theirs.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from tuneproof.errors import StoreUnavailableError

if TYPE_CHECKING:
    from starlette.types import Scope, Send

    from tuneproof.app import App, RoutingSnapshot
    from tuneproof.server.auth import Callers

PATHS = frozenset({"/decide", "/routing"})
KNOWS = b"knows=prompts"
"""How who asks says that it can ask a model by the prompt that it is told."""

MAX_UNIT = 500

Headers = list[tuple[bytes, bytes]]

_SAFE = (b"x-content-type-options", b"nosniff")
_JSON = (b"content-type", b"application/json")


class Hot:
    """Answers what it can; `answered` is false where the service must."""

    def __init__(self, app: App, callers: Callers) -> None:
        self._app = app
        self._callers = callers

    async def answered(self, scope: Scope, send: Send) -> bool:
        """Serve a request for one of `PATHS`, or say that it is not that plain."""
        began = time.perf_counter()
        path: str = scope["path"]
        if scope["method"] != "GET" or not self._may_read(scope):
            return False
        try:
            found = answer(self._app.routing.board.snapshot, path, scope)
        except StoreUnavailableError:
            return False  # the route says so
        if found is None:
            return False
        status, body, headers = found
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self._app.metrics.request_finished("GET", path, status, time.perf_counter() - began)
        return True

    def _may_read(self, scope: Scope) -> bool:
        host = authorization = b""
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
            elif name == b"authorization":
                authorization = value
            elif name == b"origin":
                return False  # a page of another site may speak
        return self._callers.may_read(host, authorization)


def answer(snapshot: RoutingSnapshot, path: str, scope: Scope) -> tuple[int, bytes, Headers] | None:
    """Status, body and headers; None for a question that is not plain."""
    if path == "/decide":
        body = decision(snapshot, scope["query_string"])
        return None if body is None else (200, body, _headers(body))
    query = scope["query_string"]
    if query and query != KNOWS:
        return None
    tag = b'"%s"' % snapshot.tag[bool(query)].encode()
    if (b"if-none-match", tag) in scope["headers"]:
        return 304, b"", [(b"etag", tag), _SAFE]
    body = snapshot.body[bool(query)]
    return 200, body, [*_headers(body), (b"etag", tag)]


def _headers(body: bytes) -> Headers:
    return [(b"content-length", b"%d" % len(body)), _JSON, _SAFE]


def decision(snapshot: RoutingSnapshot, query: bytes) -> bytes | None:
    """The answer to `task=…&unit=…`, maybe with `&knows=prompts`; None where it is not as plain."""
    plain = query.removesuffix(b"&" + KNOWS)
    knows, query = plain != query, plain
    first, _, second = query.partition(b"&")
    if first.startswith(b"unit="):
        first, second = second, first
    if not (first.startswith(b"task=") and second.startswith(b"unit=") and query.isascii()):
        return None
    answers = snapshot.answers[knows].get(first[5:].decode())
    unit = _text(second[5:])
    if answers is None or unit is None or not 0 < len(unit) <= MAX_UNIT:
        return None
    return answers.decide(unit)


def _text(quoted: bytes) -> str | None:
    if b"&" in quoted:
        return None
    try:
        if b"%" in quoted or b"+" in quoted:
            text = unquote_to_bytes(quoted.replace(b"+", b" ")).decode()
            return None if "\0" in text else text
        return quoted.decode()
    except UnicodeDecodeError:
        return None
