"""What came without a cost or tokens is unknown, which is not 0, from the door to the report."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.integration.server.conftest import Service

from tuneproof.experiments import ModelEvaluator

UNITS = 60
"""Of each arm."""

Took = dict[str, Any]


async def looked_at(service: Service, baseline: Took, candidate: Took, lacking: int) -> str:
    """A test with a look: each arm's units took this, but nobody told it of `lacking` of the
    candidate's."""
    made = await service.post(
        "/evaluation/create-ab-test",
        {
            "baseline_model": {"model_id": "base"},
            "candidate_model": {"model_id": "cand"},
            "traffic_split": 0.5,
            "min_units": 12,
            "min_units_phase": 12,
        },
    )
    assert made.status_code == 201, made.text
    id: str = made.json()["ab_test_id"]
    at = service.app.clock.now()
    exposures, outcomes = [], []
    for i in range(2 * UNITS):
        arm, took = ("baseline", baseline) if i % 2 else ("candidate", candidate)
        told = {} if arm == "candidate" and i < 2 * lacking else took
        unit = {"subject": id, "unit": f"u{i}", "at": at.isoformat()}
        exposures.append({"id": f"e{i}", "phase": 1, "arm": arm, **unit, **told})
        outcomes.append({"id": f"o{i}", "value": 0.04 + (i // 2 % 5) / 100, **unit})
    taken = await service.post("/events", {"exposures": exposures, "outcomes": outcomes})
    assert taken.json()["accepted"] == 4 * UNITS, taken.text
    app = service.app
    evaluator = ModelEvaluator(
        store=app.store, clock=app.clock, config=app.pipelines.get("default")
    )
    await evaluator.look(id, at=at + timedelta(hours=30))
    return id


async def test_costs_are_those_of_the_units_that_told_them(service: Service) -> None:
    """Before: a candidate of whose units two of three told no cost was shown as 67 % cheaper."""
    took = {"cost_usd": 0.003, "tokens": 100}
    id = await looked_at(service, took, took, lacking=40)
    shown = (await service.http.get(f"/evaluation/metrics/{id}")).json()
    base, cand = shown["metrics"]["baseline"], shown["metrics"]["candidate"]
    assert (base["cost_known"], base["usage_known"]) == (1, 1)
    assert cand["cost_known"] == cand["usage_known"] == pytest.approx(1 / 3)
    assert cand["cost_per_token"] == pytest.approx(0.00003)
    assert cand["cost_per_engagement"] == pytest.approx(0.05)
    assert shown["performance_comparison"]["cost_efficiency_gain"] == pytest.approx(0, abs=1e-9)
    page = (await service.http.get(f"/evaluation/report/{id}")).text
    assert "0.05 (known of 33%)" in page
    events = (await service.http.get("/events", params={"subject": id, "limit": 200})).json()
    assert [e["cost_usd"] for e in events].count(None) == 40
    assert [e["tokens"] for e in events].count(None) == 40


@pytest.mark.parametrize("took", [{}, {"tokens": 90}, {"cost_usd": None}])
async def test_an_arm_without_costs_is_no_cheaper(service: Service, took: Took) -> None:
    """Before: costs that nobody told were 0."""
    id = await looked_at(service, {"cost_usd": 0.003, "tokens": 100}, took, lacking=0)
    shown = (await service.http.get(f"/evaluation/metrics/{id}")).json()
    [cost] = [c for c in shown["criteria"] if c["metric"] == "cost"]
    assert (cost["holds"], cost["change"]) == (None, None)
    assert "no cost above 0 is known of any of the 60 units of the candidate" in cost["reason"]
    cand = shown["metrics"]["candidate"]
    assert (cand["cost_per_engagement"], cand["cost_per_token"], cand["cost_known"]) == (
        None, None, 0,
    )  # fmt: skip
