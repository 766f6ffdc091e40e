"""Events that no test or rollout can mean are turned away by name; what is kept ends no watch."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.integration.server.conftest import Service

from tuneproof.experiments import ModelEvaluator, Verdict

CREATE = "/evaluation/create-ab-test"
MODELS = {"baseline_model": {"model_id": "base"}, "candidate_model": {"model_id": "cand"}}


@pytest.fixture
async def test_id(service: Service) -> str:
    answer = await service.post(CREATE, MODELS)
    assert answer.status_code == 201, answer.text
    id: str = answer.json()["ab_test_id"]
    return id


def exposure(service: Service, test_id: str, **changed: Any) -> dict[str, Any]:
    now = service.app.clock.now()
    whole = {"id": "good", "subject": test_id, "phase": 1, "arm": "candidate", "unit": "u"}
    return {**whole, "at": now.isoformat(), **changed}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"phase": 0}, "phase 0 was never open; ab-test-"),
        ({"phase": 9999}, "phase 9999 was never open; ab-test-"),
        ({"arm": "control"}, "arm is 'control'; there are baseline and candidate"),
        ({"subject": "ab-test-20000101-001"}, "subject 'ab-test-20000101-001' is no test or"),
        ({"hours": -1}, "before phase 1 began at"),
        ({"hours": 1}, "which is yet to come"),
    ],
)
async def test_a_stray_is_rejected_by_name_and_the_others_are_kept(
    service: Service, test_id: str, changed: dict[str, Any], reason: str
) -> None:
    """Before: 200 for phase 0, and every look after it raised DataError; 600 exposures dated
    before the test made it promote with +772 %."""
    hours = changed.pop("hours", None) if isinstance(changed, dict) else None
    if hours is not None:
        changed = {"at": (service.app.clock.now() + timedelta(hours=hours)).isoformat()}
    stray = exposure(service, test_id, **{"id": "stray", "unit": "v", **changed})
    batch = {"exposures": [stray, exposure(service, test_id)]}
    taken = (await service.post("/events", batch)).json()
    assert (taken["accepted"], [e["id"] for e in taken["rejected"]]) == (1, ["stray"])
    assert reason in taken["rejected"][0]["reason"]
    again = (await service.post("/events", batch)).json()
    assert (again["accepted"], again["duplicates"], len(again["rejected"])) == (0, 1, 1)
    app = service.app
    evaluator = ModelEvaluator(
        store=app.store, clock=app.clock, config=app.pipelines.get("default")
    )
    result = await evaluator.look(test_id, at=app.clock.now() + timedelta(hours=30))
    assert [look.verdict for look in result] == [Verdict.CONTINUE]
    metrics = (await service.http.get("/metrics")).text
    assert "tuneproof_events_rejected_total 2.0" in metrics


async def test_a_clock_that_is_minutes_off_loses_nothing(service: Service, test_id: str) -> None:
    now = service.app.clock.now()
    early = exposure(service, test_id, at=(now - timedelta(minutes=4)).isoformat())
    ahead = exposure(
        service, test_id, id="ahead", unit="w", at=(now + timedelta(minutes=4)).isoformat()
    )
    taken = (await service.post("/events", {"exposures": [early, ahead]})).json()
    assert (taken["accepted"], taken["rejected"]) == (2, [])
    kept = await service.app.store.events.newest(test_id)
    [phase] = await service.app.store.experiments.phases(test_id)
    assert min(event.at for event in kept) == phase.at


async def test_an_outcome_may_know_only_the_day(service: Service, test_id: str) -> None:
    now = service.app.clock.now()

    def outcome(id: str, ago: timedelta) -> dict[str, Any]:
        at = (now - ago).isoformat()
        return {"id": id, "subject": test_id, "unit": "u", "value": 0.1, "at": at}

    batch = [outcome("today", timedelta(hours=20)), outcome("long ago", timedelta(days=3))]
    taken = (await service.post("/events", {"outcomes": batch})).json()
    assert taken["accepted"] == 1
    assert [event["id"] for event in taken["rejected"]] == ["long ago"]


async def test_the_example_of_the_api_page_names_a_phase_that_can_be(
    service: Service, test_id: str
) -> None:
    """Before: its `phase` was 0, and real ones begin at 1."""
    page = (await service.http.get("/openapi.json")).json()
    schema = page["paths"]["/events"]["post"]["requestBody"]["content"]["application/json"]
    example = schema["schema"]["example"]
    now = service.app.clock.now().isoformat()
    events = {
        kind: [{**event, "subject": test_id, "at": now} for event in example[kind]]
        for kind in ("exposures", "outcomes")
    }
    taken = (await service.post("/events", events)).json()
    assert (taken["accepted"], taken["rejected"]) == (2, [])


async def test_600_events_of_600_days_make_no_day(service: Service, test_id: str) -> None:
    """Before: 1,202 tables on PostgreSQL, in 18.7 s."""
    now = service.app.clock.now()
    days = [
        exposure(service, test_id, id=f"e{i}", at=(now - timedelta(days=i + 1)).isoformat())
        for i in range(600)
    ]
    taken = (await service.post("/events", {"exposures": days})).json()
    assert (taken["accepted"], len(taken["rejected"])) == (0, 600)


async def test_a_value_that_would_be_kept_as_0_is_rejected(service: Service, test_id: str) -> None:
    """Before: 1e-11 was stored as 0."""
    now = service.app.clock.now().isoformat()
    outcomes = [
        {"id": f"o{i}", "subject": test_id, "unit": f"u{i}", "value": value, "at": now}
        for i, value in enumerate((1e-11, -1e-11, 0.0, 1e-7))
    ]
    taken = (await service.post("/events", {"outcomes": outcomes})).json()
    assert (taken["accepted"], [e["id"] for e in taken["rejected"]]) == (2, ["o0", "o1"])
    assert "at least 1e-07 in size" in taken["rejected"][0]["reason"]
