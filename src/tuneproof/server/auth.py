"""Who may call: bearer tokens with scopes; on loopback none is needed unless one is sent.

Tokens are kept hashed by the store. Where no token is needed, a request must come by a name
of this machine and from no other site, so that a page in the user's browser cannot act.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from tuneproof.errors import DeniedError, StoreUnavailableError

if TYPE_CHECKING:
    from starlette.datastructures import Headers

    from tuneproof.settings import ServerConfig
    from tuneproof.store import TokenInfo

Scope = Literal["read", "write", "relay", "admin"]

_INCLUDES: dict[str, frozenset[str]] = {
    "admin": frozenset({"admin", "relay", "write", "read"}),
    "write": frozenset({"write", "read"}),
    "relay": frozenset({"relay"}),
    "read": frozenset({"read"}),
}
"""What each scope of a token lets it do. `relay` stands beside the others: it spends money."""

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


WRITERS = frozenset(name for name, included in _INCLUDES.items() if "write" in included)
"""The scopes that let a token write."""

READERS = frozenset(name for name, included in _INCLUDES.items() if "read" in included)
"""The scopes that let a token read."""

LOCAL = Caller(name="local", scopes=_INCLUDES["admin"])

TRUST_S = 1.0
"""How long a token that was checked is not checked again. While one request checks it anew the
others go on, so a revoked token ends within twice this."""

CHECK_S = 2.0
"""How long a check may take before the database counts as away."""

OUTAGE_S = 3600.0
"""How long a token that was good is taken while it cannot be checked. Nobody can revoke one then,
unless by another worker which still reaches the database."""

MOST_TOKENS = 1000

FREE = 5
"""So many wrong tokens of one address are answered at once; each further one twice as late."""

FIRST_S, LONGEST_S = 0.1, 5.0
FORGIVEN_S = 60.0
"""An address that sent none for so long begins anew."""

MOST_PEERS, MOST_WAITING = 1000, 200


@dataclass(slots=True)
class _Checked:
    """What was found of a token: when, when a check last ended at all, and how long that holds."""

    found: TokenInfo | None
    found_at: float
    ended_at: float
    trusted_until: float


class Callers:
    """Who was let in a moment ago: a token is looked up in the database, a request is not.

    `held` names a token that somebody else saw to be good, and how many seconds ago, for when
    nobody can look it up.
    """

    def __init__(
        self,
        *,
        trust_s: float = TRUST_S,
        clock: Callable[[], float] = time.monotonic,
        held: Callable[[str], tuple[TokenInfo, float] | None] = lambda _token: None,
    ) -> None:
        self._trust_s = trust_s
        self._clock = clock
        self._held = held
        self._tokens: dict[str, _Checked] = {}
        self._hosts: set[bytes] = set()

    async def verified(
        self,
        token: str,
        verify: Callable[[str], Awaitable[TokenInfo | None]],
        *,
        recent: bool,
    ) -> TokenInfo | None:
        """What `verify` says of a token; with `recent` what it said a moment ago will do.

        Raises `StoreUnavailableError` where it was never known and cannot be checked.
        """
        now, known = self._clock(), self._tokens.get(token)
        if recent and known is not None and now < known.trusted_until:
            return known.found
        if known is not None:  # this request checks it anew, those beside it do not wait
            known.trusted_until = min(now + CHECK_S, known.ended_at + 2 * self._trust_s)
        try:
            async with asyncio.timeout(CHECK_S):
                found = await verify(token)
        except (StoreUnavailableError, TimeoutError) as error:
            now = self._clock()
            known = self._known_or_held(token, now)
            if known is None or known.found is None or now - known.found_at > OUTAGE_S:
                raise _unchecked() from error
            known.ended_at, known.trusted_until = now, now + self._trust_s
            return known.found
        self._remember(token, found)
        return found

    def _known_or_held(self, token: str, now: float) -> _Checked | None:
        """What was found of a token last, here or elsewhere."""
        known, held = self._tokens.get(token), self._held(token)
        if held is not None:
            info, age_s = held
            if known is None or now - age_s > known.found_at:
                self._make_room(token)
                known = self._tokens[token] = _Checked(info, now - age_s, now, now)
        return known

    def _remember(self, token: str, found: TokenInfo | None) -> None:
        self._make_room(token)
        now = self._clock()
        self._tokens[token] = _Checked(found, now, now, now + self._trust_s)

    def _make_room(self, token: str) -> None:
        """Forget tokens that are none first: whoever tries many drives no good one out."""
        if token in self._tokens or len(self._tokens) < MOST_TOKENS:
            return
        for one in [one for one, known in self._tokens.items() if known.found is None]:
            del self._tokens[one]
        if len(self._tokens) >= MOST_TOKENS:
            del self._tokens[next(iter(self._tokens))]

    def let_in(self, host: bytes) -> None:
        """A request by this name, without a token, may read: settings alone decide that."""
        if len(self._hosts) < MOST_TOKENS:
            self._hosts.add(host)

    def may_write(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request to the gateway with these headers needs no check now."""
        if b"origin" in headers:
            return False  # a page of another site may speak
        kind, _, token = headers.get(b"authorization", b"").partition(b" ")
        if not kind:
            token = headers.get(b"x-api-key", b"")
            if not token:
                return headers.get(b"host", b"") in self._hosts
            kind = b"Bearer"
        known = self._tokens.get(token.decode("latin-1")) if kind == b"Bearer" else None
        if known is None or self._clock() >= known.trusted_until:
            return False
        if known.found is None:  # any key will do by a name that needs none
            return headers.get(b"host", b"") in self._hosts
        return not WRITERS.isdisjoint(known.found.scopes)

    def may_read(self, host: bytes, authorization: bytes) -> bool:
        """Whether such a request needs no check now."""
        if not authorization:
            return host in self._hosts
        kind, _, token = authorization.partition(b" ")
        known = self._tokens.get(token.decode("latin-1")) if kind == b"Bearer" else None
        return (
            known is not None
            and known.found is not None
            and self._clock() < known.trusted_until
            and not READERS.isdisjoint(known.found.scopes)
        )


class WrongTokens:
    """Answers wrong tokens ever later, by the address that they come from.

    Right tokens never wait, whatever else comes from their address: a proxy's is that of all who
    are behind it. What is remembered is bounded, and so is how many answers wait at once: beyond it
    they are given at once, so nobody can fill the service with waiting.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._seen: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._waiting = 0

    async def answer_later(self, peer: str) -> None:
        """Return when a wrong token from this address may be answered."""
        delay_s = self._delay_s(peer)
        if not delay_s or self._waiting >= MOST_WAITING:
            return
        self._waiting += 1
        try:
            await self._sleep(delay_s)
        finally:
            self._waiting -= 1

    def _delay_s(self, peer: str) -> float:
        now = self._clock()
        count, last = self._seen.pop(peer, (0, now))
        count = 1 if now - last > FORGIVEN_S else count + 1
        self._seen[peer] = count, now
        if len(self._seen) > MOST_PEERS:
            self._seen.popitem(last=False)
        return 0.0 if count <= FREE else min(FIRST_S * 2.0 ** min(count - FREE - 1, 30), LONGEST_S)


def _unchecked() -> StoreUnavailableError:
    return StoreUnavailableError(
        "The bearer token cannot be checked now: the database does not answer.",
        mend="Try again in a moment.",
    )


class Access:
    """Who may call a service with these settings; `find` looks a token up.

    `local_token` is taken beside them, with every scope: the command line on this machine uses it.
    """

    def __init__(
        self,
        settings: ServerConfig,
        find: Callable[[str], Awaitable[TokenInfo | None]],
        callers: Callers,
        *,
        local_token: str | None = None,
    ) -> None:
        self._settings = settings
        self._find = find
        self._local_token = local_token
        self.callers = callers
        self._wrong = WrongTokens()

    async def identify(self, headers: Headers, *, any_key: bool = False, peer: str = "") -> Caller:
        """Who sends this, from the address `peer`. Raises `DeniedError` (401, or 403 for a foreign
        page); for a wrong token the later, the more came from there.

        `any_key` takes a token that nobody knows for none, as OpenAI's clients always send a key,
        and checks one that was good a moment ago not again: the gateway asks no database for a
        request. Anthropic's clients send theirs as `x-api-key`.
        """
        token = _token(headers) or (headers.get("x-api-key") if any_key else None) or None
        if token is None and self._settings.token_needed:
            raise DeniedError(
                "This service needs a bearer token.",
                mend="Make one with `tuneproof token create NAME --scope read` and send "
                "`Authorization: Bearer TOKEN`.",
            )
        if token is None:
            return self._let_in(headers)
        own = self._local_token
        if own is not None and secrets.compare_digest(token.encode(), own.encode()):
            return LOCAL
        needless = any_key and not self._settings.token_needed
        try:
            known = await self.callers.verified(token, self._find, recent=any_key)
        except StoreUnavailableError:
            if not needless:
                raise
            known = None
        if known is None and needless:
            return self._let_in(headers)
        if known is None:
            await self._wrong.answer_later(peer)
            raise DeniedError(
                "The bearer token is not one of this service, or was revoked.",
                mend="Make one with `tuneproof token create NAME --scope read`.",
            )
        scopes = frozenset[str]().union(*(_INCLUDES[scope] for scope in known.scopes))
        return Caller(name=known.name, scopes=scopes)

    async def authorise(
        self, headers: Headers, scope: Scope, *, any_key: bool = False, peer: str = ""
    ) -> Caller:
        """The caller, if it has `scope`. Raises `DeniedError` (401 or 403)."""
        return permitted(await self.identify(headers, any_key=any_key, peer=peer), scope)

    def _let_in(self, headers: Headers) -> Caller:
        """A caller of this machine without a token. Raises `DeniedError` for a foreign page."""
        _check_own(headers, self._settings)
        self.callers.let_in(headers.get("host", "").encode("latin-1"))
        return LOCAL


def permitted(caller: Caller, scope: Scope) -> Caller:
    """The caller, if it has `scope`. Raises `DeniedError` (403)."""
    if scope not in caller.scopes:
        raise DeniedError(
            f"The token {caller.name!r} lacks the scope {scope!r}.",
            mend=f"Make one with `tuneproof token create NAME --scope {scope}`.",
            status=403,
            scope=scope,
        )
    return caller


async def authorise(request: Request, scope: Scope, *, any_key: bool = False) -> Caller:
    """The caller, if it has `scope`. Raises `DeniedError` (401 or 403)."""
    access: Access = request.app.state.access
    peer = "" if request.client is None else request.client.host
    return await access.authorise(request.headers, scope, any_key=any_key, peer=peer)


def _token(headers: Headers) -> str | None:
    header = headers.get("authorization")
    if header is None:
        return None
    kind, _, value = header.partition(" ")
    if kind.lower() != "bearer" or not value.strip():
        raise DeniedError(
            f"The Authorization header has the scheme {kind[:20]!r}, not Bearer.",
            mend="Send `Authorization: Bearer TOKEN`.",
        )
    return value.strip()


def _check_own(headers: Headers, settings: ServerConfig) -> None:
    """Refuse what a foreign page, or a name rebound to this machine, may have sent."""
    host = _hostname(f"//{headers.get('host', '')}")
    origin = headers.get("origin")
    foreign = origin is not None and not _ours(_hostname(origin), settings)
    if not _ours(host, settings) or foreign:
        raise DeniedError(
            f"Without a token only this machine is served, not {origin if foreign else host!r}.",
            mend="Call it by 127.0.0.1, send a token, or set server.public_url.",
            status=403,
        )


def _ours(host: str | None, settings: ServerConfig) -> bool:
    """Whether a name is one of this service: of this machine, of the public address, or allowed."""
    public = "" if settings.public_url is None else settings.public_url.host
    if host is None:
        return False
    if host in {*_OWN_NAMES, settings.host.lower(), *([public] if public else [])}:
        return True
    return any(
        host == allowed or (allowed.startswith("*.") and host.endswith(allowed[1:]))
        for allowed in map(str.lower, settings.allowed_hosts)
    )


def misdirected(headers: Headers, settings: ServerConfig) -> DeniedError | None:
    """Why a request is for somebody else, where `server.allowed_hosts` says who we are.

    An address in numbers is let through: no page can come by one that was rebound, and probes of
    a cluster come by nothing else.
    """
    if not settings.allowed_hosts:
        return None
    host, origin = _hostname(f"//{headers.get('host', '')}"), headers.get("origin")
    for name in (host, *([_hostname(origin)] if origin is not None else [])):
        if not (_ours(name, settings) or (name is not None and _is_number(name))):
            return DeniedError(
                f"This service is not called {str(name)[:200]!r}.",
                mend="Add the name to server.allowed_hosts, or call it by one that is there.",
                status=403,
            )
    return None


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _hostname(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:  # such as a bracket that is not closed
        return None


def _needs(scope: Scope) -> Callable[..., Awaitable[Caller]]:
    async def dependency(request: Request, _: Annotated[Any, Security(bearer)]) -> Caller:
        return await authorise(request, scope)

    dependency.scope = scope  # type: ignore[attr-defined]
    return dependency


Reader = Annotated[Caller, Depends(_needs("read"))]
Writer = Annotated[Caller, Depends(_needs("write"))]
Admin = Annotated[Caller, Depends(_needs("admin"))]
