"""The ngram engine: word models behind the `Engine` protocol, kept in folders of arrays."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from tuneproof_trainer.engines.ngram.corpus import base_examples
from tuneproof_trainer.engines.ngram.mix import CONFIDENCES, Mix
from tuneproof_trainer.engines.ngram.mixture import WordModel
from tuneproof_trainer.engines.ngram.prompts import prompt_keys, read_prompt
from tuneproof_trainer.engines.ngram.stage import Stage, Text, count_stage
from tuneproof_trainer.engines.ngram.tokens import EOS_TEXT, Vocabulary, public_id, split
from tuneproof_trainer.engines.ngram.training import Training
from tuneproof_trainer.engines.protocol import (
    BaseModel,
    Generation,
    Message,
    Outcome,
    Reporter,
    ShouldStop,
    Token,
    TokenScore,
    TrainingTask,
)

__all__ = ["BASE_MODEL", "NgramEngine"]

BASE_MODEL = "tuneproof-ngram-1"
_CREATED = 1_795_132_800  # 2026-11-20
_MOST_STAGES = 5
_KEPT_MODELS = 16
_BASE_MIX = Mix(grouped=((0.0, 0.15, 0.85),) * CONFIDENCES, cache=0.1, boost=4.0)


class NgramEngine:
    """Trains by counting, answers by drawing words, scores by their probabilities."""

    name = "ngram"
    quick = True
    methods = frozenset({"supervised", "dpo"})

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._rng = Random()
        self._lock = threading.Lock()
        self._base: WordModel | None = None
        self._models: OrderedDict[str, WordModel] = OrderedDict()

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
            elif model not in self._models:
                self._models[model] = self._read(path)
                while len(self._models) > _KEPT_MODELS:
                    self._models.popitem(last=False)

    def unload(self, model: str) -> None:
        """Forget a fine-tune."""
        with self._lock:
            self._models.pop(model, None)

    def loaded(self, model: str) -> bool:
        """Whether `model` can answer at once."""
        return self._base is not None if model == BASE_MODEL else model in self._models

    def _based(self) -> WordModel:
        if self._base is None:
            text = Text(Vocabulary())
            for example in base_examples():
                prompt, answer = example.messages
                text.add(split(answer.content), prompt_keys((prompt,)))
            self._base = WordModel([count_stage(text, _BASE_MIX)])
        return self._base

    def _read(self, path: Path) -> WordModel:
        described = json.loads((path / "model.json").read_text())
        stages = list(self._based().stages)
        for stage in described["stages"]:
            mix = Mix.from_json(stage["mix"])
            counts = path / stage["counts"]
            stages.append(Stage.load_counts(counts, stages[-1].vocabulary, mix))
        return WordModel(stages)

    def _get(self, model: str) -> WordModel:
        if model == BASE_MODEL and self._base is not None:
            return self._base
        return self._models[model]

    # -- training ---------------------------------------------------------------------------

    def train(self, task: TrainingTask, report: Reporter, should_stop: ShouldStop) -> Outcome:
        """Count the task's file on top of its base model."""
        with self._lock:
            based = self._based()
        parent_path = _pinned(task.model_path, task.folder) if task.model_path else None
        parent = self._read(parent_path) if parent_path else based
        if task.method == "dpo":
            report.message(
                "The ngram engine learns the preferred outputs; the others only pass validation.",
                "warn",
            )
        save = _saver(parent_path, parent)
        return Training(task, parent, report, should_stop, save, self._monotonic).run()

    # -- answers ----------------------------------------------------------------------------

    def generate(self, model: str, messages: Sequence[Message], how: Generation) -> Iterator[Token]:
        """Draw an answer word by word; equal seeds give equal answers."""
        speaker = self._get(model).speak(read_prompt(messages))
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

    def score(self, model: str, messages: Sequence[Message]) -> Sequence[TokenScore]:
        """Every token of the conversation; the last answer's and its end's with probabilities."""
        word_model = self._get(model)
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


def _pinned(model: Path, folder: Path) -> Path:
    """The model's files linked into the job's folder, where no deletion reaches them."""
    pinned = folder / "parent"
    if not (pinned / "model.json").exists():
        pinned.mkdir(exist_ok=True)
        for path in sorted(model.iterdir(), key=lambda p: p.name == "model.json"):
            (pinned / path.name).unlink(missing_ok=True)
            os.link(path, pinned / path.name)
    return pinned


def _stage_files(path: Path | None) -> list[dict[str, Any]]:
    """The stages of the model in `path`, oldest first, without the base model's own."""
    if path is None:
        return []
    stages: list[dict[str, Any]] = json.loads((path / "model.json").read_text())["stages"]
    return stages


def _saver(parent_path: Path | None, parent: WordModel) -> Callable[[Path, Stage], None]:
    """Writes models: the parent's counts linked, this job's written once and then linked.

    The oldest stages of a long chain keep their words only, so that going on for ever from the
    last fine-tune costs no more than a few.
    """
    inherited = _stage_files(parent_path)
    written: dict[int, Path] = {}

    def save(path: Path, stage: Stage) -> None:
        described = []
        for number, earlier in enumerate(inherited):
            name = f"stage-{number}.npz"
            if parent_path is not None and number >= len(inherited) - _MOST_STAGES:
                os.link(parent_path / earlier["counts"], path / name)
                described.append({"counts": name, "mix": earlier["mix"]})
            else:
                emptied = parent.stages[number + 1].emptied()
                emptied.save_counts(path / name, len(parent.stages[number].vocabulary))
                described.append({"counts": name, "mix": dataclasses.asdict(emptied.mix)})
        name = f"stage-{len(inherited)}.npz"
        known = written.setdefault(id(stage.pooled), path / name)
        if known == path / name or not known.exists():
            stage.save_counts(path / name, len(parent.vocabulary))
        else:
            os.link(known, path / name)
        described.append({"counts": name, "mix": dataclasses.asdict(stage.mix)})
        model = {"engine": "ngram", "base": BASE_MODEL, "stages": described}
        (path / "model.json").write_text(json.dumps(model))

    return save
