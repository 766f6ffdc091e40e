"""The plan that a run makes before it spends money: can its test succeed on this traffic?"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path

from tuneproof import workflow
from tuneproof.collection import TrainingDataBatch
from tuneproof.errors import TuneProofError
from tuneproof.experiments import allot
from tuneproof.experiments.planning import CyclePlan, plan_cycle, read_history
from tuneproof.pipeline.context import RunContext
from tuneproof.pipeline.routing import model_in_use
from tuneproof.pipeline.steps import StepName
from tuneproof.settings import PipelineConfig
from tuneproof.training import TimeEstimate, estimate_time, estimate_training
from tuneproof.workflow import Tx


class PlanStage:
    """One durable step between the dataset and the training."""

    def __init__(self, run: RunContext) -> None:
        self._run = run

    async def plan(self, batch: TrainingDataBatch) -> CyclePlan:
        """What the cycle will find and cost, kept in the run's result."""
        made = await workflow.step(StepName.PLAN_MAKE, self._made, batch)
        await workflow.transaction(StepName.PLAN_END, self._write, made)
        self._run.changed()
        return made

    async def _made(self, batch: TrainingDataBatch) -> CyclePlan:
        config, parts = self._run.config, self._run.parts
        spent = await parts.store.experiments.spent(config.name)
        level = config.significance_threshold
        if config.loop_ledger:
            level = min(level, 2 * allot(spent, (), loop_alpha=config.loop_alpha).alpha)
        source = parts.source(config, self._run.arguments.posts)
        try:
            history = await read_history(source, batch.window)
            tokens = await asyncio.to_thread(self._tokens_of, batch)
            base = config.base_model or ""
            return plan_cycle(
                history,
                config,
                alpha=level,
                trained_tokens=tokens,
                training=await self._time_of(tokens),
                prices=await parts.prices(config, await model_in_use(self._run, base)),
            )
        except TuneProofError as error:  # a plan is advice: the run goes on and says why
            return CyclePlan(
                lift=config.min_engagement_lift,
                share=config.traffic_split,
                hours=config.a_b_test_duration_hours,
                alpha=level,
                decision=config.decision,
                reason=error.message.rstrip("."),
            )
        finally:
            await source.close()

    def _tokens_of(self, batch: TrainingDataBatch) -> float | None:
        """The tokens that a training on this dataset would be billed for, as a run counts them."""
        config, path = self._run.config.for_training, Path(batch.train_path)
        if not path.exists():
            return None
        price = self._run.parts.price(config.provider, config.base_model or "", config.method)
        return estimate_training(path, price, n_epochs=config.n_epochs).trained_tokens

    async def _time_of(self, tokens: float | None) -> TimeEstimate | None:
        config = self._run.config.for_training
        if tokens is None:
            return None
        return estimate_time(
            tokens,
            base_model=config.base_model,
            method=config.method,
            earlier=await self._run.parts.store.runs.training_times(config.provider),
        )

    async def _write(self, tx: Tx, plan: CyclePlan) -> None:
        await self._run.mark_run(tx, {"plan": {**asdict(plan), "sentence": plan.sentence()}})


def refusal(plan: CyclePlan, config: PipelineConfig) -> str:
    """Why this plan stops the run, in words; empty where it does not."""
    needed = config.plan_probability
    if config.plan_gate != "stop" or plan.probability is None or plan.probability >= needed:
        return ""
    return (
        f"The test cannot be expected to succeed, so nothing was spent. {plan.sentence()} "
        f"plan_probability asks for {needed:.0%}: give the test more time or a larger share, "
        f'or set plan_gate = "warn".'
    )
