"""A language model's vectors of texts: what an outcome model sees of them beside their words.

A model that was made to generate knows more of a headline than its words say: with its vectors the
same linear model finds more winners (`docs/benchmarks.md`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tuneproof.errors import (
    CredentialsError,
    DataError,
    NotFoundError,
    ProviderUnavailableError,
)
from tuneproof.evaluation.kept import together
from tuneproof.evaluation.texts import Vectors
from tuneproof.evaluation.vector_cache import VectorCache
from tuneproof.training import Embeds

__all__ = ["Embedder"]

AT_ONCE: Final = 32
"""How many texts one call asks for."""

LONGEST: Final = 2_000
"""How many characters of a text are asked for: the rest adds little, and each model has a limit."""

PROBE: Final = "Hello"
"""What is asked for each time, to see whether a model gives vectors, and the same as before."""

_NOT_IMPLEMENTED: Final = 501


class Embedder:
    """Asks a model for the vectors of texts, of each text once; with `kept`, a file of vectors of
    before, of none that stands there."""

    def __init__(self, provider: Embeds, model: str, kept: Path | None = None) -> None:
        self.model = model
        self._provider = provider
        self._kept = None if kept is None else VectorCache(kept, provider.name, model)
        self._known: dict[str, NDArray[np.floating[Any]]] = {}
        self._refused: set[str] = set()

    async def answers(self) -> bool:
        """Whether this model gives vectors: most that generate do not, and are refused.

        Raises what says nothing of that: `ProviderUnavailableError`, `RateLimitedError`, ...
        """
        try:
            [probe] = await self._provider.embed(self.model, [PROBE])
        except (DataError, NotFoundError, CredentialsError):
            return False
        except ProviderUnavailableError as error:
            if error.details.get("status") != _NOT_IMPLEMENTED:
                raise
            return False
        if self._kept is not None:
            await asyncio.to_thread(self._kept.begin, np.asarray(probe, np.float32))
        return True

    async def recall(self, texts: Sequence[str]) -> None:
        """Know the vectors of those of these texts that were kept."""
        new = self._new(texts)
        if self._kept is not None and new:
            self._known.update(await asyncio.to_thread(self._kept.known, new))

    def calls(self, texts: Sequence[str]) -> int:
        """How many calls these texts take, after `recall`."""
        return -(-len(self._new(texts)) // AT_ONCE)

    async def vectors(self, texts: Sequence[str]) -> Vectors:
        """The vectors of these texts, and of all before.

        An empty text has none, nor has one that is refused when it is asked for alone.
        """
        await self.recall(texts)
        new = self._new(texts)
        batches = [new[start : start + AT_ONCE] for start in range(0, len(new), AT_ONCE)]
        for found in await together([self._asked(batch) for batch in batches]):
            self._known.update(found)
        return self._known

    def _new(self, texts: Sequence[str]) -> list[str]:
        """Those that were not asked for yet, equally long ones together."""
        asked = self._known.keys() | self._refused
        new = {text for text in texts if text.strip() and text not in asked}
        return sorted(new, key=lambda text: (len(text), text))

    async def _asked(self, texts: Sequence[str]) -> dict[str, NDArray[np.floating[Any]]]:
        try:
            found = await self._provider.embed(self.model, [text[:LONGEST] for text in texts])
        except DataError:
            if len(texts) == 1:
                self._refused.update(texts)
                return {}
            half = len(texts) // 2
            return {**await self._asked(texts[:half]), **await self._asked(texts[half:])}
        vectors = dict(zip(texts, np.asarray(found, np.float32), strict=True))
        if self._kept is not None:
            await asyncio.to_thread(self._kept.keep, vectors)
        return vectors
