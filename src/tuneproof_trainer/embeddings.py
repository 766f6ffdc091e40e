"""POST /v1/embeddings: texts as vectors, by the states of a model that was made to generate."""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Sequence

import orjson
from starlette.types import Receive, Send

from tuneproof_trainer.access import ApiCaller
from tuneproof_trainer.answers import EmbeddingList, EmbeddingObject
from tuneproof_trainer.engines.protocol import Embedded
from tuneproof_trainer.errors import bad_request
from tuneproof_trainer.models import Models, Resolved
from tuneproof_trainer.parsing import parse
from tuneproof_trainer.requests import EmbeddingsRequest
from tuneproof_trainer.turns import Turns, unless_gone

__all__ = ["Embeddings"]


class Embeddings:
    """The route, as a plain ASGI function."""

    def __init__(self, models: Models, turns: Turns) -> None:
        self._models, self._turns = models, turns

    async def __call__(self, caller: ApiCaller, body: bytes, receive: Receive, send: Send) -> None:
        """Answer one request, for as long as its client is there."""
        request = parse(EmbeddingsRequest, body)
        model = self._models.resolve(caller.org, request.model)
        found = await unless_gone(receive, self._embedded(model, request.texts))
        answer = orjson.dumps(_answer(request, found))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(answer)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _embedded(self, model: Resolved, texts: Sequence[str]) -> Embedded:
        async with self._turns.place():
            await self._models.ready(model)
            return await self._turns.run(model.engine.embed, model.id, texts)


def _answer(request: EmbeddingsRequest, found: Embedded) -> EmbeddingList:
    size = len(found.vectors[0])
    if request.dimensions is not None and request.dimensions > size:
        raise bad_request(
            f"The vectors of this model have {size} dimensions; {request.dimensions} are asked "
            "for. Ask for as many or fewer, or leave dimensions out.",
            "dimensions",
            "invalid_value",
        )
    data = [_object(request, place, vector) for place, vector in enumerate(found.vectors)]
    return {
        "object": "list",
        "data": data,
        "model": request.model,
        "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
    }


def _object(request: EmbeddingsRequest, place: int, vector: Sequence[float]) -> EmbeddingObject:
    cut = list(vector) if request.dimensions is None else _cut(vector, request.dimensions)
    shown = cut if request.encoding_format == "float" else _packed(cut)
    return {"object": "embedding", "index": place, "embedding": shown}


def _cut(vector: Sequence[float], dimensions: int) -> list[float]:
    """The first dimensions, of length 1 again."""
    kept = list(vector[:dimensions])
    length = math.sqrt(math.fsum(value * value for value in kept)) or 1.0
    return [value / length for value in kept]


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(array("f", vector).tobytes()).decode()
