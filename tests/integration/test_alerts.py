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
from tests.integration.loop import SECRET, open_loop
from tests.integration.providing import Provider, open_providers
from tests.servers import free_port
from tests.waiting import eventually
from tests.wire import serving

from tuneproof.app.alerting import Alerting
from tuneproof.errors import ConfigError
from tuneproof.experiments import Variant, Verdict
from tuneproof.resilience import Supervisor
from tuneproof.rollout import DeploymentState
from tuneproof.server import create_app
from tuneproof.settings import AlertsConfig, TrackingConfig
from tuneproof.store import KeptAlert, RunStatus, open_store
from tuneproof.telemetry import Alerts
from tuneproof.testing import MemoryProvider
from tuneproof.training import TrainingReadiness

RULE = {"type": "alerting", "query": 'tuneproof_rollout_steps_total{state="rolled_back"} > 0'}


class Receiver:
    """A webhook's endpoint and a Prometheus, whose answers tests change."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.status = 200
        self.messages: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.rules: list[dict[str, Any]] = [RULE]
        self.alertmanagers = [{"url": "http://alertmanager:9093/api/v2/alerts"}]
        self.checker = openai.OpenAI(api_key="none", webhook_secret=SECRET)

    async def hook(self, request: Request) -> Response:
        body = await request.body()
        self.ids.append(request.headers["webhook-id"])
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
    with pytest.raises(ConfigError, match="no webhook"):
        await alerts.send("rolled_back", "deploy-1", "harm")


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
    await alerts.send("rolled_back", "deploy-1", "harm", details={"pipeline": "default"})
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


async def test_alert_waits_for_a_webhook_that_is_away_and_doctor_shows_it(
    tmp_path: Path, sqlite_store_url: str, receiver: Receiver
) -> None:
    """Seen: an alert whose webhook was away for three tries was marked as sent, and never told."""
    clock = Clock()
    receiver.status = 503
    told = {"webhook_url": f"{receiver.url}/hook", "webhook_secret": SECRET}
    store, supervisor = await open_store(sqlite_store_url), Supervisor()
    alerting = Alerting(
        alerts=Alerts(now=Clock().now, **told), store=store, supervisor=supervisor, now=clock.now
    )
    alerting("rolled_back", "deploy-1", "harm", once="3", pipeline="default")
    alerting("rolled_back", "deploy-1", "harm", once="3", pipeline="default")
    await eventually(lambda: supervisor.tasks[0].last_success)
    for _ in range(4):
        clock.at += timedelta(minutes=5)
        await alerting.tell()
    assert len(receiver.ids) == 5
    await supervisor.close()
    await store.close()

    # The process that raised it is gone; another one has the same store.
    provider, alerts = Provider(name="p"), AlertsConfig(webhook_url=f"{receiver.url}/hook")
    env = {"TUNEPROOF_ALERTS_SECRET": SECRET}
    async with open_providers(tmp_path, sqlite_store_url, provider, alerts=alerts, env=env) as loop:
        found = {f.name: f for f in await loop.app.doctor.examine()}
        assert found["alerts that wait"].status == "warning"
        assert "rolled_back of deploy-1 since" in found["alerts that wait"].detail
        assert "tried 5 times" in found["alerts that wait"].detail
        receiver.status = 200
        alerting = Alerting(
            alerts=Alerts(now=Clock().now, **told),
            store=loop.app.store,
            supervisor=loop.app.supervisor,
            now=clock.now,
        )
        clock.at += timedelta(minutes=6)
        await alerting.tell()
        await alerting.tell()
        told_of = [m for m in receiver.messages if m["type"] == "tuneproof.rolled_back"]
        assert [m["data"]["summary"] for m in told_of] == ["harm"]
        assert receiver.ids.count(receiver.ids[0]) == 6  # a receiver knows it again
        found = {f.name: f for f in await loop.app.doctor.examine()}
        assert "alerts that wait" not in found
        alerting("rolled_back", "deploy-1", "harm", once="3", pipeline="default")
        await eventually(lambda: not alerting._keeping)
        assert await loop.app.store.alerts.waiting() == []


async def test_alert_that_nobody_took_for_a_day_is_given_up_and_shown(
    tmp_path: Path, sqlite_store_url: str, receiver: Receiver
) -> None:
    receiver.status = 503
    alerts = AlertsConfig(webhook_url=f"{receiver.url}/hook")
    env = {"TUNEPROOF_ALERTS_SECRET": SECRET}
    async with open_providers(
        tmp_path, sqlite_store_url, Provider(name="p"), alerts=alerts, env=env
    ) as loop:
        long_ago = datetime.now(UTC) - timedelta(days=1, minutes=1)
        kept = KeptAlert(
            key="k",
            kind="paused",
            subject="d",
            summary="s",
            details={},
            since=long_ago,
            due_at=long_ago,
        )
        assert await loop.app.store.alerts.add(kept)
        await loop.app.alert.tell()
        assert receiver.ids == []
        found = {f.name: f for f in await loop.app.doctor.examine()}
        assert found["alerts given up"].status == "failed"
        assert "paused of d" in found["alerts given up"].detail


async def test_alert_raised_as_the_app_closes_is_told(
    tmp_path: Path, sqlite_store_url: str, receiver: Receiver
) -> None:
    alerts = AlertsConfig(webhook_url=f"{receiver.url}/hook")
    env = {"TUNEPROOF_ALERTS_SECRET": SECRET}
    async with open_providers(
        tmp_path, sqlite_store_url, Provider(name="p"), alerts=alerts, env=env
    ) as loop:
        loop.app.alert("paused", "deploy-1", "wait for me")
    assert [m["data"]["subject"] for m in receiver.messages] == ["deploy-1"]


async def test_webhook_of_slacks_kind_gets_a_text(receiver: Receiver) -> None:
    url = f"{receiver.url}/hook"
    alerts = Alerts(now=Clock().now, webhook_url=url, webhook_secret=SECRET, webhook_kind="slack")
    assert await alerts.verified()
    await alerts.send(
        "rolled_back", "deploy-1", "error rate 12 % > 5 %", details={"pipeline": "default"}
    )
    assert receiver.messages == [
        {"text": "TuneProof: test: test\nTuneProof can reach you."},
        {"text": "TuneProof: rolled back: deploy-1\nerror rate 12 % &gt; 5 %\n(pipeline default)"},
    ]


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


async def test_rollback_whose_process_died_before_telling_is_told_once(
    tmp_path: Path, sqlite_store_url: str, receiver: Receiver
) -> None:
    alerts = AlertsConfig(webhook_url=f"{receiver.url}/hook")
    env = {"TUNEPROOF_ALERTS_SECRET": SECRET}
    async with open_providers(
        tmp_path, sqlite_store_url, Provider(name="p"), alerts=alerts, env=env
    ) as loop:
        run = await loop.turn()
        id = run.result["deployment_id"]
        deployment = await loop.app.store.deployments.get(id)
        manager = loop.app.managers.for_rollout(deployment)
        await manager.rollback_model(id, "seen harm", actor="ann")  # and it died
        assert receiver.messages == []
        for _ in range(3):
            await loop.app.watchdog.look()
            await eventually(lambda: not loop.app.alert._keeping)
        [message] = receiver.messages
        assert (message["type"], message["data"]["subject"]) == ("tuneproof.rolled_back", id)
        assert "seen harm" in message["data"]["summary"]


SLIGHT = {"holdback": 0.3, "holdback_days": 3, "max_engagement_drop": 0.9}
"""Harm of any size is slight, and shown at the end of the hold."""


async def test_a_hold_with_slight_harm_waits_for_a_person_who_is_told_once(
    tmp_path: Path, database_url: str, receiver: Receiver
) -> None:
    """Before: it held on for ever, and nobody was told but who asked `rollout show`."""
    alerts = AlertsConfig(webhook_url=f"{receiver.url}/hook")
    async with open_loop(tmp_path, database_url, changes=SLIGHT, alerts=alerts) as loop:
        app, rollouts = loop.app, loop.app.store.deployments
        run = await app.runs.start()
        await app.runs.wait(run.id, seconds=60, holding_is_end=True)
        loop.traffic.lift = -0.6
        [held] = await rollouts.active()

        async def paused() -> bool:
            return (await rollouts.get(held.id)).state is DeploymentState.PAUSED

        await eventually(paused)
        looks: set[object] = set()

        async def looked_again() -> bool:
            watches = await app.store.watches.under_way()
            looks.update(w.looked_at for w in watches if w.subject == held.id)
            return len(looks) > 3

        await eventually(looked_again)
        cause = (await rollouts.get(held.id)).cause or ""
        assert cause.startswith("Engagement is worse by ")
        told = [m["data"] for m in receiver.messages if m["type"] == "tuneproof.paused"]
        assert [(m["subject"], m["summary"]) for m in told] == [(held.id, cause)]
        [pipeline] = (await app.overview.status())["pipelines"]
        assert f"{held.id} is paused: {cause}" in pipeline["waits_for_person"]
        warned = [line.message for line in await app.runs.log(run.id) if line.level == "warning"]
        assert f"{held.id}: pause by system: {cause}" in warned
        transport = httpx2.ASGITransport(app=create_app(app))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            assert cause in (await client.get("/")).text
        await app.rollouts.act(held.id, "advance", actor="ann", reason="we know")
        assert (await loop.end(run.id)).status is RunStatus.SUCCESS


async def test_a_rollout_that_begins_paused_is_told(
    tmp_path: Path, sqlite_store_url: str, receiver: Receiver
) -> None:
    """Before: one that was started over HTTP waited for a person whom nobody told."""
    base, better, worse = (Variant(model_id=name) for name in ("base", "better", "worse"))
    alerts = AlertsConfig(webhook_url=f"{receiver.url}/hook")
    provider = MemoryProvider(base_models=("base", "better", "worse"))
    async with open_loop(tmp_path, sqlite_store_url, provider=provider, alerts=alerts) as loop:
        app = loop.app
        [test] = await app.experiments.create(baseline=base, candidates=[better])

        async def promoted() -> bool:
            busy = [one for one in await app.store.routing.all() if one.lanes]
            verdict = (await app.store.experiments.get(test.id)).verdict
            return verdict is Verdict.PROMOTE and not busy

        await eventually(promoted)
        manager = app.managers.of(app.pipelines.get("default"))
        for _ in range(2):
            begun = await manager.begin((await manager.declare(worse, base)).id)
            await manager.rollback_model(begun.id, "again")
        rollout = await app.rollouts.deploy(model=better, ab_test_id=test.id)
        assert rollout.state is DeploymentState.PAUSED
        said = {"subject": rollout.id, "summary": rollout.cause, "pipeline": "default"}
        await eventually(lambda: said in [m["data"] for m in receiver.messages])


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
