"""Who may call: bearer tokens with scopes; on loopback none is needed unless one is sent.

Tokens are kept hashed by the store. Where no token is needed, a request must come by a name
of this machine and from no other site, so that a page in the user's browser cannot act.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from tuneproof.errors import DeniedError
from tuneproof.server.state import app_of

if TYPE_CHECKING:
    from tuneproof.settings import Settings

Scope = Literal["read", "write", "admin"]

_INCLUDES: dict[str, frozenset[str]] = {
    "admin": frozenset({"admin", "write", "read"}),
    "write": frozenset({"write", "read"}),
    "read": frozenset({"read"}),
}
_OWN_NAMES = ("localhost", "127.0.0.1", "::1")

bearer = HTTPBearer(auto_error=False, description="A token from `tuneproof token create`.")


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who calls: a token's name, or `local` on loopback without one."""

    name: str
    scopes: frozenset[str]

    @property
    def actor(self) -> str:
        """The caller as activity and history name it."""
        return f"rest:{self.name}"


LOCAL = Caller(name="local", scopes=_INCLUDES["admin"])


async def identify(request: Request, *, any_key: bool = False) -> Caller:
    """Who sends this request. Raises `DeniedError` (401, or 403 for a foreign page).

    `any_key` takes a token that nobody knows for none: OpenAI's clients always send a key.
    """
    app = app_of(request)
    token = _token(request)
    if token is None and app.settings.server.token_needed:
        raise DeniedError(
            "This service needs a bearer token.",
            mend="Make one with `tuneproof token create NAME --scope read` and send "
            "`Authorization: Bearer TOKEN`.",
        )
    if token is None:
        _check_own(request, app.settings)
        return LOCAL
    local = request.app.state.local_token
    if local is not None and secrets.compare_digest(token.encode(), local.encode()):
        return LOCAL
    known = await app.verify_token(token)
    if known is None and any_key and not app.settings.server.token_needed:
        _check_own(request, app.settings)
        return LOCAL
    if known is None:
        raise DeniedError(
            "The bearer token is not one of this service, or was revoked.",
            mend="Make one with `tuneproof token create NAME --scope read`.",
        )
    scopes = frozenset[str]().union(*(_INCLUDES[scope] for scope in known.scopes))
    return Caller(name=known.name, scopes=scopes)


async def authorise(request: Request, scope: Scope, *, any_key: bool = False) -> Caller:
    """The caller, if it has `scope`. Raises `DeniedError` (401 or 403)."""
    caller = await identify(request, any_key=any_key)
    if scope not in caller.scopes:
        raise DeniedError(
            f"The token {caller.name!r} lacks the scope {scope!r}.",
            mend=f"Make one with `tuneproof token create NAME --scope {scope}`.",
            status=403,
            scope=scope,
        )
    return caller


def _token(request: Request) -> str | None:
    header = request.headers.get("authorization")
    if header is None:
        return None
    kind, _, value = header.partition(" ")
    if kind.lower() != "bearer" or not value.strip():
        raise DeniedError(
            f"The Authorization header has the scheme {kind[:20]!r}, not Bearer.",
            mend="Send `Authorization: Bearer TOKEN`.",
        )
    return value.strip()


def _check_own(request: Request, settings: Settings) -> None:
    """Refuse what a foreign page, or a name rebound to this machine, may have sent."""
    public = urlsplit(settings.server.public_url or "").hostname
    own = {*_OWN_NAMES, settings.server.host, *([public] if public else [])}
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname
    origin = request.headers.get("origin")
    foreign = origin is not None and urlsplit(origin).hostname not in own
    if host not in own or foreign:
        raise DeniedError(
            f"Without a token only this machine is served, not {origin if foreign else host!r}.",
            mend="Call it by 127.0.0.1, send a token, or set server.public_url.",
            status=403,
        )


def _needs(scope: Scope) -> Callable[..., Awaitable[Caller]]:
    async def dependency(request: Request, _: Annotated[Any, Security(bearer)]) -> Caller:
        return await authorise(request, scope)

    return dependency


Reader = Annotated[Caller, Depends(_needs("read"))]
Writer = Annotated[Caller, Depends(_needs("write"))]
Admin = Annotated[Caller, Depends(_needs("admin"))]
