"""What is learnt of how texts are spelt and what they are about."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneproof.evaluation.topics import Spelling, Topics

THEMES = (
    "the goalkeeper saved a penalty before the whistle of the match",
    "the gardener waters roses and tulips behind the greenhouse",
    "the train was late and the platform full of passengers with tickets",
)


def texts(number: int, seed: int = 1) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.sample(THEMES[i % 3].split(), 7)) for i in range(number)]


def test_another_language_is_less_familiar_and_more_of_the_same_is_not() -> None:
    learnt = Spelling.learnt(texts(100))
    usual = [learnt.familiarity(text) for text in texts(50, seed=2)]
    for other in ("Der Torwart hielt einen Elfmeter", "Το τρένο άργησε", "列車が遅れた"):
        assert learnt.familiarity(other) < min(usual)
    assert math.isnan(learnt.familiarity(" \n "))


@given(st.text(max_size=60), st.lists(st.text(max_size=30), max_size=4))
def test_any_text_is_familiar_or_empty(text: str, known: list[str]) -> None:
    found = Spelling.learnt(known).familiarity(text)
    assert math.isnan(found) == (not text.split())
    assert math.isnan(found) or found <= 0


def test_texts_of_a_theme_are_of_one_topic_named_by_its_words() -> None:
    learnt = Topics.learnt(texts(75))
    assert learnt is not None
    assert len(learnt.names) == 3
    found = learnt.of(texts(60, seed=3))
    themes = [Counter(found[theme::3]).most_common(1)[0] for theme in range(3)]
    assert sum(count for _, count in themes) >= 55
    assert {topic for topic, _ in themes} == {0, 1, 2}
    for theme, (topic, _) in zip(THEMES, themes, strict=True):
        assert set(learnt.names[topic].split(", ")) <= set(theme.split())
    again = Topics.learnt(texts(75))
    assert again is not None
    assert (again.names, again.of(texts(60, seed=3))) == (learnt.names, found)


@pytest.mark.parametrize("known", [[], texts(49), [""] * 400, ["same"] * 400, ["a b"] * 400])
def test_where_there_is_nothing_to_tell_apart_there_are_no_topics(known: list[str]) -> None:
    assert Topics.learnt(known) is None


@given(st.lists(st.text(max_size=20), max_size=5))
def test_any_text_is_of_some_topic(asked: list[str]) -> None:
    learnt = Topics.learnt(texts(60))
    assert learnt is not None
    found = learnt.of(asked)
    assert len(found) == len(asked)
    assert all(0 <= topic < len(learnt.names) for topic in found)
