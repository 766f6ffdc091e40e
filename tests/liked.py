"""A world in which readers like one word and dislike another, and the outcome model that knows it.

liked(draw), disliked(draw)    # texts with either word
learnt()                       # a model of 150 groups of three; fitted once a process
"""

from __future__ import annotations

import functools
import random

from tuneproof.evaluation import OutcomeModel, Published, fit_outcomes

__all__ = ["competing", "disliked", "learnt", "liked", "text", "unlearnt"]

FILLER = ["rain", "stone", "river", "lamp", "garden", "paper", "window", "cloud", "bread", "wheel"]
LIKED, DISLIKED = "seven", "perhaps"


def text(draw: random.Random, word: str | None) -> str:
    """Six words, and this one among them."""
    words = draw.sample(FILLER, 6)
    return " ".join([*words[:3], word, *words[3:]] if word else words)


def liked(draw: random.Random) -> str:
    return text(draw, LIKED)


def disliked(draw: random.Random) -> str:
    return text(draw, DISLIKED)


def clicked(draw: random.Random, rate: float, shown: int) -> float:
    return sum(draw.random() < rate for _ in range(shown)) / shown


def competing(seed: int, groups: int, *, gap: float = 0.06, shown: int = 600) -> list[Published]:
    """Three posts in each group: a word that readers like, none, and one that they do not."""
    draw = random.Random(seed)
    return [
        Published(text(draw, word), f"test {g}", clicked(draw, rate, shown), shown)
        for g in range(groups)
        for word, rate in ((LIKED, 0.08 + gap), (None, 0.08 + gap / 2), (DISLIKED, 0.08))
    ]


@functools.cache
def learnt() -> OutcomeModel:
    return fit_outcomes(competing(1, 150))


@functools.cache
def unlearnt() -> OutcomeModel:
    """A model of too few posts to know anything."""
    return fit_outcomes(competing(1, 1))
