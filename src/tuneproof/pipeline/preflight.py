"""What a run asks before it spends anything: the provider, the model, the price, the budget."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from tuneproof import workflow
from tuneproof.collection import TrainingDataBatch
from tuneproof.errors import BudgetExceededError, ConfigError
from tuneproof.pipeline.context import RunContext
from tuneproof.training import (
    CostEstimate,
    Price,
    TimeEstimate,
    TrainingReadiness,
    estimate_time,
    estimate_training,
    preflight,
    trials,
)

Point = Mapping[str, int | float]
"""The hyperparameters of one trial; what is not named is as the settings say."""


@dataclass(frozen=True, kw_only=True)
class Cleared:
    """What the preflight found. Costs are in USD, None where no price is known.

    `cost_usd` is the estimate of all `points` together: the hyperparameters to try, one
    (empty) point where nothing is searched. `earlier_usd` is what earlier attempts of this run
    have spent. `time` is that of one job; None where no earlier training tells.
    """

    readiness: TrainingReadiness
    estimate: CostEstimate
    points: tuple[Point, ...] = ()
    price: Price | None = None
    cost_usd: float | None = None
    earlier_usd: float = 0.0
    month_usd: float = 0.0
    time: TimeEstimate | None = None
    detail: Mapping[str, object] = field(default_factory=dict)


class Preflight:
    """One durable step between the dataset and the first upload."""

    def __init__(self, run: RunContext) -> None:
        self._parts = run.parts
        self._id = run.id
        self._config = run.config.for_training

    async def check(self, batch: TrainingDataBatch, base: str) -> Cleared:
        """Ask everything. Raises `StopError`s and `ConfigError` where the run cannot go on."""
        config, now = self._config, self._parts.clock.now()
        provider = self._parts.provider(config.provider)
        readiness = await preflight(provider, base, config.method, now=now)
        price = self._parts.price(config.provider, base, config.method)
        estimate = await asyncio.to_thread(
            estimate_training,
            Path(batch.train_path),
            price,
            n_epochs=config.n_epochs,
            validation=Path(batch.validation_path) if batch.validation_path else None,
        )
        earlier = await self._parts.store.runs.spent_usd(config.name, run_id=self._id)
        month = await self._parts.store.runs.spent_usd(config.name, since=month_of(now))
        found = Cleared(
            readiness=readiness,
            estimate=estimate,
            price=price,
            earlier_usd=earlier,
            month_usd=month,
            time=estimate_time(
                estimate.trained_tokens,
                base_model=base,
                method=config.method,
                earlier=await self._parts.store.runs.training_times(config.provider),
            ),
        )
        return self._within_budget(found)

    def _within_budget(self, found: Cleared) -> Cleared:
        """The points that the budget has room for; at least one, or `BudgetExceededError`."""
        wanted = self._points()
        left, rule = self._left(found)
        if left is None:
            return replace(
                found, points=tuple(wanted), cost_usd=_sum(found, wanted), detail=_shown(found)
            )
        if found.estimate.cost_usd is None:
            raise ConfigError(
                f"{rule} is set, but no price is known for training {found.readiness.model!r} at "
                f"{self._config.provider}: nothing was spent.",
                mend=f"Set training_prices of providers.{self._config.provider} (USD per million "
                "trained tokens; 0 where it costs nothing).",
                field="training_prices",
            )
        kept: list[Point] = []
        for point in wanted:
            if (_sum(found, [*kept, point]) or 0.0) <= left + 1e-9:
                kept.append(point)
        if not kept:
            raise self._exceeded(found, left, rule)
        return replace(found, points=tuple(kept), cost_usd=_sum(found, kept), detail=_shown(found))

    def _points(self) -> list[Point]:
        config = self._config
        if config.search is None:
            return [{}]
        if config.search_method == "optuna":
            return [_dearest(config.search)] * config.search_trials  # chosen only on the way
        return list(trials(config.search, config.search_trials))

    def _left(self, found: Cleared) -> tuple[float | None, str]:
        """USD that may be spent now, and the rule that says so."""
        config = self._config
        rules = []
        if config.max_cost_usd is not None:
            rules.append((config.max_cost_usd - found.earlier_usd, "max_cost_usd"))
        if config.max_cost_usd_month is not None:
            rules.append((config.max_cost_usd_month - found.month_usd, "max_cost_usd_month"))
        return min(rules, default=(None, ""), key=lambda rule: rule[0] or 0.0)

    def _exceeded(self, found: Cleared, left: float, rule: str) -> BudgetExceededError:
        estimate = found.estimate
        limit = getattr(self._config, rule)
        return BudgetExceededError(
            f"Training {found.readiness.model} on {estimate.trained_tokens:,} tokens would cost "
            f"about ${estimate.cost_usd:,.2f}, and of {rule} = ${limit:,.2f} "
            f"${max(left, 0.0):,.2f} are left: nothing was spent.",
            mend=f"Raise training.{rule}, collect less (max_records), or name a cheaper "
            f"base_model; then: tuneproof run retry {self._id} --stage train",
            rule=rule,
            limit_usd=limit,
            left_usd=round(left, 6),
            estimated_usd=estimate.cost_usd,
        )


def month_of(at: datetime) -> datetime:
    """The beginning of the calendar month, UTC."""
    return at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _sum(found: Cleared, points: Sequence[Point]) -> float | None:
    """The estimate of all these trials: (tokens × epochs + evaluated tokens) of each × price."""
    estimate = found.estimate
    if estimate.cost_usd is None or found.price is None or found.price.training is None:
        return None
    epochs = sum(int(point.get("n_epochs", estimate.epochs)) for point in points)
    tokens = estimate.tokens * epochs + estimate.evaluated_tokens * len(points)
    return round(tokens * found.price.training / 1e6, 6)


def _dearest(space: Mapping[str, Sequence[int | float]]) -> Point:
    """The costliest point of a space from which the next one is only suggested on the way."""
    return {"n_epochs": max(space["n_epochs"])} if "n_epochs" in space else {}


def cost_of_trial(found: Cleared, point: Point) -> float | None:
    """What one trial was estimated to cost; None where no price is known."""
    return _sum(found, [point])


def time_of_trial(found: Cleared, point: Point) -> float | None:
    """How many seconds one trial was expected to take; None where nothing tells."""
    if found.time is None:
        return None
    epochs = found.estimate.epochs
    return found.time.seconds * int(point.get("n_epochs", epochs)) / epochs


def _shown(found: Cleared) -> dict[str, object]:
    """What the run's page says of the preflight."""
    readiness, estimate = found.readiness, found.estimate
    return {
        "account_may_train": readiness.account,
        "model_can_be_tuned": readiness.tunable,
        "shutdown_at": readiness.shutdown_at.isoformat() if readiness.shutdown_at else None,
        "tokens": estimate.tokens,
        "tokens_counted": estimate.counted,
        "epochs": estimate.epochs,
        "estimated_seconds": round(found.time.seconds) if found.time else None,
        "estimated_by_trainings": found.time.trainings if found.time else 0,
        "estimated_cost_usd": estimate.cost_usd,
        "price_source": estimate.price_source,
        "price_as_of": estimate.price_as_of,
    }


workflow.register(Cleared, CostEstimate, Price, TimeEstimate, TrainingReadiness)
