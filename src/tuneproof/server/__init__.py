"""The HTTP face of App: `create_app(app)` makes the service.

Routes are split by noun (`fine_tuning`, `evaluation`, `deployment`, `events`, `health`,
`catalogue`, `gateway`, `live`, `page`); `problems` says how errors look, `auth` who may call,
`once` what an idempotency key means, `guard` what stands before all of them, `framing` where HTTP
itself goes wrong, `hot` what is answered even before that, from the App's board, `relay` the
gateway's requests for tasks (`wires` says what they look like), and `passthrough` what is for
none; `shadows` copies what was answered. Knows no database and no engine: every route calls one
use case.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from tuneproof.outgoing import Rules
from tuneproof.server import (
    catalogue,
    deployment,
    evaluation,
    events,
    families,
    feedback,
    fine_tuning,
    gateway,
    health,
    home,
    live,
    migrating,
    page,
    problems,
    prompts,
    webhooks,
)
from tuneproof.server.auth import Access, Callers, Reader
from tuneproof.server.feed import Feed
from tuneproof.server.guard import Guard, refused
from tuneproof.server.hot import PATHS, Hot
from tuneproof.server.relay import ChatRoute
from tuneproof.server.serving import OwnServing
from tuneproof.server.spool import FOLDER, Spool
from tuneproof.server.upstream import Upstream

if TYPE_CHECKING:
    from starlette.routing import BaseRoute
    from starlette.types import Receive, Scope, Send

    from tuneproof.app import App
    from tuneproof.settings import ServerConfig

__all__ = ["create_app"]

DESCRIPTION = """\
A self-driving fine-tuning loop. Times are UTC (RFC 3339), money is USD, shares are 0–1.
Writes take `Idempotency-Key`, changes of state `If-Match`; errors are RFC 9457 problem details.
"""


class HttpService(FastAPI):
    """The service, with what is asked for all the time answered in front of it; `feed` is for the
    gateway processes of this machine."""

    def __init__(
        self, *, hot: Hot, chat: ChatRoute, feed: Feed, server: ServerConfig, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self._server = server
        self.feed = feed
        self._hot = hot
        self._chat = chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self._server.allowed_hosts and await refused(scope, send, self._server):
            return
        quick = scope["type"] == "http" and scope["path"] in PATHS
        if quick and await self._hot.answered(scope, send):
            return
        if self._chat.serves(scope):
            await self._chat({**scope, "app": self}, receive, send)
            return
        await super().__call__(scope, receive, send)


def create_app(
    app: App, *, local_token: str | None = None, callers: Callers | None = None
) -> HttpService:
    """The service over an App that is open; the caller closes the App after the service.

    `local_token` is accepted beside the store's tokens, with every scope: the command line
    on the same machine uses it. `callers` remembers whom it let in; its own by default.

    Serve it with uvicorn and `timeout_graceful_shutdown=2`: open event streams never end by
    themselves.
    """

    access = Access(
        app.settings.server, app.store.tokens.find, callers or Callers(), local_token=local_token
    )
    serving = OwnServing(app)

    @asynccontextmanager
    async def lifespan(service: FastAPI) -> AsyncIterator[None]:
        spool = Spool(
            serving.keep_lines,
            app.supervisor,
            folder=app.settings.dir / FOLDER,
            lost=app.metrics.events_lost.inc,
            waits=app.metrics.events_waiting.set,
        )
        upstream = Upstream.open(Rules(app.settings.outgoing))
        service.state.gateway = chat.gateway = gateway.Gateway(
            serving, upstream, spool, app.tracing
        )
        service.state.feedback = feedback.FeedbackDesk(serving, service.state.shares, spool)
        spool.start()
        try:
            yield
        finally:
            await chat.gateway.shadows.close()
            await upstream.close()
            await spool.stop()

    chat = ChatRoute(serving, access, app.tracing)

    service = HttpService(
        hot=Hot(app, access.callers),
        server=app.settings.server,
        chat=chat,
        feed=Feed(app, serving),
        title="TuneProof",
        version=metadata.version("tuneproof"),
        description=DESCRIPTION,
        lifespan=lifespan,
        routes=list(_routes()),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    service.state.tuneproof = app
    service.state.access = access
    service.state.shares = events.Shares()
    service.state.ending = False
    problems.install(service)

    @service.get("/openapi.json", include_in_schema=False)
    async def described(_: Reader) -> JSONResponse:
        return JSONResponse(service.openapi())

    service.add_middleware(Guard, metrics=app.metrics)
    return service


@cache
def _routes() -> tuple[BaseRoute, ...]:
    """All routes; they know no App, so they are made once.

    A service takes them as they are: what includes a router makes each route again, twice, and the
    second time while the first request waits.
    """
    routers = (
        fine_tuning.router(),
        evaluation.router(),
        families.router(),
        deployment.router(),
        deployment.routing_router(),
        deployment.decide_router(),
        events.router(),
        catalogue.router(),
        prompts.router(),
        migrating.router(),
        health.router(),
        home.router(),
        health.overview_router(),
        gateway.router(),
        feedback.router(),
        live.router(),
        page.router(),
        problems.router(),
        webhooks.router(),
    )
    return tuple(route for router in routers for route in router.routes)
