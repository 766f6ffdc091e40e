"""Bytes in and out: JSON answers, bodies of bounded size, pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope

from tuneproof_trainer.answers import ObjectPage
from tuneproof_trainer.bounded import MAX_JSON_BYTES
from tuneproof_trainer.database import Row
from tuneproof_trainer.errors import ApiError
from tuneproof_trainer.origins import require_json

__all__ = ["BodyReader", "BodyRoom", "JsonResponse", "page"]

T = TypeVar("T")
R = TypeVar("R", bound=Mapping[str, Any] | Row)


class JsonResponse(Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


class BodyRoom:
    """How much memory all bodies of JSON may take that are being read and answered."""

    def __init__(self, most_bytes: int = 4 * MAX_JSON_BYTES) -> None:
        self._most, self.held = most_bytes, 0

    def take(self, size: int) -> None:
        """Take room; raises ApiError 503 where there is none."""
        if self.held + size > self._most:
            raise ApiError(
                503,
                "The server holds as many large requests as it may. Please try again later.",
                type="server_error",
                code="engine_overloaded",
                headers={"retry-after": "1"},
            )
        self.held += size

    def give_back(self, size: int) -> None:
        """Give room back."""
        self.held -= size


class BodyReader:
    """Reads the body of one request, which takes room until `close`."""

    def __init__(self, room: BodyRoom) -> None:
        self._room, self._taken = room, 0

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body; raises ApiError 413 beyond `MAX_JSON_BYTES`, 415 where it is no JSON."""
        require_json(scope)
        pieces: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client went away before its request was whole")
            pieces.append(self._counted(message.get("body", b"")))
            if not message.get("more_body"):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _counted(self, piece: bytes) -> bytes:
        if self._taken + len(piece) > MAX_JSON_BYTES:
            raise ApiError(
                413,
                f"The body of the request is larger than {MAX_JSON_BYTES} bytes.",
                code="request_too_large",
            )
        self._room.take(len(piece))
        self._taken += len(piece)
        return piece

    def close(self) -> None:
        """Give the room back."""
        self._room.give_back(self._taken)
        self._taken = 0


def page(rows: Sequence[R], limit: int, show: Callable[[R], T]) -> JsonResponse:
    """A page of a list from which one row more than `limit` was read."""
    shown = rows[:limit]
    content: ObjectPage[T] = {
        "object": "list",
        "data": [show(row) for row in shown],
        "first_id": shown[0]["id"] if shown else "",
        "last_id": shown[-1]["id"] if shown else "",
        "has_more": len(rows) > limit,
    }
    return JsonResponse(content)
