"""Values for what a job left at "auto".

Epochs are those of OpenAI's published rule: three, but enough for 100 examples to be seen and
few enough for 25,000 (data preparation and analysis, OpenAI cookbook, 2023). The learning rates
at multiplier 1 are those that the makers of TRL recommend for adapters: ten times what suits
full training.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from tuneproof_trainer.engines.protocol import Hyperparameters

__all__ = ["StepCount", "choose", "learning_rate", "schedule"]

_EPOCHS = 3
_FEWEST_SEEN = 100
_MOST_SEEN = 25_000
_MOST_EPOCHS = 25
_STEPS_WANTED = 50
_LARGEST_BATCH = 16
_BETA = 0.1
_RATES = {"supervised": 2e-4, "dpo": 1e-5}
_UNTRAINED_RATE = 25.0
"""A base that knows nothing has far to go: its learning rate is higher by this factor."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepCount:
    """How many steps a job has."""

    epochs: int
    per_epoch: int

    @property
    def steps(self) -> int:
        """All steps of the job."""
        return self.epochs * self.per_epoch


def choose(
    requested: Hyperparameters,
    method: Literal["supervised", "dpo"],
    examples: int,
    *,
    untrained: bool,
) -> Hyperparameters:
    """The values in force: those asked for, else ones that suit the number of examples."""
    rate = _UNTRAINED_RATE if untrained and method == "supervised" else 1.0
    beta = (requested.beta or _BETA) if method == "dpo" else None
    return Hyperparameters(
        n_epochs=requested.n_epochs or _epochs(examples),
        batch_size=min(requested.batch_size or _batch(examples), examples),
        learning_rate_multiplier=requested.learning_rate_multiplier or rate,
        beta=beta,
    )


def _epochs(examples: int) -> int:
    if examples * _EPOCHS < _FEWEST_SEEN:
        return min(_MOST_EPOCHS, _FEWEST_SEEN // examples)
    if examples * _EPOCHS > _MOST_SEEN:
        return max(1, _MOST_SEEN // examples)
    return _EPOCHS


def _batch(examples: int) -> int:
    """The largest power of two, up to 16, that leaves about 50 steps in each epoch."""
    batch = 1
    while batch < _LARGEST_BATCH and examples // (batch * 2) >= _STEPS_WANTED:
        batch *= 2
    return batch


def learning_rate(chosen: Hyperparameters, method: Literal["supervised", "dpo"]) -> float:
    """The highest learning rate of the job."""
    return _RATES[method] * (chosen.learning_rate_multiplier or 1.0)


def schedule(chosen: Hyperparameters, examples: int) -> StepCount:
    """The steps of a job with this many examples; the last batch of an epoch may be smaller."""
    batch = chosen.batch_size or 1
    return StepCount(epochs=chosen.n_epochs or 1, per_epoch=-(-examples // batch))
