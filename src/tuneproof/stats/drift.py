"""Whether what comes in still looks like what was trained on: valid however often it is asked.

Each newcomer is ranked among all before it, the training window included. While nothing changes,
all orders are equally likely, and the ranks are independent and uniform, whatever is measured: so
a bet on ranks that are not uniform gains nothing on average (a conformal test martingale).
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from tuneproof.errors import DataError, InputError

__all__ = ["Drift", "KindDrift", "drift", "drift_of_kinds"]

BINS: Final = 10
PRIORS: Final = (1.0, 10.0, 100.0)
"""How slowly bets learn: an average of several, since nobody knows how strong a drift will be."""

LEAST: Final = 0.05
"""How far from 1/2 the chance that a newcomer is above one of the window must be, or how far the
share of a kind must have moved, to be told of."""


Strata: TypeAlias = tuple[Sequence[int], Sequence[int]]
"""Of each value of the reference, and of what comes in, with which others it is compared."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What ranks say of one measure. `chance` is that a newcomer is above one before it, 0.5
    without a shift; `before` and `after` are medians; `log_e` the most that the bet ever had."""

    fired: bool
    log_e: float
    p_value: float
    chance: float | None
    reference: int
    incoming: int
    before: float | None
    after: float | None


def drift(
    reference: Sequence[float],
    incoming: Sequence[float],
    *,
    strata: Strata | None = None,
    alpha: float = 0.01,
    seed: int = 0,
) -> Drift:
    """Evidence that `incoming`, in the order in which it came, is not like `reference`.

    Null: the values of both together are exchangeable (every order of them equally likely), which
    independent draws from one distribution are; with `strata`, a number for each value of both, the
    values within each stratum are, whatever the strata. Formula: with n values of its stratum
    before it and itself, the newcomer x has the rank p = (#{above x} + u #{equal to x}) / n, u
    uniform: p is uniform and independent of earlier ones (Vovk, Nouretdinov & Gammerman 2003,
    "Testing exchangeability on-line"). The bet is the mean over k of
    Π_i B (c_i + k/B) / (i - 1 + k), where B bins count earlier ranks: each factor has mean 1, so by
    Ville's inequality P(ever ≥ 1/α) ≤ α. Fires where the bet ever reached 1/`alpha` and `chance` is
    at least 0.05 away from 0.5: a difference that is real and too small to matter is not told.

    The same values and seed give the same answer, so more of them go on where fewer ended. Raises
    `InputError` for alpha outside (0, 1), `DataError` for values that are no numbers. Without a
    value on either side nothing fires.

    >>> same = [i * 37 % 100 for i in range(400)]
    >>> drift(same[:200], same[200:]).fired
    False
    >>> drift(same[:200], [x + 30 for x in same[200:300]]).fired
    True
    """
    _check(alpha)
    if not all(map(math.isfinite, (*reference, *incoming))):
        raise DataError("A value is no finite number.", mend="Leave it out.")
    if not reference or not incoming:
        return _nothing(reference, incoming)
    ranks = _ranks(reference, incoming, strata, seed)
    log_e = max(0.0, _most(ranks))
    chance = 1 - math.fsum(ranks) / len(ranks)
    return Drift(
        fired=log_e >= -math.log(alpha) and abs(chance - 0.5) >= LEAST,
        log_e=log_e,
        p_value=math.exp(-log_e),
        chance=chance,
        reference=len(reference),
        incoming=len(incoming),
        before=_median(reference),
        after=_median(incoming),
    )


@dataclass(frozen=True, kw_only=True)
class KindDrift:
    """What ranks say of what has no order. `kind` is the one whose share moved most, from `before`
    to `after`; `log_e` the most that the bet ever had."""

    fired: bool
    log_e: float
    p_value: float
    kind: int | None
    reference: int
    incoming: int
    before: float | None
    after: float | None


def drift_of_kinds(
    reference: Sequence[int],
    incoming: Sequence[int],
    *,
    strata: Strata | None = None,
    alpha: float = 0.01,
    seed: int = 0,
) -> KindDrift:
    """As `drift`, of numbered kinds: which number a kind has must not be a matter of the values.

    Null, strata, formula and guarantee are those of `drift`, whose bet finds any change of ranks,
    and ties are drawn apart. Fires where the bet ever reached 1/`alpha` and the share of some kind
    is at least 0.05 from what it was. Raises `InputError` for alpha outside (0, 1).

    >>> drift_of_kinds([0, 1] * 100, [0, 1] * 100).fired
    False
    >>> found = drift_of_kinds([0, 1] * 100, [0, 1, 1, 1] * 50)
    >>> found.fired, found.kind, found.before, found.after
    (True, 0, 0.5, 0.25)
    """
    _check(alpha)
    log_e = max(0.0, _most(_ranks(reference, incoming, strata, seed))) if reference else 0.0
    kind = before = after = None
    if reference and incoming:
        held, holds = Counter(reference), Counter(incoming)
        shares = {
            one: (held[one] / len(reference), holds[one] / len(incoming))
            for one in sorted(held | holds)
        }
        kind = max(shares, key=lambda one: abs(shares[one][1] - shares[one][0]))
        before, after = shares[kind]
    return KindDrift(
        fired=log_e >= -math.log(alpha) and abs((after or 0.0) - (before or 0.0)) >= LEAST,
        log_e=log_e,
        p_value=math.exp(-log_e),
        kind=kind,
        reference=len(reference),
        incoming=len(incoming),
        before=before,
        after=after,
    )


def _check(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise InputError(f"alpha {alpha!r} is outside (0, 1).", mend="1 % is 0.01.")


def _ranks(
    reference: Sequence[float], incoming: Sequence[float], strata: Strata | None, seed: int
) -> list[float]:
    of, new = strata or ([0] * len(reference), [0] * len(incoming))
    draw, ranks = random.Random(seed), []
    alike: dict[int, list[float]] = {stratum: [] for stratum in (*of, *new)}
    for value, stratum in zip(reference, of, strict=True):
        alike[stratum].append(value)
    for values in alike.values():
        values.sort()
    for value, stratum in zip(incoming, new, strict=True):
        known = alike[stratum]
        above = len(known) - bisect_right(known, value)
        equal = len(known) - above - bisect_left(known, value) + 1
        insort(known, value)
        ranks.append((above + draw.random() * equal) / len(known))
    return ranks


def _most(ranks: Sequence[float]) -> float:
    """The logarithm of the most that the averaged bet ever had."""
    counts, logs, most = [0] * BINS, [0.0] * len(PRIORS), 0.0
    for number, rank in enumerate(ranks):
        place = min(int(rank * BINS), BINS - 1)
        for which, prior in enumerate(PRIORS):
            share = (counts[place] + prior / BINS) / (number + prior)
            logs[which] += math.log(BINS * share)
        counts[place] += 1
        top = max(logs)
        most = max(most, top + math.log(sum(math.exp(x - top) for x in logs) / len(logs)))
    return most


def _median(values: Sequence[float]) -> float | None:
    ordered = sorted(values)
    middle = len(ordered) // 2
    if not ordered:
        return None
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _nothing(reference: Sequence[float], incoming: Sequence[float]) -> Drift:
    return Drift(
        fired=False,
        log_e=0.0,
        p_value=1.0,
        chance=None,
        reference=len(reference),
        incoming=len(incoming),
        before=_median(reference),
        after=_median(incoming),
    )
