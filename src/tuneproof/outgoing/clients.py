"""Clients that call only where they may: those of providers, webhooks and targets are made here.

A name is looked up once, each number found is judged, and that number is connected to: there is no
moment between the look and the connection in which the name could lead elsewhere. So it holds for
redirects, too, and for numbers in any way of writing. What goes through a proxy of the environment
is the proxy's to judge.

It knows three libraries by the one place of each where a socket is about to be opened, and nothing
of who calls whom.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies, proxy_bypass

import httpcore2
import httpx2

from tuneproof.outgoing.rules import AddressRefused, AddrInfo, Rules, judged

if TYPE_CHECKING:
    import aiohttp

__all__ = ["connector", "guard_pools", "http_client"]

CONNECTIONS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)
NEXT_AFTER_S = 2.0
"""How long a number may take to answer while the name has another."""


# --- httpx ---------------------------------------------------------------------------------------


def http_client(
    rules: Rules,
    *,
    make: Callable[..., httpx2.AsyncClient] = httpx2.AsyncClient,
    trust_env: bool = False,
    **options: Any,
) -> httpx2.AsyncClient:
    """A client, of the class `make`, that calls where it may. `trust_env`: by its proxies, too."""
    direct = _Guarded(rules, trust_env=trust_env)
    transport = _ByProxies(direct) if trust_env and getproxies() else direct
    return make(transport=transport, trust_env=trust_env, **options)


@cache
def _trusted(trust_env: bool) -> ssl.SSLContext:
    """Whose certificates are believed; reading them takes longer than many a call."""
    return httpx2.create_ssl_context(trust_env=trust_env)


class _Guarded(httpx2.AsyncHTTPTransport):
    """Connects by `_Backend`. httpx has no argument for it, its pool has."""

    def __init__(self, rules: Rules, *, trust_env: bool) -> None:
        context = _trusted(trust_env)
        super().__init__(verify=context, limits=CONNECTIONS)
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=context,
            max_connections=CONNECTIONS.max_connections,
            max_keepalive_connections=CONNECTIONS.max_keepalive_connections,
            keepalive_expiry=CONNECTIONS.keepalive_expiry,
            network_backend=_Backend(rules),
        )


class _Backend(httpcore2.AsyncNetworkBackend):
    """Looks a name up, judges what is found, and connects to a number."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._plain = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A connection to the first number of `host` that may be called and answers."""
        ends = None if timeout is None else time.monotonic() + timeout
        numbers = await self._numbers(host, port, timeout)
        for number in numbers:
            left = None if ends is None else max(ends - time.monotonic(), 0.001)
            last = number == numbers[-1]
            try:
                return await self._plain.connect_tcp(
                    number,
                    port,
                    timeout=left if last else min(left or NEXT_AFTER_S, NEXT_AFTER_S),
                    local_address=local_address,
                    socket_options=socket_options,
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if last:
                    raise
        raise httpcore2.ConnectError(f"{host} has no address")

    async def _numbers(self, host: str, port: int, timeout: float | None) -> list[str]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return judged(self._rules, host, found)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(f"{host} was not looked up in time") from error
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(str(error)) from error

    async def sleep(self, seconds: float) -> None:
        """Wait, as the pool asks for it between attempts."""
        await self._plain.sleep(seconds)


class _ByProxies(httpx2.AsyncBaseTransport):
    """By the environment's proxies where they are for this scheme and host, else directly."""

    def __init__(self, direct: httpx2.AsyncBaseTransport) -> None:
        self._direct = direct
        self._proxied = {
            scheme: httpx2.AsyncHTTPTransport(
                proxy=proxy if "://" in proxy else f"http://{proxy}", limits=CONNECTIONS
            )
            for scheme, proxy in getproxies().items()
            if scheme in ("http", "https", "all") and proxy
        }

    def _way(self, url: httpx2.URL) -> httpx2.AsyncBaseTransport:
        proxied = self._proxied.get(url.scheme) or self._proxied.get("all")
        return self._direct if proxied is None or proxy_bypass(url.host) else proxied

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send it the one way or the other."""
        return await self._way(request.url).handle_async_request(request)

    async def aclose(self) -> None:
        """Close all connections."""
        for transport in (self._direct, *self._proxied.values()):
            await transport.aclose()


# --- aiohttp -------------------------------------------------------------------------------------


def connector(rules: Rules, **options: Any) -> aiohttp.TCPConnector:
    """Connections of aiohttp to where it may call: each is judged when its socket is made."""

    def made(line: AddrInfo) -> socket.socket:
        family, kind, protocol, _, address = line
        rules.check(str(address[0]))
        return socket.socket(family=family, type=kind, proto=protocol)

    import aiohttp

    return aiohttp.TCPConnector(socket_factory=made, **options)


# --- urllib3 -------------------------------------------------------------------------------------


def guard_pools(manager: Any, rules: Rules) -> None:
    """Let a `urllib3.PoolManager` connect to where it may only; a proxy of its own is let be."""
    if getattr(manager, "proxy", None) is not None:
        return
    manager.pool_classes_by_scheme = {
        scheme: type(
            f"Guarded{pool.__name__}", (pool,), {"ConnectionCls": _connection(pool, rules)}
        )
        for scheme, pool in manager.pool_classes_by_scheme.items()
    }


def _connection(pool: Any, rules: Rules) -> Any:
    """The pool's class of connections, which looks a name up itself and connects to a number."""

    class Guarded(pool.ConnectionCls):  # type: ignore[misc]
        _dns_host: str

        def _new_conn(self) -> socket.socket:
            from urllib3.exceptions import NameResolutionError, NewConnectionError

            name = self._dns_host
            try:
                found = socket.getaddrinfo(name.strip("[]"), self.port, type=socket.SOCK_STREAM)
                numbers = judged(rules, name, found)
            except AddressRefused as error:
                raise NewConnectionError(self, str(error)) from error
            except (socket.gaierror, UnicodeError) as error:
                raise NameResolutionError(name, self, socket.gaierror(str(error))) from error
            try:
                return self._first(numbers)
            finally:
                self._dns_host = name

        def _first(self, numbers: list[str]) -> socket.socket:
            from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

            for number in numbers[:-1]:
                self._dns_host = number
                try:
                    return self._connected()
                except (ConnectTimeoutError, NewConnectionError):
                    continue
            self._dns_host = numbers[-1]
            return self._connected()

        def _connected(self) -> socket.socket:
            made: socket.socket = super()._new_conn()
            return made

    return Guarded
