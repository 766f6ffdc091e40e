"""Alerts: a webhook that is really called, a Prometheus that is really asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.integration.loop import SECRET
from tests.integration.providing import Provider, open_providers
from tests.servers import free_port
from tests.waiting import eventually
from tests.wire import serving

from tuneproof.errors import ConfigError
from tuneproof.server import create_app
from tuneproof.settings import AlertsConfig, TrackingConfig
from tuneproof.store import RunStatus
from tuneproof.telemetry import Alerts
from tuneproof.training import TrainingReadiness

RULE = {"type": "alerting", "query": 'tuneproof_rollout_steps_total{state="rolled_back"} > 0'}


class Receiver:
    """A webhook's endpoint and a Prometheus, whose answers tests change."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.status = 200
        self.messages: list[dict[str, Any]] = []
        self.rules: list[dict[str, Any]] = [RULE]
        self.alertmanagers = [{"url": "http://alertmanager:9093/api/v2/alerts"}]
        self.checker = openai.OpenAI(api_key="none", webhook_secret=SECRET)

    async def hook(self, request: Request) -> Response:
        body = await request.body()
        if self.status == 200:
            # The SDK's own check of Standard Webhooks: raises where the signature is not ours.
            self.checker.webhooks.verify_signature(body, dict(request.headers))
            self.messages.append(json.loads(body))
        return Response(status_code=self.status)

    async def answer(self, request: Request) -> Response:
        groups = [{"name": "g", "rules": self.rules}]
        found = {"groups": groups, "activeAlertmanagers": self.alertmanagers}
        return JSONResponse({"status": "success", "data": found})


@contextmanager
def listening() -> Iterator[Receiver]:
    port = free_port()
    made = Receiver(f"http://127.0.0.1:{port}")
    routes = [
        Route("/hook", made.hook, methods=["POST"]),
        Route("/api/v1/rules", made.answer),
        Route("/api/v1/alertmanagers", made.answer),
    ]
    with serving(Starlette(routes=routes), port):
        yield made


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with listening() as made:
        yield made


class Clock:
    def __init__(self) -> None:
        self.at = datetime.now(UTC)

    def now(self) -> datetime:
        return self.at


async def test_nothing_configured_is_not_configured() -> None:
    alerts = Alerts(now=Clock().now)
    assert not alerts.configured
    assert not await alerts.verified()
    assert not await alerts.send("rolled_back", "deploy-1", "harm")


async def test_webhook_is_verified_by_one_test_message_a_day(receiver: Receiver) -> None:
    clock = Clock()
    alerts = Alerts(now=clock.now, webhook_url=f"{receiver.url}/hook", webhook_secret=SECRET)
    assert await alerts.verified()
    assert await alerts.verified()
    assert [m["type"] for m in receiver.messages] == ["tuneproof.test"]
    clock.at += timedelta(hours=25)
    receiver.status = 404
    assert not await alerts.verified()
    receiver.status = 200
    clock.at = datetime.now(UTC)
    assert await alerts.send("rolled_back", "deploy-1", "harm", pipeline="default")
    assert receiver.messages[-1]["data"] == {
        "subject": "deploy-1",
        "summary": "harm",
        "pipeline": "default",
    }
    assert await alerts.verified()  # a message that was taken is proof, too
    assert len(receiver.messages) == 2


async def test_prometheus_must_watch_us_and_reach_an_alertmanager(receiver: Receiver) -> None:
    clock = Clock()
    alerts = Alerts(now=clock.now, prometheus_url=receiver.url)
    assert await alerts.verified()
    clock.at += timedelta(minutes=6)
    receiver.rules = [{"type": "alerting", "query": "up == 0"}]
    with pytest.raises(ConfigError, match="no alerting rule on a metric of ours"):
        await alerts.check()
    receiver.rules, receiver.alertmanagers = [RULE], []
    with pytest.raises(ConfigError, match="reaches no Alertmanager"):
        await alerts.check()
    assert not await Alerts(now=clock.now, prometheus_url=f"{receiver.url}/none").verified()


async def test_run_that_fails_tells_somebody_once_and_the_doctor_says_that_it_works(
    tmp_path: Path, sqlite_store_url: str, receiver: Receiver
) -> None:
    provider = Provider(name="p")
    provider.says = TrainingReadiness(model="base", account=False, detail="closed")
    alerts = AlertsConfig(webhook_url=f"{receiver.url}/hook")
    env = {"TUNEPROOF_ALERTS_SECRET": SECRET}
    async with open_providers(tmp_path, sqlite_store_url, provider, alerts=alerts, env=env) as loop:
        assert (await loop.turn()).status is RunStatus.FAILED
        await eventually(lambda: receiver.messages)
        assert [m["type"] for m in receiver.messages] == ["tuneproof.run_failed"]
        found = {f.name: f for f in await loop.app.doctor.examine()}
        webhook = found["alerts: webhook"]
        assert (webhook.status, webhook.detail) == ("ok", "answers")


async def test_rollout_says_alerts_are_configured_only_where_they_arrive(
    tmp_path: Path, sqlite_store_url: str, receiver: Receiver
) -> None:
    provider = Provider(name="p")
    alerts = AlertsConfig(webhook_url=f"{receiver.url}/hook")
    env = {"TUNEPROOF_ALERTS_SECRET": SECRET}
    receiver.status = 500
    async with open_providers(tmp_path, sqlite_store_url, provider, alerts=alerts, env=env) as loop:
        run = await loop.turn()
        deployment = run.result["deployment_id"]
        transport = httpx2.ASGITransport(app=create_app(loop.app))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            path = f"/deployment/status/{deployment}"
            shown = (await client.get(path)).json()["monitoring"]
            assert shown["alerts_configured"] is False
            receiver.status = 200
            shown = (await client.get(path)).json()["monitoring"]
            assert shown["alerts_configured"] is True
        await loop.app.rollouts.rollback(deployment, reason="seen harm", actor="ann")
        await eventually(lambda: receiver.messages[-1]["type"] == "tuneproof.rolled_back")
        assert receiver.messages[-1]["data"]["subject"] == deployment


async def test_runs_are_not_logged_where_autolog_is_off(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    tracking = TrackingConfig(autolog=False)
    async with open_providers(
        tmp_path, sqlite_store_url, Provider(name="p"), tracking=tracking
    ) as loop:
        assert (await loop.turn(last_stage="gate")).status is RunStatus.SUCCESS
        assert await loop.app.store.outbox.pending() == 0


async def test_doctor_names_a_setting_that_does_nothing(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    path = "server.grafana_dashboard_enabled"
    origins = {path: "environment GRAFANA_DASHBOARD_ENABLED"}
    async with open_providers(
        tmp_path, sqlite_store_url, Provider(name="p"), origins=origins
    ) as loop:
        found = {f.name: f for f in await loop.app.doctor.examine()}
        assert found[path].status == "warning"
        assert "GRAFANA_DASHBOARD_ENABLED, and without effect" in found[path].detail
