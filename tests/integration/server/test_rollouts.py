"""Rollouts, routing, live events and the plain page over HTTP."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from tests.integration.server.conftest import Service

from tuneproof.experiments import Variant


@pytest.fixture
async def rollout(service: Service) -> str:
    """A rollout that has begun: 10 % get the candidate, whose name tries to be markup."""
    app = service.app
    config = replace(app.pipelines.get("default"), tasks=("hook",))
    manager = app.managers.of(config)
    async with app.store.database.begin() as tx:
        declared = await manager.declare(
            Variant(model_id="cand <script>alert(1)</script>"),
            Variant(model_id="base"),
            ab_test_id=None,
            salt="salt",
            at=app.clock.now(),
            tx=tx,
        )
        begun = await manager.begin(declared.id, at=app.clock.now(), tx=tx)
    await manager.apply(begun.tasks)
    await app.routing.board.refresh()
    return begun.id


async def test_a_rollout_as_http_shows_it(service, rollout):
    answer = await service.http.get(f"/deployment/status/{rollout}")
    body = answer.json()
    assert (body["status"], body["current_traffic"]) == ("stepping", 0.1)
    assert body["deployment_strategy"] == "gradual_rollout"
    assert body["rollback_plan"]["previous_model"] == "base"
    assert body["rollback_plan"]["rollback_time_seconds"] == 30
    assert body["monitoring"]["rollback_triggers"] == [
        "engagement_rate_drop_15_percent",
        "error_rate_above_5_percent",
        "response_time_above_2000ms",
    ]
    assert body["monitoring"]["alerts_configured"] is False
    assert body["history"]
    assert answer.headers["etag"] == f'"{body["version"]}"'
    listed = (await service.http.get("/deployment/rollouts")).json()["items"]
    assert [d["deployment_id"] for d in listed] == [rollout]


async def test_a_change_by_a_stale_version_is_refused_and_shows_what_changed(service, rollout):
    stale = (await service.http.get(f"/deployment/status/{rollout}")).headers["etag"]
    paused = await service.post(f"/deployment/pause/{rollout}", {"reason": "lunch"}, If_Match=stale)
    assert paused.status_code == 200, paused.text
    assert paused.json()["status"] == "paused"
    late = await service.post(f"/deployment/advance/{rollout}", {"reason": "go"}, If_Match=stale)
    assert late.status_code == 409
    assert late.json()["type"] == "/problems/conflict"
    assert late.json()["details"]["state"] == "paused"
    fresh = f'"{paused.json()["version"]}"'
    on = await service.post(f"/deployment/resume/{rollout}", {"reason": "back"}, If_Match=fresh)
    assert on.json()["status"] == "stepping"
    assert [line["kind"] for line in on.json()["history"]][-2:] != []
    odd = await service.post(f"/deployment/pause/{rollout}", {}, If_Match="not-a-version")
    assert odd.status_code == 422


async def test_rollback_needs_a_reason_and_can_be_repeated(service, rollout):
    assert (await service.post(f"/deployment/rollback/{rollout}", {})).status_code == 422
    done = await service.post(f"/deployment/rollback/{rollout}", {"reason": "complaints"})
    assert done.status_code == 200, done.text
    body = done.json()
    assert (body["status"], body["restored_model"]) == ("rolled_back", "base")
    assert body["rollback_time_seconds"] < 1
    routing = (await service.http.get("/routing")).json()["routing"]
    assert [r["candidate"] for r in routing] == [None]
    again = await service.post(f"/deployment/rollback/{rollout}", {"reason": "complaints"})
    assert again.status_code == 200
    activity = (await service.http.get(f"/deployment/status/{rollout}")).json()["history"]
    assert any("complaints" in line["reason"] for line in activity)


async def test_rollback_by_task(service, rollout):
    done = await service.post("/routing/hook/rollback", {"reason": "complaints"})
    assert done.json()["deployment_id"] == rollout
    missing = await service.post("/routing/poem/rollback", {"reason": "complaints"})
    assert missing.status_code == 404


async def test_a_deployment_whose_test_did_not_promote_is_refused(service):
    declared = await service.post(
        "/evaluation/create-ab-test",
        {"baseline_model": {"model_id": "base"}, "candidate_model": {"model_id": "cand"}},
    )
    test_id = declared.json()["ab_test_id"]
    believe_me = {
        "ab_test_id": test_id,
        "recommendation": "promote",
        "safety_checks_passed": True,
    }
    answer = await service.post(
        "/deployment/deploy", {"model_version": "cand", "evaluation_result": believe_me}
    )
    assert answer.status_code == 409
    assert answer.json()["type"] == "/problems/safety-check"
    assert answer.json()["details"]["checks"]
    believe_me["ab_test_id"] = "ab-test-20000101-001"
    answer = await service.post(
        "/deployment/deploy", {"model_version": "cand", "evaluation_result": believe_me}
    )
    assert answer.status_code == 404


async def test_routing_is_sent_once_and_pushed_when_it_changes(service, rollout):
    first = await service.http.get("/routing")
    table = first.json()
    assert table["routing"][0]["share"] == 0.1
    same = await service.http.get("/routing", headers={"If-None-Match": first.headers["etag"]})
    assert same.status_code == 304
    waiting = asyncio.create_task(
        service.http.get("/routing", params={"after": table["version"], "wait": 10})
    )
    for _ in range(5):  # the service answers others meanwhile
        assert (await service.http.get("/routing")).status_code == 200
        assert not waiting.done()
    await service.post("/routing/hook/rollback", {"reason": "complaints"})
    newer = (await asyncio.wait_for(waiting, 10)).json()
    assert newer["version"] > table["version"]
    idle = await service.http.get("/routing", params={"after": newer["version"], "wait": 0.05})
    assert idle.json()["version"] == newer["version"]


async def read_events(service: Service, count: int, headers: dict[str, str] | None = None):
    """The next `count` events of the stream, and a hook that runs once it is open."""
    found = []
    async with service.http.stream("GET", "/stream", headers=headers or {}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        event: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line == "" and "data" in event:
                found.append(event)
                event = {}
                if len(found) == count:
                    return found
            elif line == "" or line.startswith(":"):
                event = {}
                if line.startswith(":"):
                    found_open.set()
            else:
                name, _, value = line.partition(": ")
                event[name] = value
    return found


found_open = asyncio.Event()


async def test_the_stream_says_what_changed_and_replays_what_was_missed(service, rollout):
    found_open.clear()
    reading = asyncio.create_task(read_events(service, 1))
    await asyncio.wait_for(found_open.wait(), 10)
    await service.post("/routing/hook/rollback", {"reason": "complaints"})
    (event,) = await asyncio.wait_for(reading, 10)
    data = json.loads(event["data"])
    assert event["event"] == data["kind"]
    assert set(data) == {"kind", "id", "version"}
    before = {"Last-Event-ID": str(int(event["id"]) - 1)}
    missed = await asyncio.wait_for(read_events(service, 1, before), 10)
    assert missed == [event]
    wrong = await service.http.get("/stream", headers={"Last-Event-ID": "x"})
    assert wrong.status_code == 422


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


async def test_the_page_of_a_rollout_is_plain_and_escaped(service, rollout):
    page = await service.http.get(f"/dashboard/deployment/{rollout}")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    parsed = Tags()
    parsed.feed(page.text)
    assert "script" not in parsed.tags
    assert not [a for a in parsed.attributes if a.startswith("on") or a == "style"]
    assert "cand &lt;script&gt;" in page.text
    assert "Candidate serves 10 %" in page.text
    assert "tuneproof rollback hook" in page.text
    style = await service.http.get("/dashboard/style.css")
    assert style.headers["content-type"].startswith("text/css")
    await service.post("/routing/hook/rollback", {"reason": "<b>harm</b>"})
    after = (await service.http.get(f"/dashboard/deployment/{rollout}")).text
    assert "Rolled back" in after
    assert "<b>harm</b>" not in after
    assert (await service.http.get("/dashboard/deployment/none")).status_code == 404


async def test_the_first_page_shows_what_is_served_and_leads_on(service, rollout):
    page = await service.http.get("/")
    assert page.status_code == 200
    assert "unsafe" not in page.headers["content-security-policy"]
    assert "cand &lt;script&gt;" in page.text
    assert "10 %" in page.text
    assert f'<a href="/dashboard/deployment/{rollout}">{rollout}</a>' in page.text
    parsed = Tags()
    parsed.feed(page.text)
    assert "script" not in parsed.tags


async def test_health_is_by_real_calls(service):
    health = (await service.http.get("/health")).json()
    assert set(health["components"]) == {
        "database",
        "redis",
        "mlflow",
        "provider",
        "openai_circuit_breaker",
        "mlflow_circuit_breaker",
    }
    assert set(health["connection_pools"]) == {
        "db_connections_active",
        "db_connections_idle",
        "db_connections_min",
        "db_connections_max",
        "redis_connections_active",
        "redis_connections_idle",
    }
    found = health["checks"]["openai_circuit_breaker"]["detail"]
    assert found == "CLOSED. Opens after 3 failures in a row, for 120 s."
    assert set(health["performance_metrics"]) == {
        "avg_response_time_ms",
        "cache_hit_rate",
        "memory_usage_mb",
        "cpu_usage_percent",
    }
    assert health["components"]["database"] == "healthy"
    assert health["components"]["provider"] == "healthy"


async def test_metrics_carry_the_names_of_the_original(service):
    await service.http.get("/status")
    answer = await service.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    for name in (
        "fine_tuning_db_connections_active",
        "fine_tuning_openai_circuit_breaker_state",
        "fine_tuning_memory_usage_mb",
    ):
        assert f"\n{name}" in answer.text, name
    times = (await service.http.get("/health/response-time")).json()
    assert times["count"] >= 1


async def test_what_happened_is_in_the_activity(service, rollout):
    await service.post("/tokens", {"name": "ci", "scopes": ["read"]})
    lines = (await service.http.get("/activity")).json()["items"]
    assert lines[0]["action"] == "token create"
    assert lines[0]["actor"] == "rest:local"


async def test_the_overview_and_the_doctor(service):
    status = (await service.http.get("/status")).json()
    assert [p["name"] for p in status["pipelines"]] == ["default"]
    findings = (await service.http.get("/doctor")).json()
    assert {f["status"] for f in findings} <= {"ok", "warning", "failed"}
    assert "database" in {f["name"] for f in findings}


async def test_background_task_that_stands_still_is_in_health_doctor_and_on_the_page(service):
    died = asyncio.Event()

    async def broken() -> None:
        died.set()
        raise ZeroDivisionError("a <bug>")

    service.app.supervisor.every("broken", 60, broken)
    await died.wait()
    health = (await service.http.get("/health")).json()
    [task] = [t for t in health["tasks"] if t["name"] == "broken"]
    assert health["status"] == "degraded"
    assert (task["state"], task["last_success"]) == ("failing", None)
    assert task["last_error"] == "ZeroDivisionError: a <bug>"
    found = {f["name"]: f for f in (await service.http.get("/doctor")).json()}
    assert found["task: broken"]["status"] == "warning"
    assert "last success none yet" in found["task: broken"]["detail"]
    assert "ZeroDivisionError: a &lt;bug&gt;" in (await service.http.get("/")).text
