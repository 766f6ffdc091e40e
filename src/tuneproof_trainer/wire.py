"""Bytes in and out: JSON answers, bodies of bounded size, query parameters, pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from tuneproof_trainer.errors import ApiError, bad_request

__all__ = ["JsonResponse", "limit_of", "page", "read_body"]

_MAX_BODY_BYTES = 32 * 1024 * 1024


class JsonResponse(Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


async def read_body(receive: Receive, max_bytes: int = _MAX_BODY_BYTES) -> bytes:
    """The whole body of a request; raises ApiError 413 beyond `max_bytes`."""
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client went away before its request was whole")
        piece = message.get("body", b"")
        size += len(piece)
        if size > max_bytes:
            raise ApiError(
                413,
                f"The body of the request is larger than {max_bytes} bytes.",
                code="request_too_large",
            )
        pieces.append(piece)
        if not message.get("more_body"):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def limit_of(request: Request, default: int, most: int) -> int:
    """The query parameter `limit`; raises ApiError 400 outside 1 to `most`."""
    text = request.query_params.get("limit")
    if text is None:
        return default
    try:
        limit = int(text)
    except ValueError:
        raise bad_request(
            f"Invalid type for 'limit': expected an integer, but got {text!r}.",
            "limit",
            "invalid_type",
        ) from None
    if not 1 <= limit <= most:
        raise bad_request(
            f"Invalid 'limit': Expected a value between 1 and {most}, but got {limit}.",
            "limit",
            "invalid_value",
        )
    return limit


def page(rows: Sequence[Any], limit: int, show: Callable[[Any], Mapping[str, Any]]) -> JsonResponse:
    """A page of a list that was asked for one row more than `limit`."""
    data = [show(row) for row in rows[:limit]]
    return JsonResponse(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(rows) > limit,
        }
    )
