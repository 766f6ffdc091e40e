"""`Idempotency-Key`: a write sent twice is done once, and answered the same.

The key is taken in the database before anything is done, so it holds among all workers. The
first success is kept under it; later requests with that key get it again, with
`Idempotency-Replayed: true`, and those that come meanwhile wait for it. The same key with
another request is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from tuneproof.errors import ConflictError, StoreUnavailableError
from tuneproof.server.state import app_of
from tuneproof.store import Claim, KeptAnswer

if TYPE_CHECKING:
    from tuneproof.server.auth import Caller
    from tuneproof.store import Idempotency

log = logging.getLogger(__name__)

PATIENCE_S = 10.0
"""How long a request waits for the answer of the one that took its key."""

POLL_S = 0.05

Do = Callable[[Claim | None], Awaitable[BaseModel]]
"""Does what the request asks for; notes what it makes under the claim, where there is one."""

Again = Callable[[str], Awaitable[BaseModel]]
"""The answer for what a request has made, by its id."""


async def once(
    request: Request, caller: Caller, key: str | None, do: Do, again: Again, *, status: int = 200
) -> JSONResponse:
    """Answer `do`, at most once for each `key` of a caller.

    Where its process died after the effect, `again` answers for what was made. What `do` raises
    is not kept: a request that failed may be sent again. Raises `ConflictError` where the key
    came with another request before, or is still at work.
    """
    if key is None:
        return JSONResponse((await do(None)).model_dump(mode="json"), status)
    keys = app_of(request).store.idempotency
    found = await _taken(keys, f"{caller.name}:{key}", await _hash(request), key)
    if isinstance(found, Claim):
        return await _first(found, do, status)
    return await _repeated(keys, found, again, status)


async def _taken(keys: Idempotency, kept_as: str, digest: str, key: str) -> Claim | KeptAnswer:
    """The key, or what is known of the request that took it, once that was answered."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + PATIENCE_S
    while True:
        found = await keys.take(kept_as, digest)
        if isinstance(found, Claim):
            return found
        if found.request_hash != digest:
            raise ConflictError(
                f"The idempotency key {key!r} was sent before with another request.",
                mend="Take a new key for each new request.",
            )
        late = clock() >= deadline or keys.given_up(found)
        if not found.at_work or (late and found.made is not None):
            return found
        if late:
            raise ConflictError(
                f"The request with the idempotency key {key!r} is still at work.",
                mend="Send it again later with the same key, to get its answer.",
                retry_after_s=PATIENCE_S,
            )
        await asyncio.sleep(POLL_S)


async def _first(claim: Claim, do: Do, status: int) -> JSONResponse:
    try:
        body = (await do(claim)).model_dump(mode="json")
    except Exception:
        await _if_possible(claim.release())
        raise
    await _if_possible(claim.answered(status, body))
    return JSONResponse(body, status)


async def _repeated(
    keys: Idempotency, known: KeptAnswer, again: Again, status: int
) -> JSONResponse:
    headers = {"Idempotency-Replayed": "true"}
    if known.made is None:
        return JSONResponse(known.body, known.status, headers=headers)
    body = (await again(known.made)).model_dump(mode="json")
    await _if_possible(keys.answer_for(known, status, body))
    return JSONResponse(body, status, headers=headers)


async def _if_possible(writing: Awaitable[None]) -> None:
    """What is done is done: a database that is away now does not undo it."""
    try:
        await writing
    except StoreUnavailableError as error:
        log.warning("an idempotency key stays taken for a while: %s", error.message)


async def _hash(request: Request) -> str:
    body: Any = await request.body()
    line = f"{request.method} {request.url.path}\n".encode()
    return hashlib.sha256(line + body).hexdigest()
