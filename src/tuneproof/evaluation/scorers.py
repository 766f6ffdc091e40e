"""What a scorer is, and the texts that are scored while a test runs.

Which units are scored is a matter of a hash of the unit alone, so it is the same everywhere and
knows nothing of how an answer turned out.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tuneproof import assignment
from tuneproof.errors import DataError

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A score, why, and what it cost in USD. Higher is better; a judge's are from 0 to 1."""

    value: float
    reason: str = ""
    cost_usd: float = 0.0


Scorer = Callable[[Messages, str], Awaitable["float | Scored"]]
"""Judges one output for its prompt; higher is better. It answers a number, or a `Scored`.

For the gate pass it as `Gate(scorers=…)` or name it in `gate.scorers`; for running tests name it
in `evaluation.quality_scorer`.
"""


@dataclass(frozen=True, kw_only=True)
class Text:
    """One answer that a unit of a test was served, to be scored.

    `messages` are what it answers, as far as it is known. A unit is scored once for each task.
    """

    subject: str
    pipeline: str
    unit: str
    task: str
    arm: str
    at: datetime
    messages: Messages
    text: str


async def ask(scorer: Scorer, messages: Messages, text: str) -> Scored:
    """What a scorer says of one text.

    Raises `DataError` where it is no finite number, and whatever the scorer raises.
    """
    found = await scorer(messages, text)
    made = found if isinstance(found, Scored) else Scored(value=found)
    number = isinstance(made.value, int | float) and not isinstance(made.value, bool)
    if not number or not math.isfinite(made.value):
        raise DataError(
            f"The scorer answered {made.value!r}.", mend="A score is a finite number, or a Scored."
        )
    return made


def most_usd(scorer: Scorer, messages: Messages, text: str) -> float:
    """What a call costs at most, where the scorer can say."""
    tell = getattr(scorer, "most_usd", None)
    return float(tell(messages, text)) if callable(tell) else 0.0


def failed_usd(error: Exception, most: float) -> float:
    """What a call that gave no score cost: as it says, else the most that it can have."""
    cost = error.details.get("cost_usd") if isinstance(error, DataError) else None
    return float(cost) if isinstance(cost, int | float) else most


def sampled(subject: str, unit: str, arm: str, *, share: float, split: float) -> bool:
    """Whether a unit of a test is scored: `share` of the candidate's, of the baseline's as many.

    Means of the arms are compared, so scoring more of the larger arm than of the smaller one costs
    calls and tells little; at a `split` of 0.1 the baseline's share is a ninth. Which units is
    chosen without regard to the answers, so each arm's mean stays unbiased.

    >>> sampled("ab-test-1", "post-1", "candidate", share=1.0, split=0.1)
    True
    """
    if arm != "candidate" and split < 0.5:
        share *= split / (1 - split)
    bucket = assignment.bucket(f"{subject} quality", unit)
    return bucket < assignment.candidate_buckets(share)
