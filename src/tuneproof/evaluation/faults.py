"""What makes an answer unfit whoever reads it: nothing said, said over and over, cut off."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import Final

from tuneproof.training import Completion

__all__ = ["COPIED", "faults_of", "normal"]

COPIED: Final = "copies a training line"

SPECIAL_TOKENS: Final = ("<|", "|>", "<s>", "</s>", "[INST]", "\x00")
"""What a served text must not contain: marks of a template that leaked."""

LEAST_WORDS: Final = 12
MAX_REPEATED: Final = 0.5
"""Of an answer of so many words this share of its word pairs may be repetitions."""

_WORD: Final = re.compile(r"\w+")
_RUN: Final = re.compile(r"(\S)\1{19}|(\b\w+\b)(?:\W+\2\b){4}", re.IGNORECASE)
"""One character twenty times, or one word five times, in a row."""


def faults_of(prompt: str, answer: Completion, *, max_characters: int) -> tuple[str, ...]:
    """What is wrong with an answer to a prompt, in words; empty where nothing is."""
    text = answer.text
    faults = []
    if not text.strip():
        faults.append("empty")
    elif not _WORD.search(text):
        faults.append("has no words")
    if len(text) > max_characters:
        faults.append(f"longer than {max_characters} characters")
    if any(token in text for token in SPECIAL_TOKENS):
        faults.append("contains a special token")
    if prompt and text.strip() == prompt.strip():
        faults.append("repeats the prompt")
    if _repeats(text[:max_characters]):
        faults.append("repeats itself")
    if answer.finish_reason == "length":
        faults.append("cut off")
    return tuple(faults)


def _repeats(text: str) -> bool:
    if _RUN.search(text):
        return True
    words = _WORD.findall(text.lower())
    if len(words) < LEAST_WORDS:
        return False
    pairs = Counter(pairwise(words))
    return pairs.total() - len(pairs) > MAX_REPEATED * pairs.total()


def normal(text: str) -> str:
    """A text by its words alone, to tell whether two say the same."""
    return " ".join(_WORD.findall(text.casefold()))
