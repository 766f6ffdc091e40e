"""What of a test can be declared over HTTP and on the command line, and where it is shown again."""

from __future__ import annotations

import asyncio
import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.integration.server.conftest import Service, open_service, posts

from tuneproof import cli
from tuneproof.experiments import ModelEvaluator, Variant
from tuneproof.settings import Declaration, Settings

MODELS = {"baseline_model": {"model_id": "base"}, "candidate_model": {"model_id": "cand"}}
CREATE = "/evaluation/create-ab-test"


async def declared(service: Service, **fields: Any) -> dict[str, Any]:
    made = await service.post(CREATE, {**MODELS, **fields})
    assert made.status_code == 201, made.text
    return (await service.http.get(made.json()["monitoring_endpoints"]["status"])).json()


async def test_everything_declared_is_shown_by_status_metrics_and_report(service: Service) -> None:
    test = await declared(
        service,
        criteria=[
            "engagement superior 0.1",
            {"metric": "quality", "kind": "non_inferior", "margin": 0.02},
        ],
        success_criteria={"significance_threshold": 0.1},
        segments=["persona", "country"],
        segment_guardrail=True,
        allocation="thompson",
        decision="confirmed",
        cost_metric="per_token",
        maturation_hours=3,
        min_units=200,
        min_units_phase=70,
    )
    shown = {
        "criteria": ["engagement superior 0.1", "quality non_inferior 0.02"],
        "segments": ["persona", "country"],
        "segment_guardrail": True,
        "allocation": "thompson",
        "decision": "confirmed",
        "cost_metric": "per_token",
        "maturation_hours": 3,
        "min_units": 200,
        "min_units_phase": 70,
    }
    assert {name: test[name] for name in shown} == shown
    assert test["success_criteria"]["significance_threshold"] == 0.1
    metrics = (await service.http.get(f"/evaluation/metrics/{test['ab_test_id']}")).json()
    assert {name: metrics["declared"][name] for name in shown} == shown
    assert [(c["asked"], c["holds"]) for c in metrics["criteria"]] == [
        (text, None) for text in shown["criteria"]
    ]
    page = (await service.http.get(f"/evaluation/report/{test['ab_test_id']}")).text
    assert "quality non_inferior 0.02" in page
    assert "persona, country, one that is harmed ends the test" in page
    kept = await service.app.store.experiments.get(test["ab_test_id"])
    assert [c.margin for c in kept.all_criteria] == [0.1, 0.02]


async def test_the_first_users_thresholds_still_work(service: Service) -> None:
    given = {
        "min_engagement_lift": 0.2,
        "min_cost_efficiency_gain": 0.05,
        "significance_threshold": 0.1,
    }
    test = await declared(service, success_criteria=given)
    assert test["success_criteria"] == given
    assert test["criteria"] == ["engagement superior 0.2", "cost superior 0.05"]


async def test_what_is_left_out_is_as_the_settings_say(service: Service) -> None:
    test = await declared(service)
    config = service.app.pipelines.get("default")
    assert test["criteria"] == ["engagement superior 0.15", "cost superior 0.1"]
    assert test["maturation_hours"] == config.maturation_hours
    assert (test["segments"], test["segment_guardrail"]) == ([], False)
    assert test["traffic_allocation"]["candidate"] == config.traffic_split


async def test_a_whole_declaration_is_what_the_test_keeps(service: Service) -> None:
    told = Declaration(cuped=True, traffic_split=0.3, a_b_test_duration_hours=24)
    base, cand = Variant(model_id="base"), Variant(model_id="cand")
    [test] = await service.app.experiments.create(
        baseline=base, candidates=[cand], declaration=told, min_units=19
    )
    kept = await service.app.store.experiments.get(test.id)
    assert kept.declaration == replace(told, min_units=19)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"criteria": ["quality worse 0.02"]}, "'worse'"),
        ({"criteria": [{"metric": "beauty", "kind": "superior", "margin": 0.1}]}, "'beauty'"),
        ({"criteria": []}, "criteria"),
        ({"criteria": [{"metric": "quality", "kind": "superior"}]}, "margin"),
        ({"allocation": "bandit"}, "'bandit'"),
        ({"decision": "maybe"}, "'maybe'"),
        ({"segment_guardrail": True}, "no segments"),
        ({"min_units": 11}, "min_units"),
        (
            {"criteria": ["cost superior 0.1"], "success_criteria": {"min_engagement_lift": 0.1}},
            "as well",
        ),
        ({"objective": "engagement"}, "objective"),
    ],
)
async def test_a_bad_declaration_is_a_422_with_value_and_mend(
    service: Service, fields: dict[str, Any], told: str
) -> None:
    refused = await service.post(CREATE, {**MODELS, **fields})
    assert refused.status_code == 422
    problem = refused.json()
    assert told in problem["detail"]
    assert problem["mend"]
    assert (await service.http.get("/evaluation/tests")).json()["items"] == []


async def test_the_command_line_declares_an_experiment(service: Service) -> None:
    def run(*tokens: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = cli.run([*tokens, "--url", service.address])
        return code, out.getvalue(), err.getvalue()

    asked = ("experiment", "create", "base", "cand", "--share", "0.25", "--hours", "48")
    bad = await asyncio.to_thread(run, *asked, "--criterion", "quality non_inferior")
    assert bad[0] == 2
    assert "quality non_inferior 0.02" in bad[2]
    code, out, err = await asyncio.to_thread(
        run, *asked, "--criterion", "engagement superior 0.1", "--criterion",
        "quality non_inferior 0.02", "--segment", "persona", "--segment-guardrail",
        "--significance-threshold", "0.1", "--json",
    )  # fmt: skip
    assert code == 0, err
    test = json.loads(out)
    assert test["criteria"] == ["engagement superior 0.1", "quality non_inferior 0.02"]
    assert (test["segments"], test["segment_guardrail"]) == (["persona"], True)
    assert test["traffic_allocation"]["candidate"] == 0.25
    code, out, err = await asyncio.to_thread(run, "experiment", "show", test["ab_test_id"])
    assert "persona, guarded" in out + err


async def test_posts_whose_mean_is_below_0_are_no_measure_for_a_test(settings: Settings) -> None:
    """Before: the test began, and had no answer at its end."""
    seen = [post._replace(engagement_rate=-0.2) for post in posts()]
    async with open_service(settings, seen=[*seen, *posts(3)]) as service:
        plan = (await service.http.get("/evaluation/plan")).json()
        assert "the mean rate of the posts is -0.19" in plan["reason"]
        refused = await service.post(CREATE, MODELS)
        assert refused.status_code == 422
        problem = refused.json()
        assert problem["type"] == "/problems/input"
        assert "The mean rate of the posts of default is -0.19" in problem["detail"]
        assert "a relative lift needs a mean above 0" in problem["detail"]
        assert "adding the same constant to every outcome" in problem["mend"]
        assert await service.app.routing.all() == []


async def test_a_measure_that_turns_out_to_be_below_0_is_said_by_the_look(service: Service) -> None:
    made = (await service.post(CREATE, {**MODELS, "traffic_split": 0.5})).json()
    id, at = made["ab_test_id"], service.app.clock.now()
    exposures, outcomes = [], []
    for i in range(400):
        unit = {"subject": id, "unit": f"u{i}", "at": at.isoformat()}
        arm, gain = ("candidate", 2.0) if i % 2 else ("baseline", 0.0)
        exposures.append({"id": f"e{i}", "phase": 1, "arm": arm, **unit})
        outcomes.append({"id": f"o{i}", "value": gain - 1 + i % 10 / 10, **unit})
    taken = await service.post("/events", {"exposures": exposures, "outcomes": outcomes})
    assert taken.json()["accepted"] == 800
    app = service.app
    evaluator = ModelEvaluator(
        store=app.store, clock=app.clock, config=app.pipelines.get("default")
    )
    await evaluator.look(id, at=at + timedelta(hours=96))
    shown = (await service.http.get(f"/evaluation/metrics/{id}")).json()
    assert shown["recommendation"] == "continue"
    assert "The baseline's engagement is -0.6: a relative lift is undefined" in shown["reason"]
    assert "the mean is above 0" in shown["reason"]
