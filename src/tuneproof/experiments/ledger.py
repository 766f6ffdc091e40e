"""What error an experiment may make, so that the loop of all of them keeps its own.

A loop that tests a new candidate every week promotes a useless one in the end, however careful
each test is. Each experiment of a pipeline therefore takes the next allotment of one ledger
(`stats.multiplicity.AlphaLedger`), and a candidate that was tested before never gets more than
it had then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuneproof.stats.multiplicity import AlphaLedger, LedgerEntry

__all__ = ["Allotment", "Spent", "allot", "identity_of"]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """One experiment of the pipeline so far, or one family. `promoted` is None while it runs.

    `identity` names its candidate: "model:…", and "dataset:…" where that is known. A family is
    one entry: `alpha` is what its `candidates` had together, evenly.
    """

    experiment: str
    identity: tuple[str, ...]
    alpha: float
    promoted: bool | None = None
    candidates: int = 1


@dataclass(frozen=True, kw_only=True)
class Allotment:
    """The chance of a false promotion that an experiment has, and how often it was tried before."""

    alpha: float
    retest: int = 0


def identity_of(
    model_id: str, dataset_hash: str | None = None, prompt: str | None = None
) -> tuple[str, ...]:
    """What makes two candidates the same one: the model, with its prompt where it has one, or the
    data it was trained on.

    >>> identity_of("ft:1", "ab12")
    ('model:ft:1', 'dataset:ab12')
    >>> identity_of("gpt-5-mini", prompt="3f0c")
    ('variant:gpt-5-mini with 3f0c',)
    """
    data = () if not dataset_hash else (f"dataset:{dataset_hash}",)
    if prompt is not None:
        return (f"variant:{model_id} with {prompt}", *data)
    return (f"model:{model_id}", *data)


def allot(
    spent: Sequence[Spent], identity: tuple[str, ...], *, loop_alpha: float, among: int = 1
) -> Allotment:
    """The next allotment after `spent` (oldest first), for this candidate.

    Where a family of candidates takes the allotment, each of `among` gets an even part of it.

    By LORD++: if no candidate is better, the loop ever promotes one with probability at most
    `loop_alpha`. A candidate that shares its model or its dataset with an earlier one gets no
    more than the least that that one had, also where a promotion has earned error back since.

    >>> first = allot([], ("model:a",), loop_alpha=0.05)
    >>> before = [Spent(experiment="e1", identity=("model:a",), alpha=first.alpha)]
    >>> again = allot(before, ("model:a",), loop_alpha=0.05)
    >>> round(first.alpha, 4), round(again.alpha, 4), again.retest
    (0.0219, 0.0072, 1)
    """
    entries = tuple(
        LedgerEntry(
            experiment=s.experiment, candidate=s.identity[0], alpha=s.alpha, promoted=s.promoted
        )
        for s in spent
    )
    alpha = AlphaLedger(alpha=loop_alpha, entries=entries).next_alpha
    same = [s.alpha / s.candidates for s in spent if set(s.identity) & set(identity)]
    return Allotment(alpha=min([alpha / among, *same]), retest=len(same))
