"""Train one job: count the file in steps, fit the mixture, measure losses as it goes.

The first pass reads the examples in an order drawn from the seed and counts them; the model is
counted anew whenever the text has doubled, at nine tenths (where the mixture is fitted on the
tenth not yet read) and at the end. Later passes make the file's counts weigh more against the
parent's. Losses are those of the model in force, on a few examples of the step's batch; in the
first pass these were not counted yet.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tuneproof_trainer.engines.ngram import snapshots
from tuneproof_trainer.engines.ngram.fitting import AnswerTokens, fitted
from tuneproof_trainer.engines.ngram.mix import Mix
from tuneproof_trainer.engines.ngram.mixture import WordModel
from tuneproof_trainer.engines.ngram.prompts import prompt_keys, read_prompt
from tuneproof_trainer.engines.ngram.snapshots import NgramSnapshot
from tuneproof_trainer.engines.ngram.stage import AnswerTexts, FittingStage, count_stage
from tuneproof_trainer.engines.ngram.tokens import EOS_TEXT, split
from tuneproof_trainer.engines.protocol import (
    Examples,
    Hyperparameters,
    Message,
    Reporter,
    ShouldStop,
    StepMetrics,
    StopReason,
    TrainingExample,
    TrainingOutcome,
    TrainingTask,
)

__all__ = ["NgramTraining", "answers_of"]

_EPOCHS = 3
_PASS_STRENGTH = 2.0
"""By how much one pass multiplies the odds of the file's counts beyond the fitted mixture: a
little above what held-out loss asks for, so that answers clearly take the file's style."""

_REPORTS = 60
_MEASURED = 4
_MEASURED_TOKENS = 80
_FULL_MEASURED = 100
_FULL_MEASURED_AT_END = 300
_FIT_EXAMPLES = 200
_SNAPSHOT_S = 1.0
Save = Callable[[Path, FittingStage], None]
"""Writes a model made of the parent's stages and this one into a folder."""


def answers_of(example: TrainingExample) -> Iterator[AnswerTokens]:
    """The answers of an example that count: weighted ones, or the preferred one."""
    for keys_from, text in _answer_texts(example):
        yield AnswerTokens(read_prompt(keys_from), tuple(split(text)))


def _answer_texts(example: TrainingExample) -> Iterator[tuple[Sequence[Message], str]]:
    if example.preferred:
        yield example.messages, example.preferred[-1].content
        return
    for at, message in enumerate(example.messages):
        if message.role == "assistant" and message.weight:
            yield example.messages[:at], message.content


@dataclasses.dataclass(slots=True)
class _Progress:
    step: int = 0
    counted: int = 0
    """Answers in the stage that is in force."""

    fitted: bool = False
    tokens: int = 0


class NgramTraining:
    """One job from its first step, or from its snapshot, to its last."""

    def __init__(
        self,
        task: TrainingTask,
        parent: WordModel,
        report: Reporter,
        should_stop: ShouldStop,
        save: Save,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._task, self._parent, self._report = task, parent, report
        self._should_stop, self._save, self._monotonic = should_stop, save, monotonic
        self._chosen = _resolved(task.hyperparameters, len(task.training))
        batch, epochs = self._chosen.batch_size or 1, self._chosen.n_epochs or 1
        self._batch = batch
        self._per_epoch = math.ceil(len(task.training) / batch)
        self._steps = self._per_epoch * epochs
        self._every = max(1, self._steps // _REPORTS)
        self._order = np.random.default_rng(task.seed).permutation(len(task.training))
        self._text = AnswerTexts(parent.vocabulary.extended())
        self._mix = Mix()
        self._model = parent
        self._at = _Progress()

    def run(self) -> TrainingOutcome:
        """Train until the end or until told to stop, and say which."""
        self._resume()
        self._report.chosen(self._chosen)
        last_saved = self._monotonic()
        while self._at.step < self._steps:
            reason = self._should_stop()
            if reason is not None:
                return self._stopped(reason)
            self._step()
            epoch_ended = self._at.step % self._per_epoch == 0
            if epoch_ended or self._monotonic() - last_saved > _SNAPSHOT_S:
                self._snapshot()
                last_saved = self._monotonic()
        return TrainingOutcome(stopped=None, trained_tokens=self._tokens(), steps=self._at.step)

    def _tokens(self) -> int:
        return self._at.tokens * (self._chosen.n_epochs or 1)

    def _stopped(self, reason: StopReason) -> TrainingOutcome:
        if reason is not StopReason.CANCEL:
            self._snapshot()
        return TrainingOutcome(stopped=reason, trained_tokens=self._at.tokens, steps=self._at.step)

    # -- steps ------------------------------------------------------------------------------

    def _step(self) -> None:
        step = self._at.step
        epoch, place = divmod(step, self._per_epoch)
        rows = self._order[place * self._batch : (place + 1) * self._batch]
        due = step % self._every == 0 or place == self._per_epoch - 1
        train = self._measure(self._task.training, rows[:_MEASURED]) if due else None
        if epoch == 0:
            self._count(rows)
        if place == self._per_epoch - 1:
            self._weigh(epoch + 1)
        self._at.step = step + 1
        if train is not None:
            self._tell(self._metrics(step + 1, train), place == self._per_epoch - 1)

    def _tell(self, metrics: StepMetrics, epoch_ended: bool) -> None:
        if epoch_ended:
            stage = self._model.stages[-1]
            self._report.checkpoint(metrics.step, metrics, lambda path: self._save(path, stage))
        self._report.metrics(metrics)

    def _metrics(self, step: int, train: tuple[float, float]) -> StepMetrics:
        metrics = StepMetrics(
            step=step,
            total_steps=self._steps,
            train_loss=train[0],
            train_mean_token_accuracy=train[1],
        )
        validation = self._task.validation
        if validation is None or not len(validation):
            return metrics
        rows = [(step * _MEASURED + i) % len(validation) for i in range(_MEASURED)]
        valid = self._measure(validation, rows)
        metrics = dataclasses.replace(
            metrics, valid_loss=valid[0], valid_mean_token_accuracy=valid[1]
        )
        if step % self._per_epoch:
            return metrics
        most = _FULL_MEASURED_AT_END if step == self._steps else _FULL_MEASURED
        full = self._measure(validation, range(min(len(validation), most)))
        return dataclasses.replace(
            metrics, full_valid_loss=full[0], full_valid_mean_token_accuracy=full[1]
        )

    def _measure(self, examples: Examples, rows: Iterable[int]) -> tuple[float, float]:
        answers = [a for row in rows for a in answers_of(examples[int(row)])]
        return _measured(self._model, answers)

    # -- counting ---------------------------------------------------------------------------

    def _count(self, rows: Iterable[int]) -> None:
        for row in rows:
            example = self._task.training[int(row)]
            for messages, text in _answer_texts(example):
                self._text.add(split(text), prompt_keys(messages))
            messages = (*example.messages, *example.preferred, *example.rejected)
            self._at.tokens += sum(len(split(message.content)) for message in messages)
        read = min((self._at.step + 1) * self._batch, len(self._order))
        nearly = not self._at.fitted and read >= 0.9 * len(self._order)
        doubled = len(self._text) >= 2 * max(self._at.counted, self._batch)
        if read == len(self._order) or nearly or doubled:
            self._rebuild()
            if nearly and read < len(self._order):
                self._fit(read)

    def _rebuild(self) -> None:
        stage = count_stage(self._text, self._mix)
        self._model = WordModel([*self._parent.stages, stage])
        self._at.counted = len(self._text)

    def _fit(self, read: int) -> None:
        rows = self._order[read : read + _FIT_EXAMPLES]
        answers = (a for row in rows for a in answers_of(self._task.training[int(row)]))
        self._mix = fitted(self._model, answers)
        self._at.fitted = True
        self._mixed(self._mix)

    def _weigh(self, epochs: int) -> None:
        """Each pass over the file weighs its counts more against the parent's."""
        rate = self._chosen.learning_rate_multiplier or 1.0
        self._mixed(self._mix.trained(_PASS_STRENGTH * rate * epochs))

    def _mixed(self, mix: Mix) -> None:
        stages = [*self._parent.stages, self._model.stages[-1].with_mix(mix)]
        self._model = WordModel(stages, self._model.spelling)

    # -- snapshots --------------------------------------------------------------------------

    def _snapshot(self) -> None:
        at = self._at
        snapshots.write(
            self._task.folder,
            NgramSnapshot(
                step=at.step, counted=at.counted, fitted=at.fitted, tokens=at.tokens, mix=self._mix
            ),
            self._text,
            len(self._parent.vocabulary),
        )

    def _resume(self) -> None:
        found = snapshots.read(self._task.folder, self._parent.vocabulary)
        if found is None:
            return
        snapshot, text = found
        self._text, self._mix = text, snapshot.mix
        self._at = _Progress(step=snapshot.step, fitted=snapshot.fitted, tokens=snapshot.tokens)
        if not snapshot.counted:
            return
        self._recount(snapshot.counted)
        epochs = snapshot.step // self._per_epoch
        if epochs:
            self._weigh(epochs)

    def _recount(self, counted: int) -> None:
        """The model that was in force when the snapshot was written."""
        whole, self._text = self._text, snapshots.prefix(self._text, counted)
        self._rebuild()
        self._text = whole


def _resolved(requested: Hyperparameters, examples: int) -> Hyperparameters:
    return Hyperparameters(
        n_epochs=requested.n_epochs or _EPOCHS,
        batch_size=requested.batch_size or max(1, min(256, math.ceil(examples / 10))),
        learning_rate_multiplier=requested.learning_rate_multiplier or 1.0,
        beta=requested.beta,
    )


def _measured(model: WordModel, answers: Sequence[AnswerTokens]) -> tuple[float, float]:
    """(mean loss in nats per token, share of tokens that were the likeliest word)."""
    loss, right, count = 0.0, 0, 0
    for answer in answers:
        speaker = model.speak(answer.prompt)
        for token in (*answer.tokens[:_MEASURED_TOKENS], EOS_TEXT):
            loss -= speaker.logprob(token)
            right += speaker.best() == token
            count += 1
            if token != EOS_TEXT:
                speaker.say(token)
    return (loss / count, right / count) if count else (0.0, 0.0)
