"""A gateway process's own service: requests, feedback, probes. It has no engine and no store."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from tuneproof.errors import StoreUnavailableError
from tuneproof.outgoing import Rules
from tuneproof.resilience import Supervisor
from tuneproof.server import feedback, gateway, problems
from tuneproof.server.auth import Access, Callers, authorise
from tuneproof.server.events import Shares
from tuneproof.server.fed import FedServing
from tuneproof.server.guard import Guard, refused
from tuneproof.server.relay import ChatRoute
from tuneproof.server.spool import FOLDER, Spool
from tuneproof.server.upstream import Upstream
from tuneproof.telemetry import Metrics, Tracing

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from tuneproof.settings import ServerConfig, Settings

__all__ = ["GatewayService", "create_gateway"]

DRAIN_S = 5.0
"""How long a gateway that ends still takes requests, over the connections that it has."""


class GatewayService(FastAPI):
    """The gateway's routes, with chat answered in front of them."""

    chat: ChatRoute
    server: ServerConfig
    _draining = False

    def drain(self) -> float:
        """Ask everybody to come back over a new connection; for how many seconds."""
        self._draining = True
        if self.chat.gateway is not None:
            self.chat.gateway.shadows.drain()
        return DRAIN_S

    async def fed(self, seconds: float) -> None:
        """Return once the service has said what to serve, or after so long."""
        serving: FedServing = self.state.serving
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await serving.spoken.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self._draining and scope["type"] == "http":
            send = _last(send)
        if self.server.allowed_hosts and await refused(scope, send, self.server):
            return
        if scope["type"] == "http" and self.chat.serves(scope):
            await self.chat(scope, receive, send)
            return
        await super().__call__(scope, receive, send)


def _last(send: Send) -> Send:
    """Say with the answer that this connection ends with it."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await send(message)

    return sending


def create_gateway(settings: Settings, metrics: Metrics) -> GatewayService:
    """A gateway fed by the service of this data directory; serve it with uvicorn."""
    supervisor = Supervisor(restarted=metrics.task_restarted)
    tracing = Tracing.from_env(settings.env, service="tuneproof-gateway")

    @asynccontextmanager
    async def lifespan(service: FastAPI) -> AsyncIterator[None]:
        serving = FedServing(settings, supervisor, metrics)
        spool = Spool(
            serving.keep_lines,
            supervisor,
            folder=settings.dir / FOLDER,
            lost=metrics.events_lost.inc,
            waits=metrics.events_waiting.set,
        )
        upstream = Upstream.open(Rules(settings.outgoing))
        callers = Callers(held=serving.held_token)
        access = Access(settings.server, serving.find_token, callers)
        service.state.serving = serving
        service.state.access = access
        service.state.feedback = feedback.FeedbackDesk(serving, service.state.shares, spool)
        served.chat = ChatRoute(serving, access, tracing)
        service.state.gateway = served.chat.gateway = gateway.Gateway(
            serving, upstream, spool, tracing
        )
        await serving.start()
        spool.start()
        try:
            yield
        finally:
            await served.chat.gateway.shadows.close()
            await upstream.close()
            await spool.stop()
            await supervisor.close()
            await serving.close()

    served = GatewayService(
        title="TuneProof gateway",
        version=metadata.version("tuneproof"),
        lifespan=lifespan,
        routes=[*gateway.router().routes, *feedback.router().routes],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    served.server = settings.server
    served.state.shares = Shares()
    problems.install(served)
    _add_probes(served, metrics)
    served.add_middleware(Guard, metrics=metrics)
    return served


def _add_probes(served: FastAPI, metrics: Metrics) -> None:
    @served.get("/live")
    async def live() -> dict[str, Any]:
        return {"status": "alive", "pid": os.getpid()}

    @served.get("/ready")
    async def ready() -> Response:
        serving: FedServing = served.state.serving
        try:
            _ = serving.routing
        except StoreUnavailableError as error:
            return JSONResponse({"ready": False, "reasons": [str(error)]}, 503)
        return JSONResponse({"ready": True, "reasons": [], "fed": serving.connected})

    @served.get("/metrics")
    async def told(request: Request) -> Response:
        await authorise(request, "read")
        content, media_type = metrics.render()
        return Response(content, headers={"Content-Type": media_type})
