"""The ngram engine as its protocol promises: it learns, answers to the prompt, is repeatable."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tuneproof_trainer.engines.ngram.corpus import base_examples, base_posts
from tuneproof_trainer.engines.ngram.engine import BASE_MODEL, NgramEngine
from tuneproof_trainer.engines.ngram.fitting import AnswerTokens
from tuneproof_trainer.engines.ngram.library import pin
from tuneproof_trainer.engines.ngram.prompts import key_names, prompt_keys, read_prompt
from tuneproof_trainer.engines.ngram.tokens import EOS_TEXT, split
from tuneproof_trainer.engines.protocol import (
    EngineError,
    Generation,
    Hyperparameters,
    Message,
    StepMetrics,
    StopReason,
    TrainingExample,
    TrainingOutcome,
    TrainingTask,
)

DETAILED = "\n\nWrite a detailed post:"


class Kept:
    """A reporter that remembers, and keeps the models in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[StepMetrics] = []
        self.models: dict[int, Path] = {}
        self.values: Hyperparameters | None = None
        self.messages: list[str] = []

    def chosen(self, hyperparameters: Hyperparameters) -> None:
        self.values = hyperparameters

    def metrics(self, metrics: StepMetrics) -> None:
        self.seen.append(metrics)

    def checkpoint(self, step: int, metrics: StepMetrics, save: Callable[[Path], None]) -> None:
        path = self.folder / f"model-{len(self.models)}-{step}"
        path.mkdir()
        save(path)
        self.models[step] = path

    def message(self, text: str, level: str = "info") -> None:
        self.messages.append(text)

    @property
    def last(self) -> Path:
        return self.models[max(self.models)]


def example(prompt: str, answer: str) -> TrainingExample:
    return TrainingExample(
        messages=(
            Message(role="user", content=prompt),
            Message(role="assistant", content=answer),
        )
    )


def styled(style: str, count: int = 300, seed: int = 5) -> list[TrainingExample]:
    return [example(p, h) for p, h, _, s in base_posts(count * 10, seed) if s == style][:count]


def trained(
    engine: NgramEngine,
    folder: Path,
    training: list[TrainingExample],
    *,
    should_stop: Callable[[], StopReason | None] = lambda: None,
    **changes: Any,
) -> tuple[Kept, TrainingOutcome]:
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    task = TrainingTask(
        job_id="job",
        model=BASE_MODEL,
        model_path=None,
        method="supervised",
        hyperparameters=Hyperparameters(),
        seed=1,
        training=training,
        validation=None,
        folder=work,
    )
    kept = Kept(folder)
    return kept, engine.train(dataclasses.replace(task, **changes), kept, should_stop)


def answers(engine: NgramEngine, model: str, prompt: str, count: int, **how: Any) -> list[str]:
    messages = [Message(role="user", content=prompt)]
    return [
        "".join(
            token.text
            for token in engine.generate(
                model, messages, Generation(**({"max_tokens": 200, "seed": n} | how))
            )
        )
        for n in range(count)
    ]


def loss(engine: NgramEngine, model: str, examples: list[TrainingExample]) -> float:
    """Nats per token of the answers."""
    total, count = 0.0, 0
    for one in examples:
        for score in engine.score(model, one.messages):
            if score.logprob is not None:
                total -= score.logprob
                count += 1
    return total / count


@pytest.fixture(scope="module")
def engine() -> NgramEngine:
    made = NgramEngine()
    made.load(BASE_MODEL, None)
    return made


@pytest.fixture(scope="module")
def questions(engine: NgramEngine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model fine-tuned on questions."""
    kept, _ = trained(engine, tmp_path_factory.mktemp("questions"), styled("question"))
    engine.load("questions", kept.last)
    return "questions"


@pytest.mark.parametrize("prompt", ["tips about night trains", "zymurgy", "", f"Hi{DETAILED}"])
def test_probabilities_of_known_and_spelled_words_sum_to_one(
    engine: NgramEngine, questions: str, prompt: str
) -> None:
    model = engine.word_model(questions)
    speaker = model.speak(read_prompt([Message(role="user", content=prompt)]))
    for token in split("Why do zymurgists struggle with night trains?"):
        dense = speaker.dense().sum()
        spelled = sum(
            part.weight * part.model.gamma * part.model.left_over(part.rows)
            for part in speaker.parts
        )
        share = model.mix.spelled
        spelled = (1 - share) * spelled + share
        unknown = sum(number < 0 for number in speaker.topic.values())
        if speaker.topic:
            cached = speaker._gate / len(speaker.topic)
            boost = model.mix.boost
            spelled *= 1 - speaker._gate
            extra = sum(speaker._lean(t) for t, n in speaker.topic.items() if n < 0)
            known = sum(speaker._lean(t) for t, n in speaker.topic.items() if n >= 0)
            known_spelled = sum(model.spelling.prob(t) for t, n in speaker.topic.items() if n >= 0)
            assert known >= 0
            assert known_spelled < 1e-2
            spelled = (spelled + unknown * cached + (boost - 1) * extra) / speaker._normed()
        assert dense + spelled == pytest.approx(1.0, abs=2e-3)
        speaker.say(token)


def test_held_out_loss_falls_by_training(engine: NgramEngine, questions: str) -> None:
    held_out = styled("question", 60, seed=99)
    before, after = loss(engine, BASE_MODEL, held_out), loss(engine, questions, held_out)
    assert after < before - 0.2


def test_samples_move_to_the_style_of_the_file(engine: NgramEngine, questions: str) -> None:
    def share(model: str) -> float:
        texts = answers(engine, model, "tips about budgeting", 100)
        return sum(text.endswith("?") for text in texts) / len(texts)

    assert share(BASE_MODEL) < 0.3
    assert share(questions) > 0.65


def test_base_model_mixes_styles(engine: NgramEngine) -> None:
    texts = answers(engine, BASE_MODEL, "Create engaging content", 200)
    patterns = (r"\?$", r"^(Top )?\d+ |^The \d+ ", r"^How |^Learn ", r"^Stop |^Never |^Warning")
    for pattern in patterns:
        assert 0.02 < sum(bool(re.search(pattern, text)) for text in texts) / 200 < 0.6


def test_instruction_at_the_end_of_the_prompt_changes_the_kind_of_answer(
    engine: NgramEngine,
) -> None:
    hooks = answers(engine, BASE_MODEL, "Slow travel", 40)
    bodies = answers(engine, BASE_MODEL, f"Slow travel{DETAILED}", 40)
    hook_words = sum(len(text.split()) for text in hooks) / 40
    body_words = sum(len(text.split()) for text in bodies) / 40
    assert 4 <= hook_words <= 14
    assert body_words > 1.8 * hook_words


def test_answers_mention_the_topic_of_the_prompt(engine: NgramEngine) -> None:
    about = answers(engine, BASE_MODEL, "tips about sourdough", 100)
    other = answers(engine, BASE_MODEL, "tips about homework", 100)
    mentions = sum("sourdough" in text.lower() for text in about)
    assert mentions > 25
    assert mentions > 4 * sum("sourdough" in text.lower() for text in other)


def test_a_word_of_the_prompt_lowers_the_loss_of_an_answer_that_shares_it(
    engine: NgramEngine,
) -> None:
    with_topic = [example("all about sourdough", "Why do beginners struggle with sourdough?")]
    without = [example("all about homework", "Why do beginners struggle with sourdough?")]
    assert loss(engine, BASE_MODEL, with_topic) < loss(engine, BASE_MODEL, without)


@pytest.mark.parametrize("how", [{}, {"temperature": 0.7}, {"top_p": 0.8}, {"temperature": 0.0}])
def test_equal_seeds_give_equal_answers(engine: NgramEngine, how: dict[str, float]) -> None:
    first = answers(engine, BASE_MODEL, "tips about budgeting", 5, **how)
    assert first == answers(engine, BASE_MODEL, "tips about budgeting", 5, **how)


def test_temperature_zero_is_the_likeliest_answer_whatever_the_seed(engine: NgramEngine) -> None:
    assert len(set(answers(engine, BASE_MODEL, "night trains", 5, temperature=0.0))) == 1


def test_sampled_words_follow_their_probabilities(engine: NgramEngine) -> None:
    """First words of 3,000 answers against the model's own figures for the likeliest five."""
    model = engine.word_model(BASE_MODEL)
    prompt = read_prompt([Message(role="user", content="Create engaging content")])
    top = model.speak(prompt).top(5)
    drawn = [
        next(
            engine.generate(
                BASE_MODEL,
                [Message(role="user", content="Create engaging content")],
                Generation(max_tokens=1, seed=seed),
            )
        ).text
        for seed in range(3000)
    ]
    for token, logprob in top:
        p = math.exp(logprob)
        error = math.sqrt(p * (1 - p) / 3000)
        assert drawn.count(token) / 3000 == pytest.approx(p, abs=5 * error + 0.15 * p)


def test_the_same_file_seed_and_hyperparameters_give_the_same_model(
    engine: NgramEngine, tmp_path: Path
) -> None:
    first, _ = trained(engine, tmp_path / "a", styled("list", 80))
    second, _ = trained(engine, tmp_path / "b", styled("list", 80))
    assert [m.train_loss for m in first.seen] == [m.train_loss for m in second.seen]
    assert (first.last / "stage-0.npz").read_bytes() == (second.last / "stage-0.npz").read_bytes()
    assert (first.last / "model.json").read_text() == (second.last / "model.json").read_text()


def test_more_epochs_weigh_the_file_more(engine: NgramEngine, tmp_path: Path) -> None:
    training = styled("warning", 60)
    losses = []
    for epochs in (1, 5):
        asked = Hyperparameters(n_epochs=epochs)
        kept, outcome = trained(engine, tmp_path / str(epochs), training, hyperparameters=asked)
        engine.load(f"epochs-{epochs}", kept.last)
        losses.append(loss(engine, f"epochs-{epochs}", training[:40]))
        assert len(kept.models) == epochs
        assert outcome.steps == kept.seen[-1].total_steps
    assert losses == sorted(losses, reverse=True)


def test_metrics_are_told_with_validation_losses(engine: NgramEngine, tmp_path: Path) -> None:
    kept, _ = trained(
        engine, tmp_path, styled("howto", 100), validation=styled("howto", 20, seed=77)
    )
    assert all(m.valid_loss is not None for m in kept.seen)
    assert kept.seen[-1].full_valid_loss is not None
    assert kept.seen[-1].step == kept.seen[-1].total_steps
    assert kept.seen[-1].train_loss < kept.seen[0].train_loss
    assert kept.values is not None
    assert (kept.values.n_epochs, kept.values.batch_size) == (3, 10)


def test_going_on_from_an_earlier_fine_tune_keeps_what_it_learned(
    engine: NgramEngine, questions: str, tmp_path: Path
) -> None:
    first, _ = trained(engine, tmp_path / "a", styled("question"))
    second, _ = trained(
        engine, tmp_path / "b", styled("list", 30), model="ft", model_path=first.last
    )
    engine.load("both", second.last)
    alone, _ = trained(engine, tmp_path / "c", styled("list", 30))
    engine.load("alone", alone.last)
    held_out = styled("question", 60, seed=99)
    assert loss(engine, "both", held_out) < loss(engine, "alone", held_out)


def test_a_chain_of_fine_tunes_survives_the_deletion_of_its_parents(
    engine: NgramEngine, tmp_path: Path
) -> None:
    path = None
    for turn in range(7):
        kept, _ = trained(
            engine, tmp_path / str(turn), styled("list", 12, seed=turn), model_path=path
        )
        if path is not None:
            for file in path.iterdir():
                file.unlink()
        path = kept.last
    engine.load("chain", path)
    assert len(engine.word_model("chain").stages) == 8
    assert answers(engine, "chain", "budgeting", 1)[0]


def test_messages_of_weight_zero_are_not_learned(engine: NgramEngine, tmp_path: Path) -> None:
    silent = [
        TrainingExample(
            messages=(
                Message(role="user", content="Say it"),
                Message(role="assistant", content="zzz zzz zzz zzz", weight=0),
                Message(role="user", content="Again"),
                Message(role="assistant", content=f"Plain answer number {n}"),
            )
        )
        for n in range(20)
    ]
    kept, _ = trained(engine, tmp_path, silent)
    engine.load("silent", kept.last)
    assert "zzz" not in engine.word_model("silent").vocabulary.index


def test_dpo_learns_the_preferred_answers(engine: NgramEngine, tmp_path: Path) -> None:
    pairs = [
        TrainingExample(
            messages=one.messages[:1],
            preferred=one.messages[1:],
            rejected=(Message(role="assistant", content="Bad answer"),),
        )
        for one in styled("question", 100)
    ]
    kept, _ = trained(engine, tmp_path, pairs, method="dpo")
    engine.load("dpo", kept.last)
    texts = answers(engine, "dpo", "tips about budgeting", 40)
    assert sum(text.endswith("?") for text in texts) > 22
    assert any("preferred" in message for message in kept.messages)


@pytest.fixture(scope="module")
def whole(engine: NgramEngine, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """A training that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return trained(engine, folder, conversations(), validation=styled("story", 8, seed=3))[0]


def conversations() -> list[TrainingExample]:
    """Examples with one answer and with two, so answers and examples are not the same count."""
    single = styled("story", 45)
    double = [
        TrainingExample(messages=(*first.messages, *second.messages))
        for first, second in zip(single[:10], single[10:20], strict=True)
    ]
    return double + single[20:]


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (1, StopReason.PAUSE),
        (9, StopReason.SHUTDOWN),
        (10, StopReason.PAUSE),
        (25, StopReason.SHUTDOWN),
    ],
)
def test_a_stopped_training_goes_on_to_the_same_end(
    engine: NgramEngine, tmp_path: Path, whole: Kept, reason: StopReason, after: int
) -> None:
    training, validation = conversations(), styled("story", 8, seed=3)
    asked = iter(range(10_000))

    def stop() -> StopReason | None:
        return reason if next(asked) == after else None

    first, stopped = trained(engine, tmp_path, training, validation=validation, should_stop=stop)
    assert stopped.stopped is reason
    assert len(first.seen) == after
    second, ended = trained(engine, tmp_path, training, validation=validation)
    assert ended.stopped is None
    assert first.seen + second.seen == whole.seen
    assert (second.last / "model.json").read_text() == (whole.last / "model.json").read_text()


def test_a_cancelled_training_leaves_no_snapshot(engine: NgramEngine, tmp_path: Path) -> None:
    _, outcome = trained(
        engine, tmp_path, styled("plain", 50), should_stop=lambda: StopReason.CANCEL
    )
    assert outcome.stopped is StopReason.CANCEL
    assert not list((tmp_path / "work").iterdir())


def test_scores_cover_the_last_answer_and_its_end(engine: NgramEngine) -> None:
    messages = [
        Message(role="user", content="night trains"),
        Message(role="assistant", content="Do you like zymurgy?"),
    ]
    scores = engine.score(BASE_MODEL, messages)
    assert "".join(s.text for s in scores[:-1]) == "night trainsDo you like zymurgy?"
    assert scores[-1].text == EOS_TEXT
    assert [s.logprob is None for s in scores] == [True] * 2 + [False] * 6
    assert all(s.rank >= 1 for s in scores if s.rank is not None)
    speaker = engine.word_model(BASE_MODEL).speak(read_prompt(messages[:1]))
    said = speaker.score(split(messages[1].content))
    assert [s.logprob for s in scores if s.logprob is not None] == pytest.approx(said)


def test_keys_tell_instruction_persona_and_first_words_apart() -> None:
    user = Message(role="user", content=f"A hook{DETAILED}")
    assert key_names([user])[:2] == ("tail:write a detailed post", "long")
    persona = key_names([Message(role="system", content="You are Ann."), user])
    assert persona[0] == "tail:write a detailed post|you are ann"
    assert set(key_names([user])) < set(persona)
    assert key_names([]) == ("plain",)
    assert len(set(prompt_keys([user]))) == len(key_names([user]))


def test_topic_words_leave_out_the_instruction_and_small_words() -> None:
    prompt = read_prompt([Message(role="user", content=f"The joy of gardening{DETAILED}")])
    assert " gardening" in prompt.topic
    assert not {" the", " detailed", " post", " write"} & set(prompt.topic)


def test_training_and_answers_are_fast_enough_for_a_live_loop(
    engine: NgramEngine, tmp_path: Path
) -> None:
    """Generous bounds (5 times what was measured): the figures themselves are a benchmark."""
    training = [example(p, h) for p, h, _, _ in base_posts(2000, 11)]
    begun = time.process_time()
    kept, _ = trained(engine, tmp_path, training)
    assert time.process_time() - begun < 5
    engine.load("fast", kept.last)
    begun = time.process_time()
    answers(engine, "fast", "tips about budgeting", 100)
    assert (time.process_time() - begun) / 100 < 0.0075


def test_fitting_prefers_what_explains_held_out_answers(
    engine: NgramEngine, questions: str
) -> None:
    from tuneproof_trainer.engines.ngram.fitting import fitted

    model = engine.word_model(questions)
    held_out = [
        AnswerTokens(read_prompt(one.messages[:1]), tuple(split(one.messages[1].content)))
        for one in styled("question", 40, seed=123)
    ]
    mix = fitted(model, held_out)
    assert all(sum(weights) == pytest.approx(1) for weights in mix.alone + mix.grouped)
    parents = [weights[0] for weights in mix.alone]
    assert parents[0] > parents[-1]


def test_the_text_behind_the_base_models_name_does_not_change() -> None:
    """Other text is another model: give it another id, then change this figure."""
    digest = hashlib.sha256()
    for one in base_examples():
        for message in one.messages:
            digest.update(message.content.encode() + b"\0")
    assert digest.hexdigest()[:16] == "c90700da1053437f"


def test_more_models_than_are_kept_in_memory_still_answer(
    engine: NgramEngine, tmp_path: Path
) -> None:
    kept, _ = trained(engine, tmp_path, styled("list", 20))
    for number in range(20):
        engine.load(f"many-{number}", kept.last)
    assert not engine.loaded("many-0")
    assert answers(engine, "many-0", "budgeting", 1)
    engine.unload("many-0")
    with pytest.raises(EngineError, match="was deleted"):
        answers(engine, "many-0", "budgeting", 1)


def test_a_parent_that_is_gone_is_told(engine: NgramEngine, tmp_path: Path) -> None:
    with pytest.raises(EngineError) as failed:
        trained(engine, tmp_path, styled("list", 20), model_path=tmp_path / "nothing")
    assert (failed.value.code, failed.value.param) == ("model_not_found", "model")


class DeletedOnceListed(type(Path())):  # type: ignore[misc]
    """A folder that somebody deletes right after its files were listed."""

    def iterdir(self) -> Iterator[Path]:
        found = list(super().iterdir())
        shutil.rmtree(self)
        return iter(found)


def test_a_model_that_is_deleted_while_it_is_pinned_is_not_found(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.json").write_text("{}")
    with pytest.raises(EngineError, match="was deleted") as failed:
        pin(DeletedOnceListed(model), tmp_path)
    assert failed.value.code == "model_not_found"
