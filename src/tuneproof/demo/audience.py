"""The audience: a hidden taste over the words of a post, and chance around it.

The pipeline never sees the taste, only what came of posts. `Audience.rate` and `true_effect`
are for checking what the pipeline concluded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

from tuneproof.demo.draws import draws, number

LOWEST, HIGHEST = 0.03, 0.135
"""The expected engagement rates of the dullest and of the finest post."""

KAPPA = 33.0
"""How alike two posts of equal quality do (Beta's α + β). With the differences in quality, all
posts together spread like a Beta of mean 0.068 and κ of about 20."""

DISLIKE = 0.4
"""What is left of the rates once the audience turned against a model."""

WEIGHTS: Mapping[str, float] = {
    "start": -2.5,
    "hook has a number": 1.0,
    "hook asks": 0.55,
    "hook speaks to you": 0.5,
    "hook is concrete": 0.45,
    "hook has a good length": 0.5,
    "hook is vague": -1.0,
    "hook is bait": -0.9,
    "body has a number": 0.65,
    "body speaks to you": 0.35,
    "body asks": 0.3,
    "body is concrete": 0.3,
    "body is brisk": 0.35,
    "body is vague": -0.6,
    "body shouts": -0.5,
}
"""The taste: what each feature adds to the log-odds between lowest and highest rate."""

_NUMBER = re.compile(r"\d")
_YOU = re.compile(r"\b(?:you|your|yours)\b", re.IGNORECASE)
_WORD = re.compile(r"[\w']+")
_SENTENCE = re.compile(r"[.!?]+(?:\s|$)")
_CONCRETE = re.compile(
    r"\b(?:minutes?|hours?|days?|weeks?|months?|dollars?|percent|degrees|grams?|kilos?|liters?"
    r"|kilometers|lines|steps?|pot|pan|box|jar|bag|bucket|timer|watch|notebook|pencil|envelopes?"
    r"|shoes|backpack|onions?|rice|lemon|spoon|knife|door|window|train|soil|seeds?|list|spreadsheet"
    r"|monday|tuesday|wednesday|thursday|friday|saturday|sunday)\b",
    re.IGNORECASE,
)
_VAGUE = re.compile(
    r"\b(?:thoughts?|things|aspects?|general|various|certain|considering|interesting|perspective"
    r"|insights|journey|value|opinion|notes|excited|thrilled|announce|depends)\b",
    re.IGNORECASE,
)
_BAIT = re.compile(
    r"\b(?:secret|nobody|never guess|unbelievable|shocking|trick|truth|surprise|everybody|hidden"
    r"|will surprise|warning|this happened)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Reaction:
    """What came of one post."""

    rate: float
    impressions: int
    clicks: int


def features(hook: str, body: str) -> dict[str, float]:
    """What the audience notices in a post, each 0–1."""
    hook_words = len(_WORD.findall(hook))
    body_words = len(_WORD.findall(body))
    sentences = max(1, len(_SENTENCE.findall(body)))
    return {
        "start": 1.0,
        "hook has a number": float(bool(_NUMBER.search(hook))),
        "hook asks": float(hook.rstrip().endswith("?")),
        "hook speaks to you": float(bool(_YOU.search(hook))),
        "hook is concrete": float(bool(_CONCRETE.search(hook))),
        "hook has a good length": _near(hook_words, 6, 13),
        "hook is vague": float(bool(_VAGUE.search(hook))),
        "hook is bait": float(bool(_BAIT.search(hook)) or hook.rstrip().endswith("!")),
        "body has a number": float(bool(_NUMBER.search(body))),
        "body speaks to you": float(bool(_YOU.search(body))),
        "body asks": float("?" in body),
        "body is concrete": float(bool(_CONCRETE.search(body))),
        "body is brisk": _near(body_words / sentences, 4, 11) * _near(body_words, 12, 45),
        "body is vague": float(bool(_VAGUE.search(body))),
        "body shouts": float("!" in body),
    }


def _near(value: float, low: float, high: float) -> float:
    """1 inside [low, high], falling to 0 within half of it outside."""
    if low <= value <= high:
        return 1.0
    distance = (low - value) / low if value < low else (value - high) / high
    return max(0.0, 1.0 - 2.0 * distance)


@lru_cache(maxsize=65_536)
def _expected(hook: str, body: str) -> float:
    seen = features(hook, body)
    score = sum(WEIGHTS[name] * value for name, value in seen.items())
    return LOWEST + (HIGHEST - LOWEST) / (1.0 + math.exp(-score))


class Audience:
    """Readers who react to posts by their taste and by chance; `seed` is their chance."""

    def __init__(self, seed: int = 7, *, kappa: float = KAPPA) -> None:
        self.seed = seed
        self.kappa = kappa

    def rate(self, hook: str, body: str, *, disliked: bool = False) -> float:
        """The expected engagement rate of a post, 0–1; what no pipeline can know."""
        return _expected(hook, body) * (DISLIKE if disliked else 1.0)

    def react(self, post_id: str, hook: str, body: str, *, disliked: bool = False) -> Reaction:
        """What comes of one post: the same post, the same reaction.

        The post's own luck is a Beta around the expected rate; impressions are log-normal
        (median 900), clicks are the share of them that the luck allows, rounded by chance.
        """
        random = draws(self.seed, "reaction", post_id)
        mean = self.rate(hook, body, disliked=disliked)
        luck = random.betavariate(mean * self.kappa, (1.0 - mean) * self.kappa)
        impressions = 100 + int(random.lognormvariate(math.log(800), 0.6))
        clicks = min(impressions, int(luck * impressions + random.random()))
        return Reaction(rate=clicks / impressions, impressions=impressions, clicks=clicks)

    def true_effect(
        self, baseline: Iterable[tuple[str, str]], candidate: Iterable[tuple[str, str]]
    ) -> float:
        """The true lift of the candidate's (hook, body) posts over the baseline's: 0.2 is +20 %."""
        ours = fmean(self.rate(hook, body) for hook, body in candidate)
        theirs = fmean(self.rate(hook, body) for hook, body in baseline)
        return ours / theirs - 1.0

    def outcome_delay_h(
        self, post_id: str, *, shortest: float = 6.0, longest: float = 24.0
    ) -> float:
        """After how many hours the post's outcome is measured."""
        share = number(self.seed, "delay", post_id) / 2**64
        return shortest + (longest - shortest) * share
