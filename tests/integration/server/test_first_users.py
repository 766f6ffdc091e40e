"""What the service answers is what the first users' documents say, key by key."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from tests.first_users import ASKED, IDS, REST, differences
from tests.integration.server.conftest import Service, open_service

from tuneproof.experiments import ABTest, Arm, Exposure, ModelEvaluator, Outcome
from tuneproof.settings import Settings
from tuneproof.testing import MemoryProvider

HOURS = 170


@pytest.fixture
async def training(settings: Settings) -> AsyncIterator[Service]:
    """A service whose jobs never end."""
    async with open_service(settings, provider=MemoryProvider(polls=10**9)) as opened:
        yield opened


async def started(service: Service) -> str:
    """A run whose job is at work."""
    asked = {**ASKED["start.request"], "config": {"training_data_threshold": 10}}
    run_id = str((await service.post("/fine-tuning/start", asked)).json()["pipeline_id"])
    await service.until(
        f"/fine-tuning/status/{run_id}", lambda run: run["model_version"]["training_job_id"]
    )
    return run_id


async def test_a_start_is_answered_as_documented(training: Service) -> None:
    """It said "pending", and nobody's `status == "success"` was ever true."""
    answer = await training.post("/fine-tuning/start", ASKED["start.request"])
    assert answer.status_code == 202
    body = answer.json()
    assert differences(REST["start.response"], body) == []
    assert re.fullmatch(IDS["pipeline_id"], body["pipeline_id"])
    assert body["state"] in ("pending", "running")


async def test_a_run_whose_job_trains_says_training(training: Service) -> None:
    """It said "running" at "train"; `total_records` were posts: 120 of 240 examples."""
    run_id = await started(training)
    run = (await training.http.get(f"/fine-tuning/status/{run_id}")).json()
    assert differences(REST["status.response"], run) == []
    assert (run["status"], run["state"], run["stage"]) == ("training", "running", "train")
    assert run["progress"]["data_collection"] == "completed"
    assert run["metrics"]["training_duration_minutes"] >= 0  # until now; it was null until the end
    data = run["training_data"]
    assert data["total_records"] == data["hook_examples"] + data["body_examples"] > 0
    assert data["total_records"] == run["metrics"]["training_examples"]


async def test_an_abort_without_a_reason_was_asked_for_by_its_user(training: Service) -> None:
    """It gave "aborted by anonymous"."""
    run_id = await started(training)
    answer = (await training.post(f"/fine-tuning/abort/{run_id}")).json()
    assert differences(REST["abort.response"], answer) == []
    assert "openai_job_cancelled" in answer["resources_cleaned"]
    run = (await training.http.get(f"/fine-tuning/status/{run_id}")).json()
    assert (run["status"], run["reason"]) == ("aborted", "user_requested")


async def test_a_start_that_waited_for_another_end_does_not_call_it_success(
    service: Service,
) -> None:
    body = {"config": {"training_data_threshold": 100_000}}
    answer = await service.http.post("/fine-tuning/start", params={"wait": 30}, json=body)
    assert (answer.json()["status"], answer.json()["state"]) == ("skipped", "skipped")


async def declared(service: Service) -> dict[str, Any]:
    answer = await service.post("/evaluation/create-ab-test", ASKED["create-ab-test.request"])
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def test_a_test_is_declared_as_documented_and_keeps_the_versions(service: Service) -> None:
    """`version` of a model that is none of ours came back as null."""
    body = await declared(service)
    assert differences(REST["create-ab-test.response"], body) == []
    assert re.fullmatch(IDS["ab_test_id"], body["ab_test_id"])
    status = (await service.http.get(body["monitoring_endpoints"]["status"])).json()
    for arm in ("baseline_model", "candidate_model"):
        assert status[arm] == ASKED["create-ab-test.request"][arm]


async def test_a_test_shows_its_figures_as_documented(service: Service) -> None:
    """`duration_hours` was 168 from the first minute, `effect_size` the relative lift."""
    path = (await declared(service))["monitoring_endpoints"]["metrics"]
    fresh = (await service.http.get(path)).json()
    assert differences(REST["metrics.response"], fresh) == []
    assert fresh["duration_hours"] < 1
    assert fresh["declared"]["duration_hours"] == 168
    assert fresh["statistical_analysis"]["effect_size"] is None


@pytest.mark.parametrize(
    ("mean", "lift", "spread", "word"),
    [
        (0.5, 0.04, 0.3, "negligible"),
        (0.5, 0.2, 0.3, "small"),
        (0.5, 0.3, 0.3, "medium"),
        (0.5, 0.6, 0.3, "large"),
    ],
)
async def test_an_effect_has_cohens_word(
    service: Service, mean: float, lift: float, spread: float, word: str
) -> None:
    rng = np.random.default_rng(1)
    means = {Arm.BASELINE: mean, Arm.CANDIDATE: mean * (1 + lift)}
    test = await looked(service, lambda arm: float(means[arm] + spread * rng.uniform(-1.5, 1.5)))
    body = (await service.http.get(f"/evaluation/metrics/{test.id}")).json()
    assert differences(REST["metrics.response"], body) == []
    found = body["statistical_analysis"]
    assert found["effect_size"] == word
    sd = spread * 1.5 / 3**0.5
    assert found["effect_size_value"] == pytest.approx(mean * lift / sd, abs=0.1)


async def test_outcomes_of_yes_and_no_are_set_against_cohens_h(service: Service) -> None:
    rng = np.random.default_rng(2)
    chances = {Arm.BASELINE: 0.25, Arm.CANDIDATE: 0.5}
    test = await looked(service, lambda arm: float(rng.random() < chances[arm]))
    body = (await service.http.get(f"/evaluation/metrics/{test.id}")).json()
    found = body["statistical_analysis"]
    assert found["effect_size_value"] == pytest.approx(0.524, abs=0.1)
    assert found["effect_size"] in ("small", "medium")


async def looked(service: Service, value: Any) -> ABTest:
    """A test of half and half with 2,000 units, and one look at its end."""
    app = service.app
    evaluator = ModelEvaluator(
        store=app.store, clock=app.clock, config=app.pipelines.get("default")
    )
    test = await evaluator.create_a_b_test("base", "cand", 0.5, 168)
    shown, told = [], []
    for i in range(2000):
        arm = (Arm.BASELINE, Arm.CANDIDATE)[i % 2]
        at = test.start_at + timedelta(minutes=5 * i)
        one = {"subject": test.id, "unit": f"u{i}", "at": at}
        shown.append(
            Exposure(
                id=f"e{i}", phase=1, arm=arm, tokens=50, latency_ms=100.0,
                cost_usd=0.01 if arm is Arm.BASELINE else 0.005, **one,
            )
        )  # fmt: skip
        told.append(Outcome(id=f"o{i}", value=value(arm), **one))
    await app.store.events.ingest(shown, told)
    await evaluator.look(test.family, at=test.start_at + timedelta(hours=HOURS + 100))
    return test


@pytest.fixture
async def serving(settings: Settings) -> AsyncIterator[Service]:
    """A service whose provider answers for a candidate, too."""
    provider = MemoryProvider(base_models=("base", "cand"))
    async with open_service(settings, provider=provider) as opened:
        yield opened


async def test_a_rollout_begins_as_documented(serving: Service) -> None:
    """It said "stepping", named `/health` and `/ready`, and gave a whole address."""
    rng = np.random.default_rng(3)
    means = {Arm.BASELINE: 0.068, Arm.CANDIDATE: 0.1}
    test = await looked(
        serving, lambda arm: float(rng.beta(means[arm] * 20, (1 - means[arm]) * 20))
    )
    asked = {
        **ASKED["deploy.request"],
        "model_version": {"model_id": "cand", "version": "1.0.0"},
        "evaluation_result": {"ab_test_id": test.id, "recommendation": "promote"},
    }
    answer = await serving.post("/deployment/deploy", asked)
    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert differences(REST["deploy.response"], body) == []
    assert re.fullmatch(IDS["deployment_id"], body["deployment_id"])
    assert (body["state"], body["current_traffic"]) == ("stepping", 0.1)
    where = body["monitoring"]["deployment_dashboard"]
    assert where == f"/dashboard/deployment/{body['deployment_id']}"
    for path in (where, *body["rollback_plan"]["health_check_endpoints"]):
        assert (await serving.http.get(path)).status_code == 200, path


async def test_health_speaks_in_words_and_keeps_the_details_beside(service: Service) -> None:
    """`components.database` was an object, `timestamp` a text."""
    body = (await service.http.get("/health")).json()
    assert differences(REST["health.response"], body) == []
    assert abs(body["timestamp"] - service.app.clock.now().timestamp()) < 60
    assert body["components"]["mlflow_circuit_breaker"] == "CLOSED"
    assert body["components"].keys() == body["checks"].keys()
    assert "MLFLOW_TRACKING_URI" in body["checks"]["mlflow"]["hint"]
