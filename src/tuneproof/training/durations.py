"""How long a training will take, by what earlier ones took at the same provider.

Time goes with the tokens that are trained, the size of the model, and the passes through it: a
supervised step takes one forwards and one back, and a preference step one more, through the model
that it is compared with. Loading and measuring are in what earlier ones took, spread over their
tokens, so of trainings that are much longer than those before it says too much.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["TimeEstimate", "TrainingTime", "duration", "estimate_time", "size_b"]

PASSES = {"supervised": 2.0, "dpo": 3.0}
"""Passes of a training with an adapter: the base's own weights are frozen, and a pass back that
only hands the error through costs about what a pass forwards does."""

NEWEST = 5
"""On how many earlier trainings an estimate rests at most."""

_SIZE = re.compile(r"(?<![\w.])(\d+(?:[.p]\d+)?)([bm])(?![a-z])", re.IGNORECASE)
"""The size in a model's name: `Llama-3.1-8B-Instruct`, `qwen2p5-0p5b`, `SmolLM2-135M`."""


@dataclass(frozen=True, kw_only=True)
class TrainingTime:
    """What the training of one run took, about, to the end of its last job."""

    pipeline: str = ""
    base_model: str
    method: str
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TimeEstimate:
    """How long a training will take, and on how many earlier ones that rests."""

    seconds: float
    trainings: int

    def sentence(self) -> str:
        """This estimate in words."""
        rests = "the training" if self.trainings == 1 else f"the {self.trainings} trainings"
        return f"Training takes about {duration(self.seconds)}, by {rests} before."


def estimate_time(
    tokens: float, *, base_model: str | None, method: str, earlier: Sequence[TrainingTime]
) -> TimeEstimate | None:
    """How long it takes to train so many tokens; None where nothing comparable is known.

    `earlier` are trainings at the same provider, newest first. Those of the same base model
    count (None: of the newest one's); where there are none, those whose names tell their sizes,
    if this one's does.

    >>> before = TrainingTime(base_model="m-1B", method="supervised", tokens=1000, seconds=60)
    >>> estimate_time(2000, base_model="m-1B", method="supervised", earlier=[before]).seconds
    120.0
    >>> estimate_time(2000, base_model="m-1B", method="dpo", earlier=[before]).seconds
    180.0
    >>> estimate_time(2000, base_model="m-8B", method="supervised", earlier=[before]).seconds
    960.0
    """
    found = _comparable(earlier, base_model)
    work = sum(one.tokens * _passes(one.method) * size for one, size in found)
    if work <= 0:
        return None
    pace = sum(one.seconds for one, _ in found) / work
    return TimeEstimate(seconds=pace * tokens * _passes(method), trainings=len(found))


def _comparable(
    earlier: Sequence[TrainingTime], base_model: str | None
) -> list[tuple[TrainingTime, float]]:
    """The trainings that tell of this model, each with the size of its own beside this one's."""
    model = base_model or (earlier[0].base_model if earlier else "")
    same = [(one, 1.0) for one in earlier if one.base_model == model]
    size = size_b(model)
    if same or size is None:
        return same[:NEWEST]
    sized = [(one, size_b(one.base_model)) for one in earlier]
    return [(one, its / size) for one, its in sized if its][:NEWEST]


def _passes(method: str) -> float:
    return PASSES.get(method, PASSES["supervised"])


def size_b(model: str) -> float | None:
    """Billions of parameters, as the model's name says; None where it does not.

    >>> size_b("meta-llama/Meta-Llama-3.1-8B-Instruct-Reference")
    8.0
    >>> size_b("accounts/fireworks/models/qwen2p5-0p5b-instruct")
    0.5
    >>> size_b("SmolLM2-135M-Instruct")
    0.135
    """
    found = _SIZE.findall(model.replace("-", " ").replace("/", " ").replace("_", " "))
    units = {"b": 1.0, "m": 1000.0}
    sizes = (float(size.replace("p", ".")) / units[unit.lower()] for size, unit in found)
    return max(sizes, default=None)


def duration(seconds: float) -> str:
    """A length of time for people.

    >>> [duration(s) for s in (4, 100, 5400, 200_000)]
    ['less than a minute', '2 min', '1.5 h', '2.3 days']
    """
    if seconds < 60:
        return "less than a minute"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
