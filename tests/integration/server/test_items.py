"""Items and covariates over HTTP: declared, sent, fed back through the gateway, shown again."""

from __future__ import annotations

import asyncio
import io
import json
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pytest
from tests.integration.server.conftest import Service

from tuneproof import cli

MODELS = {"baseline_model": {"model_id": "base"}, "candidate_model": {"model_id": "cand"}}
CREATE = "/evaluation/create-ab-test"


async def declared(service: Service, **fields: Any) -> dict[str, Any]:
    made = await service.post(CREATE, {**MODELS, "traffic_split": 0.5, **fields})
    assert made.status_code == 201, made.text
    return (await service.http.get(made.json()["monitoring_endpoints"]["status"])).json()


async def units_of(service: Service, test_id: str) -> Any:
    (stratum,) = await service.app.store.events.strata(test_id)
    return stratum.units


async def test_declaration_is_shown_by_status_metrics_and_report(service: Service) -> None:
    test = await declared(service, analysis_unit="item")
    assert (test["analysis_unit"], test["cuped"]) == ("item", False)
    id = test["ab_test_id"]
    metrics = (await service.http.get(f"/evaluation/metrics/{id}")).json()
    assert (metrics["declared"]["analysis_unit"], metrics["declared"]["cuped"]) == ("item", False)
    assert "items (each" in (await service.http.get(f"/evaluation/report/{id}")).text


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"analysis_unit": "post"}, "'post'"),
        ({"analysis_unit": "item", "cuped": True}, "cuped is True"),
        ({"cuped": "perhaps"}, "cuped"),
    ],
)
async def test_bad_declaration_is_refused(
    service: Service, fields: dict[str, Any], told: str
) -> None:
    refused = await service.post(CREATE, {**MODELS, **fields})
    assert refused.status_code == 422
    assert told in refused.text


async def test_items_and_covariates_are_taken_with_the_events(service: Service) -> None:
    test = await declared(service, analysis_unit="item")
    seen = {"subject": test["ab_test_id"], "unit": "ann", "at": test["start_time"]}
    exposure = {"id": "e", "phase": 1, "arm": "baseline", "covariate": 0.05, **seen}
    outcomes = [{"id": f"o{i}", "item": f"post-{i % 2}", "value": 0.1, **seen} for i in range(3)]
    answer = await service.post("/events", {"exposures": [exposure], "outcomes": outcomes})
    assert answer.json()["accepted"] == 4, answer.text
    found = await units_of(service, test["ab_test_id"])
    assert (found.n, found.sum_y, found.sum_m) == (1, 0.2, 2)
    events = (await service.http.get(f"/events?subject={test['ab_test_id']}")).json()
    assert events[0]["covariate"] == 0.05
    bad = await service.post("/events", {"exposures": [{**exposure, "covariate": 1e10}]})
    assert bad.status_code == 422


async def test_gateway_takes_the_covariate_by_header_and_the_item_with_feedback(
    service: Service,
) -> None:
    test = await declared(service, analysis_unit="item")
    asked = {
        "model": "tuneproof/hook",
        "messages": [{"role": "user", "content": "Our summer sale starts"}],
        "user": "ann",
    }
    send = service.http.post
    answer = await send(
        "/v1/chat/completions", json=asked, headers={"x-tuneproof-covariate": "0.25"}
    )
    assert answer.status_code == 200, answer.text
    path = f"/events?subject={test['ab_test_id']}"
    events = await service.until(path, lambda found: len(found) >= 1)
    assert events[0]["covariate"] == 0.25
    for item in ("post-1", "post-2", "post-2"):
        feedback = {"response_id": answer.json()["id"], "value": 0.1, "item": item}
        taken = await service.post("/v1/feedback", feedback)
        assert taken.status_code == 200, taken.text
    found = await units_of(service, test["ab_test_id"])
    assert (found.sum_y, found.sum_m) == (0.2, 2)
    for wrong in ("much", "nan", "1e10"):
        refused = await send(
            "/v1/chat/completions", json=asked, headers={"x-tuneproof-covariate": wrong}
        )
        assert refused.status_code == 400
        assert "x-tuneproof-covariate" in refused.text


async def test_command_line_declares_and_shows_it(service: Service) -> None:
    def run(*tokens: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = cli.run([*tokens, "--url", service.address])
        return code, out.getvalue(), err.getvalue()

    asked = ("experiment", "create", "base", "cand", "--analysis-unit", "item")
    assert (await asyncio.to_thread(run, *asked, "--cuped"))[0] == 2
    code, out, err = await asyncio.to_thread(run, *asked, "--json")
    assert code == 0, err
    test = json.loads(out)
    assert test["analysis_unit"] == "item"
    code, out, err = await asyncio.to_thread(run, "experiment", "show", test["ab_test_id"])
    assert "items, judged by the units that hold them" in out + err
