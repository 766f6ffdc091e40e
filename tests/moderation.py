"""A small real moderation endpoint on a free loopback port, which can be told to fail.

with moderation_server() as server:
    server.url                                # http://127.0.0.1:PORT/v1
    server.flag = lambda text: ["sexual"]     # the categories of a text
    server.next(JSONResponse({}, 500))        # what the next call is answered
    server.asked                              # the texts of each call
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.servers import free_port
from tests.wire import serving

__all__ = ["CATEGORIES", "Moderation", "moderation_server", "result"]

CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


class Moderation:
    """What the endpoint was asked, and what it says."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[list[str]] = []
        self.models: list[str] = []
        self.flag: Callable[[str], Sequence[str]] = lambda text: ()
        self._next: list[Response] = []

    def next(self, *answers: Response) -> None:
        """Answer the next calls with these."""
        self._next += answers

    def answer(self, model: str, texts: list[str]) -> Response:
        """What a call is answered."""
        self.asked.append(texts)
        self.models.append(model)
        if self._next:
            return self._next.pop(0)
        results = [result(self.flag(text)) for text in texts]
        return JSONResponse({"id": "modr-1", "model": model, "results": results})


def result(flagged: Sequence[str]) -> dict[str, object]:
    """What the endpoint says of one text that is flagged in these categories."""
    return {
        "flagged": bool(flagged),
        "categories": {name: name in flagged for name in CATEGORIES},
        "category_scores": {name: 0.9 if name in flagged else 1e-5 for name in CATEGORIES},
        "category_applied_input_types": {name: ["text"] for name in CATEGORIES},
    }


@contextmanager
def moderation_server() -> Iterator[Moderation]:
    """Serve until the block ends."""
    port = free_port()
    made = Moderation(f"http://127.0.0.1:{port}/v1")

    async def moderate(request: Request) -> Response:
        body = await request.json()
        return made.answer(body["model"], body["input"])

    with serving(Starlette(routes=[Route("/v1/moderations", moderate, methods=["POST"])]), port):
        yield made
