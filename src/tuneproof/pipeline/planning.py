"""The plan that a run makes before it spends money: can its test succeed on this traffic?"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tuneproof import workflow
from tuneproof.collection import TrainingDataBatch
from tuneproof.errors import TuneProofError
from tuneproof.experiments import allot
from tuneproof.experiments.planning import CyclePlan, plan_cycle, read_history
from tuneproof.pipeline.records import Parts, RunArguments
from tuneproof.settings import PipelineConfig
from tuneproof.training import estimate_training


class Planning:
    """One durable step between the dataset and the training."""

    def __init__(
        self, parts: Parts, run_id: str, config: PipelineConfig, arguments: RunArguments
    ) -> None:
        self._parts = parts
        self._id = run_id
        self._config = config
        self._arguments = arguments

    async def plan(self, batch: TrainingDataBatch) -> CyclePlan:
        """What the cycle will find and cost, kept in the run's result."""
        plan: CyclePlan = await workflow.step("plan", self._planned, batch)
        await workflow.transaction("plan.end", self._write, plan)
        self._parts.hooks.run_changed(self._id)
        return plan

    def refusal(self, plan: CyclePlan) -> str:
        """Why this plan stops the run, in words; empty where it does not."""
        needed = self._config.plan_probability
        if self._config.plan_gate != "stop" or plan.probability is None:
            return ""
        if plan.probability >= needed:
            return ""
        return (
            f"The test cannot be expected to succeed, so nothing was spent. {plan.sentence()} "
            f"plan_probability asks for {needed:.0%}: give the test more time or a larger share, "
            f'or set plan_gate = "warn".'
        )

    async def _planned(self, batch: TrainingDataBatch) -> CyclePlan:
        config = self._config
        spent = await self._parts.store.spent(config.name)
        level = config.significance_threshold
        if config.loop_ledger:
            level = min(level, 2 * allot(spent, (), loop_alpha=config.loop_alpha).alpha)
        source = self._parts.source(config, self._arguments.posts)
        try:
            history = await read_history(source, batch.window)
            return plan_cycle(
                history,
                config,
                alpha=level,
                trained_tokens=await asyncio.to_thread(self._tokens_of, batch),
                prices=self._parts.prices(config),
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
        config, path = self._config, Path(batch.train_path)
        if not path.exists():
            return None
        price = self._parts.price(config.provider, config.base_model or "", config.method)
        return estimate_training(path, price, n_epochs=config.n_epochs).trained_tokens

    async def _write(self, tx: Any, plan: CyclePlan) -> None:
        shown = {**asdict(plan), "sentence": plan.sentence()}
        await self._parts.store.mark_run(
            self._id, "running", at=self._parts.clock.now(), result={"plan": shown}, tx=tx
        )
