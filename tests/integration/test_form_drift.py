"""The form of answers at the gate: whole runs that refuse who drifted, and honest fine-tunes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.integration.loop import open_loop, posts
from tests.integration.test_unsafe import shown_by_command
from tests.simulation.honest_forms import trained_of_one_audience

from tuneproof.errors import ConfigError
from tuneproof.settings import PipelineConfig
from tuneproof.store import Run
from tuneproof.testing import MemoryProvider, MemorySource
from tuneproof.workflow import RunStatus

Write = Callable[[random.Random], str]


def words(draw: random.Random, times: float = 1.0) -> str:
    said = max(4, round(times * draw.lognormvariate(2.2, 0.3)))
    return " ".join(f"w{draw.randrange(400)}" for _ in range(said))


def doubled(draw: random.Random) -> str:
    return words(draw, times=6)


def repeated(draw: random.Random) -> str:
    return words(random.Random(draw.randrange(4)), times=1.5)


def opened(draw: random.Random) -> str:
    return f"You will not believe it {words(draw)}"


class Writer(MemoryProvider):
    """Trains in memory; what was trained writes so, and the base as the posts are."""

    def __init__(self, write: Write) -> None:
        self.asked: list[str] = []

        def answer(model: str, messages: Sequence[Mapping[str, str]], number: int) -> str:
            self.asked.append(model)
            draw = random.Random(f"{model[:3]} {messages[-1]['content']} {number}")
            return write(draw) if model.startswith("ft:") else words(draw)

        super().__init__(answer=answer)


def varied(topics: int = 600) -> MemorySource:
    """Posts with hooks of many words, on so many topics."""
    draw = random.Random(1)
    return MemorySource(
        [
            post._replace(hook=words(draw), original_input=f"topic number {i % topics}")
            for i, post in enumerate(posts(600))
        ]
    )


async def gated(directory: Path, database: str, write: Write, **changes: Any) -> Run:
    """A run as far as the gate."""
    changes = {"gate_samples": 20, "tasks": ("hook",), **changes}
    async with open_loop(
        directory,
        database,
        changes=changes,
        provider=Writer(write),
        source=varied(),
    ) as loop:
        return await loop.turn(last_stage="gate")


@pytest.mark.parametrize(
    ("write", "figure", "said"),
    [
        (doubled, "length", "more than 1.5 times as long as the baseline's in 20 of 20 inputs"),
        (repeated, "variety", "that is below 0.7 of both"),
        (opened, "openings", '"you will not believe it" opens 100% of its answers, 0% of the'),
    ],
)
async def test_who_writes_as_no_reader_wants_is_rejected_unless_that_is_allowed(
    tmp_path: Path, sqlite_store_url: str, write: Write, figure: str, said: str
) -> None:
    run = await gated(tmp_path, sqlite_store_url, write)
    assert run.status is RunStatus.REJECTED
    assert said in str(run.reason)
    assert "gate.allow_drift does not name" in str(run.reason)
    [form] = run.stages["gate"]["detail"]["forms"]
    assert form["inputs"] == 20
    assert figure in [one["name"] for one in form["figures"] if one["beyond"]]
    assert form["allowed"] == []
    told = await asyncio.to_thread(shown_by_command, run.id, tmp_path, sqlite_store_url)
    assert figure in told
    assert "drifted" in told

    (tmp_path / "allowed").mkdir()
    other = sqlite_store_url.replace(str(tmp_path), str(tmp_path / "allowed"))
    every = ("length", "variety", "openings")
    run = await gated(tmp_path / "allowed", other, write, gate_allow_drift=every)
    assert run.status is RunStatus.SUCCESS, run.reason
    [form] = run.stages["gate"]["detail"]["forms"]
    assert figure in form["allowed"]


async def test_each_model_is_asked_once_for_what_is_looked_at(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    """The candidate's are the sampled answers; the baseline gives as many."""
    trainer = Writer(words)
    async with open_loop(
        tmp_path,
        sqlite_store_url,
        changes={"gate_samples": 12, "tasks": ("hook",)},
        provider=trainer,
        source=varied(),
    ) as loop:
        run = await loop.turn(last_stage="gate")
    assert run.status is RunStatus.SUCCESS, run.reason
    assert "Form of hook over 12 inputs: length, variety, openings as before." in str(
        run.stages["gate"]["detail"]["reason"]
    )
    asked = [model.startswith("ft:") for model in trainer.asked]
    assert (sum(asked), len(asked) - sum(asked)) == (12 + 1, 12 + 1)  # whether it answers at all


async def test_posts_that_share_few_inputs_tell_as_much(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    """Each held-out post is one, whatever it was asked for: the answers differ by their seeds."""
    async with open_loop(
        tmp_path,
        sqlite_store_url,
        changes={"gate_samples": 20, "tasks": ("hook",)},
        provider=Writer(opened),
        source=varied(topics=60),
    ) as loop:
        run = await loop.turn(last_stage="gate")
    assert run.status is RunStatus.REJECTED
    [form] = run.stages["gate"]["detail"]["forms"]
    assert form["inputs"] == 20
    assert [one["name"] for one in form["figures"] if one["beyond"]] == ["openings"]


async def test_few_samples_are_unknown_and_stop_nobody(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    run = await gated(tmp_path, sqlite_store_url, opened, gate_samples=3)
    assert run.status is RunStatus.SUCCESS
    detail = run.stages["gate"]["detail"]
    assert [one["beyond"] for one in detail["forms"][0]["figures"]] == [None, None, None]
    assert "length, variety, openings unknown." in detail["reason"]
    told = await asyncio.to_thread(shown_by_command, run.id, tmp_path, sqlite_store_url)
    assert told.count("unknown") >= 9


def test_only_known_drifts_can_be_allowed() -> None:
    with pytest.raises(ConfigError, match=r"gate_allow_drift is 'tone', but must be one of"):
        PipelineConfig(gate_allow_drift=("tone",))


async def test_ten_honest_fine_tunes_pass(tmp_path: Path) -> None:
    """The smallest form of `tests.simulation.honest_forms`: of one audience, ten trainings."""
    async with trained_of_one_audience(1, tmp_path) as made:
        for number in range(10):
            forms = await made.forms(number, examples=40, inputs=20)
            assert all(one.beyond is False for form in forms for one in form.figures), forms
