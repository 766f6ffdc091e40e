"""Which hyperparameters to try: a small grid, or what Optuna suggests (extra `[search]`).

Both are deterministic: the same settings, seed and history give the same trial, so a run that
is taken up again after a kill asks for the jobs that it made before.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneproof.errors import ConfigError

Number = int | float

FORGOT = 100.0
"""What a model that lost its language counts more than one that did not, in nats."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One choice of hyperparameters, and how it did.

    `heldout_loss` is in nats per token. Training on preferences lowers the likelihood of better
    and worse answers alike, so its trials are told apart by `pair_loss` (nats a pair), with
    `pair_accuracy` and `pair_margin` (nats) beside it; one that `forgot` lost its language, and
    comes after all others.
    """

    number: int
    hyperparameters: Mapping[str, Number] = field(default_factory=dict)
    job_id: str | None = None
    model_id: str | None = None
    heldout_loss: float | None = None
    cost_usd: float | None = None
    error: str = ""
    pair_loss: float | None = None
    pair_accuracy: float | None = None
    pair_margin: float | None = None
    forgot: bool = False

    @property
    def value(self) -> float | None:
        """What a search wants to be as low as can be; None for a trial that failed."""
        found = self.heldout_loss if self.pair_loss is None else self.pair_loss
        return found + FORGOT if self.forgot and found is not None else found


def trials(space: Mapping[str, Sequence[Number]], most: int) -> list[dict[str, Number]]:
    """The grid's points in the order of its names and values, at most `most` of them.

    A grid that is larger is thinned evenly, so that its ends stay in.

    >>> trials({"n_epochs": [1, 2, 4], "batch_size": [8, 16]}, 3)
    [{'n_epochs': 1, 'batch_size': 8}, {'n_epochs': 2, 'batch_size': 16}, \
{'n_epochs': 4, 'batch_size': 16}]
    """
    points = [dict(zip(space, p, strict=True)) for p in itertools.product(*space.values())]
    if len(points) <= most:
        return points
    if most == 1:
        return points[:1]
    last = len(points) - 1
    return [points[-(-i * last // (most - 1))] for i in range(most)]


def suggest(
    space: Mapping[str, Sequence[Number]], history: Sequence[Trial], *, seed: int
) -> dict[str, Number]:
    """What Optuna's TPE sampler tries next, given the trials so far.

    Values between the least and the greatest of each name are tried, whole where all of them
    are whole. Raises `ConfigError` where Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as e:
        raise ConfigError(
            'search_method is "optuna", which is not installed.',
            mend='Install tuneproof[search], or set search_method to "grid".',
            field="search_method",
        ) from e
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {name: _distribution(optuna, values) for name, values in space.items()}
    sampler = optuna.samplers.TPESampler(seed=seed + len(history), n_startup_trials=3)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    for trial in history:
        if trial.value is not None:
            study.add_trial(
                optuna.trial.create_trial(
                    params=dict(trial.hyperparameters),
                    distributions=distributions,
                    value=trial.value,
                )
            )
    return dict(study.ask(distributions).params)


def _distribution(optuna: Any, values: Sequence[Number]) -> Any:
    found = optuna.distributions
    low, high = min(values), max(values)
    if all(isinstance(v, int) for v in values):
        return found.IntDistribution(low, high, log=low > 0 and high >= 8 * low)
    return found.FloatDistribution(low, high, log=low > 0 and high >= 8 * low)
