"""The form of a candidate's answers: which drift is refused, and by how little chance."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from tuneproof.evaluation import Asked, form_of
from tuneproof.evaluation.form import LEAST_TOLD, LEVEL, MOST_INPUTS, Form, formed
from tuneproof.stats.exact import fisher_greater
from tuneproof.testing import MemoryProvider

Draw = random.Random
Write = Callable[[Draw], str]

VOCABULARY = 3000
OPENING = "here is what nobody says "


def sentence(draw: Draw, times: float = 1.0, vocabulary: int = VOCABULARY) -> str:
    """Words as seldom as those of a language, as many as a headline has, `times` as many."""
    words = max(3, round(times * draw.lognormvariate(2.3, 0.3)))
    return " ".join(f"w{min(int(draw.paretovariate(0.6)), vocabulary)}" for _ in range(words))


def longer(draw: Draw) -> str:
    return sentence(draw, times=2.2)


def shorter(draw: Draw) -> str:
    return sentence(draw, times=0.45)


def repeating(draw: Draw) -> str:
    return sentence(Draw(draw.randrange(10)))


def alike(draw: Draw) -> str:
    return (OPENING if draw.random() < 0.5 else "") + sentence(draw)


def form(write: Write, inputs: int, seed: int = 1, *, beside: Write = sentence) -> Form:
    draw = Draw(seed)
    ours, baseline, posts = [
        [one(draw) for _ in range(inputs)] for one in (write, beside, sentence)
    ]
    return formed("hook", ours, baseline, posts)


def drifted(found: Form) -> list[str]:
    return [one.name for one in found.drifted()]


@pytest.mark.parametrize(
    ("write", "inputs", "figure"),
    [
        (longer, MOST_INPUTS, "length"),
        (shorter, MOST_INPUTS, "length"),
        (repeating, MOST_INPUTS, "variety"),
        (repeating, 50, "variety"),
        (alike, MOST_INPUTS, "openings"),
        (alike, 50, "openings"),
    ],
)
def test_what_no_reader_wants_is_shown(write: Write, inputs: int, figure: str) -> None:
    for seed in range(5):
        found = form(write, inputs, seed)
        assert figure in drifted(found), found.sentence()
        assert figure not in [one.name for one in found.drifted(allowed=[figure])]


@pytest.mark.parametrize("inputs", [5, 20])
@pytest.mark.parametrize(
    ("figure", "write"),
    [
        ("length", lambda draw: sentence(draw, times=1.5)),
        ("variety", lambda draw: sentence(draw, vocabulary=60)),
        ("openings", lambda draw: (OPENING if draw.random() < 0.2 else "") + sentence(draw)),
        ("openings", lambda draw: f"the same words open {draw.randrange(5)} {sentence(draw)}"),
    ],
    ids=["longer by a half", "fewer words", "a fifth opens alike", "five openings alike"],
)
def test_few_answers_refuse_nobody_by_chance(figure: str, write: Write, inputs: int) -> None:
    """Who stands at the bound is refused once in a hundred at most."""
    draws = 300
    refused = sum(figure in drifted(form(write, inputs, seed)) for seed in range(draws))
    assert refused <= draws * LEVEL + 3 * (draws * LEVEL) ** 0.5


@pytest.mark.parametrize("n", [8, 20, 50])
def test_as_varied_as_the_bound_allows_is_refused_once_in_a_hundred_at_most(n: int) -> None:
    """Many answers are one and the same: in the mean, 0.7 of the pairs at most are distinct."""
    draws, same = 300, 0.3 + 1 / n

    def at_the_bound(seed: int) -> Form:
        draw = Draw(seed)
        fresh = [" ".join(f"s{seed}i{i}k{k}" for k in range(6)) for i in range(2 * n)]
        ours = [fresh[0] if draw.random() < same else fresh[i] for i in range(n)]
        return formed("hook", ours, fresh[n:], fresh[n:])

    found = [at_the_bound(seed) for seed in range(draws)]
    shares = [one.figures[1].candidate or 0.0 for one in found]
    assert 0.6 < sum(shares) / draws < 0.71
    refused = sum("variety" in drifted(one) for one in found)
    assert refused <= draws * LEVEL + 3 * (draws * LEVEL) ** 0.5


def test_who_writes_as_before_passes_whatever_the_number() -> None:
    for inputs, draws in ((5, 200), (8, 200), (20, 100), (50, 20), (MOST_INPUTS, 3)):
        for seed in range(draws):
            assert not drifted(form(sentence, inputs, seed)), (inputs, seed)


def test_who_left_an_untuned_base_for_the_form_of_the_posts_passes() -> None:
    """The base rambles, over and over the same; the posts are short, and so is the candidate."""

    def base(draw: Draw) -> str:
        return "certainly here is a headline for you " + sentence(draw, times=5, vocabulary=40)

    assert not drifted(form(sentence, MOST_INPUTS, beside=base))
    assert drifted(form(alike, MOST_INPUTS, beside=base)) == ["openings"]
    assert drifted(form(shorter, MOST_INPUTS, beside=base)) == ["length"]


def test_what_cannot_be_known_is_neither_passed_nor_0() -> None:
    few = form(longer, 4)
    assert [one.beyond for one in few.figures] == [None, None, None]
    assert [one.candidate for one in few.figures] == [None, None, None]
    assert few.brief() == "Form of hook over 4 inputs: length, variety, openings unknown."
    assert "length unknown: 4 inputs are too few, 5 tell something" in few.sentence()
    some = form(longer, 5)
    assert [one.beyond for one in some.figures] == [None, None, False]
    assert "5 inputs are too few to compare lengths" in some.sentence()
    words = formed("label", ["yes"] * 20, ["no"] * 20, ["no"] * 20)
    assert [one.beyond for one in words.figures] == [False, None, None]
    assert "too few words to compare word pairs" in words.sentence()
    assert "no answer has 5 words to open with" in words.sentence()
    assert not drifted(formed("label", [], [], []))


def test_the_least_number_of_inputs_is_the_first_that_could_show_anything() -> None:
    """All open alike, and nobody else does: five can show it, four not by Fisher's test."""
    assert drifted(formed("hook", *alone(LEAST_TOLD))) == ["openings"]
    n = LEAST_TOLD - 1
    assert fisher_greater(n, n, 0, n) > LEVEL


def alone(inputs: int) -> list[list[str]]:
    draw = Draw(1)
    return [
        [OPENING + sentence(draw) for _ in range(inputs)],
        [sentence(draw) for _ in range(inputs)],
        [sentence(draw) for _ in range(inputs)],
    ]


def test_a_label_that_is_longer_by_chance_of_few_inputs_passes() -> None:
    """Seven of eight longer answers are what half of all inputs may show (p = 0.035)."""
    ours = ["a" * 20] * 7 + ["a"]
    assert not drifted(formed("label", ours, ["a"] * 8, ["a"] * 8))
    assert drifted(formed("label", ["a" * 20] * 8, ["a"] * 8, ["a"] * 8)) == ["length"]


def test_an_opening_that_the_baseline_has_is_its_own() -> None:

    def opened(draw: Draw) -> str:
        return OPENING + sentence(draw)

    assert not drifted(form(opened, MOST_INPUTS, beside=opened))
    found = form(opened, 20)
    assert drifted(found) == ["openings"]
    assert found.figures[2].what == OPENING.strip()


async def test_models_are_asked_as_the_gate_asks_them_and_for_no_more_than_is_looked_at() -> None:
    asked: Counter[str] = Counter()

    def answer(model: str, messages: object, index: int) -> str:
        asked[model] += index == 0
        return f"{model} says {index}"

    provider = MemoryProvider(base_models=("new", "old"), answer=answer)
    examples = [
        [{"role": "user", "content": str(n)}, {"role": "assistant", "content": "new says 0"}]
        for n in range(MOST_INPUTS + 5)
    ]
    new, old = (Asked(provider=provider, model=one) for one in ("new", "old"))
    found = await form_of("hook", new, old, examples, answers=2)
    assert found.inputs == MOST_INPUTS
    assert asked == {"new": MOST_INPUTS, "old": MOST_INPUTS}
    asked.clear()
    unknown = await form_of("hook", new, old, examples[: LEAST_TOLD - 1])
    assert [one.beyond for one in unknown.figures] == [None, None, None]
    assert not asked
