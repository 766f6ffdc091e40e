"""What a killed training goes on from: the answers read so far and where it stood."""

from __future__ import annotations

import dataclasses
import json
import os
from array import array
from pathlib import Path

import numpy as np

from tuneproof_trainer.engines.ngram.mix import Mix
from tuneproof_trainer.engines.ngram.prompts import MOST_KEYS
from tuneproof_trainer.engines.ngram.stage import AnswerTexts
from tuneproof_trainer.engines.ngram.tokens import Vocabulary

__all__ = ["NgramSnapshot", "prefix", "read", "write"]

_NAME = "snapshot.npz"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NgramSnapshot:
    """Where a training stood."""

    step: int
    counted: int
    fitted: bool
    tokens: int
    mix: Mix


def write(folder: Path, snapshot: NgramSnapshot, text: AnswerTexts, first_word: int) -> None:
    """Replace the folder's snapshot; a kill leaves the old one or the new one."""
    header = {
        "progress": dataclasses.asdict(snapshot),
        "words": text.vocabulary.words[first_word:],
    }
    temporary = folder / f"{_NAME}.part"
    with temporary.open("wb") as file:
        np.savez(
            file,
            header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
            keys=np.array(text.keys, dtype=np.int64),
            words=np.array(text.words, dtype=np.int32),
            ends=np.array(text.ends, dtype=np.int64),
        )
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / _NAME)


def read(folder: Path, parent: Vocabulary) -> tuple[NgramSnapshot, AnswerTexts] | None:
    """The folder's snapshot, on the parent's vocabulary; None if there is none."""
    path = folder / _NAME
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        header = json.loads(arrays["header"].tobytes())
        vocabulary = parent.extended()
        for word in header["words"]:
            vocabulary.add(word)
        text = AnswerTexts(vocabulary)
        text.words = array("i", arrays["words"].tobytes())
        text.ends = array("q", arrays["ends"].tobytes())
        text.keys = array("q", arrays["keys"].tobytes())
    progress = header["progress"]
    mix = Mix.from_json(progress["mix"])
    return NgramSnapshot(**(progress | {"mix": mix})), text


def prefix(text: AnswerTexts, answers: int) -> AnswerTexts:
    """The first `answers` of `text`, with the words known when they had been read."""
    if answers >= len(text):
        return text
    end = text.ends[answers - 1] if answers else 0
    words = text.words[:end]
    part = AnswerTexts(text.vocabulary.first(max(words, default=-1) + 1))
    part.words = words
    part.ends = text.ends[:answers]
    part.keys = text.keys[: answers * MOST_KEYS]
    return part
