"""Bearer tokens: made once, and asked for with each request."""

from __future__ import annotations

from collections.abc import Sequence

from tuneproof.store import Store
from tuneproof.workflow import Clock

__all__ = ["TokenService"]


class TokenService:
    """What can be asked of tokens."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def create(self, name: str, *, scopes: Sequence[str], actor: str = "system") -> str:
        """A new bearer token, shown once; only its hash is kept."""
        now = self._clock.now()
        async with self._store.database.begin() as tx:
            token = await self._store.tokens.create(name, scopes, now, tx=tx)
            await self._store.activity.add(now, actor, "token create", name, tx=tx)
        return token
