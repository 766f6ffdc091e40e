"""Choose a stage's mixture by what it makes of answers that it was not counted from.

The weights of parent, pooled and group model come from expectation maximisation, the worth of
the prompt's words from a small grid, both over the same held-out tokens. Every figure needed is
collected once, so that trying a value costs no look-up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from tuneproof_trainer.engines.ngram.kneser_ney import Floats
from tuneproof_trainer.engines.ngram.mix import CONFIDENCES, Mix, Weights, confidence
from tuneproof_trainer.engines.ngram.mixture import Speaker, WordModel
from tuneproof_trainer.engines.ngram.prompts import Prompt
from tuneproof_trainer.engines.ngram.tokens import EOS_TEXT

__all__ = ["AnswerTokens", "fitted"]

_CACHES = (0.0, 0.03, 0.1, 0.2, 0.35, 0.5)
_BOOSTS = (1.0, 2.0, 4.0, 8.0)
_SPELLED = (0.002, 0.01, 0.03)
_ROUNDS = 15
_LEAST_WEIGHT = 0.01
_PRIOR_TOKENS = 10.0
_MOST_TOKENS = 4000


@dataclasses.dataclass(frozen=True, slots=True)
class AnswerTokens:
    """A prompt and the tokens of its answer."""

    prompt: Prompt
    tokens: tuple[str, ...]


@dataclasses.dataclass(slots=True)
class _Seen:
    """One row a token: what each source says of the word, of all topic words, and is left."""

    word: list[Floats] = dataclasses.field(default_factory=list)
    topic: list[Floats] = dataclasses.field(default_factory=list)
    left: list[Floats] = dataclasses.field(default_factory=list)
    zero: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    """The spelling model's probability of the word, and of all topic words."""

    hit: list[bool] = dataclasses.field(default_factory=list)
    size: list[int] = dataclasses.field(default_factory=list)
    sure: list[int] = dataclasses.field(default_factory=list)
    """The confidence of the stage's own counts (`mix.confidence`)."""


def fitted(model: WordModel, answers: Iterable[AnswerTokens]) -> Mix:
    """The mix of the model's last stage under which `answers` are likeliest."""
    mix = model.mix
    alone, grouped = _Seen(), _Seen()
    last = model.stages[-1]
    for answer in answers:
        if len(alone.hit) + len(grouped.hit) >= _MOST_TOKENS:
            break
        seen = alone if last.group(answer.prompt.keys) is None else grouped
        _collect(model, answer, seen)
    if alone.hit:
        mix = dataclasses.replace(mix, alone=_weights(alone, mix.alone))
    if grouped.hit:
        mix = dataclasses.replace(mix, grouped=_weights(grouped, mix.grouped))
    samples = [(s, w) for s, w in ((alone, mix.alone), (grouped, mix.grouped)) if s.hit]
    return _worth(mix, samples) if samples else mix


def _collect(model: WordModel, answer: AnswerTokens, seen: _Seen) -> None:
    speaker = model.speak(answer.prompt)
    own = len(model.stages) - 1
    for token in (*answer.tokens, EOS_TEXT):
        topic = speaker.topic
        sources = _sources(speaker, own)
        seen.word.append(sources @ speaker.shares(token))
        together = np.sum([speaker.shares(t) for t in topic], axis=0) if topic else None
        seen.topic.append(sources @ together if together is not None else np.zeros(len(sources)))
        seen.left.append(sources @ speaker.left_over())
        spell = model.spelling.prob
        zero = spell(token) if token != EOS_TEXT else 0.0
        seen.zero.append((zero, sum(map(spell, topic))))
        seen.hit.append(token in topic)
        seen.size.append(len(topic))
        last = next(p for p in reversed(speaker.parts) if p.stage == own)
        seen.sure.append(confidence(last.model, last.rows, first=speaker.first))
        if token != EOS_TEXT:
            speaker.say(token)


def _sources(speaker: Speaker, own: int) -> Floats:
    """A matrix that adds the parts up to the parent, the pooled model and the group model."""
    parts = speaker.parts
    mine = [at for at, part in enumerate(parts) if part.stage == own]
    matrix = np.zeros((1 + len(mine), len(parts)))
    theirs = sum(part.weight for part in parts if part.stage != own)
    for at, part in enumerate(parts):
        if part.stage != own:
            matrix[0, at] = part.weight / theirs
    for row, at in enumerate(mine, start=1):
        matrix[row, at] = 1.0
    return matrix


def _weights(seen: _Seen, start: Weights) -> Weights:
    """Mixture weights for each confidence, drawn towards those for all tokens together."""
    p, sure = np.array(seen.word), np.array(seen.sure)
    together = _maximised(p, np.mean(start, axis=0), 0.0)
    found = [_maximised(p[sure == level], together, _PRIOR_TOKENS) for level in range(CONFIDENCES)]
    return tuple(tuple(float(w) for w in weights) for weights in found)


def _maximised(p: Floats, start: Floats, prior: float) -> Floats:
    """Mixture weights by expectation maximisation, none below a floor."""
    weights = start
    for _ in range(_ROUNDS):
        given = p * weights
        given /= np.maximum(given.sum(axis=1, keepdims=True), 1e-300)
        weights = (given.sum(axis=0) + prior * start) / max(len(p) + prior, 1e-9)
        weights = np.maximum(weights, _LEAST_WEIGHT)
        weights = weights / weights.sum()
    return weights


def _worth(mix: Mix, samples: Sequence[tuple[_Seen, Weights]]) -> Mix:
    tables = [_Table(seen, weights) for seen, weights in samples]
    tried = [
        (sum(table.loss(cache, boost, spelled) for table in tables), cache, boost, spelled)
        for cache in _CACHES
        for boost in _BOOSTS
        for spelled in _SPELLED
    ]
    _, cache, boost, spelled = min(tried)
    return dataclasses.replace(mix, cache=cache, boost=boost, spelled=spelled)


class _Table:
    """The collected figures under fixed weights."""

    def __init__(self, seen: _Seen, weights: Weights) -> None:
        w = np.array(weights)[np.array(seen.sure)]
        self.word = (np.array(seen.word) * w).sum(axis=1)
        self.topic = (np.array(seen.topic) * w).sum(axis=1)
        self.left = (np.array(seen.left) * w).sum(axis=1)
        self.zero, self.topic_zero = np.array(seen.zero).T
        self.hit = np.array(seen.hit)
        self.size = np.array(seen.size)

    def loss(self, cache: float, boost: float, spelled: float) -> float:
        """Nats that the formula of `mixture` needs for the collected tokens."""
        some = self.size > 0
        gate = np.where(some, cache * self.left, 0.0)
        own = np.where(self.hit, gate / np.maximum(self.size, 1), 0.0)
        lean = (1 - gate) * (self.word + spelled * (self.zero - self.word)) + own
        topic = (1 - gate) * (self.topic + spelled * (self.topic_zero - self.topic)) + gate
        norm = 1.0 + (boost - 1.0) * np.where(some, topic, 0.0)
        p = lean * np.where(self.hit, boost, 1.0) / norm
        return float(-np.log(np.maximum(p, 1e-300)).sum())
