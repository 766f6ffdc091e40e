"""Whoever Alertmanager tells, and a service in a process of its own that it tells about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.line import EXECUTABLE, clean_env
from tests.servers import Server, free_port, listens

__all__ = ["Webhook", "tuneproof"]


class Webhook:
    """Whoever is told by Alertmanager, and what it was told."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.alerts: list[dict[str, Any]] = []

    async def take(self, request: Request) -> Response:
        self.alerts += (await request.json())["alerts"]
        return Response()

    def told(self, status: str) -> list[dict[str, Any]]:
        return [alert for alert in self.alerts if alert["status"] == status]

    @property
    def app(self) -> Starlette:
        return Starlette(routes=[Route("/", self.take, methods=["POST"])])


@contextmanager
def tuneproof(folder: Path, port: int | None = None) -> Iterator[Server]:
    """`tuneproof serve` in a process of its own; its `port` is that of the metrics."""
    port, own = port or free_port(), free_port()
    environment = clean_env(PROMETHEUS_METRICS_PORT=str(port), OPENAI_API_KEY="key",
                            OPENAI_BASE_URL="http://127.0.0.1:9/v1")  # fmt: skip
    server = Server(
        name="tuneproof serve",
        url=f"http://127.0.0.1:{own}",
        port=port,
        command=[*EXECUTABLE, "serve", "--port", str(own), "--dir", str(folder / "data")],
        folder=folder,
        environment=environment,
        ready=lambda: listens(port),
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()
