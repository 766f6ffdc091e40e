"""The same libraries at the trainer, where it answers through a server like vLLM."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.sdks.provider import openai_like
from tests.sdks.test_sdks import EXPECTED, INSTRUCTOR, LITELLM, PROGRAMS, PYTHON, said
from tests.trainer.integration.conftest import BASE, ENDED, lines
from tests.trainer.integration.test_npm import MODULES, program, run
from tests.trainer.integration.test_replicas import Behind
from tests.waiting import until

from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.engines.lora.vllm import VllmAnswers
from tuneproof_trainer.engines.protocol import BaseModel
from tuneproof_trainer.settings import TrainerSettings

pytestmark = pytest.mark.sdks

MODEL = "tuneproof/hook"


class Served(Behind):
    """One base model, which the server behind has."""

    def base_models(self) -> Sequence[BaseModel]:
        return [BaseModel(id=MODEL, owned_by="test", created=1)]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with openai_like(MODEL) as behind:
        engine = Served(VllmAnswers(behind))
        settings = TrainerSettings(dir=tmp_path / "trainer")
        with EmbeddedTrainer(settings, engines=[engine]) as trainer:  # type: ignore[list-item]
            yield trainer.base_url


OPENAI_2 = os.environ.get("TUNEPROOF_OPENAI_2", "")
"""The command line that OpenAI's package had until its version 2."""


def test_openais_command_line_works_unchanged(tmp_path: Path) -> None:
    assert OPENAI_2, "`make sdks` says where it is"
    training = tmp_path / "train.jsonl"
    training.write_bytes(lines())
    with EmbeddedTrainer(TrainerSettings(dir=tmp_path / "trainer")) as trainer:

        def api(*arguments: str) -> str:
            command = [OPENAI_2, "-b", f"{trainer.base_url}/", "-k", "any", "api", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout

        made = api("files.create", "-f", str(training), "-p", "fine-tune")
        file = json.loads(made)["id"]
        asked = ("-m", BASE, "-F", file, "-s", "cli", "-H", '{"n_epochs": 1}')
        job = json.loads(api("fine_tuning.jobs.create", *asked))["id"]

        def over() -> Any:
            found = json.loads(api("fine_tuning.jobs.retrieve", "-i", job))
            return found if found["status"] in ENDED else None

        ended = until(over)
        assert ended["status"] == "succeeded"
        assert job in api("fine_tuning.jobs.list")
        assert "New fine-tuned model created" in api("fine_tuning.jobs.list_events", "-i", job)
        assert ended["fine_tuned_model"] in api("models.list")
        talk = ("-m", ended["fine_tuned_model"], "-g", "user", "tips about sourdough")
        assert api("chat.completions.create", *talk).strip()
        assert api("chat.completions.create", *talk, "--stream", "-t", "0").strip()
        api("models.delete", "-i", ended["fine_tuned_model"])
        assert file in api("files.list")


PROGRAM = {
    "openai_python": EXPECTED,
    "langchain_sdk": EXPECTED,
    "litellm_sdk": LITELLM,
    "instructor_sdk": INSTRUCTOR,
    "pydantic_ai_sdk": EXPECTED,
}


@pytest.mark.parametrize("name", PROGRAM)
async def test_python_libraries_work_unchanged(url: str, name: str) -> None:
    found = await said(PYTHON, PROGRAMS / f"{name}.py", url, "trainer")
    expected = dict(PROGRAM[name])
    assert found.pop("errors")[:2] == expected.pop("errors")[:2]  # type: ignore[index]
    assert found == expected


async def test_the_npm_package_works_unchanged(url: str) -> None:
    if not (MODULES / "openai").exists():
        done = run(program("npm"), "ci", "--no-audit", "--no-fund", timeout_s=300)
        assert done.returncode == 0, done.stderr
    node, file = MODULES / ".bin" / "node", PROGRAMS / "openai_js.cjs"
    found = await said(node, file, url, "trainer", NODE_PATH=str(MODULES))
    assert found.pop("errors")[:2] == EXPECTED["errors"][:2]
    assert found == {key: value for key, value in EXPECTED.items() if key != "errors"}
