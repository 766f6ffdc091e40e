"""The error of many answers together: candidates, segments, and the loop's own cycles.

It exists because a loop that tests a new candidate every week promotes a useless one in the
end, however careful each test is. The ledger allots the error over all cycles; e-BH
judges several segments at once. It knows no clock and stores nothing: the ledger
is a value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from tuneproof.errors import ConflictError, DataError, InputError, NotFoundError

__all__ = [
    "AlphaLedger",
    "LedgerEntry",
    "e_bh",
    "share_of_alpha",
]

DECAY: Final = 1.6
ZETA: Final = 2.2857656
"""Riemann's ζ(1.6) rounded up, so that the shares sum to at most 1."""


def e_bh(log_e_values: Sequence[float], *, alpha: float = 0.05) -> tuple[int, ...]:
    """Which hypotheses to reject so that the false discovery rate is at most `alpha`.

    Input: logarithms of e-values, shape (m,), in any dependence. With e sorted downwards,
    rejects the k largest, for the largest k with e_(k) ≥ m / (alpha k) (Wang and Ramdas 2022,
    JRSS-B 84:822). Returns indices in rising order; () for none or no input. Raises `DataError`
    for NaN, `InputError` for alpha outside (0, 1).

    >>> e_bh([math.log(200), math.log(30), 0.0], alpha=0.05)
    (0, 1)
    """
    _check_alpha(alpha)
    if any(math.isnan(e) for e in log_e_values):
        raise DataError("an e-value is NaN.", mend="Leave hypotheses without an answer out.")
    order = sorted(range(len(log_e_values)), key=lambda i: -log_e_values[i])
    count = len(order)
    rejected = 0
    for k, i in enumerate(order, start=1):
        if log_e_values[i] >= math.log(count / (alpha * k)):
            rejected = k
    return tuple(sorted(order[:rejected]))


def share_of_alpha(position: int) -> float:
    """The share γ_j of the error that the j-th test has (j from 1); all shares sum to 1.

    γ_j = j^-1.6 / ζ(1.6), the decay of Ramdas et al. 2018 (SAFFRON): the 1st has 44 %, the 10th
    1.1 %.

    >>> round(share_of_alpha(1), 4), round(share_of_alpha(10), 4)
    (0.4375, 0.011)
    """
    if position < 1:
        raise InputError(f"test number {position} is below 1.", mend="Count from 1.")
    return math.pow(position, -DECAY) / ZETA


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerEntry:
    """One experiment's allotment. `promoted` is None while it is open."""

    experiment: str
    candidate: str
    alpha: float
    retest: int = 0
    """How often this candidate had been tested before."""
    promoted: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AlphaLedger:
    """How much error each experiment of a pipeline may make, so that the loop's stays at alpha.

    LORD++ (Ramdas, Yang, Wainwright, Jordan 2017, arXiv:1710.00499) with initial wealth `alpha`:
    the t-th experiment has α_t = alpha (γ_t + Σ_{j≥2} γ_{t-τ_j}), τ_j being the position of the
    j-th promotion. Until the first promotion all α_t together are at most `alpha`: if no
    candidate is better, *any* promotion ever happens with probability at most `alpha`. Every
    promotion after the first earns `alpha` back, and the share of false ones among the promoted
    stays at most `alpha` (false discovery rate, for independent tests).

    Every test takes the next allotment, also that of a candidate tested before: trying again is
    never free. An allotment is fixed when the experiment opens and uses promotions closed by
    then, so experiments may overlap. A value: `open` and `close` return a new ledger.

    >>> ledger = AlphaLedger(alpha=0.05).open("e1", candidate="v1")
    >>> round(ledger.entries[0].alpha, 5), round(ledger.next_alpha, 5)
    (0.02187, 0.00722)
    >>> again = ledger.close("e1", promoted=False).open("e2", candidate="v1")
    >>> again.entries[1].retest, round(again.spent, 5)
    (1, 0.02909)
    """

    alpha: float = 0.05
    entries: tuple[LedgerEntry, ...] = ()

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    @property
    def next_alpha(self) -> float:
        """The error that the next experiment would have."""
        position = len(self.entries) + 1
        promotions = [i for i, e in enumerate(self.entries, start=1) if e.promoted]
        shares = share_of_alpha(position)
        shares += sum(share_of_alpha(position - at) for at in promotions[1:])
        return min(self.alpha * shares, self.alpha)

    @property
    def spent(self) -> float:
        """The error allotted so far, over all experiments."""
        return sum(e.alpha for e in self.entries)

    def open(self, experiment: str, *, candidate: str) -> AlphaLedger:
        """The ledger with an allotment for this experiment.

        Raises `ConflictError` where it has one already: asking again gives no second.
        """
        if any(e.experiment == experiment for e in self.entries):
            raise ConflictError(
                f"experiment {experiment!r} already has its share of the error.",
                mend="Its entry in the ledger has it.",
            )
        entry = LedgerEntry(
            experiment=experiment,
            candidate=candidate,
            alpha=self.next_alpha,
            retest=sum(e.candidate == candidate for e in self.entries),
        )
        return replace(self, entries=(*self.entries, entry))

    def close(self, experiment: str, *, promoted: bool) -> AlphaLedger:
        """The ledger knowing how this experiment ended.

        Raises `NotFoundError` for an experiment without entry, `ConflictError` where it ended
        otherwise before; the same answer again changes nothing.
        """
        place = self._place(experiment)
        entry = self.entries[place]
        if entry.promoted is not None and entry.promoted != promoted:
            raise ConflictError(
                f"experiment {experiment!r} is closed with promoted={entry.promoted}.",
                mend="A closed experiment does not change; open a new one.",
            )
        closed = replace(entry, promoted=promoted)
        return replace(self, entries=(*self.entries[:place], closed, *self.entries[place + 1 :]))

    def _place(self, experiment: str) -> int:
        for i, entry in enumerate(self.entries):
            if entry.experiment == experiment:
                return i
        raise NotFoundError(
            f"experiment {experiment!r} is not in the ledger.", mend="Open it first."
        )

    def to_dict(self) -> dict[str, Any]:
        """This ledger as JSON types."""
        names = LedgerEntry.__slots__
        rows = [{name: getattr(e, name) for name in names} for e in self.entries]
        return {"alpha": self.alpha, "entries": rows}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The ledger that `to_dict` described. Raises `DataError` for anything else."""
        try:
            return cls(
                alpha=float(data["alpha"]),
                entries=tuple(LedgerEntry(**row) for row in data["entries"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"malformed ledger: {error!r}.", mend="Give what `to_dict` returns."
            ) from error


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise InputError(f"alpha {alpha!r} is outside (0, 1).", mend="Give e.g. 0.05.")
