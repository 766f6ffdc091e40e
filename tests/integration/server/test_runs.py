"""Runs and experiments over HTTP, on a provider in memory."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from tests.integration.server.conftest import Service


@pytest.fixture
async def run_id(service: Service) -> str:
    """A run whose experiment has begun."""
    started = await service.post("/fine-tuning/start", {"config": {"engagement_threshold": 0.06}})
    assert started.status_code == 202, started.text
    run_id = started.json()["pipeline_id"]
    await service.until(
        f"/fine-tuning/status/{run_id}",
        lambda r: r["stage"] == "experiment" and r["result"].get("ab_test_id"),
    )
    return run_id


async def test_a_start_answers_at_once_with_what_is_known(service):
    answer = await service.post("/fine-tuning/start", {})
    assert answer.status_code == 202
    body = answer.json()
    assert set(body) == {
        "status",
        "state",
        "pipeline_id",
        "model_version",
        "training_data",
        "execution_time_seconds",
        "memory_usage",
    }
    assert body["pipeline_id"].startswith(f"ft-pipeline-{datetime.now(UTC):%Y%m%d}-")
    assert set(body["model_version"]) == {
        "model_id",
        "version",
        "training_job_id",
        "base_model",
        "status",
    }
    assert set(body["training_data"]) == {
        "hook_examples",
        "body_examples",
        "total_records",
        "examples",
    }
    assert set(body["memory_usage"]) == {"initial_mb", "peak_mb", "final_mb"}


async def test_a_start_that_waits_answers_with_the_end(service):
    config = {"training_data_threshold": 100_000}
    answer = await service.http.post(
        "/fine-tuning/start", params={"wait": 15}, json={"config": config}
    )
    assert answer.json()["status"] == "skipped"
    assert answer.json()["training_data"]["total_records"] is not None


async def test_a_run_shows_how_it_moves_on(service, run_id):
    answer = await service.http.get(f"/fine-tuning/status/{run_id}")
    run = answer.json()
    assert run["status"] == "running"
    assert run["progress"] == {
        "data_collection": "completed",
        "model_training": "completed",
        "evaluation": "in_progress",
        "deployment": "pending",
    }
    assert run["model_version"]["base_model"] == "base"
    assert run["training_data"]["examples"].keys() == {"hook", "body"}
    assert run["metrics"]["training_examples"] == sum(run["training_data"]["examples"].values())
    assert run["metrics"]["training_duration_minutes"] > 0
    assert answer.headers["etag"] == f'"{run["version"]}"'


async def test_a_second_run_waits_for_the_first(service, run_id):
    answer = await service.post("/fine-tuning/start", {})
    assert answer.status_code == 409
    body = answer.json()
    assert body["type"] == "/problems/state"
    assert body["details"]["reason"] == "predecessor_running"
    assert run_id in body["detail"]


async def test_an_abort_says_what_was_cleaned(service, run_id):
    answer = await service.post(f"/fine-tuning/abort/{run_id}", {"reason": "wrong data"})
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {
        "pipeline_id",
        "status",
        "cleanup_status",
        "reason",
        "resources_cleaned",
    }
    assert (body["status"], body["cleanup_status"]) == ("aborted", "completed")
    assert "wrong data" in body["reason"]
    routing = (await service.http.get("/routing")).json()["routing"]
    assert all(r["candidate"] is None for r in routing)
    again = await service.post(f"/fine-tuning/abort/{run_id}")
    assert again.json()["status"] == "aborted"


@pytest.mark.parametrize("verb", ["abort", "retry"])
async def test_a_run_seen_at_a_stale_version_is_left_alone(service, run_id, verb):
    path = f"/fine-tuning/{verb}/{run_id}"
    seen = (await service.http.get(f"/fine-tuning/status/{run_id}")).json()
    late = await service.post(path, If_Match=f'"{seen["version"] - 1}"')
    assert late.status_code == 409
    assert late.json()["type"] == "/problems/conflict"
    assert late.json()["details"]["version"] >= seen["version"]
    assert late.json()["details"]["stage"] == "experiment"
    assert (await service.post(path, If_Match="not-a-version")).status_code == 422
    now = (await service.http.get(f"/fine-tuning/status/{run_id}")).json()
    assert now["status"] == "running"


async def test_an_abort_at_the_version_that_was_seen_is_done(service, run_id):
    etag = (await service.http.get(f"/fine-tuning/status/{run_id}")).headers["etag"]
    done = await service.post(f"/fine-tuning/abort/{run_id}", If_Match=etag)
    assert done.json()["status"] == "aborted"
    stale = await service.post(f"/fine-tuning/retry/{run_id}", If_Match=etag)
    assert stale.status_code == 409
    assert stale.json()["details"]["run_status"] == "aborted"


async def test_runs_come_in_pages_newest_first(service):
    ids = []
    for _ in range(3):
        body = {"config": {"training_data_threshold": 100_000}}
        answer = await service.http.post("/fine-tuning/start", params={"wait": 15}, json=body)
        ids.append(answer.json()["pipeline_id"])
    seen, cursor = [], None
    while True:
        params = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = (await service.http.get("/fine-tuning/runs", params=params)).json()
        seen += [run["pipeline_id"] for run in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert seen == ids[::-1]
    wrong = await service.http.get("/fine-tuning/runs", params={"cursor": "nonsense"})
    assert wrong.status_code == 422


async def test_the_log_the_version_and_the_manifest_of_a_run(service, run_id):
    log = (await service.http.get(f"/fine-tuning/log/{run_id}")).json()
    assert {line["stage"] for line in log} >= {"collect", "curate", "train", "gate"}
    assert [line["at"] for line in log] == sorted(line["at"] for line in log)
    versions = (await service.http.get("/models")).json()
    assert [v["run_id"] for v in versions] == [run_id]
    manifest = (await service.http.get(f"/data/manifest/{run_id}")).json()
    assert manifest["hash"] == versions[0]["dataset_hash"]


async def test_an_experiment_over_http(service, run_id):
    run = (await service.http.get(f"/fine-tuning/status/{run_id}")).json()
    test_id = run["result"]["ab_test_id"]
    status = (await service.http.get(f"/evaluation/status/{test_id}")).json()
    assert status["run_id"] == run_id
    assert status["traffic_allocation"] == {"baseline": 0.9, "candidate": 0.1}
    assert status["monitoring_endpoints"] == {
        "metrics": f"/evaluation/metrics/{test_id}",
        "status": f"/evaluation/status/{test_id}",
    }
    metrics = (await service.http.get(f"/evaluation/metrics/{test_id}")).json()
    assert set(metrics["metrics"]["baseline"]) == {
        "engagement_rate",
        "cost_per_token",
        "cost_per_engagement",
        "response_time_ms",
        "quality_score",
        "sample_size",
        "p95_engagement",
        "cost_known",
        "usage_known",
    }
    assert set(metrics["performance_comparison"]) == {
        "engagement_lift",
        "cost_efficiency_gain",
        "quality_improvement",
        "latency_improvement",
    }
    assert set(metrics["statistical_analysis"]) >= {
        "is_significant",
        "confidence_level",
        "p_value",
        "interval",
        "effect_size",
        "method",
    }
    assert metrics["statistical_analysis"]["confidence_level"] == pytest.approx(0.95)
    assert metrics["recommendation"] in ("continue", "promote", "reject", "invalid")
    assert isinstance((await service.http.get(f"/evaluation/looks/{test_id}")).json(), list)
    tests = (await service.http.get("/evaluation/tests")).json()["items"]
    assert [t["ab_test_id"] for t in tests] == [test_id]
    assert (await service.http.get("/evaluation/looks/ab-test-20000101-001")).status_code == 404


async def test_a_test_declared_by_hand(service):
    answer = await service.post(
        "/evaluation/create-ab-test",
        {
            "baseline_model": {"model_id": "base"},
            "candidate_model": {"model_id": "cand", "version": "1.0.0"},
            "traffic_split": 0.2,
            "duration_hours": 48,
            "success_criteria": {"min_engagement_lift": 0.05},
        },
        Idempotency_Key="declare-1",
    )
    assert answer.status_code == 201
    body = answer.json()
    assert set(body) == {
        "ab_test_id",
        "status",
        "start_time",
        "estimated_end_time",
        "traffic_allocation",
        "monitoring_endpoints",
    }
    begun, ends = (datetime.fromisoformat(body[k]) for k in ("start_time", "estimated_end_time"))
    assert (ends - begun).total_seconds() == pytest.approx(48 * 3600)
    status = (await service.http.get(body["monitoring_endpoints"]["status"])).json()
    assert status["success_criteria"]["min_engagement_lift"] == 0.05
    ended = await service.post(f"/evaluation/end/{body['ab_test_id']}", {"reason": "a mistake"})
    assert ended.json()["status"] == "aborted"
    again = await service.post(f"/evaluation/end/{body['ab_test_id']}", {"reason": "again"})
    assert again.status_code == 409


async def test_events_are_taken_once_and_naive_times_are_utc(service, run_id):
    run = (await service.http.get(f"/fine-tuning/status/{run_id}")).json()
    subject = run["result"]["ab_test_id"]
    [phase, *_] = await service.app.store.experiments.phases(subject)
    began = phase.at.replace(microsecond=0) + timedelta(minutes=1)
    exposure = {
        "id": "e1",
        "subject": subject,
        "phase": 1,
        "arm": "candidate",
        "unit": "post-1",
        "at": f"{began:%Y-%m-%dT%H:%M:%S}",
        "tokens": 10,
    }
    outcome = {
        "id": "o1",
        "subject": subject,
        "unit": "post-1",
        "at": began.astimezone(timezone(timedelta(hours=1))).isoformat(),
        "value": 0.07,
    }
    stranger = {**exposure, "id": "e2", "subject": "ab-test-20000101-001"}
    batch = {"exposures": [exposure, stranger], "outcomes": [outcome]}
    first = (await service.post("/events", batch)).json()
    [told] = first.pop("rejected")
    assert told["id"] == "e2"
    assert "'ab-test-20000101-001'" in told["reason"]
    assert first == {"accepted": 2, "duplicates": 0, "unknown": ["e2"]}
    again = (await service.post("/events", batch)).json()
    assert (again["accepted"], again["duplicates"], again["unknown"]) == (0, 2, ["e2"])
    kept = (await service.http.get("/events", params={"subject": subject})).json()
    assert [e["at"] for e in kept] == [f"{began:%Y-%m-%dT%H:%M:%S}.000Z"]
    metrics = (await service.http.get("/metrics")).text
    assert "tuneproof_naive_times_total 4.0" in metrics


async def test_a_zipped_batch_is_taken_and_a_broken_one_refused(service):
    import gzip
    import json

    body = gzip.compress(json.dumps({"exposures": [], "outcomes": []}).encode())
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    taken = await service.http.post("/events", content=body, headers=headers)
    assert taken.json() == {"accepted": 0, "duplicates": 0, "unknown": [], "rejected": []}
    for broken in (body[:-9], b"not gzip", gzip.compress(b" " * 20_000_000)):
        answer = await service.http.post("/events", content=broken, headers=headers)
        assert answer.status_code in (413, 422)
    odd = await service.http.post("/events", content=body, headers={"Content-Encoding": "br"})
    assert odd.status_code == 415


@pytest.mark.parametrize(
    "change",
    [{"value": float("inf")}, {"value": None}, {"at": "yesterday"}, {"unit": ""}, {"extra": 1}],
)
async def test_a_malformed_event_refuses_its_batch(service, change):
    import json

    outcome = {"id": "o", "subject": "s", "unit": "u", "at": "2026-11-20T10:00:00Z", "value": 1}
    body = json.dumps({"outcomes": [{**outcome, **change}]})
    answer = await service.http.post("/events", content=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"].startswith("body.outcomes.0")
