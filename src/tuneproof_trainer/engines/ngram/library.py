"""Models in memory and on disk: the base model is made here, fine-tunes are folders of arrays.

A fine-tune's folder has a file of counts for each of its stages and `model.json`, which says how
they are mixed. Counts never change, so a model that goes on from another links its files.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from tuneproof_trainer.engines.ngram.corpus import base_examples
from tuneproof_trainer.engines.ngram.kneser_ney import KneserNey
from tuneproof_trainer.engines.ngram.mix import CONFIDENCES, Mix
from tuneproof_trainer.engines.ngram.mixture import WordModel
from tuneproof_trainer.engines.ngram.prompts import prompt_keys
from tuneproof_trainer.engines.ngram.stage import AnswerTexts, FittingStage, count_stage
from tuneproof_trainer.engines.ngram.tokens import Vocabulary, split
from tuneproof_trainer.engines.protocol import EngineError

__all__ = ["ModelWriter", "make_base", "pin", "read_model"]

_MOST_STAGES = 5
_BASE_MIX = Mix(grouped=((0.0, 0.15, 0.85),) * CONFIDENCES, cache=0.1, boost=4.0)


def make_base() -> WordModel:
    """The base model, counted from the package's own text: a quarter of a second."""
    text = AnswerTexts(Vocabulary())
    for example in base_examples():
        prompt, answer = example.messages
        text.add(split(answer.content), prompt_keys((prompt,)))
    return WordModel([count_stage(text, _BASE_MIX)])


def read_model(path: Path, base: WordModel) -> WordModel:
    """The fine-tune in the folder `path`."""
    stages = list(base.stages)
    for stage in _described(path):
        mix = Mix.from_json(stage["mix"])
        stages.append(FittingStage.load_counts(path / stage["counts"], stages[-1].vocabulary, mix))
    return WordModel(stages)


def _described(path: Path) -> list[dict[str, Any]]:
    """The stages of the model in `path`, oldest first, without the base model's own."""
    stages: list[dict[str, Any]] = json.loads((path / "model.json").read_text())["stages"]
    return stages


def pin(model: Path, folder: Path) -> Path:
    """The model's files linked into a job's folder, where no deletion reaches them.

    Raises EngineError `model_not_found` if the model is gone already.
    """
    pinned = folder / "parent"
    if (pinned / "model.json").exists():
        return pinned
    if not (model / "model.json").exists():
        raise _gone()
    pinned.mkdir(exist_ok=True)
    try:
        for path in sorted(model.iterdir(), key=lambda p: p.name == "model.json"):
            (pinned / path.name).unlink(missing_ok=True)
            os.link(path, pinned / path.name)
    except FileNotFoundError:
        raise _gone() from None  # it is being deleted at this moment
    return pinned


def _gone() -> EngineError:
    return EngineError(
        "model_not_found",
        "The model to go on from was deleted before the job began. Start from another.",
        "model",
    )


class ModelWriter:
    """Writes a job's models: the parent's counts linked, its own written once and linked.

    The oldest stages of a long chain keep their words only, so that going on for ever from the
    last fine-tune costs no more than a few.
    """

    def __init__(self, folder: Path, parent_path: Path | None, parent: WordModel) -> None:
        self._own = folder / "counts.npz"
        self._parent_path, self._parent = parent_path, parent
        self._inherited = _described(parent_path) if parent_path else []
        self._written: KneserNey | None = None

    def write(self, path: Path, stage: FittingStage, base: str) -> None:
        """Write the model of the parent's stages and `stage` into the empty folder `path`."""
        described = [self._inherit(path, n) for n in range(len(self._inherited))]
        if self._written is not stage.pooled:
            self._own.unlink(missing_ok=True)
            stage.save_counts(self._own, len(self._parent.vocabulary))
            self._written = stage.pooled
        name = f"stage-{len(described)}.npz"
        os.link(self._own, path / name)
        described.append({"counts": name, "mix": dataclasses.asdict(stage.mix)})
        text = json.dumps({"engine": "ngram", "base": base, "stages": described})
        with (path / "model.json").open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _inherit(self, path: Path, number: int) -> dict[str, Any]:
        name = f"stage-{number}.npz"
        if self._parent_path is not None and number > len(self._inherited) - _MOST_STAGES:
            earlier = self._inherited[number]
            os.link(self._parent_path / earlier["counts"], path / name)
            return {"counts": name, "mix": earlier["mix"]}
        emptied = self._parent.stages[number + 1].emptied()
        emptied.save_counts(path / name, len(self._parent.stages[number].vocabulary))
        return {"counts": name, "mix": dataclasses.asdict(emptied.mix)}
