"""Answers on their way to a score: through the gateway, from an application, by its client."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.chat import Chat
from tests.integration.server.conftest import Service
from tests.integration.server.test_gateway import Arm, ask, units

from tuneproof import cli
from tuneproof.app import App
from tuneproof.cli.serve import serving
from tuneproof.client import AsyncClient
from tuneproof.settings import ScorerConfig, Settings
from tuneproof.testing import MemorySource


@pytest.fixture
async def service(settings: Settings, chat: Chat) -> AsyncIterator[Service]:
    """A service whose pipeline scores its answers by the model `judge`."""
    pipeline = replace(settings.pipelines["default"], quality_scorer="judge")
    scored = replace(
        settings,
        pipelines={"default": pipeline},
        scorers={"judge": ScorerConfig(name="judge", model="judge")},
    )
    chat.answer("judge", lambda asked: '{"reason": "three words", "score": 4}')
    async with (
        App.open(scored, source=MemorySource([]), poll_s=0.02) as app,
        serving(app, scored) as (address, _),
        httpx2.AsyncClient(base_url=address, timeout=30, trust_env=False) as http,
    ):
        yield Service(app, address, http)


@pytest.fixture
async def test_id(service: Service) -> str:
    """A test of `cand` against `base` with half of the traffic, which asks for quality."""
    declared = await service.post(
        "/evaluation/create-ab-test",
        {
            "baseline_model": {"model_id": "base"},
            "candidate_model": {"model_id": "cand"},
            "traffic_split": 0.5,
            "duration_hours": 24,
            "criteria": ["quality non_inferior 0.05"],
        },
    )
    assert declared.status_code == 201, declared.text
    return str(declared.json()["ab_test_id"])


async def scored(service: Service, test_id: str, each: int) -> dict[str, Any]:
    """How the scores stand, once each arm has so many."""
    path = f"/evaluation/scores/{test_id}"
    found: dict[str, Any] = await service.until(
        path, lambda s: s["baseline"]["scored"] == s["candidate"]["scored"] == each
    )
    return found


def questions(chat: Chat) -> list[str]:
    return [b["messages"][-1]["content"] for b in chat.bodies if b["model"] == "judge"]


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_through_the_gateway_are_scored(
    service: Service, chat: Chat, test_id: str, stream: bool
) -> None:
    for unit in (await units(service)).values():
        answer = await service.post("/v1/chat/completions", ask(unit, stream=stream))
        assert answer.status_code == 200, answer.text
    found = await scored(service, test_id, 1)
    assert (found["scorer"], found["calls"]) == ("judge", 2)
    assert found["baseline"]["mean"] == 0.75
    for question in questions(chat):
        assert "user: Our summer sale starts" in question
        assert "three small words" in question
        assert "cand" not in question, "the judge does not know whose answer it is"


async def test_a_stream_that_breaks_off_is_not_scored(
    service: Service, chat: Chat, test_id: str
) -> None:
    both = await units(service)
    chat.cut("base")
    await service.post("/v1/chat/completions", ask(both[Arm.BASELINE], stream=True))
    await service.until(f"/events?subject={test_id}", lambda found: len(found) == 1)
    found = (await service.http.get(f"/evaluation/scores/{test_id}")).json()
    assert (found["baseline"]["waiting"], found["baseline"]["scored"]) == (0, 0)


async def test_an_application_hands_its_texts_in(
    service: Service, chat: Chat, test_id: str
) -> None:
    shown = [
        {
            "id": f"e{i}",
            "subject": test_id,
            "phase": 1,
            "arm": arm,
            "unit": f"u{i}",
            "at": service.app.clock.now().isoformat(),
            "task": "hook",
            "text": "A hook about tea",
            "messages": [{"role": "user", "content": "tea"}],
        }
        for i, arm in enumerate(("baseline", "candidate"))
    ]
    taken = await service.post("/events", {"exposures": shown})
    assert taken.json()["accepted"] == 2
    await scored(service, test_id, 1)
    assert all("user: tea" in question for question in questions(chat))
    kept = (await service.http.get(f"/events?subject={test_id}")).text
    assert "A hook about tea" not in kept
    shown[0]["messages"] = [{"role": "user"}]
    assert (await service.post("/events", {"exposures": shown})).status_code == 422


async def test_the_client_hands_texts_in(
    service: Service, test_id: str, tmp_path: Path, chat: Chat
) -> None:
    both = await units(service)
    async with AsyncClient(service.address, state_dir=tmp_path / "client") as client:
        for unit in both.values():
            choice = await client.choose("hook", unit)
            assert choice.subject == test_id
            client.record(choice, text="A hook about tea", prompt="tea")
        assert await client.flush()
    await scored(service, test_id, 1)
    assert all("user: tea" in question for question in questions(chat))


async def test_the_command_line_shows_them(service: Service, chat: Chat, test_id: str) -> None:
    def show() -> str:
        out = io.StringIO()
        with redirect_stdout(out):
            assert cli.run(["experiment", "show", test_id, "--url", service.address]) == 0
        return out.getvalue()

    chat.fail("judge", status=401)
    await service.post("/v1/chat/completions", ask(next(iter((await units(service)).values()))))
    await service.until(f"/evaluation/scores/{test_id}", lambda s: s["waits"])
    shown = await asyncio.to_thread(show)
    assert "mean score" in shown
    assert "cannot be asked" in shown


async def test_the_doctor_looks_for_the_judge(service: Service) -> None:
    [found] = [f for f in await service.app.doctor.examine() if f.name == "scorer: judge"]
    assert (found.status, found.detail) == (
        "warning",
        "default does not list judge, which should judge",
    )
    assert "scorers.judge.model" in found.mend


async def test_scores_of_an_unknown_test_are_a_404(service: Service) -> None:
    answer = await service.http.get("/evaluation/scores/ab-test-20000101-001")
    assert answer.status_code == 404
