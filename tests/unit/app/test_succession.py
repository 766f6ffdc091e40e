"""What to do about a model's shutdown, and the last day to begin, by a pipeline's settings."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tuneproof.app.succession import GUIDE, MOVE, command, needed, succession
from tuneproof.settings import PipelineConfig

DAY = datetime(2027, 1, 14, tzinfo=UTC)


def told(days_before: float, **config: Any) -> str:
    made = PipelineConfig(**config)
    return succession(made, DAY, DAY - timedelta(days=days_before), follower=None)


def test_a_successor_takes_as_long_as_the_guide_says() -> None:
    takes = needed(PipelineConfig())
    assert takes.without_holdback == timedelta(days=17)
    assert takes.all == timedelta(days=31)
    assert takes.sentence() == (
        "7 days of test, 1 day for its outcomes, 9 days of rollout, 14 days of holdback"
    )


@pytest.mark.parametrize(
    ("config", "days"),
    [
        ({"holdback": 0}, 17),
        ({"deployment_strategy": "immediate", "holdback": 0}, 8),
        ({"deployment_strategy": "canary", "holdback": 0}, 12),
        ({"steps": (0.5, 1.0), "increment_interval_hours": 12, "holdback": 0}, 8.5),
        ({"a_b_test_duration_hours": 24, "maturation_hours": 0, "holdback_days": 2}, 12),
    ],
)
def test_every_setting_that_takes_time_counts(config: dict[str, Any], days: float) -> None:
    assert needed(PipelineConfig(**config)).all == timedelta(days=days)


def test_the_last_day_to_start_is_named_with_and_without_the_holdback() -> None:
    said = told(40)
    assert f"{MOVE} ({GUIDE})" in said
    assert "start by 2026-12-14 (7 days of test" in said
    assert "by 2026-12-28 with holdback = 0" in said
    assert "start by 2026-12-14" in told(31)
    assert "start by 2026-12-28 and with holdback = 0, since its 14 days would" in told(30)
    assert "start by 2026-12-28 (" in told(17, holdback=0)
    late = told(16)
    assert "would outlast the model, so a person has to choose" in late
    assert "start by" not in late


def test_the_command_is_of_the_pipeline_and_of_its_recipes() -> None:
    recipe = {"make": "as_is", "model": "gpt-5-mini"}
    assert command(PipelineConfig(name="weekly"), ()) == (f"{MOVE} --pipeline weekly")
    assert command(PipelineConfig(recipes=(recipe,)), ()) == "tuneproof run start"
    assert MOVE in command(PipelineConfig(recipes=(recipe,)), ("gpt-5-mini",))


def test_what_the_loop_goes_on_with_by_itself_begins_early_enough_or_is_told() -> None:
    def said(**config: Any) -> str:
        made = PipelineConfig(**config)
        return succession(made, DAY, DAY - timedelta(days=50), follower="next")

    assert said() == "35 days before, the loop starts a run with next"  # as it is by default
    late = said(retrain_lead_days=30)
    assert "set training.retrain_lead_days to 32 or more, or holdback = 0" in late
    assert "too late" not in said(retrain_lead_days=32)
    assert "too late" not in said(retrain_lead_days=30, holdback=0)
