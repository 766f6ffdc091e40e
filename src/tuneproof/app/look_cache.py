"""What the newest look says of each arm, in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from tuneproof.cache import METRICS_TTL_S, Cache, metrics_key
from tuneproof.experiments import Arm, Look
from tuneproof.resilience import Supervisor
from tuneproof.store import Store

__all__ = ["LookCache"]


class LookCache:
    """Reads them through the cache, which each look warms."""

    def __init__(self, *, store: Store, cache: Cache, supervisor: Supervisor) -> None:
        self._store = store
        self._cache = cache
        self._supervisor = supervisor

    async def of(self, id: str, arm: Arm) -> Mapping[str, object] | None:
        """One arm's figures from the cache, which each look warms; else from the last look."""
        number = await self._cache.get_or_compute(
            _newest_key(id), METRICS_TTL_S, lambda: self._store.experiments.count_looks(id)
        )
        if not number:
            return None

        async def read() -> Mapping[str, object] | None:
            look = await self._store.experiments.last_look(id)
            if look is None:
                return None
            return asdict(look.baseline if arm is Arm.BASELINE else look.candidate)

        found: Mapping[str, object] | None = await self._cache.get_or_compute(
            metrics_key(id, str(arm), number), METRICS_TTL_S, read
        )
        return found

    def warm_soon(self, look: Look) -> None:
        """Put a look's figures into the cache, without keeping the run waiting for it."""
        self._supervisor.soon("warm", lambda: self.warm(look), attempts=1)

    async def warm(self, look: Look) -> None:
        """Put a look's figures into the cache."""
        id = look.experiment_id
        for arm, figures in ((Arm.BASELINE, look.baseline), (Arm.CANDIDATE, look.candidate)):
            await self._cache.set(
                metrics_key(id, str(arm), look.number), asdict(figures), METRICS_TTL_S
            )
        await self._cache.set(_newest_key(id), look.number, METRICS_TTL_S)


def _newest_key(id: str) -> str:
    """Where the cache keeps the number of an experiment's newest look."""
    return f"model_metrics:{id}:newest"
