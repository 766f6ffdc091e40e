"""One stage of training: what was counted in one file, and how it is mixed with what came before.

The base model is a stage with no parent; a fine-tune adds a stage to its parent's. A stage has a
pooled model of all its text, and one for each kind of prompt (`prompts`) with enough examples.
"""

from __future__ import annotations

import dataclasses
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tuneproof_trainer.engines.ngram.kneser_ney import ORDER, Ints, KneserNey
from tuneproof_trainer.engines.ngram.prompts import PLAIN
from tuneproof_trainer.engines.ngram.tokens import BOS, EOS, FIRST_WORD, Vocabulary

__all__ = ["Mix", "Stage", "Text", "count_stage"]

_GROUP_MIN_EXAMPLES = 8
_GROUP_MIN_SHARE = 0.02
_KEPT_IN_CONTEXTS = 2


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """Weights of (parent, pooled, group), and what the prompt's own words are worth."""

    alone: tuple[float, float] = (0.4, 0.6)
    """Parent and pooled, for a kind of prompt without a model of its own."""

    grouped: tuple[float, float, float] = (0.3, 0.2, 0.5)
    """Parent, pooled and group, for a kind of prompt with one."""

    cache: float = 0.1
    """The share of the mass left over by a context that goes to the prompt's words."""

    boost: float = 4.0
    """By how much a prompt's word is likelier than the counts alone say."""

    spelled: float = 0.02
    """The share kept for words that are spelled, in every context."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Mix:
        """The mix that `dataclasses.asdict` and JSON made of one."""
        alone, grouped = tuple(data["alone"]), tuple(data["grouped"])
        return cls(**(data | {"alone": alone, "grouped": grouped}))

    def trained(self, strength: float) -> Mix:
        """These weights after more (`strength` > 1) or fewer passes over the file."""
        return dataclasses.replace(
            self,
            alone=_stronger(self.alone, strength),
            grouped=_stronger(self.grouped, strength),
        )


def _stronger(weights: tuple[float, ...], strength: float) -> Any:
    raw = (weights[0], *(w * strength for w in weights[1:]))
    return tuple(w / sum(raw) for w in raw)


class Text:
    """Answers collected for counting: word numbers, and the keys of their prompts."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.words = array("i")
        self.ends = array("q")
        self.keys: list[tuple[str, ...]] = []

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, tokens: Iterable[str], keys: tuple[str, ...]) -> None:
        """One answer; new words join the vocabulary."""
        add = self.vocabulary.add
        self.words.extend([add(token) for token in tokens])
        self.words.append(EOS)
        self.ends.append(len(self.words))
        self.keys.append(keys)

    def starts(self) -> Ints:
        """Where each answer begins in `words`."""
        ends = np.frombuffer(self.ends, dtype=np.int64) if self.ends else np.zeros(0, np.int64)
        return np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]])[: len(ends)]

    def groups(self) -> dict[str, list[int]]:
        """The kinds of prompt with enough examples, and the answers of each."""
        least = max(_GROUP_MIN_EXAMPLES, int(_GROUP_MIN_SHARE * len(self)))
        seen = Counter(key for keys in self.keys for key in set(keys))
        frequent = {key for key, count in seen.items() if count >= least}
        found: dict[str, list[int]] = {}
        for number, keys in enumerate(self.keys):
            found.setdefault(next((k for k in keys if k in frequent), PLAIN), []).append(number)
        kept = {key: rows for key, rows in found.items() if len(rows) >= least}
        return kept if len(found) > 1 else {}


class Stage:
    """The counts of one file, and the vocabulary up to here."""

    def __init__(
        self,
        *,
        vocabulary: Vocabulary,
        contexts: list[int],
        pooled: KneserNey,
        groups: dict[str, KneserNey],
        mix: Mix,
    ) -> None:
        self.vocabulary = vocabulary
        self.contexts = contexts
        self.pooled = pooled
        self.groups = groups
        self.mix = mix

    def with_mix(self, mix: Mix) -> Stage:
        """The same counts, mixed otherwise."""
        return Stage(
            vocabulary=self.vocabulary,
            contexts=self.contexts,
            pooled=self.pooled,
            groups=self.groups,
            mix=mix,
        )

    def emptied(self) -> Stage:
        """The words of this stage without its counts, all weight left to the parent."""
        none = np.zeros(0, dtype=np.int64)
        return Stage(
            vocabulary=self.vocabulary,
            contexts=[],
            pooled=KneserNey.count(none, none, 0),
            groups={},
            mix=Mix(alone=(1.0, 0.0), grouped=(1.0, 0.0, 0.0)),
        )

    def group(self, keys: Sequence[str]) -> KneserNey | None:
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

    @classmethod
    def load_counts(cls, path: Path, parent: Vocabulary, mix: Mix) -> Stage:
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


def count_stage(text: Text, mix: Mix) -> Stage:
    """The stage that `text` makes: a pure function of the answers and their order of words."""
    size = len(text.vocabulary)
    words = np.frombuffer(text.words, dtype=np.int32).astype(np.int64)
    contexts = _context_words(words, text.vocabulary)
    starts = text.starts()
    groups = text.groups()
    return Stage(
        vocabulary=text.vocabulary.extended(),
        contexts=contexts.tolist(),
        pooled=_count(words, starts, contexts, size),
        groups={
            key: _count(*_only(words, starts, rows), contexts, size) for key, rows in groups.items()
        },
        mix=mix,
    )


def _context_words(words: Ints, vocabulary: Vocabulary) -> Ints:
    """How each word appears in contexts: as itself, or by its shape if it is rare."""
    seen = np.bincount(words, minlength=len(vocabulary))
    contexts = np.arange(len(vocabulary), dtype=np.int64)
    rare = seen < _KEPT_IN_CONTEXTS
    rare[:FIRST_WORD] = False
    contexts[rare] = np.array(vocabulary.shapes, dtype=np.int64)[rare]
    return contexts


def _only(words: Ints, starts: Ints, rows: list[int]) -> tuple[Ints, Ints]:
    ends = np.append(starts[1:], len(words))
    pieces = [words[starts[row] : ends[row]] for row in rows]
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    return np.concatenate(pieces), np.concatenate([[0], np.cumsum(lengths)[:-1]])


def _count(words: Ints, starts: Ints, contexts: Ints, size: int) -> KneserNey:
    stream = np.insert(words, np.repeat(starts, ORDER - 1), BOS) if len(words) else words
    return KneserNey.count(stream, contexts[stream], size)
