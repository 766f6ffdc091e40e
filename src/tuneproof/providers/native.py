"""What providers with a fine-tuning wire of their own share: chat over OpenAI's wire, files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuneproof.errors import DataError
from tuneproof.providers.http import Http
from tuneproof.providers.openai_wire import OpenAIWire
from tuneproof.training import Completion, Score
from tuneproof.workflow import Clock

CHUNK_BYTES = 1 << 20


class Native:
    """The part of a `Provider` that answers; `http` speaks its own wire, `chat` OpenAI's."""

    def __init__(self, *, name: str, http: Http, chat: OpenAIWire, clock: Clock) -> None:
        self.name = name
        self._http = http
        self._chat = chat
        self._clock = clock

    async def complete(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        n: int = 1,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Sequence[Completion]:
        """Ask a model for `n` replies. Raises `NotFoundError` for one that is not deployed."""
        return await self._chat.complete(
            model,
            messages,
            n=n,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            timeout_s=timeout_s,
            parameters=parameters,
        )

    async def ensure_deployed(self, model: str) -> None:
        """Return where the model answers. Raises `NotDeployedError`, which says how it comes to."""
        await self._chat.ensure_deployed(model)

    async def score(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        timeout_s: float | None = None,
    ) -> Score | None:
        """None: these wires give no probabilities of a given reply."""
        return await self._chat.score(model, messages, timeout_s=timeout_s)

    async def close(self) -> None:
        """Give connections back."""
        await self._http.close()
        await self._chat.close()


def size_of(path: Path) -> int:
    """A training file's bytes. Raises `DataError` where it is absent or empty."""
    try:
        size = path.stat().st_size
    except OSError as e:
        raise DataError(
            f"Training file {path} cannot be read: {e.strerror}.",
            mend="Collect the training data again.",
        ) from e
    if size == 0:
        raise DataError(f"Training file {path} is empty.", mend="Collect more examples.")
    return size


async def chunks(path: Path) -> AsyncIterator[bytes]:
    """A file's bytes, a megabyte at a time."""
    with path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            yield data


def instant(value: Any) -> datetime | None:
    """An instant of a wire, as text or in seconds; None where it is neither."""
    try:
        if isinstance(value, (int, float)) and value > 0:
            return datetime.fromtimestamp(value, UTC)
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except (ValueError, OverflowError, OSError):
        return None
    return found.replace(tzinfo=found.tzinfo or UTC) if found else None
