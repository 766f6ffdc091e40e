"""`Idempotency-Key`: a write sent twice is done once, and answered the same.

The first success is kept by the store under the caller's key; later requests with that key
get it again, with `Idempotency-Replayed: true`. The same key with another request is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from tuneproof.errors import ConflictError
from tuneproof.server.state import app_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tuneproof.server.auth import Caller
    from tuneproof.store import KeptAnswer


class Once:
    """The keys at work in this process: requests with the same one wait for each other."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def holding(self, key: str) -> AsyncIterator[None]:
        """Hold `key`; others with it wait."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            yield


async def once(
    request: Request,
    caller: Caller,
    key: str | None,
    do: Callable[[], Awaitable[BaseModel]],
    *,
    status: int = 200,
) -> JSONResponse:
    """Answer `do()`, at most once for each `key` of a caller.

    Raises `ConflictError` where the key came with another request before. What `do` raises
    is not kept: a request that failed may be sent again.
    """
    if key is None:
        return JSONResponse((await do()).model_dump(mode="json"), status)
    app = app_of(request)
    kept_as = f"{caller.name}:{key}"
    digest = await _hash(request)
    async with request.app.state.once.holding(kept_as):
        kept = await app.store.idempotency.get(kept_as)
        if kept is not None:
            return _again(kept, digest, key)
        body = (await do()).model_dump(mode="json")
        try:
            await app.store.idempotency.put(kept_as, digest, status, body, app.clock.now())
        except ConflictError:
            other = await app.store.idempotency.get(
                kept_as
            )  # another process was quicker with this key
            if other is None:
                raise
            return _again(other, digest, key)
        return JSONResponse(body, status)


def _again(kept: KeptAnswer, digest: str, key: str) -> JSONResponse:
    if kept.request_hash != digest:
        raise ConflictError(
            f"The idempotency key {key!r} was sent before with another request.",
            mend="Take a new key for each new request.",
        )
    return JSONResponse(kept.body, kept.status, headers={"Idempotency-Replayed": "true"})


async def _hash(request: Request) -> str:
    body: Any = await request.body()
    line = f"{request.method} {request.url.path}\n".encode()
    return hashlib.sha256(line + body).hexdigest()
