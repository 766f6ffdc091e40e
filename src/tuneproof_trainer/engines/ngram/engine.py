"""The ngram engine: word models behind the `TrainingEngine` protocol.

numpy is imported when the first model is needed, so a server that only starts does not wait.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from tuneproof_trainer.engines.ngram.prompts import read_prompt
from tuneproof_trainer.engines.ngram.tokens import EOS_TEXT, public_id, split
from tuneproof_trainer.engines.protocol import (
    BaseModel,
    Embedded,
    EngineError,
    Generation,
    Message,
    Reporter,
    ShouldStop,
    Token,
    TokenScore,
    TrainingOutcome,
    TrainingTask,
    no_embeddings,
)

if TYPE_CHECKING:
    from tuneproof_trainer.engines.ngram.mixture import WordModel
    from tuneproof_trainer.engines.ngram.stage import FittingStage

__all__ = ["BASE_MODEL", "NgramEngine"]

BASE_MODEL = "tuneproof-ngram-1"
_CREATED = 1_795_132_800  # 2026-11-20
_KEPT_MODELS = 16


class NgramEngine:
    """Trains by counting, answers by drawing words, scores by their probabilities."""

    name = "ngram"
    quick = True
    methods = frozenset({"supervised", "dpo"})
    trains_tools = False

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._rng = Random()
        self._lock = threading.Lock()
        self._base: WordModel | None = None
        self._models: OrderedDict[str, WordModel] = OrderedDict()
        self._paths: dict[str, Path] = {}

    def base_models(self) -> Sequence[BaseModel]:
        """The one model whose counts this package makes itself."""
        return (BaseModel(id=BASE_MODEL, owned_by="tuneproof", created=_CREATED),)

    def count_tokens(self, text: str) -> int:
        """Words, punctuation marks and breaks in `text`."""
        return len(split(text))

    # -- models -----------------------------------------------------------------------------

    def load(self, model: str, path: Path | None) -> None:
        """Make `model` ready to answer; keeps the last few that were used."""
        with self._lock:
            if path is None:
                self._based()
                return
            self._paths[model] = path
            self._loaded_model(model)

    def unload(self, model: str) -> None:
        """Forget a fine-tune."""
        with self._lock:
            self._models.pop(model, None)
            self._paths.pop(model, None)

    def loaded(self, model: str) -> bool:
        """Whether `model` can answer at once."""
        return self._base is not None if model == BASE_MODEL else model in self._models

    def word_model(self, model: str) -> WordModel:
        """The words behind a loaded model; raises EngineError `model_not_found`."""
        if model == BASE_MODEL and self._base is not None:
            return self._base
        with self._lock:
            return self._loaded_model(model)

    def _based(self) -> WordModel:
        from tuneproof_trainer.engines.ngram.library import make_base

        if self._base is None:
            self._base = make_base()
        return self._base

    def _loaded_model(self, model: str) -> WordModel:
        from tuneproof_trainer.engines.ngram.library import read_model

        found = self._models.get(model)
        if found is None:
            path = self._paths.get(model)
            if path is None or not path.exists():
                raise EngineError("model_not_found", f"The model `{model}` was deleted.", "model")
            found = self._models[model] = read_model(path, self._based())
        self._models.move_to_end(model)
        while len(self._models) > _KEPT_MODELS:
            self._models.popitem(last=False)
        return found

    # -- training ---------------------------------------------------------------------------

    def train(
        self, task: TrainingTask, report: Reporter, should_stop: ShouldStop
    ) -> TrainingOutcome:
        """Count the task's file on top of its base model."""
        from tuneproof_trainer.engines.ngram.library import ModelWriter, pin, read_model
        from tuneproof_trainer.engines.ngram.training import NgramTraining

        with self._lock:
            base = self._based()
        path = pin(task.model_path, task.folder) if task.model_path else None
        parent = read_model(path, base) if path else base
        writer = ModelWriter(task.folder, path, parent)
        if task.method == "dpo":
            report.message(
                "The ngram engine learns the preferred outputs; the others only pass validation.",
                "warn",
            )

        def save(target: Path, stage: FittingStage) -> None:
            writer.write(target, stage, BASE_MODEL)

        return NgramTraining(task, parent, report, should_stop, save, self._monotonic).run()

    # -- answers ----------------------------------------------------------------------------

    def generate(self, model: str, messages: Sequence[Message], how: Generation) -> Iterator[Token]:
        """Draw an answer word by word; equal seeds give equal answers."""
        speaker = self.word_model(model).speak(read_prompt(messages))
        rng = self._rng if how.seed is None else Random(how.seed)
        for _ in range(how.max_tokens):
            token = speaker.sample(rng, how.temperature, how.top_p)
            if token == EOS_TEXT:
                yield Token("", finish="stop")
                return
            if how.top_logprobs is None:
                yield Token(token)
            else:
                own = speaker.logprob(token)
                top = speaker.top(how.top_logprobs) if how.top_logprobs else []
                yield Token(token, own, tuple((t, own if t == token else p) for t, p in top))
            speaker.say(token)
        yield Token("", finish="length")

    def embed(self, model: str, texts: Sequence[str]) -> Embedded:
        """It counts words; there is nothing that could be a vector of meaning."""
        raise no_embeddings(model)

    def score(self, model: str, messages: Sequence[Message]) -> Sequence[TokenScore]:
        """Every token of the conversation; the last answer's and its end's with probabilities."""
        word_model = self.word_model(model)
        vocabulary = word_model.vocabulary
        found: list[TokenScore] = []
        last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=-1)
        for at, message in enumerate(messages):
            tokens = split(message.content)
            if at != last:
                found += [TokenScore(public_id(vocabulary, t), t, None) for t in tokens]
                continue
            speaker = word_model.speak(read_prompt(messages[:at]))
            for token in (*tokens, EOS_TEXT):
                number = public_id(vocabulary, token)
                found.append(TokenScore(number, token, speaker.logprob(token), speaker.rank(token)))
                if token != EOS_TEXT:
                    speaker.say(token)
        return found
