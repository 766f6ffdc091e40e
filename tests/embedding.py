"""A small real endpoint for embeddings on a free loopback port, which can be told to fail.

with embedding_server() as server:
    server.url                                # http://127.0.0.1:PORT/v1
    server.vector = lambda text: [1.0, 0.0]   # of a text
    server.refuses = lambda text: False       # whether a request with it is answered 400
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

__all__ = ["Embedding", "embedding_server", "embeddings", "hidden"]


class Embedding:
    """What the endpoint was asked, and what it says."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[list[str]] = []
        self.models: list[str] = []
        self.vector: Callable[[str], Sequence[float]] = hidden
        self.refuses: Callable[[str], bool] = lambda text: False
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
        if any(map(self.refuses, texts)):
            refusal = {"message": "maximum context length", "code": "context_length_exceeded"}
            return JSONResponse({"error": refusal}, 400)
        return JSONResponse(embeddings(*map(self.vector, texts)))


def hidden(text: str) -> list[float]:
    """What no word says: whether a text's number is divisible by seven, and its length."""
    number = int("".join(filter(str.isdigit, text)) or 1)
    return [float(number % 7 == 0), len(text) / 100, 0.5]


def embeddings(*vectors: Sequence[float]) -> dict[str, object]:
    """An answer with these vectors."""
    data = [
        {"object": "embedding", "index": place, "embedding": list(vector)}
        for place, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return {"object": "list", "model": "vectors", "data": data, "usage": usage}


@contextmanager
def embedding_server() -> Iterator[Embedding]:
    """Serve until the block ends."""
    port = free_port()
    made = Embedding(f"http://127.0.0.1:{port}/v1")

    async def embed(request: Request) -> Response:
        body = await request.json()
        return made.answer(body["model"], body["input"])

    with serving(Starlette(routes=[Route("/v1/embeddings", embed, methods=["POST"])]), port):
        yield made
