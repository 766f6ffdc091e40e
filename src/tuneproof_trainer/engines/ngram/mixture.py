"""A word model in use: stages mixed, conditioned on a prompt, for scoring and for sampling.

P(w | h, prompt) is a proper distribution over all strings:

    mix(w)  = Σ weight(h) · KneserNey(w | h)      over the stages' pooled and group models
    open(w) = (1 − s) · mix(w) + s · spelling(w)      s = spelled
    lean(w) = (1 − g) · open(w) + g / |S| · [w ∈ S]   g = cache · (mass that h leaves over)
    P(w)    = lean(w) · boost^[w ∈ S] / Z             Z = 1 + (boost − 1) · lean(S)

where S are the prompt's words that the answer has not used yet.
"""

from __future__ import annotations

import dataclasses
import math
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from random import Random

import numpy as np

from tuneproof_trainer.engines.ngram.kneser_ney import Floats, KneserNey, Level, Rows
from tuneproof_trainer.engines.ngram.mix import confidence
from tuneproof_trainer.engines.ngram.prompts import Prompt
from tuneproof_trainer.engines.ngram.spelling import Spelling
from tuneproof_trainer.engines.ngram.stage import FittingStage
from tuneproof_trainer.engines.ngram.tokens import BOS, EOS, EOS_TEXT, FIRST_WORD, shape_of

__all__ = ["MixturePart", "Speaker", "WordModel"]

_LEAST_WEIGHT = 0.003
_SHORTER = 0.5
"""When sampling, what one step to a shorter context is worth beside its probability."""


@dataclasses.dataclass(frozen=True, slots=True)
class MixturePart:
    """One model's say in the next word."""

    weight: float
    model: KneserNey
    rows: Rows
    """Where the present contexts stand in it."""

    stage: int


Layer = tuple[int, KneserNey, KneserNey | None]
"""A stage's number, its pooled model, and its model for the kind of prompt at hand."""


class WordModel:
    """The stages of one model, oldest first. Read-only once made; safe to share by threads."""

    def __init__(self, stages: Sequence[FittingStage], spelling: Spelling | None = None) -> None:
        self.stages = list(stages)
        self.vocabulary = self.stages[-1].vocabulary
        self.mix = self.stages[-1].mix
        self.spelling = spelling or Spelling(self.vocabulary.words[FIRST_WORD:])
        shapes = self.vocabulary.shapes
        self.contexts = [s.contexts + shapes[len(s.contexts) :] for s in self.stages]
        self.single_cum = array("d", accumulate(self.stages[-1].pooled.single))

    def layers(self, keys: Sequence[int]) -> list[Layer]:
        """The stages that may answer prompts of these keys, newest first."""
        numbers = range(len(self.stages) - 1, -1, -1)
        return [(n, self.stages[n].pooled, self.stages[n].group(keys)) for n in numbers]

    def speak(self, prompt: Prompt) -> Speaker:
        """The start of an answer to `prompt`."""
        return Speaker(self, self.layers(prompt.keys), prompt.topic)


class Speaker:
    """One answer in the making: what was said so far, and what may come next."""

    def __init__(self, model: WordModel, layers: list[Layer], topic: tuple[str, ...]) -> None:
        self.model = model
        self._layers = layers
        self._index = model.vocabulary.index
        self._histories = [[BOS, BOS, BOS] for _ in model.stages]
        self._later = self._forms(topic)
        self._first = self._forms([token[1:] for token in topic if token[1:2].isupper()])
        self.first = True
        """Whether nothing was said yet."""

        self._at_start = True
        self._look()

    def _forms(self, topic: Sequence[str]) -> dict[str, int]:
        """The prompt's words with their numbers; forms never seen only where no form was."""
        index = self._index
        known = {token.lower() for token in topic if token in index}
        return {t: index.get(t, -1) for t in topic if t in index or t.lower() not in known}

    def _look(self) -> None:
        """Find the contexts of the present history, and who has what say in the next word."""
        self.parts = self._weighed()
        self.topic = self._first if self._at_start else self._later
        self._gate = 0.0
        self._norm = 0.0
        if self.topic:
            left = sum(part.weight * part.model.left_over(part.rows) for part in self.parts)
            self._gate = self.model.mix.cache * left

    def _weighed(self) -> list[MixturePart]:
        parts: list[MixturePart] = []
        left = 1.0
        for number, pooled, group in self._layers:
            history = self._histories[number]
            rows = pooled.rows(history)
            mix = self.model.stages[number].mix
            if group is None:
                parent, share = mix.alone[confidence(pooled, rows, first=self.first)]
                own = [(share, pooled, rows)]
            else:
                group_rows = group.rows(history)
                parent, share, group_share = mix.grouped[
                    confidence(group, group_rows, first=self.first)
                ]
                own = [(share, pooled, rows), (group_share, group, group_rows)]
            if number == 0:
                left, parent = left / (1.0 - parent), 0.0
            parts += [MixturePart(left * w, m, r, number) for w, m, r in own if left * w]
            left *= parent
            if left < _LEAST_WEIGHT:
                break
        return parts if not left else [_scaled(part, 1.0 / (1.0 - left)) for part in parts]

    def say(self, token: str) -> None:
        """Append `token` to the answer."""
        word = self._index.get(token, -1)
        for number, _, _ in self._layers:
            contexts = self.model.contexts[number]
            self._histories[number].append(contexts[word] if word >= 0 else shape_of(token))
        if (self._later and token in self._later) or token in self._first:
            self._used(token)
        self.first = False
        self._at_start = token == "\n"
        self._look()

    def _used(self, token: str) -> None:
        word = token.strip().lower()
        self._later = {t: n for t, n in self._later.items() if t.strip().lower() != word}
        self._first = {t: n for t, n in self._first.items() if t.lower() != word}

    def shares(self, token: str) -> list[float]:
        """P(token) of each part, before the prompt's words are taken into account."""
        word = self._index.get(token, -1)
        zero = 0.0 if word == EOS else self.model.spelling.prob(token)
        return [part.model.prob(word, part.rows, zero) for part in self.parts]

    def left_over(self) -> list[float]:
        """The mass that each part leaves to single words here."""
        return [part.model.left_over(part.rows) for part in self.parts]

    def _lean(self, token: str) -> float:
        word = self._index.get(token, -1)
        zero = 0.0 if word == EOS else self.model.spelling.prob(token)
        mixed = 0.0
        for part in self.parts:
            mixed += part.weight * part.model.prob(word, part.rows, zero)
        spelled = self.model.mix.spelled
        mixed += spelled * (zero - mixed)
        if not self._gate:
            return mixed
        return (1 - self._gate) * mixed + (self._gate / len(self.topic)) * (token in self.topic)

    def _normed(self) -> float:
        """Z of the formula, worked out once in each place."""
        if not self._norm:
            boost = self.model.mix.boost
            extra = sum(map(self._lean, self.topic)) if boost != 1.0 else 0.0
            self._norm = 1.0 + (boost - 1.0) * extra
        return self._norm

    def prob(self, token: str) -> float:
        """P(token | what was said, prompt)."""
        lean = self._lean(token)
        if not self.topic:
            return lean
        boost = self.model.mix.boost if token in self.topic else 1.0
        return lean * boost / self._normed()

    def logprob(self, token: str) -> float:
        """Natural logarithm of `prob`."""
        return math.log(max(self.prob(token), 1e-300))

    def dense(self) -> Floats:
        """P of each word of the vocabulary; the rest of the mass is on spelled words."""
        size = len(self.model.vocabulary)
        p = np.zeros(size)
        for part in self.parts:
            p += part.weight * part.model.dense(part.rows, size)
        p *= 1 - self.model.mix.spelled
        if self.topic:
            p *= 1 - self._gate
            known = [n for n in self.topic.values() if n >= 0]
            p[known] += self._gate / len(self.topic)
            p[known] *= self.model.mix.boost
            p /= self._normed()
        return p

    def best(self) -> str:
        """The likeliest word."""
        return self.model.vocabulary.words[int(np.argmax(self.dense()))]

    def top(self, count: int) -> list[tuple[str, float]]:
        """The `count` likeliest words with their log-probabilities."""
        p = self.dense()
        best = np.argpartition(p, -count)[-count:] if count < len(p) else np.arange(len(p))
        best = best[np.argsort(p[best])[::-1]]
        words = self.model.vocabulary.words
        return [(words[i], math.log(max(float(p[i]), 1e-300))) for i in best]

    def rank(self, token: str) -> int:
        """1 for the likeliest word."""
        p = self.dense()
        word = self._index.get(token, -1)
        own = p[word] if word >= 0 else self.prob(token)
        return 1 + int((p > own).sum())

    # -- sampling ---------------------------------------------------------------------------

    def sample(self, rng: Random, temperature: float = 1.0, top_p: float = 1.0) -> str:
        """The next token, drawn from words that were seen after this context.

        As a top-k or min-p sampler would, it leaves out the mass of words never seen here and
        trusts shorter contexts less than the probabilities do: an answer made of words that
        only fit their neighbour helps nobody.
        """
        if temperature == 1.0 and top_p >= 1.0:
            return self._draw(rng)
        words, p = self._candidates()
        if temperature <= 0.01:
            return words[int(np.argmax(p))]
        order = np.argsort(p)[::-1]
        p = (p[order] / p[order[0]]) ** (1.0 / temperature)
        p /= p.sum()
        if top_p < 1.0:
            keep = int(np.searchsorted(np.cumsum(p), top_p)) + 1
            p = p[:keep] / p[:keep].sum()
        at = int(np.searchsorted(np.cumsum(p), rng.random()))
        return words[int(order[min(at, len(p) - 1)])]

    def _pieces(self) -> list[tuple[float, Level, int]]:
        """The seen words, as slices of levels with their mass."""
        pieces: list[tuple[float, Level, int]] = []
        for part in self.parts:
            mass = part.weight * (1 - self._gate)
            for depth in range(len(part.rows) - 1, -1, -1):
                level, row = part.model.levels[depth], part.rows[depth]
                held = level.cum[level.starts[row + 1]] - level.cum[level.starts[row]]
                pieces.append((mass * held, level, row))
                mass *= level.gamma[row] * _SHORTER
        return pieces

    def _topic_extra(self) -> list[tuple[str, float]]:
        """The mass that the prompt's words have above their share of the pieces."""
        found = []
        boost = self.model.mix.boost
        for token, word in self.topic.items():
            seen = 0.0
            if word >= 0:
                for part in self.parts:
                    p = 0.0
                    for level, row in zip(part.model.levels, part.rows, strict=False):
                        share = level.share(row, word)
                        if not share and not p:
                            break
                        p = p * level.gamma[row] + share
                    seen += part.weight * p
            cached = self._gate / len(self.topic)
            extra = (boost - 1) * (1 - self._gate) * seen + boost * cached
            if extra:
                found.append((token, extra))
        return found

    def _draw(self, rng: Random) -> str:
        pieces = self._pieces()
        words = self.model.vocabulary.words
        if not pieces:
            return self._draw_single(rng)
        extra = self._topic_extra() if self.topic else []
        total = sum(piece[0] for piece in pieces)
        u = rng.random() * (total + sum(mass for _, mass in extra))
        for token, mass in extra:
            if u < mass:
                return token
            u -= mass
        mass, level, row = pieces[-1]
        for piece in pieces:
            if u < piece[0]:
                mass, level, row = piece
                break
            u -= piece[0]
        low, high = level.starts[row], level.starts[row + 1]
        bottom = level.cum[low]
        target = bottom + (level.cum[high] - bottom) * min(u / mass, 1.0)
        at = min(max(bisect_right(level.cum, target, low, high) - 1, low), high - 1)
        return words[level.words[at]]

    def _draw_single(self, rng: Random) -> str:
        cum = self.model.single_cum
        at = bisect_right(cum, rng.random() * cum[-1])
        return self.model.vocabulary.words[min(at, len(cum) - 1)]

    def _candidates(self) -> tuple[list[str], Floats]:
        """The seen words, each once, with their mass."""
        pieces = self._pieces()
        vocabulary = self.model.vocabulary.words
        if not pieces:
            single = np.frombuffer(self.model.stages[-1].pooled.single, dtype=np.float64)
            return vocabulary[: len(single)], single
        numbers, masses = [], []
        for mass, level, row in pieces:
            low, high = level.starts[row], level.starts[row + 1]
            held = level.cum[high] - level.cum[low]
            numbers.append(np.frombuffer(level.words, dtype=np.int64)[low:high])
            probs = np.frombuffer(level.probs, dtype=np.float64)[low:high]
            masses.append(probs * (mass / held if held else 0.0))
        distinct, where = np.unique(np.concatenate(numbers), return_inverse=True)
        p = np.asarray(np.bincount(where, np.concatenate(masses)), dtype=np.float64)
        words = [vocabulary[i] for i in distinct]
        place = {word: at for at, word in enumerate(words)}
        added: list[float] = []
        for token, mass in self._topic_extra() if self.topic else []:
            if token in place:
                p[place[token]] += mass
            else:
                words.append(token)
                added.append(mass)
        return words, np.concatenate([p, added]) if added else p

    def score(self, tokens: Sequence[str]) -> list[float]:
        """Log-probabilities of `tokens` and of the end after them, said one by one."""
        found = []
        for token in tokens:
            found.append(self.logprob(token))
            self.say(token)
        found.append(self.logprob(EOS_TEXT))
        return found


def _scaled(part: MixturePart, by: float) -> MixturePart:
    return MixturePart(part.weight * by, part.model, part.rows, part.stage)
