"""Each library works through the gateway unchanged: words, streams, tools, objects, errors.

The libraries are in an environment of their own, and each program runs in a process there. It
differs from one for OpenAI in the address, the model's name and, where it says a unit, a header.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.integration.server.conftest import Service, open_service
from tests.sdks.provider import openai_like
from tests.trainer.integration.test_npm import MODULES, program, run

from tuneproof.settings import Settings

pytestmark = pytest.mark.sdks

PROGRAMS = Path(__file__).parent / "programs"
PYTHON = Path(os.environ["TUNEPROOF_SDKS"]).absolute()
WORDS, PERSON = "three small words", {"name": "Ada", "age": 36}

EXPECTED = {
    "completion": WORDS,
    "stream": WORDS,
    "tools": ["weather", {"city": "Berlin"}, WORDS],
    "structured": PERSON,
    "errors": [
        [404, "model_not_found"],
        [400, "context_length_exceeded"],
        [429, "rate_limit_exceeded"],
    ],
}
INSTRUCTOR = {**EXPECTED, "stream": PERSON, "tools": {"city": "Berlin"}}
"""It makes objects of tools, and streams them."""

LITELLM = {**EXPECTED, "errors": [[404, None], [400, "context_length_exceeded"], [429, "429"]]}
"""It has codes of its own."""


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    with openai_like() as url:
        settings = Settings.load(
            dir=tmp_path / "data",
            env={},
            port=0,
            base_url=url,
            api_key="provider-key",
            base_model="base",
            **{"server.metrics_enabled": False},
        )
        hook = replace(settings.tasks["hook"], model="base")
        async with open_service(
            replace(settings, tasks={**settings.tasks, "hook": hook})
        ) as opened:
            yield opened


@pytest.fixture
async def test_id(service: Service) -> str:
    models = {"baseline_model": {"model_id": "base"}, "candidate_model": {"model_id": "cand"}}
    body = {**models, "tasks": ["hook"], "traffic_split": 0.5, "duration_hours": 24}
    answer = await service.post("/evaluation/create-ab-test", body)
    assert answer.status_code == 201, answer.text
    return answer.json()["ab_test_id"]


async def said(*command: str | Path, **environment: str) -> dict[str, Any]:
    """What a program prints."""
    running = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(300):
        out, err = await running.communicate()
    assert running.returncode == 0, err.decode()[-4000:]
    return json.loads(out.decode().splitlines()[-1])


async def assert_each_left_one_exposure(
    service: Service, test_id: str, answered: int, limited: int = 1
) -> None:
    """Those that were answered or came too often, all of the unit that was said."""
    count = answered + limited
    events = await service.until(f"/events?subject={test_id}", lambda found: len(found) >= count)
    assert {event["unit"] for event in events} == {"user-1"}
    assert [event["error"] for event in events].count(True) == limited
    assert len(events) == count


PROGRAM = {
    "openai_python": (EXPECTED, 6, 1),
    "langchain_sdk": (EXPECTED, 5, 1),
    "litellm_sdk": (LITELLM, 5, 1),
    "instructor_sdk": (INSTRUCTOR, 4, 1),
    "pydantic_ai_sdk": (EXPECTED, 6, 3),  # its client asks twice again
}
"""What each finds, how many of its requests are answered, and how many come too often."""


@pytest.mark.parametrize("name", PROGRAM)
async def test_python_libraries_work_unchanged(service: Service, test_id: str, name: str) -> None:
    expected, answered, limited = PROGRAM[name]
    found = await said(PYTHON, PROGRAMS / f"{name}.py", f"{service.address}/v1")
    assert found == expected
    await assert_each_left_one_exposure(service, test_id, answered, limited)


async def test_the_npm_package_works_unchanged(service: Service, test_id: str) -> None:
    if not (MODULES / "openai").exists():
        done = run(program("npm"), "ci", "--no-audit", "--no-fund", timeout_s=300)
        assert done.returncode == 0, done.stderr
    node = MODULES / ".bin" / "node"
    file = PROGRAMS / "openai_js.cjs"
    found = await said(node, file, f"{service.address}/v1", NODE_PATH=str(MODULES))
    assert found == EXPECTED
    await assert_each_left_one_exposure(service, test_id, 5)
