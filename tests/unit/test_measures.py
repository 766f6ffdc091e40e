"""What chooses candidates may not be all that judges them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tuneproof.errors import ConfigError
from tuneproof.settings import PipelineConfig, ScorerConfig, Settings, TaskConfig

QUALITY = ("quality superior 0.05",)
CHEAPER = ("cost superior 0.1",)
AS_IS = {"make": "as_is", "model": "gpt-6"}
SCORERS = {
    "judge": ScorerConfig(name="judge", model="gpt-6"),
    "again": ScorerConfig(name="again", model="gpt-6"),
    "strict": ScorerConfig(name="strict", model="gpt-6", rubric="Is it true?"),
    "words": ScorerConfig(name="words", kind="mypackage.scoring:words"),
}
HOOK = TaskConfig(
    name="hook", prompt="On {original_input}", completion="hook", prompt_owner="variant"
)


def looked_for(scorer: str) -> dict[str, Any]:
    """A recipe that optimises a prompt by this scorer."""
    return {
        "make": "prompt",
        "optimise": scorer,
        "reflection": "gpt-6-sol@default",
        "budget_usd": 5,
    }


def settings(best_of: int = 1, **config: Any) -> Settings:
    task = replace(HOOK, best_of=best_of, prompt_owner="variant" if best_of == 1 else "application")
    made = PipelineConfig(tasks=("hook",), base_model="gpt-5-mini", **config)
    return Settings(pipelines={"default": made}, scorers=SCORERS, tasks={"hook": task})


def gates(scorer: str) -> dict[str, Any]:
    return {"gate_scorers": (scorer,), "gate_min_scores": {scorer: 0.7}}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"criteria": QUALITY, "quality_scorer": "judge", **gates("judge")},
            "lets only",
        ),
        (
            {"criteria": QUALITY, "quality_scorer": "words", **gates("words")},
            "lets only",
        ),
        ({"criteria": QUALITY, "quality_scorer": "judge", **gates("again")}, "that 'again' likes"),
        (
            {"criteria": (*QUALITY, *CHEAPER), "quality_scorer": "judge", **gates("judge")},
            "lets only",
        ),
        ({"criteria": QUALITY, "quality_scorer": "judge", "recipes": (AS_IS,)}, "its own answers"),
        (
            {"criteria": QUALITY, "quality_scorer": "judge", "recipes": (looked_for("again"),)},
            "optimises a prompt by 'again'",
        ),
        (
            {"criteria": CHEAPER, "best_of": 4, "gate_compared": 100},
            "alone says whether they would win",
        ),
    ],
)
def test_one_measure_that_chooses_and_decides_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(**given)
    assert caught.value.details["field"] == "pipelines.default.criteria"
    assert caught.value.message.startswith(f"pipelines.default.criteria is '{given['criteria'][0]}")
    assert said in caught.value.message
    assert caught.value.mend is not None
    assert "engagement non_inferior 0.05" in caught.value.mend


def test_the_base_that_is_trained_on_does_not_judge_alone() -> None:
    scorers = {"judge": ScorerConfig(name="judge", model="gpt-5-mini")}
    config = PipelineConfig(base_model="gpt-5-mini", criteria=QUALITY, quality_scorer="judge")
    with pytest.raises(ConfigError, match="'gpt-5-mini' is what a candidate is made of"):
        Settings(pipelines={"default": config}, scorers=scorers)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"quality_scorer": "judge", **gates("judge")},
        {
            "criteria": (*QUALITY, "engagement non_inferior 0.05"),
            "quality_scorer": "judge",
            "recipes": (AS_IS,),
            **gates("judge"),
        },
        {"criteria": QUALITY, "quality_scorer": "judge", **gates("strict")},
        {"criteria": QUALITY, "quality_scorer": "judge", **gates("words")},
        {"criteria": QUALITY, "quality_scorer": "judge", "gate_scorers": ("judge",)},
        {"criteria": QUALITY, **gates("judge")},
        {"criteria": CHEAPER, **gates("judge")},
        {"criteria": CHEAPER, "gate_compared": 100},
        {"criteria": CHEAPER, "best_of": 4},
        {"criteria": CHEAPER, "best_of": 4, "gate_compared": 100, **gates("judge")},
        {"best_of": 4, "gate_compared": 100},
    ],
)
def test_what_another_measure_sees_as_well_is_allowed(given: dict[str, Any]) -> None:
    assert settings(**given).pipelines["default"].tasks == ("hook",)
