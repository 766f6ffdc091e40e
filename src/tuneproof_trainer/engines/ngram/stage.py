"""One stage of training: what was counted in one file, and how it is mixed with what came before.

The base model is a stage with no parent; a fine-tune adds a stage to its parent's. A stage has a
pooled model of all its text, and one for each kind of prompt (`prompts`) with enough examples.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tuneproof_trainer.engines.ngram.kneser_ney import ORDER, Ints, KneserNey
from tuneproof_trainer.engines.ngram.mix import Mix
from tuneproof_trainer.engines.ngram.prompts import MOST_KEYS, PLAIN
from tuneproof_trainer.engines.ngram.tokens import BOS, EOS, FIRST_WORD, Vocabulary

__all__ = ["AnswerTexts", "FittingStage", "count_stage"]

_GROUP_MIN_EXAMPLES = 8
_GROUP_MIN_SHARE = 0.02


class AnswerTexts:
    """Answers collected for counting: word numbers, and the keys of their prompts."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.words = array("i")
        self.ends = array("q")
        self.keys = array("q")
        """`MOST_KEYS` numbers for each answer, 0 where it has fewer keys."""

    def __len__(self) -> int:
        return len(self.ends)

    def add(self, tokens: Iterable[str], keys: Sequence[int]) -> None:
        """One answer; new words join the vocabulary."""
        add = self.vocabulary.add
        self.words.extend([add(token) for token in tokens])
        self.words.append(EOS)
        self.ends.append(len(self.words))
        self.keys.extend(keys)
        self.keys.extend([0] * (MOST_KEYS - len(keys)))

    def starts(self) -> Ints:
        """Where each answer begins in `words`."""
        ends = np.frombuffer(self.ends, dtype=np.int64) if self.ends else np.zeros(0, np.int64)
        return np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]])[: len(ends)]

    def groups(self) -> dict[int, Ints]:
        """The kinds of prompt with enough examples, and the answers of each."""
        least = max(_GROUP_MIN_EXAMPLES, int(_GROUP_MIN_SHARE * len(self)))
        keys = np.frombuffer(self.keys, dtype=np.int64).reshape(-1, MOST_KEYS)
        distinct, seen = np.unique(keys, return_counts=True)
        frequent = distinct[(seen >= least) & (distinct != 0)]
        known = np.isin(keys, frequent)
        first = keys[np.arange(len(keys)), known.argmax(axis=1)]
        chosen = np.where(known.any(axis=1), first, PLAIN)
        kinds, sizes = np.unique(chosen, return_counts=True)
        if len(kinds) < 2:
            return {}
        return {int(k): np.flatnonzero(chosen == k) for k in kinds[sizes >= least]}


class FittingStage:
    """The counts of one file, and the vocabulary up to here."""

    def __init__(
        self,
        *,
        vocabulary: Vocabulary,
        contexts: list[int],
        pooled: KneserNey,
        groups: dict[int, KneserNey],
        mix: Mix,
    ) -> None:
        self.vocabulary = vocabulary
        self.contexts = contexts
        self.pooled = pooled
        self.groups = groups
        self.mix = mix

    def with_mix(self, mix: Mix) -> FittingStage:
        """The same counts, mixed otherwise."""
        return FittingStage(
            vocabulary=self.vocabulary,
            contexts=self.contexts,
            pooled=self.pooled,
            groups=self.groups,
            mix=mix,
        )

    def emptied(self) -> FittingStage:
        """The words of this stage without its counts, all weight left to the parent."""
        none = np.zeros(0, dtype=np.int64)
        return FittingStage(
            vocabulary=self.vocabulary,
            contexts=[],
            pooled=KneserNey.count(none, none, 0),
            groups={},
            mix=Mix.nothing(),
        )

    def group(self, keys: Sequence[int]) -> KneserNey | None:
        """The model for the most telling of `keys` that this stage knows."""
        return next((self.groups[key] for key in keys if key in self.groups), None)

    def save_counts(self, path: Path, first_word: int) -> None:
        """Write counts and the words from number `first_word` on (the parent has the others)."""
        names = list(self.groups)
        arrays = self.pooled.arrays("pooled.")
        for number, name in enumerate(names):
            arrays |= self.groups[name].arrays(f"group{number}.")
        words = self.vocabulary.words[first_word:]
        texts = json.dumps({"groups": names, "words": words}).encode()
        arrays["contexts"] = np.array(self.contexts, dtype=np.int32)
        arrays["texts"] = np.frombuffer(texts, dtype=np.uint8)
        with path.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load_counts(cls, path: Path, parent: Vocabulary, mix: Mix) -> FittingStage:
        """The stage that `save_counts` wrote, on its parent's vocabulary."""
        with np.load(path, allow_pickle=False) as arrays:
            texts = json.loads(arrays["texts"].tobytes())
            vocabulary = parent.extended()
            for word in texts["words"]:
                vocabulary.add(word)
            return cls(
                vocabulary=vocabulary,
                contexts=arrays["contexts"].tolist(),
                pooled=KneserNey.restored(arrays, "pooled."),
                groups={
                    name: KneserNey.restored(arrays, f"group{number}.")
                    for number, name in enumerate(texts["groups"])
                },
                mix=mix,
            )


def count_stage(text: AnswerTexts, mix: Mix) -> FittingStage:
    """The stage that `text` makes: a pure function of the answers and their order of words."""
    vocabulary = text.vocabulary.extended()
    words = np.frombuffer(text.words, dtype=np.int32).astype(np.int64)
    seen = np.bincount(words, minlength=len(vocabulary))
    rare = _replaced(seen == 1, vocabulary)
    starts = text.starts()
    return FittingStage(
        vocabulary=vocabulary,
        contexts=_replaced(seen == 0, vocabulary).tolist(),
        pooled=_count(words, starts, rare),
        groups={
            key: _count(*_only(words, starts, rows), rare) for key, rows in text.groups().items()
        },
        mix=mix,
    )


def _replaced(which: npt.NDArray[np.bool_], vocabulary: Vocabulary) -> Ints:
    """Each word as contexts see it when those of `which` go by their shape."""
    which[:FIRST_WORD] = False
    contexts = np.arange(len(vocabulary), dtype=np.int64)
    contexts[which] = np.array(vocabulary.shapes, dtype=np.int64)[which]
    return contexts


def _only(words: Ints, starts: Ints, rows: Ints) -> tuple[Ints, Ints]:
    ends = np.append(starts[1:], len(words))
    pieces = [words[starts[row] : ends[row]] for row in rows]
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    return np.concatenate(pieces), np.concatenate([[0], np.cumsum(lengths)[:-1]])


def _count(words: Ints, starts: Ints, rare: Ints) -> KneserNey:
    stream = np.insert(words, np.repeat(starts, ORDER - 1), BOS) if len(words) else words
    return KneserNey.count(stream, rare[stream], len(rare))
