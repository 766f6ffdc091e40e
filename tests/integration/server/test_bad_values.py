"""Values that no database keeps, or that lie outside all time, are refused by name at the door."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.integration.server.conftest import Service

from tuneproof.experiments import Variant

ASKED = {"model": "tuneproof/hook", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def declared(service: Service) -> str:
    [test] = await service.app.experiments.create(
        baseline=Variant(model_id="base"), candidates=[Variant(model_id="cand")], tasks=["hook"]
    )
    return test.id


@pytest.mark.parametrize("unit", ["post\0", "\ud800"])
async def test_gateway_refuses_a_unit_that_cannot_be_kept(
    service: Service, declared: str, unit: str
) -> None:
    """Seen: it was answered, and its exposure was lost."""
    body = json.dumps({**ASKED, "user": unit})
    answer = await service.http.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert repr(unit) in error["message"]
    assert "NUL or a lone surrogate" in error["message"]
    assert "Leave that character out" in error["message"]
    lost = (await service.http.get("/metrics")).text
    assert "tuneproof_events_lost_total 0.0" in lost


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/decide?task=hook&unit=%00", "The parameter 'unit' is '\\x00'"),
        ("/decide?unit=a%00b&task=hook", "The parameter 'unit' is 'a\\x00b'"),
        ("/events?subject=a%00", "The parameter 'subject' is 'a\\x00'"),
        ("/fine-tuning/status/a%00b", "The path is '/fine-tuning/status/a\\x00b'"),
        ("/evaluation/status/%00", "The path is '/evaluation/status/\\x00'"),
    ],
)
async def test_nul_in_an_address_is_refused_by_name(
    service: Service, declared: str, path: str, named: str
) -> None:
    """Seen: `/decide?unit=%00` was answered with an arm."""
    answer = await service.http.get(path)
    assert answer.status_code == 422
    problem = answer.json()
    assert named in problem["detail"]
    assert problem["mend"] == "Leave that character out."


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/routing/hook/rollback", {"reason": "because\0"}),
        ("/fine-tuning/start", {"pipeline": "def\0ault"}),
        ("/evaluation/create-ab-test", {"baseline_model": {"model_id": "b\0"}}),
        ("/v1/feedback", {"response_id": "tp-x", "value": 1.0, "item": "\0"}),
    ],
)
async def test_nul_in_a_body_is_refused_by_name(
    service: Service, declared: str, path: str, body: Any
) -> None:
    answer = await service.post(path, body)
    assert answer.status_code == 422
    assert "\\x00" in answer.text
    assert "NUL" in answer.text


EARLY, LATE = "0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"


@pytest.mark.parametrize("at", [EARLY, LATE])
async def test_time_outside_all_years_is_refused_by_name(
    service: Service, declared: str, at: str
) -> None:
    """Seen: each was a 500, `OverflowError: date value out of range`."""
    event = {"id": "e", "subject": declared, "unit": "u", "at": at}
    exposure = {**event, "phase": 1, "arm": "baseline"}
    answers = [
        await service.post("/events", {"outcomes": [{**event, "value": 0.1}]}),
        await service.post("/events", {"exposures": [exposure]}),
        await service.http.get("/events", params={"since": at}),
    ]
    if at == EARLY:
        answers.append(await service.post("/fine-tuning/start", {"as_of": at}))
    chat = await service.post("/v1/chat/completions", {**ASKED, "user": "u"})
    asked = {"response_id": chat.json()["id"], "value": 0.1, "at": at}
    answers.append(await service.post("/v1/feedback", asked))
    for answer in answers:
        assert answer.status_code == 422, answer.text
        assert "years" in answer.text or "no year" in answer.text
        assert at[:19] in answer.text


async def test_run_as_of_the_first_year_is_refused(service: Service) -> None:
    answer = await service.post("/fine-tuning/start", {"as_of": "0001-01-02T00:00:00Z"})
    assert answer.status_code == 422
    assert "as_of is 0001-01-02" in answer.json()["detail"]


@pytest.mark.parametrize("hours", [1e9, 1e15, 1e300])
async def test_durations_beyond_all_time_are_refused(service: Service, hours: float) -> None:
    body = {
        "baseline_model": {"model_id": "base"},
        "candidate_model": {"model_id": "cand"},
        "duration_hours": hours,
    }
    answer = await service.post("/evaluation/create-ab-test", body)
    assert answer.status_code == 422, answer.text
    answer = await service.post("/fine-tuning/start", {"config": {"days_back": hours}})
    assert answer.status_code == 422, answer.text
