"""Which of two answers readers would take to: a small model of the outcomes of published ones.

Trained on posts that competed with each other, by Bradley and Terry's model (Biometrika 39, 1952):
the log-odds that one answer does better than another is the difference of their scores. Where
nothing competed, a regression on single outcomes gives the scores. The score is linear in what
is seen of a text (`texts`): its words, characters and form, and a language model's vector of it
where there is one.

How far it can be believed is measured on posts that it was not fitted to: five times on four fifths
of the groups, judged on the fifth (`accuracy`). From those comes the scale of its scores, too, so
that a model that knows little says "about even" instead of being sure of what it does not know.
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import NormalDist, fmean
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tuneproof.evaluation.texts import Features, Floats, Seen, Vectors, fit_features

__all__ = ["OutcomeModel", "OutcomeReport", "Published", "WinRate", "fit_outcomes"]

FOLDS: Final = 5
CONFIDENCE: Final = 0.95
_Z: Final = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
CLEAR: Final = 0.95
"""How sure it must be which of two posts did better, for the pair to count in `accuracy`."""

LEAST_PAIRS: Final = 30
"""Fewer clear pairs of posts that competed: single outcomes are learnt from instead."""

LEAST_CERTAIN: Final = 0.1
"""Pairs of which it is nearly even who did better teach nothing."""

_PRECISION: Final = {"maxiter": 60, "ftol": 1e-6}

MOST_PAIRS: Final = 50_000
MOST_OF_GROUP: Final = 60
"""How many pairs are learnt from, and how many of one group: a sample of more, by hash."""

PENALTY: Final = 3.0
"""Of the squared weights. It and what is seen of a text were chosen on three of the five halves of
`benchmarks/learns.py`, of which the other two were no judge: expect a little less elsewhere."""


class Published(NamedTuple):
    """An answer that was published, and what came of it.

    `group` are the posts that competed with it, empty where nobody knows. `rate` is its outcome,
    higher is better; `impressions` says how well that is known, None where nothing does.
    """

    text: str
    group: str
    rate: float
    impressions: int | None = None


@dataclass(frozen=True, kw_only=True)
class OutcomeReport:
    """How well an outcome model tells winners from losers of posts that it was not fitted to.

    `accuracy` is the share of `judged` clear pairs in which it picked the winner, `low` and `high`
    its interval (95 %, pairs of one group go together). `kind` is `groups` or `single`, after what
    it learnt from, `learnt` how many pairs or posts that were. `vectors_of` is the model whose
    vectors of the texts it saw, empty for none.
    """

    kind: str
    groups: int
    learnt: int
    judged: int
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    vectors_of: str = ""

    @property
    def usable(self) -> bool:
        """Whether it is known to do better than a coin."""
        return self.low is not None and self.low > 0.5

    def sentence(self) -> str:
        """What a person is told of it."""
        if self.accuracy is None or self.low is None or self.high is None:
            return "too few posts differ clearly to learn which of two answers does better"
        seeing = f", with vectors of {self.vectors_of}," if self.vectors_of else ""
        told = (
            f"the outcome model{seeing} was right on {self.accuracy:.0%} ({self.low:.0%} to "
            f"{self.high:.0%}) of {self.judged:,} unseen pairs"
        )
        return told if self.usable else f"{told}, no better than a coin: not used"


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """How often answers of one model are expected to do better than those of another, 0–1."""

    value: float
    low: float
    high: float
    inputs: int


class _Pair(NamedTuple):
    """Two posts by their places, the one that did better first.

    `apart` are their outcomes, as arcsines of the rates' roots (whose errors do not depend on the
    rate), `error` the variance of that; `sure` is how sure it is which did better, 0.5–1.
    """

    better: int
    worse: int
    apart: float
    error: float
    sure: float
    group: str


# --- the model --------------------------------------------------------------------------------


class OutcomeModel:
    """Scores answers so that their differences are log-odds of doing better.

    `report` says how far it can be believed; `scale_error` is the standard error of the scale of
    its scores, as a share of it. `others` are the weights that it would have without a fifth of the
    posts, a row for each fifth: by how they differ is known how well it knows its own. Without
    `features` it sees nothing: all texts score 0.
    """

    def __init__(
        self,
        features: Features | None,
        weights: Floats,
        report: OutcomeReport,
        scale_error: float,
        others: Floats | None = None,
    ) -> None:
        self.features = features
        self.weights = weights
        self.scale_error = scale_error
        self.report = report
        self.others = np.zeros((0, len(weights))) if others is None else others

    def scores(self, texts: Sequence[str], vectors: Vectors | None = None) -> Floats:
        """The score of each text, shape `(len(texts),)`; `vectors` as it was fitted to."""
        if self.features is None or not texts:
            return np.zeros(len(texts))
        return self.features(texts, vectors) @ self.weights

    def win_rate(
        self,
        ours: Sequence[Sequence[str]],
        theirs: Sequence[Sequence[str]],
        vectors: Vectors | None = None,
    ) -> WinRate | None:
        """How often one model's answers are expected to do better than the other's.

        `ours[i]` and `theirs[i]` are both models' answers to the same input, one or more each;
        inputs that one of them left unanswered do not count, and None says that there are too
        few. The interval (95 %) has three parts: the inputs are a sample; the scale of the scores,
        by which chance is told from knowledge, is an estimate; and so are the weights (a jackknife
        by fifths of the posts), since what is misjudged of one model's answers is misjudged in all
        of them.
        """
        from scipy.special import stdtrit

        both = [(a, b) for a, b in zip(ours, theirs, strict=True) if a and b]
        if len(both) < 2 or self.features is None:
            return None
        texts = [text for pair in both for some in pair for text in some]
        seen = self.features(texts, vectors)
        differences = _differences(seen @ self.weights, both)
        wins = np.array([_sigmoid(d).mean() for d in differences])
        slopes = np.array([(d * _sigmoid(d) * _sigmoid(-d)).mean() for d in differences])
        sampled = wins.std(ddof=1) / math.sqrt(len(wins))
        scaled = slopes.mean() * self.scale_error
        others = [_differences(seen @ weights, both) for weights in self.others]
        weighed = _jackknife([fmean(_sigmoid(d).mean() for d in other) for other in others])
        few = float(stdtrit(FOLDS - 1, 0.5 + CONFIDENCE / 2))
        half = math.hypot(_Z * sampled, _Z * scaled, few * weighed)
        value = float(wins.mean())
        return WinRate(
            value=value,
            low=max(0.0, value - half),
            high=min(1.0, value + half),
            inputs=len(wins),
        )


def _differences(
    scores: Floats, both: Sequence[tuple[Sequence[str], Sequence[str]]]
) -> list[Floats]:
    """Of each input, all of our answers' scores less all of theirs."""
    found, at = [], 0
    for ours, theirs in both:
        middle, end = at + len(ours), at + len(ours) + len(theirs)
        found.append(np.subtract.outer(scores[at:middle], scores[middle:end]))
        at = end
    return found


def _jackknife(values: Sequence[float]) -> float:
    """The standard error of what comes out so without each of the folds."""
    if len(values) < 2:
        return 0.0
    return math.sqrt((len(values) - 1) * float(np.var(values)))


def _sigmoid(value: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * value)))


# --- fitting ----------------------------------------------------------------------------------


def fit_outcomes(
    published: Sequence[Published], vectors: Vectors | None = None, *, vectors_of: str = ""
) -> OutcomeModel:
    """Learn from published answers which of two does better, and how well that is known.

    `vectors` are those that the model `vectors_of` makes of their texts; its scores then need them
    of other texts, too.

    Learns from pairs of posts that competed; where fewer than 30 of those differ clearly, from
    single outcomes. The same posts, in whatever order, give the same model. Too few posts give one
    whose report is not usable.
    """
    posts = _merged(published)
    if len(posts) < FOLDS:
        report = OutcomeReport(kind="single", groups=0, learnt=len(posts), judged=0)
        return OutcomeModel(None, np.zeros(0), report, 0.0)
    texts = [post.text for post in posts]
    features, seen = fit_features(texts, vectors)
    learner = _learner(seen, posts)
    margins, others = _without_each_fold(learner, texts)
    scale, error = _scale(margins, learner.judged)
    weights = learner.learn(np.ones(len(posts), bool))
    report = replace(_report(learner, margins), vectors_of=vectors_of if vectors else "")
    return OutcomeModel(features, weights * scale, report, error, others * scale)


def _merged(published: Sequence[Published]) -> list[Published]:
    """Posts in a fixed order; what was published several times in a group is one post.

    Its rate is the mean by impressions; where some have none, the plain mean, and none.
    """
    same: dict[tuple[str, str], list[Published]] = defaultdict(list)
    for post in sorted(published, key=_order):
        same[post.group, post.text].append(post)
    return [found[0] if len(found) == 1 else _together(found) for found in same.values()]


def _together(posts: Sequence[Published]) -> Published:
    shown = [post.impressions or 0 for post in posts]
    if not all(shown):
        return posts[0]._replace(rate=fmean(post.rate for post in posts), impressions=None)
    rate = fmean([post.rate for post in posts], weights=shown)
    return posts[0]._replace(rate=rate, impressions=sum(shown))


def _order(post: Published) -> tuple[str, str, float, int]:
    return post.group, post.text, post.rate, post.impressions or 0


class _Learner(Protocol):
    """One way to learn scores of posts; `judged` are the pairs by which it is measured."""

    kind: str
    seen: Seen
    judged: Sequence[_Pair]

    def learn(self, known: NDArray[np.bool_]) -> Floats:
        """The weights, from the posts that are `known` alone."""

    @property
    def learnt(self) -> int:
        """How many pairs or posts it learns from."""


def _learner(seen: Seen, posts: Sequence[Published]) -> _Learner:
    pairs = _competed(posts)
    if sum(pair.sure >= CLEAR for pair in pairs) >= LEAST_PAIRS:
        return _Pairwise(seen, pairs)
    return _Singly(seen, posts, _drawn(posts))


class _Pairwise:
    """Bradley and Terry: logistic regression on differences, pairs weighted by their certainty."""

    kind = "groups"

    def __init__(self, seen: Seen, pairs: Sequence[_Pair]) -> None:
        self.seen, self.judged = seen, pairs
        self.learnt = len(pairs)
        self._better = np.array([pair.better for pair in pairs])
        self._worse = np.array([pair.worse for pair in pairs])
        self._certain = np.array([2 * pair.sure - 1 for pair in pairs])

    def learn(self, known: NDArray[np.bool_]) -> Floats:
        """The weights, from pairs of known posts."""
        used = known[self._better] & known[self._worse] & (self._certain >= LEAST_CERTAIN)
        better, worse, certain = self._better[used], self._worse[used], self._certain[used]
        posts = len(known)

        def loss(weights: Floats) -> tuple[float, Floats]:
            scores = self.seen @ weights
            margin = scores[better] - scores[worse]
            found = float(certain @ np.logaddexp(0, -margin) + PENALTY / 2 * (weights @ weights))
            pull = certain * _sigmoid(-margin)
            shares = np.zeros(posts)
            np.add.at(shares, better, pull)
            np.subtract.at(shares, worse, pull)
            return found, PENALTY * weights - self.seen.summed(shares)

        return _least(loss, self.seen.width)


class _Singly:
    """Ridge regression on single outcomes, weighted by how well each is known."""

    kind = "single"

    def __init__(self, seen: Seen, posts: Sequence[Published], pairs: Sequence[_Pair]) -> None:
        self.seen, self.judged = seen, pairs
        self.learnt = len(posts)
        rates = np.array([post.rate for post in posts])
        low, high = np.quantile(rates, (0.01, 0.99)) if len(rates) else (0.0, 1.0)
        cut = np.clip(rates, low, high)
        self._target = (cut - cut.mean()) / max(float(cut.std()), 1e-12) if len(cut) else cut
        shown = np.array([post.impressions or 0 for post in posts], float)
        self._certain = (
            shown / (shown + max(1.0, float(np.median(shown))))
            if shown.any()
            else (np.ones(len(posts)))
        )

    def learn(self, known: NDArray[np.bool_]) -> Floats:
        """The weights, from known posts."""
        seen, target, certain = self.seen[known], self._target[known], self._certain[known]

        def loss(weights: Floats) -> tuple[float, Floats]:
            missed = seen @ weights[1:] + weights[0] - target
            found = float(certain @ missed**2 + PENALTY * (weights[1:] @ weights[1:])) / 2
            slope = PENALTY * weights
            slope[0] = certain @ missed
            slope[1:] += seen.summed(certain * missed)
            return found, slope

        return _least(loss, seen.width + 1)[1:]


def _least(loss: Callable[[Floats], tuple[float, Floats]], size: int) -> Floats:
    from scipy.optimize import minimize  # most processes learn from nothing

    found = minimize(loss, np.zeros(size), jac=True, method="L-BFGS-B", options=_PRECISION)
    return np.asarray(found.x)


# --- which posts are compared -----------------------------------------------------------------


def _competed(posts: Sequence[Published]) -> list[_Pair]:
    """All pairs of a group that differ in text and outcome; of many a sample by hash."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, post in enumerate(posts):
        if post.group:
            groups[post.group].append(place)
    places = [pair for found in groups.values() for pair in _some(posts, found)]
    if len(places) > MOST_PAIRS:
        places = sorted(places, key=lambda pair: _hashed(posts[pair[0]].group))[:MOST_PAIRS]
    return _sure(posts, places)


def _some(posts: Sequence[Published], group: Sequence[int]) -> list[tuple[int, int]]:
    pairs = [(a, b) for a, b in combinations(group, 2) if posts[a].text != posts[b].text]
    if len(pairs) <= MOST_OF_GROUP:
        return pairs
    return sorted(pairs, key=lambda p: _hashed(posts[p[0]].text + "\x1f" + posts[p[1]].text))[
        :MOST_OF_GROUP
    ]


def _drawn(posts: Sequence[Published]) -> list[_Pair]:
    """Posts that did not compete, two by two by hash, each once: to measure by, not to learn."""
    places = sorted(range(len(posts)), key=lambda place: _hashed(posts[place].text))
    pairs = list(zip(places[::2], places[1::2], strict=False))[:MOST_PAIRS]
    return _sure(posts, [(a, b) for a, b in pairs if posts[a].text != posts[b].text])


def _sure(posts: Sequence[Published], places: Sequence[tuple[int, int]]) -> list[_Pair]:
    """Pairs with the one first that did better, and how sure it is that it truly did.

    By a normal prior of differences around 0, whose spread is that of the observed differences
    less their errors (empirical Bayes), so that few impressions make nothing sure. Outcomes
    without impressions are taken as they are.
    """
    from scipy.special import ndtr

    if not places:
        return []
    outcomes = np.arcsin(np.sqrt(np.clip([post.rate for post in posts], 0, 1)))
    errors = np.array([0.25 / post.impressions if post.impressions else 0.0 for post in posts])
    first, second = np.array(places).T
    apart, error = outcomes[first] - outcomes[second], errors[first] + errors[second]
    spread = max(0.0, float((apart**2 - error).mean()))
    least = np.maximum(error * (spread + error), 1e-300)
    sure = ndtr(np.abs(apart) * math.sqrt(spread) / np.sqrt(least))
    return [
        _Pair(
            *((a, b) if difference > 0 else (b, a)),
            abs(float(difference)),
            float(variance),
            float(certain),
            posts[a].group,
        )
        for (a, b), difference, variance, certain in zip(places, apart, error, sure, strict=True)
        if difference != 0
    ]


def _hashed(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


# --- how far it can be believed ---------------------------------------------------------------


def _cluster(learner: _Learner, number: int) -> str:
    """What a pair goes together with: its group; a pair of singles is by itself."""
    return learner.judged[number].group if learner.kind == "groups" else str(number)


def _without_each_fold(learner: _Learner, texts: Sequence[str]) -> tuple[Floats, Floats]:
    """For each judged pair the winner's score less the loser's, by a model that saw neither text,
    in its group or in any other; and those models' weights."""
    pairs = learner.judged
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    said = np.array([numbers[text] for text in texts])
    margins, others = np.zeros(len(pairs)), []
    folds = np.array([_hashed(_cluster(learner, n)) % FOLDS for n in range(len(pairs))])
    for fold in range(FOLDS):
        held = np.flatnonzero(folds == fold).tolist()
        if not held:
            continue
        better = np.array([pairs[n].better for n in held])
        worse = np.array([pairs[n].worse for n in held])
        known = ~np.isin(said, said[np.concatenate([better, worse])])
        weights = learner.learn(known)
        others.append(weights)
        scores = learner.seen @ weights
        margins[held] = scores[better] - scores[worse]
    return margins, np.array(others).reshape(len(others), learner.seen.width)


def _scale(margins: Floats, pairs: Sequence[_Pair]) -> tuple[float, float]:
    """What turns margins into log-odds of truly doing better, and its error as a share of it.

    The true difference of two outcomes given their margin is taken for normal: its mean rises with
    the margin, by the slope of the observed differences (weighted least squares, no intercept),
    and its spread is what the slope leaves over, less the errors of the observed. So luck
    flattens no chance. The probit that follows is turned into a logit (1.702). The error has the
    slope's (clusters by group) and the spread's. 0 where the margins know nothing.
    """
    if len(margins) < 2 or not margins.any():
        return 0.0, 0.0
    apart = np.array([pair.apart for pair in pairs])
    error = np.array([pair.error for pair in pairs])
    spread = float(np.maximum((apart**2 - error).mean(), 0.0))
    slope = missed = np.zeros(0)
    for _ in range(3):  # the weights depend on the spread, which depends on the slope
        weights = 1 / (spread + error + _TINY * (apart**2).mean())
        slope = (weights * margins * apart).sum() / (weights * margins**2).sum()
        missed = apart - slope * margins
        left = missed**2 - error
        spread = float(max(left.mean(), _TINY * (apart**2).mean()))
    if slope <= 0:
        return 0.0, 0.0
    sums: dict[str, float] = defaultdict(float)
    for number, pair in enumerate(pairs):
        sums[pair.group or str(number)] += weights[number] * margins[number] * missed[number]
    of_slope = math.sqrt(math.fsum(v * v for v in sums.values())) / float(
        (weights * margins**2).sum()
    )
    of_spread = float(left.std()) / math.sqrt(len(left))
    share = math.hypot(of_slope / float(slope), of_spread / (2 * spread))
    return _LOGIT * float(slope) / math.sqrt(spread), share


_TINY: Final = 1e-3
_LOGIT: Final = 1.702


def _report(learner: _Learner, margins: Floats) -> OutcomeReport:
    clear = [n for n, pair in enumerate(learner.judged) if pair.sure >= CLEAR]
    groups = {_cluster(learner, n) for n in clear}
    report = OutcomeReport(
        kind=learner.kind, groups=len(groups), learnt=learner.learnt, judged=len(clear)
    )
    if len(groups) < 2:
        return report
    right = np.where(margins[clear] > 0, 1.0, np.where(margins[clear] == 0, 0.5, 0.0))
    share = float(right.mean())
    sums: dict[str, float] = defaultdict(float)
    for n, value in zip(clear, right, strict=True):
        sums[_cluster(learner, n)] += value - share
    variance = math.fsum(v * v for v in sums.values()) / len(clear) ** 2
    variance *= len(groups) / (len(groups) - 1)
    low, high = _wilson(share, variance, len(clear))
    return replace(report, accuracy=share, low=low, high=high)


def _wilson(share: float, variance: float, most: int) -> tuple[float, float]:
    """Wilson's interval for as many independent pairs as would have this variance."""
    spread = share * (1 - share)
    n = min(float(most), spread / variance) if variance > 0 and spread > 0 else float(most)
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(spread / n + _Z**2 / (4 * n * n))
    return middle - half, middle + half
