"""The outcome model: what it learns, how far it says it can be believed, and what it promises."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from tests import liked
from tests.liked import DISLIKED, LIKED, clicked, competing, text
from tests.posts import UNTIL, ListSource, post

from tuneproof.collection import Task
from tuneproof.errors import DataError
from tuneproof.evaluation import Asked, OutcomeModel, Published, fit_outcomes, packed, predict
from tuneproof.evaluation.published import (
    MOST_OF_GROUP,
    MOST_POSTS,
    _Kept,
    published_of,
    published_posts,
)
from tuneproof.settings import BODY, HOOK
from tuneproof.testing import MemoryProvider


@pytest.fixture(scope="module")
def learnt() -> OutcomeModel:
    return liked.learnt()


def test_it_picks_winners_of_groups_that_it_never_saw(learnt: OutcomeModel) -> None:
    report = learnt.report
    assert report.kind == "groups"
    assert report.usable
    assert report.accuracy is not None
    assert report.low is not None
    assert 0.8 < report.low < report.accuracy
    draw = random.Random(2)
    pairs = [(text(draw, LIKED), text(draw, DISLIKED)) for _ in range(200)]
    right = learnt.scores([a for a, _ in pairs]) > learnt.scores([b for _, b in pairs])
    assert right.mean() > 0.95


def test_its_chances_come_true_and_are_not_boasted() -> None:
    """Where it says seven in ten, about seven in ten truly do better: luck is no part of a text."""

    def world(seed: int, groups: int) -> list[tuple[Published, float]]:
        draw = random.Random(seed)
        made = []
        for g in range(groups):
            for word, rate in ((LIKED, 0.105), (DISLIKED, 0.095)):
                true = max(0.01, rate + draw.gauss(0, 0.012))
                found = Published(text(draw, word), f"test {g}", clicked(draw, true, 700), 700)
                made.append((found, true))
        return made

    model = fit_outcomes([found for found, _ in world(3, 300)])
    fresh = world(4, 2000)
    scores = model.scores([found.text for found, _ in fresh])
    chances = 1 / (1 + np.exp(scores[1::2] - scores[::2]))
    won = np.array([a > b for (_, a), (_, b) in zip(fresh[::2], fresh[1::2], strict=True)])
    assert 0.65 < won.mean() < 0.8
    favourite = np.maximum(chances, 1 - chances)
    right = np.where(chances > 0.5, won, ~won)
    assert right.mean() - 0.1 < favourite.mean() < right.mean() + 0.02  # rather too modest


def test_noise_is_not_used_and_says_so() -> None:
    usable = 0
    for seed in range(6):
        draw = random.Random(seed)
        noise = [
            Published(
                text(draw, None), f"g {n // 3}", clicked(draw, draw.choice((0.05, 0.12)), 500), 500
            )
            for n in range(150)
        ]
        report = fit_outcomes(noise).report
        assert report.judged >= 30
        usable += report.usable
        if not report.usable:
            assert report.sentence().endswith("no better than a coin: not used")
    assert usable <= 1  # one in forty, by the interval


def test_order_does_not_matter_and_little_is_no_error(learnt: OutcomeModel) -> None:
    posts = competing(1, 150)
    random.Random(5).shuffle(posts)
    texts = [p.text for p in posts[:20]]
    assert fit_outcomes(posts).scores(texts).tolist() == learnt.scores(texts).tolist()
    for few in ([], posts[:1], posts[:4], [posts[0]] * 40):
        model = fit_outcomes(few)
        assert not model.report.usable
        assert model.scores(["anything", ""]).tolist() == [0.0, 0.0]
        assert "too few posts differ clearly" in model.report.sentence()


def test_without_groups_single_outcomes_are_learnt_from() -> None:
    lonely = [one._replace(group="", impressions=None) for one in competing(6, 150)]
    model = fit_outcomes(lonely)
    assert model.report.kind == "single"
    assert model.report.usable
    liked, disliked = model.scores(["seven rain stone", "perhaps rain stone"])
    assert liked > disliked


def test_hostile_texts_are_scored(learnt: OutcomeModel) -> None:
    hostile = ["", "\x00", "\ud800", "x" * 100_000, "שלום 🌵", "\u2028\n", "<script>"]
    assert np.isfinite(learnt.scores(hostile)).all()


def test_win_rate_is_even_for_equals_and_mirrored(learnt: OutcomeModel) -> None:
    draw = random.Random(7)
    good = [[text(draw, LIKED), text(draw, LIKED)] for _ in range(60)]
    bad = [[text(draw, DISLIKED), text(draw, DISLIKED)] for _ in range(60)]
    even = learnt.win_rate(good, good)
    assert even is not None
    assert even.value == pytest.approx(0.5)
    ours, theirs = learnt.win_rate(good, bad), learnt.win_rate(bad, good)
    assert ours is not None
    assert theirs is not None
    assert ours.value == pytest.approx(1 - theirs.value)
    assert 0.5 < ours.low < ours.value < ours.high <= 1
    assert learnt.win_rate(good[:1], bad[:1]) is None
    left = learnt.win_rate([*good, []], [*bad, ["x"]])
    assert left is not None
    assert left.inputs == 60


def answering(words: Mapping[str, str | None]) -> MemoryProvider:
    draw = random.Random(8)

    def answer(model: str, messages: Sequence[Mapping[str, str]], number: int) -> str:
        return text(draw, words[model])

    return MemoryProvider(base_models=tuple(words), answer=answer)


@pytest.mark.parametrize(
    ("candidate", "short"), [("good", False), ("same", False), ("worse", True)]
)
async def test_a_candidate_that_would_lose_falls_short(
    learnt: OutcomeModel, candidate: str, short: bool
) -> None:
    made = answering({"good": LIKED, "base": None, "same": None, "worse": DISLIKED})
    inputs = [[{"role": "user", "content": f"about {n}"}] for n in range(60)]
    found = await predict(
        "hook",
        learnt,
        Asked(provider=made, model=candidate),
        Asked(provider=made, model="base"),
        inputs,
    )
    assert found.falls_short(0.45) is short
    assert found.inputs == 60
    assert not replace(found, inputs=49).falls_short(1.0)  # told, but no reason to refuse
    assert found.sentence().startswith("hook: expected to do better in ")


async def test_no_model_is_asked_by_an_outcome_model_that_knows_nothing() -> None:
    made = answering({"base": None})
    blind = fit_outcomes([])
    asked = Asked(provider=made, model="nobody")
    found = await predict("hook", blind, asked, asked, [[{"role": "user", "content": "x"}]] * 9)
    assert found.win_rate is None
    assert not found.falls_short(1.0)
    assert found.sentence() == f"hook: {blind.report.sentence()}."


def test_posts_compete_by_group_else_by_input_and_time() -> None:
    task = Task.of(HOOK)
    one = post(1, original_input="cats")
    first = published_of(one, task, 7)
    assert first is not None
    same = published_of(post(2, original_input="cats", ts=one.ts), task, 7)
    later = published_of(post(3, original_input="cats", ts=one.ts.replace(year=2026)), task, 7)
    assert same is not None
    assert later is not None
    assert same.group == first.group != later.group
    named = published_of(one._replace(group="test 7"), task, 7)
    assert named is not None
    assert "test 7" in named.group
    empty = published_of(post(4, original_input=" "), task, 7)
    assert empty is not None
    assert empty.group == ""
    for unusable in ({"engagement_rate": None}, {"engagement_rate": 1.5}, {"hook": " "}):
        assert published_of(post(5, **unusable), task, 7) is None


async def test_too_many_posts_are_thinned_alike_in_whatever_order_they_come() -> None:
    """A crowd of one group leaves room for others; nothing is kept of units that are kept back."""
    crowd = [post(n, hook=f"crowd {n}")._replace(group="crowd") for n in range(1000)]
    others = [post(n, hook=f"hook {n}")._replace(group=f"test {n // 3}") for n in range(1000, 7600)]
    found = []
    for seed in range(2):
        rows = [*crowd, *others]
        random.Random(seed).shuffle(rows)
        kept = _Kept()
        for one in rows:
            published = published_of(one, Task.of(HOOK), 7)
            if published is not None:
                kept.add(one.id, published)
        found.append(sorted(kept.published))
    assert found[0] == found[1]
    assert MOST_POSTS / 4 < len(found[0]) <= MOST_POSTS
    assert sum(one.group.endswith("crowd") for one in found[0]) in (0, MOST_OF_GROUP)
    assert any("test " in one.group for one in found[0])
    backs = [one for one in others if published_of(one, Task.of(HOOK), 7) is None]
    assert 0.03 < len(backs) / len(others) < 0.07


async def test_each_task_has_a_model_of_its_own() -> None:
    draw = random.Random(10)
    rows = [
        post(
            3 * g + place,
            hook=text(draw, word),
            body=f"the same of {g}",
            engagement_rate=clicked(draw, rate, 600),
        )._replace(group=f"test {g}", impressions=600)
        for g in range(150)
        for place, (word, rate) in enumerate(((LIKED, 0.14), (None, 0.11), (DISLIKED, 0.08)))
    ]
    published = await published_posts(
        ListSource(rows), [Task.of(HOOK), Task.of(BODY)], UNTIL, days=90, pair_days=7
    )
    models = {task: fit_outcomes(found) for task, found in published.items()}
    assert models["hook"].report.usable
    assert not models["body"].report.usable


def test_a_text_that_was_published_elsewhere_is_not_unseen() -> None:
    """Each text stands in two groups and did alike in both: that is known by heart alone."""
    usable = 0
    for seed in range(4):
        draw = random.Random(seed)
        posts = []
        for pair in range(80):
            texts = [" ".join(f"w{draw.randrange(10**6)}" for _ in range(5)) for _ in range(2)]
            for copy in range(2):
                posts += [
                    Published(one, f"test {pair} {copy}", rate, 2000)
                    for one, rate in zip(texts, (0.05, 0.12), strict=True)
                ]
        report = fit_outcomes(posts).report
        assert report.judged == 160
        usable += report.usable
    assert usable <= 1


def test_what_was_published_again_counts_once_with_all_its_readers() -> None:
    posts = competing(9, 60)
    halves = [one._replace(impressions=300) for one in posts for _ in range(2)]
    texts = [one.text for one in posts[:30]]
    assert fit_outcomes(halves).scores(texts) == pytest.approx(fit_outcomes(posts).scores(texts))


# --- vectors ------------------------------------------------------------------------------------


def drawn_by_vector(seed: int, groups: int) -> tuple[list[Published], dict[str, np.ndarray]]:
    """Two texts of words that are never said again; readers like the one whose vector leans one
    way, which it does not always."""
    draw = random.Random(seed)
    posts, vectors = [], {}
    for group in range(groups):
        for leans, rate in ((1.0, 0.12), (-1.0, 0.08)):
            words = " ".join(f"w{draw.randrange(10**9)}" for _ in range(5))
            posts.append(Published(words, f"test {group}", clicked(draw, rate, 800), 800))
            vectors[words] = np.array([draw.gauss(leans, 1), draw.gauss(0, 5), 3.0])
    return posts, vectors


def test_by_vectors_it_knows_what_words_do_not_say() -> None:
    posts, vectors = drawn_by_vector(1, 200)
    seen = fit_outcomes(posts, vectors, vectors_of="base")
    assert not fit_outcomes(posts).report.usable
    assert seen.report.usable
    assert seen.report.vectors_of == "base"
    assert "with vectors of base," in seen.report.sentence()
    ours, theirs = ["a", "b", "c"], ["d", "e", "f"]
    known = {one: np.array([1.0 if one in ours else -1.0, 0.0, 3.0]) for one in ours + theirs}
    found = seen.win_rate([[one] for one in ours], [[one] for one in theirs], known)
    assert found is not None
    assert found.low > 0.6
    assert set(seen.scores(["a", "d", "x"], known).argsort()[[0, 2]]) == {1, 0}, (
        "a text without a vector stands in the middle"
    )


def test_where_only_some_have_vectors_the_others_are_seen_as_their_middle() -> None:
    posts, vectors = drawn_by_vector(2, 200)
    half = {post.text: vectors[post.text] for post in posts[:200]}
    assert fit_outcomes(posts, half, vectors_of="base").report.usable
    assert fit_outcomes(posts, {}, vectors_of="base").report.vectors_of == ""


def test_what_needs_vectors_is_not_kept_for_who_has_none() -> None:
    posts, vectors = drawn_by_vector(3, 40)
    with pytest.raises(DataError, match="needs vectors"):
        packed(fit_outcomes(posts, vectors, vectors_of="base"))
