"""A test puts no model into production unasked, and none that does not answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from tests.integration.server.conftest import Service, open_service

from tuneproof.experiments import ExperimentStatus, Variant
from tuneproof.rollout import Routing
from tuneproof.settings import Settings

CREATE = "/evaluation/create-ab-test"


def asked(baseline: str, candidate: str, **more: Any) -> dict[str, Any]:
    models = {"baseline_model": {"model_id": baseline}, "candidate_model": {"model_id": candidate}}
    return {**models, "tasks": ["hook"], **more}


async def served(service: Service, task: str = "hook") -> tuple[str | None, list[str]]:
    """The model in use of a task, and who is tested there."""
    routing = await service.app.store.routing.get(task)
    return (None, []) if routing is None else (routing.baseline.model_id, [*routing.subjects])


async def in_use(service: Service, model: str) -> None:
    routing = Routing(task="hook", baseline=Variant(model_id=model))
    await service.app.store.routing.set(routing)
    await service.app.routing.board.refresh()


@pytest.mark.parametrize("wrong", ["baseline", "candidate"])
async def test_models_that_do_not_answer_get_no_traffic(service: Service, wrong: str) -> None:
    """Before: 9 of 10 requests went to a model that does not exist, also after the test's end."""
    models = ("bsae", "cand") if wrong == "baseline" else ("base", "cnad")
    refused = await service.post(CREATE, asked(*models))
    assert refused.status_code == 422
    assert "'bsae'" in refused.text or "'cnad'" in refused.text
    assert refused.json()["mend"].startswith("Check its name")
    assert await served(service) == (None, [])
    assert (await service.post(CREATE, asked("base", "cand"))).status_code == 201


async def test_a_baseline_that_is_not_in_use_is_refused_and_both_are_named(
    service: Service,
) -> None:
    await in_use(service, "base")
    refused = await service.post(CREATE, asked("better", "cand"))
    assert refused.status_code == 409
    assert "better is not the model in use of hook, base" in refused.json()["detail"]
    assert await served(service) == ("base", [])


async def test_a_baseline_that_replaces_is_called_recorded_and_can_be_taken_back(
    service: Service,
) -> None:
    """Before: rollback said that there was nothing to take back."""
    await in_use(service, "base")
    typo = await service.post(CREATE, asked("bettre", "cand", replace_baseline=True))
    assert (typo.status_code, await served(service)) == (422, ("base", []))
    made = await service.post(CREATE, asked("better", "cand", replace_baseline=True))
    assert made.status_code == 201, made.text
    id = made.json()["ab_test_id"]
    assert await served(service) == ("better", [id])
    lines = (await service.http.get("/activity")).json()["items"]
    [line] = [x for x in lines if x["action"] == "baseline replace"]
    assert (line["object_id"], line["reason"]) == ("hook", "better takes the place of base.")

    back = await service.post("/routing/hook/rollback", {"reason": "it was a mistake"})
    assert back.status_code == 200, back.text
    assert (back.json()["status"], back.json()["restored_model"]) == ("rolled_back", "base")
    assert await served(service) == ("base", [])
    test = await service.app.store.experiments.get(id)
    assert (test.status, test.reason) == (ExperimentStatus.ABORTED, "it was a mistake")
    again = await service.post("/routing/hook/rollback", {"reason": "twice"})
    assert again.status_code == 404


async def test_the_way_back_is_there_also_after_the_test(service: Service) -> None:
    await in_use(service, "base")
    made = await service.post(CREATE, asked("better", "cand", replace_baseline=True))
    await service.post(f"/evaluation/end/{made.json()['ab_test_id']}", {"reason": "done"})
    assert await served(service) == ("better", [])
    await service.post("/routing/hook/rollback", {"reason": "no"})
    assert await served(service) == ("base", [])


@pytest.fixture
async def apart(settings: Settings) -> AsyncIterator[Service]:
    """A service whose application asks the models of `hook` itself."""
    tasks = {**settings.tasks, "hook": replace(settings.tasks["hook"], served_by="application")}
    async with open_service(replace(settings, tasks=tasks)) as opened:
        yield opened


async def test_models_that_the_application_asks_are_not_asked_by_us(apart: Service) -> None:
    made = await apart.post(CREATE, asked("theirs", "also-theirs"))
    assert made.status_code == 201, made.text
    chat = {"model": "tuneproof/hook", "messages": [{"role": "user", "content": "tea"}]}
    refused: httpx2.Response = await apart.post("/v1/chat/completions", chat)
    assert refused.status_code == 409
    assert "asked by the application itself" in refused.json()["error"]["message"]
    listed = (await apart.http.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == []
    decided = await apart.http.get("/decide", params={"task": "hook", "unit": "u"})
    assert decided.json()["model"] in ("theirs", "also-theirs")
