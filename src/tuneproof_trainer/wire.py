"""Bytes in and out: JSON answers, bodies of bounded size, pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive

from tuneproof_trainer.answers import ObjectPage
from tuneproof_trainer.database import Row
from tuneproof_trainer.errors import ApiError

__all__ = ["JsonResponse", "page", "read_body"]

T = TypeVar("T")
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


def page(rows: Sequence[Row], limit: int, show: Callable[[Row], T]) -> JsonResponse:
    """A page of a list from which one row more than `limit` was read."""
    shown = rows[:limit]
    content: ObjectPage[T] = {
        "object": "list",
        "data": [show(row) for row in shown],
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(rows) > limit,
    }
    return JsonResponse(content)
