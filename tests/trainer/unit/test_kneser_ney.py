"""The counts behind the ngram engine: proper probabilities, whatever was counted."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneproof_trainer.engines.ngram.kneser_ney import KneserNey, _discounts, _level
from tuneproof_trainer.engines.ngram.mix import Mix
from tuneproof_trainer.engines.ngram.prompts import PLAIN
from tuneproof_trainer.engines.ngram.spelling import Spelling
from tuneproof_trainer.engines.ngram.stage import AnswerTexts, count_stage
from tuneproof_trainer.engines.ngram.tokens import BOS, EOS, Vocabulary, split

WORDS = st.sampled_from([" a", " b", " c", " d", " e", " f"])
TEXTS = st.lists(st.lists(WORDS, max_size=8), min_size=1, max_size=12)


def counted(texts: list[list[str]]) -> tuple[KneserNey, list[int], AnswerTexts]:
    text = AnswerTexts(Vocabulary())
    for words in texts:
        text.add(words, (PLAIN,))
    stage = count_stage(text, Mix())
    return stage.pooled, stage.contexts, text


@given(TEXTS, st.lists(WORDS, max_size=5))
@settings(max_examples=60, deadline=None)
def test_probabilities_sum_to_one_after_any_history(
    texts: list[list[str]], history: list[str]
) -> None:
    model, contexts, text = counted(texts)
    known = [text.vocabulary.index.get(word, 4) for word in history]
    rows = model.rows([BOS, BOS, BOS, *(contexts[word] for word in known)])
    spelled = model.gamma * model.left_over(rows)
    assert model.dense(rows, len(text.vocabulary)).sum() + spelled == pytest.approx(1.0)


@given(TEXTS)
@settings(max_examples=40, deadline=None)
def test_single_look_ups_agree_with_the_whole_distribution(texts: list[list[str]]) -> None:
    model, contexts, text = counted(texts)
    said = [contexts[text.vocabulary.index[word]] for word in texts[0][:3]]
    history = [BOS, BOS, BOS, *said]
    rows = model.rows(history)
    dense = model.dense(rows, len(text.vocabulary))
    for word in range(len(text.vocabulary)):
        assert model.prob(word, rows, 0.0) == pytest.approx(dense[word])


def test_a_word_seen_in_many_contexts_is_likelier_in_a_new_one_than_a_frequent_phrase() -> None:
    phrases = [[" san", " francisco"]] * 20
    spread = [[f" w{n}", " table"] for n in range(10) for _ in range(2)]
    model, _, text = counted(phrases + spread)
    index = text.vocabulary.index
    assert model.single[index[" table"]] > 5 * model.single[index[" francisco"]]


def test_shares_follow_the_formula_with_discounts_of_the_counts_of_counts() -> None:
    """Bigrams after ` a` by hand: continuation counts 3, 2, 2, 1, 1, 1, 1, 1 over the whole file.

    With n1 = 4, n2 = 2 among all bigrams' continuation counts, Y = n1 / (n1 + 2 n2).
    """
    counts = np.array([3, 2, 2, 1, 1, 1, 1, 4])
    discounts = _discounts(counts)
    y = 4 / (4 + 2 * 2)
    assert discounts[1] == pytest.approx(1 - 2 * y * 2 / 4)
    assert discounts[2] == pytest.approx(2 - 3 * y * 1 / 2)
    assert discounts[3] == pytest.approx(3 - 4 * y * 1 / 1)
    words = np.arange(8)
    level = _level(np.zeros(8, dtype=np.int64), words, counts)
    by_count = discounts[np.minimum(counts, 3)]
    for word in words:
        expected = (counts[word] - by_count[word]) / counts.sum()
        assert level.share(0, int(word)) == pytest.approx(expected)
    assert level.gamma[0] == pytest.approx(by_count.sum() / counts.sum())


def test_the_same_text_gives_the_same_arrays() -> None:
    texts = [[" a", " b", " a"], [" c"], [" b", " b"]]
    first, second = counted(texts)[0].arrays(""), counted(texts)[0].arrays("")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_an_empty_text_leaves_all_mass_to_spelling() -> None:
    none = np.zeros(0, dtype=np.int64)
    model = KneserNey.count(none, none, 0)
    assert model.prob(-1, model.rows([BOS, BOS, BOS]), 0.25) == pytest.approx(0.25)


def test_saved_arrays_restore_the_same_model() -> None:
    model, _, text = counted([[" a", " b"], [" b", " a", " c"]])
    restored = KneserNey.restored(model.arrays("x."), "x.")
    rows = model.rows([BOS, BOS, BOS])
    assert restored.rows([BOS, BOS, BOS]) == rows
    for word in range(len(text.vocabulary)):
        assert restored.prob(word, rows, 0.1) == model.prob(word, rows, 0.1)


@given(st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_tokens_join_to_the_text_they_came_from(text: str) -> None:
    assert "".join(split(text)) == text


def test_short_strings_of_the_spelling_model_sum_to_less_than_one() -> None:
    spelling = Spelling([" ab", " ba", " a"])
    letters = " abAB"
    strings = ["", *letters, *(a + b for a in letters for b in letters)]
    strings += [a + b + c for a in letters for b in letters for c in letters]
    total = sum(spelling.prob(s) for s in strings)
    assert 0.5 < total < 1.0


def test_a_word_like_the_known_ones_is_likelier_than_noise() -> None:
    spelling = Spelling([" running", " walking", " talking", " cooking"])
    assert math.log(spelling.prob(" booking")) > math.log(spelling.prob(" xqzvkjw")) + 10


def test_the_end_is_a_word_of_its_own() -> None:
    model, _, _ = counted([[" a"]])
    assert model.single[EOS] > 0
