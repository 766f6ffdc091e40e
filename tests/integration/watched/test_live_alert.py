"""A real Prometheus scrapes a real service, and a real Alertmanager tells of it when it is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.alert_rules import quick_copy
from tests.line import EXECUTABLE, clean_env
from tests.servers import (
    Server,
    alertmanager_server,
    free_port,
    listens,
    prometheus_server,
    query,
)
from tests.waiting import until
from tests.wire import serving

ALERT = "FineTuningPipelineDown"


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


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    made = Webhook()
    with serving(made.app, made.port):
        yield made


@contextmanager
def tuneproof(folder: Path) -> Iterator[Server]:
    """`tuneproof serve` in a process of its own; its `port` is that of the metrics."""
    port, own = free_port(), free_port()
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


def test_a_service_that_is_gone_is_told_and_so_is_its_return(
    tmp_path: Path, webhook: Webhook
) -> None:
    with (
        tuneproof(tmp_path) as service,
        alertmanager_server(webhook=webhook.url) as manager,
        prometheus_server(
            f"127.0.0.1:{service.port}", rules=quick_copy(tmp_path, ALERT), alertmanager=manager
        ) as prometheus,
    ):
        up = 'up{job="fine-tuning-pipeline"} == 1'
        until(lambda: query(prometheus, up), otherwise=lambda: prometheus.log)
        assert query(prometheus, "fine_tuning_openai_circuit_breaker_state == 1")
        assert not webhook.alerts

        service.stop()
        [fired] = until(lambda: webhook.told("firing"), otherwise=lambda: manager.log)[:1]
        assert fired["labels"]["alertname"] == ALERT
        assert fired["labels"]["severity"] == "critical"
        assert fired["annotations"]["runbook_url"].endswith("/runbooks/pipeline-down")

        service.start()
        [over] = until(lambda: webhook.told("resolved"), otherwise=lambda: manager.log)[:1]
        assert over["fingerprint"] == fired["fingerprint"]
