"""What models answer in a check, kept as it comes: one that breaks off goes on where it was.

On a slow machine a check takes hours, and whoever asks for it is killed or loses patience with a
single call. What was answered stands in a file, and is not asked again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tuneproof.errors import DataError, ProviderUnavailableError
from tuneproof.evaluation.scorers import Messages, Scored, Scorer, ask
from tuneproof.resilience import end_tasks
from tuneproof.training import Answers, Completion, Embeds, Score

__all__ = ["Kept", "together"]

log = logging.getLogger(__name__)

T = TypeVar("T")

CONCURRENCY = 8
"""How many calls are made at once, at first: a machine that is too slow for them gets fewer."""

CALL_S = 600.0
"""How long one call may take: nobody waits for it but the check."""

_AT_ONCE = "at once"


class Kept:
    """The answers of one run's checks, in a file of JSON lines that grows with each.

    Several may read and write the file: a line is written at once, and one that a kill cut off is
    read over. Raises `DataError` where it cannot be read.
    """

    def __init__(self, path: Path, *, concurrency: int = CONCURRENCY) -> None:
        self._path = path
        self._known = _read(path)
        self.given = 0
        """How often it was asked for an answer and had or got it."""
        fewer = partial(_append, path, _AT_ONCE)
        self._slots = _Slots(self._known.pop(_AT_ONCE, concurrency), fewer)

    def of(self, provider: Answers) -> Answers:
        """This provider, asked for what it has not answered yet."""
        return _Keeping(self, provider)

    def embedding(self, provider: Embeds) -> Embeds:
        """This provider, asked for vectors as patiently; these are kept elsewhere."""
        return _Embedding(self, provider)

    def scorer(self, name: str, scorer: Scorer) -> Scorer:
        """This scorer, asked for what it has not scored yet."""

        async def kept(messages: Messages, text: str) -> Scored:
            key = _key("scorer", name, text, *messages)
            found = await self.once(key, lambda: _asked(scorer, messages, text))
            return Scored(**found)

        return kept

    async def patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call finds, made among so many at once as this machine can bear."""
        found = await self._slots.patiently(call)
        self.given += 1
        return found

    async def once(self, key: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """What the call found when it was first made, as JSON; None is not kept."""
        if key not in self._known:
            found = await self._slots.patiently(call)
            if found is None:
                return None
            if key not in self._known:  # the same was not asked twice at once
                self._known[key] = found
                _append(self._path, key, found)  # not in a thread: an end between would lose it
        self.given += 1
        return self._known[key]


class _Keeping:
    """A provider whose answers are kept; two may call different models by the same name."""

    def __init__(self, kept: Kept, provider: Answers) -> None:
        self.name = provider.name
        self._kept = kept
        self._provider = provider

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
        """As the provider's."""

        more = {"parameters": parameters} if parameters else {}

        async def call() -> list[dict[str, Any]]:
            found = await self._provider.complete(
                model,
                messages,
                n=n,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                timeout_s=timeout_s or CALL_S,
                **more,
            )
            return [asdict(one) for one in found]

        key = _key(
            "answer",
            self._provider.name,
            model,
            n,
            max_tokens,
            temperature,
            seed,
            *more.values(),
            *messages,
        )
        return [Completion(**one) for one in await self._kept.once(key, call)]

    async def score(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        timeout_s: float | None = None,
    ) -> Score | None:
        """As the provider's."""

        async def call() -> dict[str, Any] | None:
            found = await self._provider.score(model, messages, timeout_s=timeout_s or CALL_S)
            return None if found is None else asdict(found)

        found = await self._kept.once(_key("score", self._provider.name, model, *messages), call)
        return None if found is None else Score(**found)


class _Embedding:
    """A provider that is given time."""

    def __init__(self, kept: Kept, provider: Embeds) -> None:
        self.name = provider.name
        self._kept = kept
        self._provider = provider

    async def embed(
        self, model: str, texts: Sequence[str], *, timeout_s: float | None = None
    ) -> Sequence[Sequence[float]]:
        """As the provider's."""
        return await self._kept.patiently(
            lambda: self._provider.embed(model, texts, timeout_s=timeout_s or CALL_S)
        )


class _Slots:
    """So many calls at once, fewer once they take too long.

    A machine that answers one at a time answers the eighth after eight times as long: asked eight
    at once, it would never be done within one call's time, however often it is asked. `fewer` is
    told of it, for who goes on later.
    """

    def __init__(self, most: int, fewer: Callable[[int], None]) -> None:
        self._most = most
        self._fewer = fewer
        self._busy = 0
        self._free = asyncio.Condition()

    async def patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's result; where it takes too long among others, once more among fewer."""
        while True:
            async with self._one() as beside:
                try:
                    return await call()
                except ProviderUnavailableError as error:
                    if not error.details.get("timed_out") or beside == 1:
                        raise
                    if beside // 2 < self._most:
                        self._most = beside // 2
                        log.warning("%s From now on %d are asked at once.", error, self._most)
                        self._fewer(self._most)

    @asynccontextmanager
    async def _one(self) -> AsyncIterator[int]:
        """A slot, and how many were let in at most when it was given."""
        async with self._free:
            await self._free.wait_for(lambda: self._busy < self._most)
            self._busy += 1
            beside = self._most
        try:
            yield beside
        finally:
            self._busy -= 1
            async with self._free:
                self._free.notify_all()


async def together(calls: Sequence[Awaitable[T]]) -> list[T]:
    """The results of all, in their order; where one fails the others are ended first."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await end_tasks(tasks)


async def _asked(scorer: Scorer, messages: Messages, text: str) -> dict[str, Any]:
    return asdict(await ask(scorer, messages, text))


def _key(*parts: object) -> str:
    said = json.dumps(parts, sort_keys=True, default=dict)
    return hashlib.sha256(said.encode(errors="surrogatepass")).hexdigest()[:32]


def _read(path: Path) -> dict[str, Any]:
    """What the file keeps; the first of what was answered twice."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(
            f"What was asked until now cannot be read from {path}: {error}.",
            mend="Make the data directory readable, or remove the file: all is asked again.",
        ) from error
    known: dict[str, Any] = {}
    for line in lines:
        try:
            key, found = json.loads(line)
        except ValueError:
            continue  # a kill cut it off
        if key == _AT_ONCE:
            known[key] = found
        known.setdefault(key, found)
    return known


def _append(path: Path, key: str, found: Any) -> None:
    """Write a line, which begins anew behind one that was cut off."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            file.write(f"\n{json.dumps([key, found])}\n".encode())
    except OSError as error:  # the check goes on; what is not kept may be asked again
        log.warning("an answer could not be kept in %s: %s", path, error)
