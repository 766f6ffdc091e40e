"""Killed at random while it checks a version: nothing is answered twice, and it says the same."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.unit.test_evaluation import heldout
from tests.waiting import until
from tests.wire import Wire, wire_server

from tuneproof.evaluation.kept import CONCURRENCY, _read

pytestmark = pytest.mark.slow

KILLS = 6
LINES = 100
ANSWERS = 2 * LINES + 40
ANSWER_S = 0.01


def begun(wire: Wire, held: Path, kept: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.acceptance.gate_child", wire.url, str(held), str(kept)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def said(life: subprocess.Popen[str]) -> str:
    printed, _ = life.communicate(timeout=60)
    assert life.returncode == 0
    return printed


def killed(wire: Wire, held: Path, kept: Path, after: int) -> None:
    calls = len(wire.requests)
    with begun(wire, held, kept) as life:
        until(lambda: len(wire.requests) >= calls + after or life.poll() is not None, every_s=0.001)
        assert life.poll() is None, "it was done before it was killed"
        life.kill()


def test_killed_at_random_it_answers_nothing_twice_and_says_the_same(tmp_path: Path) -> None:
    held, kept = heldout(tmp_path, LINES), tmp_path / "answers.jsonl"
    chance = random.Random(7)
    with wire_server() as wire:
        wire.prompt_logprobs = [None, None, {"5": {"logprob": -1.5}}, {"2": {"logprob": -0.5}}]

        def answer(model: str, messages: list[dict[str, str]], index: int) -> str:
            threading.Event().wait(ANSWER_S)  # a model thinks
            return f"{model} answers {len(wire.requests)}"  # asked again it says something else

        wire.answer = answer
        for _ in range(KILLS):
            killed(wire, held, kept, chance.randint(1, ANSWERS // KILLS))
        calls, before = len(wire.requests), _read(kept)
        last = said(begun(wire, held, kept))
        late = CONCURRENCY  # what the killed one had sent may arrive late
        assert len(wire.requests) - calls <= ANSWERS - len(before) + late
        assert len(wire.requests) <= ANSWERS + KILLS * CONCURRENCY
        assert before.items() <= _read(kept).items()
        asked = len(wire.requests)
        assert said(begun(wire, held, kept)) == last
        assert len(wire.requests) == asked
        assert len(before) > ANSWERS // 4
