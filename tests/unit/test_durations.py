"""How long a training takes, by those before it."""

from __future__ import annotations

import pytest

from tuneproof.training import TrainingTime, estimate_time


def took(base_model: str, seconds: float, *, tokens: int = 1000) -> TrainingTime:
    return TrainingTime(base_model=base_model, method="supervised", tokens=tokens, seconds=seconds)


def test_trainings_of_the_same_model_go_before_those_of_other_sizes() -> None:
    earlier = [took("m-8B", 900), took("m-1B", 100), took("m-1B", 50)]
    found = estimate_time(2000, base_model="m-1B", method="supervised", earlier=earlier)
    assert found is not None
    assert (found.seconds, found.trainings) == (150, 2)


def test_the_newest_five_count() -> None:
    earlier = [*[took("m", 100)] * 5, took("m", 10_000)]
    found = estimate_time(1000, base_model="m", method="supervised", earlier=earlier)
    assert found is not None
    assert (found.seconds, found.trainings) == (pytest.approx(100), 5)


def test_nothing_is_said_where_nothing_is_comparable() -> None:
    assert estimate_time(1000, base_model="m", method="dpo", earlier=[]) is None
    assert estimate_time(1000, base_model=None, method="dpo", earlier=[]) is None
    others = [took("gpt-4.1-mini", 100)]
    assert estimate_time(1000, base_model="m-1B", method="dpo", earlier=others) is None
    nothing = [took("m-1B", 0, tokens=0)]
    assert estimate_time(1000, base_model="m-1B", method="dpo", earlier=nothing) is None


def test_a_model_that_is_not_named_is_the_one_that_was_trained_last() -> None:
    earlier = [took("m", 60), took("n", 600)]
    found = estimate_time(1000, base_model=None, method="supervised", earlier=earlier)
    assert found is not None
    assert found.seconds == 60
