"""The gate: what it lets through, what it stops, and what it says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from tuneproof.errors import DataError
from tuneproof.evaluation import Gate
from tuneproof.testing import MemoryProvider
from tuneproof.training import ModelVersion, Score, VersionStatus

VERSION = ModelVersion(
    id="ver-1",
    pipeline="default",
    run_id=None,
    version="1.0.0",
    model_id="ft:base:x",
    base_model="base",
    provider="memory",
    training_job_id="ftjob-1",
    dataset_hash="h",
    tasks=("hook",),
    status=VersionStatus.TRAINED,
    created_at=datetime(2025, 1, 20, tzinfo=UTC),
)

Messages = Sequence[Mapping[str, str]]


def heldout(directory: Path, lines: int = 30) -> Path:
    path = directory / "validation.jsonl"
    chats = [
        [{"role": "user", "content": f"about {i}"}, {"role": "assistant", "content": f"reply {i}"}]
        for i in range(lines)
    ]
    path.write_text("".join(json.dumps({"messages": c}) + "\n" for c in chats))
    return path


def provider(*, tuned: float, base: float = 3.0, text: str = "fine") -> MemoryProvider:
    def score(model: str, messages: Messages) -> Score:
        loss = tuned if model.startswith("ft:") else base
        return Score(tokens=2, logprob=-2 * loss)

    return MemoryProvider(
        base_models=("base", "ft:base:x"), score=score, answer=lambda m, messages, i: text
    )


async def test_lower_loss_and_clean_outputs_pass(tmp_path: Path) -> None:
    report = await Gate(provider(tuned=2.0)).check(VERSION, {"hook": heldout(tmp_path)})
    assert report.passed
    assert (report.heldout_loss, report.base_heldout_loss) == (2.0, 3.0)
    assert report.improvement == pytest.approx(1 / 3)
    assert report.reason.startswith("The held-out loss fell 33.3%, from 3.000 to 2.000")
    assert len(report.samples) == 20


@pytest.mark.parametrize(
    ("tuned", "needed", "passed"), [(3.0, 0.0, False), (2.9, 0.0, True), (2.9, 0.1, False)]
)
async def test_loss_must_fall_by_the_required_share(
    tmp_path: Path, tuned: float, needed: float, passed: bool
) -> None:
    gate = Gate(provider(tuned=tuned), min_improvement=needed)
    assert (await gate.check(VERSION, {"hook": heldout(tmp_path)})).passed is passed


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "empty"),
        ("hi <|im_end|>", "contains a special token"),
        (" ".join(map(str, range(5000))), "longer than 20000 characters"),
        ("?! …", "has no words"),
        ("no " * 9, "repeats itself"),
        ("buy it now and " * 6, "repeats itself"),
        ("wow" + "!" * 30, "repeats itself"),
    ],
)
async def test_bad_outputs_fail_and_are_named(tmp_path: Path, text: str, fault: str) -> None:
    report = await Gate(provider(tuned=2.0, text=text)).check(VERSION, {"hook": heldout(tmp_path)})
    assert not report.passed
    assert f"20 of 20 sampled outputs of hook fail a check ({fault})" in report.reason
    assert report.samples[0].faults == (fault,)


async def test_model_that_repeats_the_prompt_fails(tmp_path: Path) -> None:
    made = provider(tuned=2.0)
    made._answer = lambda model, messages, i: messages[-1]["content"]
    report = await Gate(made).check(VERSION, {"hook": heldout(tmp_path)})
    assert not report.passed
    assert "repeats the prompt" in report.reason


async def test_provider_that_cannot_score_is_said_so(tmp_path: Path) -> None:
    made = provider(tuned=2.0)
    made._score = lambda model, messages: None
    report = await Gate(made).check(VERSION, {"hook": heldout(tmp_path)})
    assert report.passed
    assert report.heldout_loss is None
    assert "cannot score held-out text" in report.reason


async def test_users_scorer_decides_with_its_least_mean(tmp_path: Path) -> None:
    async def length(prompt: Messages, text: str) -> float:
        return float(len(text))

    for least, passed in ((4.0, True), (5.0, False)):
        gate = Gate(provider(tuned=2.0), scorers={"length": length}, min_scores={"length": least})
        report = await gate.check(VERSION, {"hook": heldout(tmp_path)})
        assert report.passed is passed
        assert report.scores == {"length": 4.0}


async def test_empty_heldout_set_lets_nothing_through(tmp_path: Path) -> None:
    report = await Gate(provider(tuned=2.0)).check(VERSION, {"hook": heldout(tmp_path, 0)})
    assert not report.passed
    assert report.reason == "The held-out set is empty: nothing can be checked."


async def test_version_without_model_fails() -> None:
    report = await Gate(provider(tuned=2.0)).check(replace(VERSION, model_id=None), {})
    assert not report.passed


@pytest.mark.parametrize("content", ["not json\n", '{"no": "messages"}\n', "5\n", "null\n"])
async def test_broken_heldout_file_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"broken\.jsonl cannot be read"):
        await Gate(provider(tuned=2.0)).check(VERSION, {"hook": path})


def preferences(directory: Path, lines: int = 30) -> Path:
    path = directory / "pairs.jsonl"
    made = [
        {
            "input": {"messages": [{"role": "user", "content": f"about {i}"}]},
            "preferred_output": [{"role": "assistant", "content": f"better {i}"}],
            "non_preferred_output": [{"role": "assistant", "content": f"worse {i}"}],
        }
        for i in range(lines)
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in made))
    return path


@pytest.mark.parametrize(
    ("better", "worse", "passed", "said"),
    [
        (3.2, 4.5, True, "gained on the worse ones in 100% of 30 held-out pairs, +2.600 nats"),
        (3.0, 3.0, False, "did not gain on the worse ones (+0.000 nats in the mean, 0%"),
        (3.5, 3.1, False, "did not gain on the worse ones (-0.800 nats"),
        (
            4.5,
            9.0,
            False,
            "more than 25% above the base model's 3.000: the model lost its language",
        ),
    ],
)
async def test_preferences_are_judged_by_what_the_better_answers_gained(
    tmp_path: Path, better: float, worse: float, passed: bool, said: str
) -> None:
    """Their likelihood falls in such training, and says nothing."""

    def score(model: str, messages: Messages) -> Score:
        tuned = better if messages[-1]["content"].startswith("better") else worse
        return Score(tokens=2, logprob=-2 * (tuned if model.startswith("ft:") else 3.0))

    made = MemoryProvider(
        base_models=("base", "ft:base:x"), score=score, answer=lambda m, messages, i: "fine words"
    )
    report = await Gate(made).check(VERSION, {"hook": preferences(tmp_path)})
    assert report.passed is passed
    assert said in report.reason
    assert report.pair_accuracy == (1.0 if worse > better else 0.0)
    assert report.pair_margin == pytest.approx(2 * (worse - better))


async def test_a_model_that_only_copies_fails_and_some_copies_are_shown(tmp_path: Path) -> None:
    training = heldout(tmp_path)
    (tmp_path / "held").mkdir()
    held = heldout(tmp_path / "held")
    made = provider(tuned=2.0)
    for share, passed in ((1, False), (4, True)):
        made._answer = partial(_copying, share)
        report = await Gate(made).check(VERSION, {"hook": held}, training)
        assert report.passed is passed, report.reason
        assert report.samples[0].faults == ("copies a training line",)
    assert (await Gate(made).check(VERSION, {"hook": held})).samples[0].faults == ()
    made._answer = partial(_copying, 1)
    few = await Gate(made, samples=9).check(VERSION, {"hook": held}, training)
    assert few.passed, "nine copies are too few to tell"


def _copying(share: int, model: str, messages: Messages, number: int) -> str:
    """A training answer for one in so many inputs."""
    return "of its own" if int(messages[-1]["content"].split()[-1]) % share else "Reply 7!"


# --- several tasks ------------------------------------------------------------------------------


def both(directory: Path, hooks: int = 600, bodies: int = 30) -> dict[str, Path | str]:
    """Held-out files of two tasks, of which the first has more lines than a gate reads."""
    found: dict[str, Path | str] = {}
    for task, count in (("hook", hooks), ("body", bodies)):
        (directory / task).mkdir()
        path = heldout(directory / task, count)
        path.write_text(path.read_text().replace("about", task))
        found[task] = path
    return found


def of_task(hook: str, body: str, *, body_loss: float = 2.0) -> MemoryProvider:
    def is_body(messages: Messages) -> bool:
        return messages[0]["content"].startswith("body")

    def score(model: str, messages: Messages) -> Score:
        tuned = body_loss if is_body(messages) else 2.0
        return Score(tokens=2, logprob=-2 * (tuned if model.startswith("ft:") else 3.0))

    return MemoryProvider(
        base_models=("base", "ft:base:x"),
        score=score,
        answer=lambda model, messages, i: body if is_body(messages) else hook,
    )


async def test_each_task_is_sampled_and_a_fault_of_one_is_not_diluted(tmp_path: Path) -> None:
    """Seen: only the hooks, which come first in the file of all, were ever looked at."""
    files = both(tmp_path)
    fine = await Gate(of_task("fine", "fine as well")).check(VERSION, files)
    assert fine.passed
    assert "40 sampled outputs pass their checks" in fine.reason
    assert [sample.task for sample in fine.samples] == ["hook"] * 20 + ["body"] * 20
    assert {sample.prompt for sample in fine.samples[20:]} == {f"body {i}" for i in range(20)}
    broken = await Gate(of_task("fine", "")).check(VERSION, files)
    assert not broken.passed
    assert "20 of 20 sampled outputs of body fail a check (empty)" in broken.reason


async def test_the_loss_is_of_all_tasks_also_where_one_has_more_lines_than_are_read(
    tmp_path: Path,
) -> None:
    report = await Gate(of_task("a", "b", body_loss=4.0)).check(VERSION, both(tmp_path))
    assert report.heldout_examples == 500
    assert report.heldout_loss == pytest.approx((470 * 2.0 + 30 * 4.0) / 500)
    (tmp_path / "again").mkdir()
    halves = await Gate(of_task("a", "b"), max_heldout=20).check(VERSION, both(tmp_path / "again"))
    assert [one.task for one in halves.samples] == ["hook"] * 10 + ["body"] * 10


@pytest.mark.parametrize(
    ("bodies", "hooks", "told"),
    [
        (1, 20, None),  # one bad output of one is no share
        (2, 20, "2 of 2 sampled outputs of body fail"),
        (1, 5, "1 of 6 sampled outputs of all tasks fail"),
    ],
)
async def test_a_task_of_few_lines_is_judged_by_two_outputs_or_with_the_others(
    tmp_path: Path, bodies: int, hooks: int, told: str | None
) -> None:
    report = await Gate(of_task("fine", "")).check(VERSION, both(tmp_path, hooks, bodies))
    assert report.passed is (told is None)
    assert (told or "pass their checks") in report.reason


async def test_a_task_without_held_out_lines_is_no_fault_of_the_others(tmp_path: Path) -> None:
    report = await Gate(of_task("fine", "")).check(VERSION, both(tmp_path, hooks=5, bodies=0))
    assert report.passed
    assert {sample.task for sample in report.samples} == {"hook"}
