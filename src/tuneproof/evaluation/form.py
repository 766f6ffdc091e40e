"""Does a candidate still write as the model in use does, or as the posts that it learnt from?

Whatever a training or a search is rewarded for, it may find a way there that no reader wants:
answers twice as long, one phrase over and over, all with the same beginning. So answers to the
same held-out inputs are set side by side: the candidate's, the baseline's, and those that were
published. A candidate has drifted where it lies beyond a bound beside *both* of the others: one
that left an untuned base for the form of its posts learnt what it should.

Few answers say little, so a figure counts as beyond its bound only where chance would show as much
in one of a hundred candidates that stand exactly at it (`LEVEL`). Where so few were compared that
no answers at all could show it, the figure is unknown: neither passed nor 0.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from tuneproof.evaluation.comparing import MAX_TOKENS, Asked
from tuneproof.evaluation.kept import together
from tuneproof.evaluation.scorers import Messages
from tuneproof.settings import DRIFTS, LENGTH, OPENINGS, VARIETY
from tuneproof.stats.exact import at_least, fisher_greater

__all__ = ["MOST_INPUTS", "Form", "FormFigure", "form_of", "formed"]

MOST_INPUTS: Final = 200
"""More inputs are not compared, however many answers there are."""

LEVEL: Final = 0.01
"""The share of candidates exactly at a bound that a figure refuses by chance, at most."""

LONGER: Final = 1.5
"""So many times as long, or as short, as the others' answers may the candidate's be."""

VARIED: Final = 0.7
"""The least number of distinct word pairs, as a share of the others'."""

ALIKE: Final = 0.2
SELDOM: Final = 0.05
"""No opening may begin more than the first share of the candidate's answers where it begins less
than the second of the others'."""

OPENING_WORDS: Final = 5
MOST_ALIKE: Final = round(1 / ALIKE)
"""So many openings can each begin that share of all answers."""

LEAST_TOLD: Final = 5
"""Fewer inputs show no figure to lie beyond its bound, whatever the answers are."""

LEAST_INPUTS: Final = 8
"""For the jackknife of the variety; fewer inputs do not say how much they differ."""

_WORD: Final = re.compile(r"\w+")

Words = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FormFigure:
    """One figure of the form of answers: the candidate's, the baseline's and that of the posts.

    `length` is the median of characters, `variety` the share of word pairs that are distinct (of
    as many pairs for each), `openings` the share of answers that begin as the candidate's commonest
    unusual opening does, which `what` quotes. `beyond` says whether the candidate is shown to lie
    beyond its bound beside both others; None where it cannot be known, and `said` why.
    """

    name: str
    beyond: bool | None
    said: str
    candidate: float | None = None
    baseline: float | None = None
    posts: float | None = None
    what: str = ""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a candidate writes a task's answers, over `inputs` held-out inputs."""

    task: str
    inputs: int
    figures: tuple[FormFigure, ...]

    def drifted(self, allowed: Sequence[str] = ()) -> tuple[FormFigure, ...]:
        """The figures that are shown to lie beyond their bounds, but for those that may."""
        return tuple(one for one in self.figures if one.beyond and one.name not in allowed)

    def sentence(self) -> str:
        """What a person is told of it."""
        said = "; ".join(one.said for one in self.figures)
        return f"Form of {self.task} over {self.inputs} inputs: {said}."

    def brief(self) -> str:
        """Which figures are kept, which drifted, and which nobody knows, in a sentence."""
        states = [
            f"{', '.join(names)} {word}"
            for word, beyond in (("as before", False), ("drifted", True), ("unknown", None))
            if (names := [one.name for one in self.figures if one.beyond is beyond])
        ]
        return f"Form of {self.task} over {self.inputs} inputs: {'; '.join(states)}."


async def form_of(
    task: str,
    candidate: Asked,
    baseline: Asked,
    examples: Sequence[Messages],
    *,
    answers: int = 1,
    seed: int = 0,
) -> Form:
    """Ask both models for what they have not answered yet, and set the first answers side by side.

    `examples` are held-out chats with the answer that was published. Asked as the gate's samples
    and comparisons are, so that who keeps those answers need not ask again. Nobody is asked where
    there are too few of them to tell anything.
    """
    examples = examples[:MOST_INPUTS]
    if len(examples) < LEAST_TOLD:
        return _too_few(task, len(examples))

    async def text(asked: Asked, number: int, chat: Messages) -> str:
        found = await asked.provider.complete(
            asked.model, chat[:-1], n=answers, max_tokens=MAX_TOKENS, seed=seed + number
        )
        return found[0].text

    ours, theirs = [
        await together([text(asked, number, chat) for number, chat in enumerate(examples)])
        for asked in (candidate, baseline)
    ]
    return formed(task, ours, theirs, [chat[-1]["content"] for chat in examples])


def formed(task: str, ours: Sequence[str], baseline: Sequence[str], posts: Sequence[str]) -> Form:
    """The form of a candidate's answers beside the others' to the same inputs, in this order."""
    if len(ours) < LEAST_TOLD:
        return _too_few(task, len(ours))
    figures = {LENGTH: _length, VARIETY: _variety, OPENINGS: _openings}
    return Form(
        task=task,
        inputs=len(ours),
        figures=tuple(figures[name](ours, baseline, posts) for name in DRIFTS),
    )


def _too_few(task: str, inputs: int) -> Form:
    why = f"{inputs} inputs are too few, {LEAST_TOLD} tell something"
    return Form(task=task, inputs=inputs, figures=tuple(_unknown(name, why) for name in DRIFTS))


# --- length: an exact sign test over inputs ------------------------------------------------------


def _length(ours: Sequence[str], baseline: Sequence[str], posts: Sequence[str]) -> FormFigure:
    """Whether its answer is too long, or too short, in more than half of all inputs.

    In half of the inputs or fewer is what the bound allows, so their number is binomial with a
    half at most: whatever the lengths' distribution, P(as many) is at most `LEVEL` / 2 a side.
    """
    lengths = [[len(text.strip()) for text in texts] for texts in (ours, baseline, posts)]
    n = len(ours)
    if 0.5**n > LEVEL / 2:
        return _unknown(LENGTH, f"{n} inputs are too few to compare lengths")
    medians = [float(statistics.median(some)) for some in lengths]
    found = _figure(LENGTH, medians, _medians(medians))
    for word, sign in (("long", 1), ("short", -1)):
        counts = [
            sum(_beyond(a, b) if sign > 0 else _beyond(b, a) for a, b in pairs)
            for pairs in (list(zip(lengths[0], other, strict=True)) for other in lengths[1:])
        ]
        if all(_more_than_half(k, n) for k in counts):
            said = (
                f"{found.said}; more than {LONGER:g} times as {word} as the baseline's in "
                f"{counts[0]} of {n} inputs, as what was published in {counts[1]}"
            )
            return replace(found, beyond=True, said=said)
    return found


def _beyond(length: int, other: int) -> bool:
    return length > LONGER * other


def _more_than_half(k: int, n: int) -> bool:
    return at_least(k, n, 0.5) <= LEVEL / 2


def _medians(medians: Sequence[float]) -> str:
    ours, baseline, posts = medians
    return (
        f"{ours:.0f} characters in the median, {baseline:.0f} the baseline's, {posts:.0f} of what "
        "was published"
    )


# --- variety: distinct word pairs, rarefied ------------------------------------------------------


def _variety(ours: Sequence[str], baseline: Sequence[str], posts: Sequence[str]) -> FormFigure:
    """Whether its distinct word pairs are fewer than 0.7 of the others', of as many pairs each.

    A longer text repeats more, so distinct pairs are those expected among the pairs of the
    shortest of the three (rarefaction: Hurlbert, 1971). The bound is that of the jackknife over
    inputs, on the log of the ratio, with Student's t.
    """
    sets = [_Pairs([_pairs_of(text) for text in texts]) for texts in (ours, baseline, posts)]
    m = min((one.total for one in sets), default=0)
    n = len(ours)
    if n < LEAST_INPUTS:
        return _unknown(VARIETY, f"{n} inputs are too few to compare word pairs")
    if m < n:
        return _unknown(VARIETY, "the answers have too few words to compare word pairs")
    shares = [one.distinct(m) / m for one in sets]
    said = (
        f"{shares[0]:.0%} of its word pairs are distinct, {shares[1]:.0%} of the baseline's, "
        f"{shares[2]:.0%} of what was published"
    )
    found = _figure(VARIETY, shares, said)
    if all(_upper(sets[0], other) < VARIED for other in sets[1:]):
        return replace(found, beyond=True, said=f"{said}; that is below {VARIED:g} of both")
    return found


def _pairs_of(text: str) -> Counter[Words]:
    return Counter(pairwise(_WORD.findall(text.casefold())))


class _Pairs:
    """The word pairs of some answers, counted so that each answer can be left out."""

    def __init__(self, answers: Sequence[Counter[Words]]) -> None:
        self.answers = answers
        self._all: Counter[Words] = Counter()
        for answer in answers:
            self._all.update(answer)
        self._often = Counter(self._all.values())  # how many pairs occur so often
        self.total = self._all.total()

    def total_without(self, left_out: int) -> int:
        return self.total - self.answers[left_out].total()

    def distinct(self, m: int, left_out: int | None = None) -> float:
        """How many distinct pairs are expected among m drawn from all, none of them twice."""
        often, total = self._often, self.total
        if left_out is not None:
            answer = self.answers[left_out]
            often, total = often.copy(), self.total_without(left_out)
            for pair, count in answer.items():
                often[self._all[pair]] -= 1
                often[self._all[pair] - count] += 1
        return math.fsum(k * (1 - _missed(c, total, m)) for c, k in often.items() if c and k)


def _missed(count: int, total: int, m: int) -> float:
    """The probability that m of `total` hold none of `count`: C(total - count, m) / C(total, m)."""
    rest = total - count
    if rest < m:
        return 0.0
    return math.exp(_log_factorials(rest, total - m) - _log_factorials(rest - m, total))


def _log_factorials(*numbers: int) -> float:
    return math.fsum(math.lgamma(number + 1) for number in numbers)


def _upper(ours: _Pairs, theirs: _Pairs) -> float:
    """The upper bound of the ratio of distinct pairs, one-sided; of as many pairs of each."""
    from scipy.special import stdtrit  # most processes have no gate

    n = len(ours.answers)
    whole = _log_ratio(ours, theirs, min(ours.total, theirs.total))
    parts = [
        _log_ratio(ours, theirs, min(ours.total_without(i), theirs.total_without(i)), i)
        for i in range(n)
    ]
    mean = math.fsum(parts) / n
    error = math.sqrt((n - 1) / n * math.fsum((part - mean) ** 2 for part in parts))
    return math.exp(whole + float(stdtrit(n - 1, 1 - LEVEL)) * error)


def _log_ratio(ours: _Pairs, theirs: _Pairs, m: int, left_out: int | None = None) -> float:
    if m < 1:
        return 0.0
    return math.log(ours.distinct(m, left_out) / theirs.distinct(m, left_out))


# --- openings: an exact binomial test ------------------------------------------------------------


def _openings(ours: Sequence[str], baseline: Sequence[str], posts: Sequence[str]) -> FormFigure:
    """Whether one opening begins more than a fifth of its answers, and hardly any of the others'.

    The commonest is picked from what is judged: five openings at most can each begin a fifth of
    all answers, so the chance that one of them seems to begin more is five times that of one. That
    the others hardly have it is read off their answers, and must be no accident (Fisher's test).
    """
    n = len(ours)
    counts = [Counter(filter(None, map(_opening, texts))) for texts in (ours, baseline, posts)]
    unusual = [o for o in counts[0] if all(beside[o] < SELDOM * n for beside in counts[1:])]
    if not counts[0]:
        return _unknown(OPENINGS, f"no answer has {OPENING_WORDS} words to open with")
    if not unusual:
        return _figure(OPENINGS, (0.0, 0.0, 0.0), "no opening that the others have not")
    opening = min(unusual, key=lambda o: (-counts[0][o], o))
    k, *others = [count[opening] for count in counts]
    shares = [one / n for one in (k, *others)]
    what = " ".join(opening)
    said = (
        f'"{what}" opens {shares[0]:.0%} of its answers, {shares[1]:.0%} of the baseline\'s, '
        f"{shares[2]:.0%} of what was published"
    )
    found = replace(_figure(OPENINGS, shares, said), what=what)
    often = MOST_ALIKE * at_least(k, n, ALIKE) <= LEVEL
    if often and all(fisher_greater(k, n, other, n) <= LEVEL for other in others):
        rule = f"{ALIKE:.0%} may, where less than {SELDOM:.0%} of the others do"
        return replace(found, beyond=True, said=f"{said}; {rule}")
    return found


def _opening(text: str) -> Words:
    """The first words, or nothing where there are fewer."""
    words = _WORD.findall(text.casefold())[:OPENING_WORDS]
    return tuple(words) if len(words) == OPENING_WORDS else ()


def _figure(name: str, levels: Sequence[float], said: str) -> FormFigure:
    candidate, baseline, posts = levels
    return FormFigure(
        name=name, beyond=False, said=said, candidate=candidate, baseline=baseline, posts=posts
    )


def _unknown(name: str, why: str) -> FormFigure:
    return FormFigure(name=name, beyond=None, said=f"{name} unknown: {why}")
