"""What a web page may not do: ask this server by way of its reader's browser.

A browser says where a page came from (`Origin`) whenever it sends what changes anything, and a page
that reaches a server on loopback by a name of its own betrays itself by that name (`Host`). JSON is
taken as `application/json` only, which no page may send elsewhere without being let.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.types import Scope

from tuneproof_trainer.errors import ApiError
from tuneproof_trainer.settings import TrainerSettings

__all__ = ["refuse_web_pages", "require_json"]


def refuse_web_pages(scope: Scope, settings: TrainerSettings) -> None:
    """Raise ApiError 403 for a request from a page elsewhere, or by a name that is not ours."""
    host = origin = None
    for name, value in scope["headers"]:
        if name == b"host":
            host = value.decode("latin-1")
        elif name == b"origin":
            origin = value.decode("latin-1")
    if host is not None and not _is_ours(host, settings):
        raise ApiError(
            403,
            f"This server is not called {host!r}. Ask it by its address, or name the host by "
            "--allowed-host.",
            code="host_not_allowed",
        )
    if origin is not None and _netloc(origin) != (host or "").lower():
        raise ApiError(
            403,
            f"Requests from web pages are not taken, and this one comes from {origin!r}.",
            code="origin_not_allowed",
        )


def _is_ours(host: str, settings: TrainerSettings) -> bool:
    if not settings.local_only and not settings.allowed_hosts:
        return True
    name = _hostname(host)
    if name is None:
        return False
    return name == "localhost" or _is_address(name) or name in settings.allowed_hosts


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def require_json(scope: Scope) -> None:
    """Raise ApiError 415 for a body that does not say that it is JSON."""
    kind = next((v for n, v in scope["headers"] if n == b"content-type"), b"").decode("latin-1")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(
            415,
            f"Unsupported content type: '{kind}'. This path takes 'application/json' only.",
            code="unsupported_content_type",
        )
