"""Which scope each route needs, read off the routes: the one table of who may do what.

Most routes say it by what they depend on. Those of the gateway look for themselves, since any key
will do for them where none is needed; those that need none are named here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, cast

from fastapi.routing import APIRoute, APIRouter

from tuneproof.errors import StateError

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["NONE", "scopes"]

NONE: Final = "none"

_OPEN: Final = frozenset(
    {"GET /live", "GET /ready", "GET /dashboard/style.css", "POST /webhooks/openai"}
)
"""Probes, a style sheet, and what a provider signs."""

_ASKS_ITSELF: Final[Mapping[str, str]] = {
    "POST /v1/chat/completions": "write",
    "POST /v1/responses": "write",
    "POST /v1/messages": "write",
    "POST /v1/completions": "relay",
    "POST /v1/embeddings": "relay",
    "POST /v1/audio/{kind}": "relay",
    "POST /v1/images/{kind}": "relay",
    "GET /v1/models": "read",
    "GET /v1/models/{id:path}": "read",
    "POST /v1/feedback": "write",
}


def scopes(service: FastAPI) -> Mapping[str, str]:
    """Each route as `METHOD /path`, with the scope that it needs.

    Raises `StateError` for one that says none and is not among those that need none.
    """
    return dict(_each(service))


def _each(service: FastAPI) -> Iterator[tuple[str, str]]:
    for route in _flat(service.routes):
        said = [getattr(one.call, "scope", None) for one in route.dependant.dependencies]
        found = [cast(str, scope) for scope in said if scope]
        for method in sorted(set(route.methods or ()) - {"HEAD"}):
            name = f"{method} {route.path}"
            yield name, _scope_of(name, found)


def _flat(routes: Iterable[object]) -> Iterator[APIRoute]:
    """The routes, those of included routers too."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif isinstance(included := getattr(route, "original_router", None), APIRouter):
            yield from _flat(included.routes)
        else:
            raise StateError(f"{route!r} is no route that can say its scope.")


def _scope_of(name: str, found: list[str]) -> str:
    known = [*found, *([NONE] if name in _OPEN else []), *filter(None, [_ASKS_ITSELF.get(name)])]
    if len(known) != 1:
        raise StateError(
            f"{name} says {len(known)} scopes.",
            mend="Have it depend on Reader, Writer or Admin, or name it in server/scopes.py.",
        )
    return known[0]
