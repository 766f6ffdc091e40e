"""What a simulation found, beside what was promised of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["Record", "Row", "at_least", "at_most", "exactly", "share_error", "within"]

Row = Callable[[int, np.random.Generator], list["Record"]]
"""A row of the table: (runs, generator) to its records."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One figure. `careless` is what the usual answer gives on the very same data."""

    name: str
    ours: float
    standard_error: float
    goal: str
    met: bool
    careless: float | None = None
    careless_said: str = ""
    """What the careless answer is known to do; part of `met` where given."""
    runs: int = 0

    def to_dict(self) -> dict[str, Any]:
        """This record as JSON types."""
        return asdict(self)


def at_most(
    name: str, ours: float, limit: float, *, runs: int, error: float | None = None, **more: Any
) -> Record:
    """A record whose goal is a ceiling, judged with two standard errors of allowance."""
    se = share_error(ours, runs) if error is None else error
    met = more.pop("also", True) and ours - 2 * se <= limit
    return Record(
        name=name, ours=float(ours), standard_error=float(se), goal=f"<= {limit:g}",
        met=bool(met), runs=runs, **more,
    )  # fmt: skip


def at_least(
    name: str, ours: float, limit: float, *, runs: int, error: float | None = None, **more: Any
) -> Record:
    """A record whose goal is a floor, judged with two standard errors of allowance."""
    se = share_error(ours, runs) if error is None else error
    met = more.pop("also", True) and ours + 2 * se >= limit
    return Record(
        name=name, ours=float(ours), standard_error=float(se), goal=f">= {limit:g}",
        met=bool(met), runs=runs, **more,
    )  # fmt: skip


def within(
    name: str, ours: float, low: float, high: float, *, runs: int, error: float, **more: Any
) -> Record:
    """A record whose goal is a range, judged with two standard errors of allowance."""
    met = more.pop("also", True) and low - 2 * error <= ours <= high + 2 * error
    return Record(
        name=name, ours=float(ours), standard_error=float(error), goal=f"{low:g} to {high:g}",
        met=bool(met), runs=runs, **more,
    )  # fmt: skip


def exactly(name: str, ours: float, value: float, **more: Any) -> Record:
    """A record of arithmetic: no chance is in it."""
    return Record(
        name=name, ours=ours, standard_error=0.0, goal=f"= {value:g}", met=ours == value, **more
    )


def share_error(share: float, runs: int) -> float:
    """The standard error of a share of `runs`, never below that of a single case."""
    p = min(max(share, 0.5 / runs), 1 - 0.5 / runs)
    return math.sqrt(p * (1 - p) / runs)
