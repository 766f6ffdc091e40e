"""Several candidates at once over HTTP: declared, decided, recorded, shown and ended."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.integration.server.conftest import Service

from tuneproof import cli
from tuneproof.client import AsyncClient
from tuneproof.experiments import ModelEvaluator

CREATE = "/evaluation/create-ab-test"
THREE = {
    "baseline_model": {"model_id": "base"},
    "candidate_models": [{"model_id": "one"}, {"model_id": "two"}],
    "traffic_split": 0.2,
    "duration_hours": 24,
}


@pytest.fixture
async def family(service: Service) -> dict[str, Any]:
    """Two candidates with a fifth of the units each, as they were declared."""
    answer = await service.post(CREATE, THREE)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ids(family: dict[str, Any]) -> list[str]:
    return [test["ab_test_id"] for test in family["tests"]]


async def test_declared_at_once_each_with_a_share_of_all_units(
    service: Service, family: dict[str, Any]
) -> None:
    assert family["family"].startswith("family-")
    assert family["traffic_allocation"] == {"baseline": 0.6, "candidates": [0.2, 0.2]}
    [first, second] = family["tests"]
    assert first["traffic_allocation"] == {"baseline": 0.6, "candidate": 0.2}
    status = (await service.http.get(second["monitoring_endpoints"]["status"])).json()
    assert (status["family"], status["candidate_model"]["model_id"]) == (family["family"], "two")
    assert status["promotion_alpha"] == pytest.approx(0.04374 / 2, abs=1e-5)


async def test_client_decide_gateway_and_routing_say_the_same_of_each_unit(
    service: Service, family: dict[str, Any], tmp_path: Path
) -> None:
    routing = next(r for r in await service.app.routing.all() if r.task == "hook")
    units = [f"post-{i}" for i in range(300)]
    async with AsyncClient(service.address, state_dir=tmp_path / "c", push=False) as client:
        choices = [await client.choose("hook", unit) for unit in units]
        for choice in choices:
            client.record(choice, latency_ms=300, tokens=10)
            client.outcome(subject=choice.subject, unit=choice.unit, value=0.07)
        assert await client.flush()
        assert client.status().refused == 0
    async with AsyncClient("http://127.0.0.1:9", state_dir=tmp_path / "c", push=False) as offline:
        kept = [await offline.choose("hook", unit) for unit in units]
        assert [c._replace(source="service") for c in kept] == choices
    for choice in choices[:40]:
        served = routing.serve(choice.unit)
        assert (served.model.model_id, str(served.arm)) == (choice.model, choice.arm)
        params = {"task": "hook", "unit": choice.unit}
        decided = (await service.http.get("/decide", params=params)).json()
        for name in ("model", "arm", "subject", "phase", "version"):
            assert decided[name] == getattr(choice, name)
    counts = Counter(choice.model for choice in choices)
    assert counts["base"] > counts["one"] > 30
    assert counts["two"] > 30
    for test in ids(family):
        exposed = await service.app.store.events.exposed(test)
        mine = Counter(c.arm for c in choices if c.subject == test)
        assert {str(arm): n for (_, arm), n in exposed.items()} == mine


async def test_wire_of_one_candidate_has_no_lanes(service: Service) -> None:
    one = {**THREE, "candidate_model": {"model_id": "one"}}
    del one["candidate_models"]
    assert (await service.post(CREATE, one)).status_code == 201
    body = (await service.http.get("/routing")).json()
    assert set(body["routing"][0]) == {
        "task", "baseline", "candidate", "share", "salt", "subject", "phase", "version",
        "updated_at", "cause",
    }  # fmt: skip


async def test_wire_of_several_has_their_lanes_and_nothing_else_to_decide_by(
    service: Service, family: dict[str, Any]
) -> None:
    row = (await service.http.get("/routing")).json()["routing"][0]
    assert (row["candidate"], row["share"], row["subject"]) == (None, 0.0, None)
    assert row["salt"] == family["family"]
    assert row["lanes"] == [
        {"subject": id, "candidate": {"model_id": name, "version": None}, "share": 0.2}
        for id, name in zip(ids(family), ("one", "two"), strict=True)
    ]


async def test_gateway_answers_by_lane_and_counts_for_the_lane(
    service: Service, chat: Any, family: dict[str, Any]
) -> None:
    routing = next(r for r in await service.app.routing.all() if r.task == "hook")
    for number in range(12):
        unit = f"unit-{number}"
        served = routing.serve(unit)
        body = {"model": "tuneproof/hook", "messages": [{"role": "user", "content": "Hi"}]}
        answer = await service.post("/v1/chat/completions", {**body, "user": unit})
        assert answer.headers["x-tuneproof-subject"] == served.subject
        assert answer.headers["x-tuneproof-model"] == served.model.model_id
        told = {"response_id": answer.json()["id"], "value": 0.07}
        assert (await service.post("/v1/feedback", told)).json()["accepted"] == 1


async def test_family_is_shown_side_by_side_and_ended_as_a_whole(
    service: Service, family: dict[str, Any]
) -> None:
    start = (await service.app.store.experiments.get(ids(family)[0])).start_at
    evaluator = ModelEvaluator(store=service.app.store, clock=service.app.clock)
    await evaluator.look(family["family"], at=start + timedelta(hours=5))
    metrics = (await service.http.get(f"/evaluation/metrics/{ids(family)[1]}")).json()
    beside = metrics["family"]
    assert [t["ab_test_id"] for t in beside["tests"]] == ids(family)
    assert [t["looks"] for t in beside["tests"]] == [1, 1]
    assert beside["winner"] is None
    page = (await service.http.get(f"/evaluation/report/{ids(family)[0]}")).text
    assert "Side by side" in page
    assert page.count("<h3>") == 2
    one = await service.post(f"/evaluation/end/{ids(family)[0]}", {"reason": "slow"})
    assert one.json()["status"] == "aborted"
    row = (await service.http.get("/routing")).json()["routing"][0]
    assert [lane["candidate"] is None for lane in row["lanes"]] == [True, False]
    ended = await service.post(f"/evaluation/family/{family['family']}/end", {"reason": "enough"})
    assert [t["status"] for t in ended.json()["tests"]] == ["aborted", "aborted"]
    row = (await service.http.get("/routing")).json()["routing"][0]
    assert "lanes" not in row
    again = await service.post(f"/evaluation/family/{family['family']}/end", {"reason": "again"})
    assert again.status_code == 409
    assert (await service.http.get("/evaluation/family/family-1")).status_code == 404


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"candidate_model": {"model_id": "one"}}, "either candidate_model or"),
        ({"candidate_models": None}, "either candidate_model or"),
        ({"candidate_models": [{"model_id": "one"}]}, "at least 2"),
        ({"candidate_models": [{"model_id": "one"}] * 2}, "named twice"),
        ({"traffic_split": 0.4}, "0.3333"),
        ({"allocation": "thompson"}, "shares stay as they are"),
    ],
)
async def test_what_cannot_be_a_family_is_refused(
    service: Service, changes: dict[str, Any], said: str
) -> None:
    answer = await service.post(CREATE, {**THREE, **changes})
    assert answer.status_code in (400, 422), answer.text
    assert said in answer.text
    assert (await service.http.get("/routing")).json()["routing"] == []


async def test_the_command_line_declares_shows_and_ends_a_family(service: Service) -> None:
    def run(*tokens: str) -> tuple[int, str]:
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            code = cli.run([*tokens, "--url", service.address])
        return code, out.getvalue()

    asked = ("experiment", "create", "base", "one", "two", "three", "--share", "0.1")
    code, said = await asyncio.to_thread(run, *asked)
    assert code == 0, said
    assert "Family family-" in said
    tests = (await service.http.get("/evaluation/tests")).json()["items"]
    assert len(tests) == 3
    code, said = await asyncio.to_thread(run, "experiment", "show", tests[0]["ab_test_id"])
    assert code == 0, said
    assert f"Tested at once, as {tests[0]['family']}" in said
    assert all(name in said for name in ("one", "two", "three"))
    code, said = await asyncio.to_thread(run, "experiment", "show", tests[0]["family"])
    assert code == 0, said
    assert all(name in said for name in ("base", "one", "two", "three"))
    end = ("experiment", "end", tests[0]["family"], "--reason", "enough", "--yes")
    code, said = await asyncio.to_thread(run, *end)
    assert code == 0, said
    assert "are ended" in said
