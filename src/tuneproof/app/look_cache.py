"""The newest look of each test, read through the cache.

Its two arms stand under `model_metrics:TEST:ARM:vN`, and what is said beside them under
`model_metrics:TEST:look:vN`; N is the look's number, so nothing that is kept ever gets old. Each
part names when its test began: of two services with one Redis none believes the other's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from tuneproof.cache import METRICS_TTL_S, Cache, metrics_key
from tuneproof.experiments import ABTest, Arm, Look
from tuneproof.resilience import Supervisor
from tuneproof.store import Store, look_document, look_of_document

__all__ = ["LookCache"]

_PARTS = (str(Arm.BASELINE), str(Arm.CANDIDATE), "look")
_BEGAN = "test_began"


class LookCache:
    """Reads looks by way of `cache`, which each look warms; None: from the store."""

    def __init__(self, *, store: Store, cache: Cache | None, supervisor: Supervisor) -> None:
        self._store = store
        self._cache = cache
        self._supervisor = supervisor

    async def newest(self, tests: Sequence[ABTest]) -> Sequence[Look | None]:
        """The newest look of each of these tests; None where it has none yet."""
        if self._cache is None:
            return [await self._store.experiments.last_look(test.id) for test in tests]
        numbers = await self._store.experiments.numbers_of_looks([test.id for test in tests])
        return [await self._read(self._cache, test, numbers.get(test.id, 0)) for test in tests]

    async def _read(self, cache: Cache, test: ABTest, number: int) -> Look | None:
        if not number:
            return None
        keys = [metrics_key(test.id, part, number) for part in _PARTS]
        parts = await asyncio.gather(*(cache.get(key) for key in keys))
        began = test.start_at.isoformat()
        if all(isinstance(part, dict) and part.get(_BEGAN) == began for part in parts):
            return _joined(parts)
        look = await self._store.experiments.last_look(test.id)
        if look is not None:
            await self._keep(cache, test, look)
        return look

    async def _keep(self, cache: Cache, test: ABTest, look: Look) -> None:
        baseline, candidate, rest = _divided(look)
        began = {_BEGAN: test.start_at.isoformat()}
        for part, value in zip(_PARTS, (baseline, candidate, rest), strict=True):
            key = metrics_key(test.id, part, look.number)
            await cache.set(key, {**value, **began}, METRICS_TTL_S)

    def warm_soon(self, test: ABTest, look: Look) -> None:
        """Put a look into the cache, without keeping the run waiting for it."""
        cache = self._cache
        if cache is not None:
            self._supervisor.soon("warm", lambda: self._keep(cache, test, look), attempts=1)


def _divided(look: Look) -> list[dict[str, object]]:
    document = look_document(look)
    return [dict(document.pop(arm)) for arm in _PARTS[:2]] + [document]


def _joined(parts: Sequence[Mapping[str, object]]) -> Look:
    baseline, candidate, rest = (
        {name: value for name, value in part.items() if name != _BEGAN} for part in parts
    )
    return look_of_document({**rest, "baseline": baseline, "candidate": candidate})
