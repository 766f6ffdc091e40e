"""How the counts of one file are weighed against those that came before it.

The weights depend on how sure the file's own counts are in the context at hand (`confidence`):
where a file has seen what follows often, it decides; where it has not, its parent does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tuneproof_trainer.engines.ngram.kneser_ney import KneserNey, Rows

__all__ = ["CONFIDENCES", "Mix", "Weights", "confidence"]

_BOUNDS = (0.5, 0.2, 0.05)
CONFIDENCES = len(_BOUNDS) + 3
"""0 where no context was seen, then rising as a context gives less of its mass away; the last
is the first word of an answer, which decides its style."""

Weights = tuple[tuple[float, ...], ...]
"""For each confidence, shares that sum to one."""


def confidence(model: KneserNey, rows: Rows, *, first: bool) -> int:
    """How sure `model` is of what follows the contexts in `rows`; `first` at the first word."""
    if not rows:
        return 0
    if first:
        return CONFIDENCES - 1
    depth = len(rows) - 1
    gamma = model.levels[depth].gamma[rows[depth]]
    return 1 + sum(gamma < bound for bound in _BOUNDS)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """Weights of (parent, pooled, group), and what the prompt's own words are worth."""

    alone: Weights = ((0.9, 0.1), (0.5, 0.5), (0.3, 0.7), (0.15, 0.85), (0.05, 0.95), (0.1, 0.9))
    """Parent and pooled, for a kind of prompt without a model of its own."""

    grouped: Weights = (
        (0.8, 0.15, 0.05),
        (0.4, 0.3, 0.3),
        (0.2, 0.2, 0.6),
        (0.1, 0.1, 0.8),
        (0.05, 0.05, 0.9),
        (0.1, 0.1, 0.8),
    )
    """Parent, pooled and group, for a kind of prompt with one."""

    cache: float = 0.1
    """The share of the mass left over by a context that goes to the prompt's words."""

    boost: float = 4.0
    """By how much a prompt's word is likelier than the counts alone say."""

    spelled: float = 0.02
    """The share kept for words that are spelled, in every context."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Mix:
        """The mix that `dataclasses.asdict` and JSON made of one."""
        alone = tuple(map(tuple, data["alone"]))
        grouped = tuple(map(tuple, data["grouped"]))
        return cls(**(data | {"alone": alone, "grouped": grouped}))

    @classmethod
    def nothing(cls) -> Mix:
        """All weight on the parent."""
        alone: Weights = ((1.0, 0.0),) * CONFIDENCES
        grouped: Weights = ((1.0, 0.0, 0.0),) * CONFIDENCES
        return cls(alone=alone, grouped=grouped)

    def trained(self, strength: float) -> Mix:
        """These weights after more (`strength` > 1) or fewer passes over the file."""
        return dataclasses.replace(
            self,
            alone=tuple(_stronger(weights, strength) for weights in self.alone),
            grouped=tuple(_stronger(weights, strength) for weights in self.grouped),
        )


def _stronger(weights: Sequence[float], strength: float) -> tuple[float, ...]:
    raw = (weights[0], *(w * strength for w in weights[1:]))
    return tuple(w / sum(raw) for w in raw)
