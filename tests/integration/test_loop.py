"""The loop, end to end, on both databases: how runs go, end, fail and go on."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from dbos import DBOS
from tests.integration.loop import QUICK, T0, open_loop, posts
from tests.waiting import eventually, stays

from tuneproof import FineTuningPipeline
from tuneproof.app import newest_tick, next_tick
from tuneproof.collection import PostQuery, SourceCheck
from tuneproof.errors import (
    ConfigError,
    ConflictError,
    ProviderUnavailableError,
    SafetyCheckError,
    StateError,
    StoreUnavailableError,
    TrainingNotAvailableError,
)
from tuneproof.experiments import Variant
from tuneproof.rollout import DeploymentState, Routing
from tuneproof.settings import PipelineConfig
from tuneproof.store import RunStatus
from tuneproof.testing import MemoryProvider, MemorySource, MemoryTarget
from tuneproof.training import VersionStatus

STAGES = ["collect", "curate", "train", "gate", "experiment", "rollout"]


def test_pipeline_without_a_config_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs its config"):
        FineTuningPipeline(config=None)


async def test_run_calls_every_stage_in_order(tmp_path: Path, database_url: str) -> None:
    async with open_loop(tmp_path, database_url) as loop:
        run = await loop.turn()
        assert run.status is RunStatus.SUCCESS
        assert {s: run.stages[s]["status"] for s in STAGES} == dict.fromkeys(STAGES, "completed")
        began = [run.stages[s]["started_at"] for s in STAGES]
        assert began == sorted(began)
        assert loop.provider.calls["create_job"] == 1
        [routing, _] = await loop.app.routing.all()
        version = run.result["model_version"]["model_id"]
        assert (routing.baseline.model_id, routing.lanes) == (version, ())
        [live] = await loop.app.store.versions.list()
        assert (live.status, live.version) == (VersionStatus.LIVE, "1.0.0")

        def counted() -> str:  # after its end is written
            told = loop.app.metrics.render("")[0].decode()
            ended = 'tuneproof_runs_total{pipeline="default",status="success"} 1.0'
            return told if ended in told else ""

        told = await eventually(counted)
        examples = sum(run.result["training_data"]["examples"].values())
        assert f"fine_tuning_pipeline_training_examples_total {examples:.1f}" in told


async def test_pipeline_runs_as_the_first_example_says(tmp_path: Path, database_url: str) -> None:
    async with open_loop(tmp_path, database_url) as loop:
        result = await FineTuningPipeline(config=QUICK, app=loop.app).run()
        assert result.status == "success"
        assert result.training_data is not None
        assert len(result.training_data.hook_examples) > 0
        assert result.experiment is not None
        assert result.experiment.verdict == "promote"


async def test_too_few_examples_skip_the_run_and_spend_nothing(
    tmp_path: Path, database_url: str
) -> None:
    async with open_loop(tmp_path, database_url, changes={"training_data_threshold": 5000}) as loop:
        run = await loop.turn()
        assert run.status is RunStatus.SKIPPED
        assert "training_data_threshold is 5000" in (run.reason or "")
        assert "create_job" not in loop.provider.calls
        assert await loop.app.routing.all() == []


async def test_empty_source_skips_with_a_reason(tmp_path: Path, database_url: str) -> None:
    async with open_loop(tmp_path, database_url, source=MemorySource([])) as loop:
        run = await loop.turn()
        assert run.status is RunStatus.SKIPPED
        assert (run.reason or "").startswith("0 examples")


async def test_no_better_candidate_is_rejected_and_loses_its_traffic(
    tmp_path: Path, database_url: str
) -> None:
    async with open_loop(tmp_path, database_url, lift=0.0) as loop:
        run = await loop.turn()
        assert run.status is RunStatus.REJECTED
        assert all(not r.lanes for r in await loop.app.routing.all())
        [version] = await loop.app.store.versions.list()
        assert version.status is VersionStatus.REJECTED


async def test_failing_gate_rejects_and_nothing_is_served(
    tmp_path: Path, database_url: str
) -> None:
    async with open_loop(tmp_path, database_url, changes={"gate_min_improvement": 0.99}) as loop:
        run = await loop.turn()
        assert run.status is RunStatus.REJECTED
        assert (run.reason or "").startswith("The gate said no")
        assert await loop.app.routing.all() == []


async def test_harm_during_the_rollout_is_taken_back_with_its_cause(
    tmp_path: Path, database_url: str
) -> None:
    async with open_loop(tmp_path, database_url, changes={"holdback_days": 10}) as loop:
        run = await loop.app.runs.start()
        await loop.app.runs.wait(run.id, seconds=60, holding_is_end=True)
        loop.traffic.lift = -0.6
        run = await loop.end(run.id)
        assert run.status is RunStatus.ROLLED_BACK
        assert "fell by more than 15%" in (run.reason or "")
        deployment = await loop.app.store.deployments.get(run.result["deployment_id"])
        assert deployment.evidence["trigger"] == "engagement_rate_drop"
        assert {r.baseline.model_id for r in await loop.app.routing.all()} == {"base"}
        [version] = await loop.app.store.versions.list()
        assert version.status is VersionStatus.ROLLED_BACK


async def test_gross_failure_is_taken_back_without_waiting_for_a_look(
    tmp_path: Path, database_url: str
) -> None:
    async with open_loop(tmp_path, database_url, changes={"holdback_days": 10}) as loop:
        run = await loop.app.runs.start()
        await loop.app.runs.wait(run.id, seconds=60, holding_is_end=True)
        loop.traffic.error_share = 1.0
        run = await loop.end(run.id)
        assert run.status is RunStatus.ROLLED_BACK
        assert "of the last 20 requests failed" in (run.reason or "")


async def test_person_rolls_back_a_completed_rollout_by_task(
    tmp_path: Path, database_url: str
) -> None:
    async with open_loop(tmp_path, database_url) as loop:
        run = await loop.turn()
        result = await loop.app.rollouts.rollback("hook", reason="complaints", actor="cli")
        assert result.restored_model == "base"
        assert result.seconds < 1
        again = await loop.app.rollouts.rollback(result.deployment_id, reason="again", actor="cli")
        assert again.reason == "complaints"
        assert {r.baseline.model_id for r in await loop.app.routing.all()} == {"base"}
        deeds = [a.action for a in (await loop.app.store.activity.page()).items]
        assert "rollout rollback" in deeds
        assert run.status is RunStatus.SUCCESS


async def test_second_run_is_refused_until_the_first_holds_and_then_supersedes_it(
    tmp_path: Path, database_url: str
) -> None:
    async with open_loop(tmp_path, database_url, changes={"holdback_days": 30}) as loop:
        first = await loop.app.runs.start()
        with pytest.raises(StateError, match="one at a time") as refused:
            await loop.app.runs.start()
        assert refused.value.details["reason"] == "predecessor_running"
        held = await loop.app.runs.wait(first.id, seconds=60, holding_is_end=True)
        assert held.status is RunStatus.HOLDING
        second = await loop.app.runs.start()
        ended = await loop.end(first.id)
        assert ended.status is RunStatus.SUCCESS
        deployment = await loop.app.store.deployments.get(ended.result["deployment_id"])
        assert (deployment.state, deployment.share) == ("complete", 1.0)
        await loop.app.runs.wait(second.id, seconds=60, holding_is_end=True)
        numbers = sorted(v.version for v in await loop.app.store.versions.list())
        assert numbers == ["1.0.0", "1.1.0"]


async def test_half_of_the_traffic_is_all_that_a_rollout_takes_by_itself(
    tmp_path: Path, database_url: str
) -> None:
    """Before: after its hold at 45 % it was "complete at 50 %", and served everybody."""
    async with open_loop(tmp_path, database_url, changes={"max_traffic": 0.5}) as loop:
        run = await loop.app.runs.start()
        rollouts = loop.app.store.deployments

        async def paused() -> bool:
            return any(d.state is DeploymentState.PAUSED for d in await rollouts.active())

        await eventually(paused)
        [waiting] = await rollouts.active()
        assert waiting.cause == (
            "It may serve 50% (max_traffic), and does: advance it to all, or take it back."
        )
        table = await loop.app.routing.all()
        assert {(r.baseline.model_id, r.only and r.only.share) for r in table} == {("base", 0.45)}
        await loop.app.rollouts.act(waiting.id, "advance", actor="ann", reason="to all")
        assert (await loop.end(run.id)).status is RunStatus.SUCCESS
        assert all(r.baseline.model_id != "base" for r in await loop.app.routing.all())


# --- failing, and going on ------------------------------------------------------------------


async def test_closed_provider_fails_the_run_and_says_how_to_switch(
    tmp_path: Path, database_url: str
) -> None:
    async with open_loop(tmp_path, database_url) as loop:
        loop.provider.raises["create_job"] = TrainingNotAvailableError(
            "This provider closed fine-tuning for this account.", mend="Change base_url."
        )
        run = await loop.turn()
        assert run.status is RunStatus.FAILED
        assert run.error is not None
        assert (run.error["type"], run.error["stage"]) == ("training-not-available", "train")
        assert run.error["mend"] == "Change base_url."
        del loop.provider.raises["create_job"]
        await loop.app.runs.retry(run.id)
        again = await loop.end(run.id)
        assert again.status is RunStatus.SUCCESS
        assert again.arguments["attempt"] == 2


class HeldTarget(MemoryTarget):
    """Applies no routing until it may, so that the run's end is known before the run returns."""

    def __init__(self) -> None:
        super().__init__()
        self.may = asyncio.Event()

    async def apply(self, routing: Routing) -> None:
        await self.may.wait()
        await super().apply(routing)


async def test_run_that_is_still_ending_can_be_retried(tmp_path: Path, database_url: str) -> None:
    target = HeldTarget()
    async with open_loop(tmp_path, database_url, targets=[target]) as loop:
        for task in QUICK.tasks:
            served = Routing(task=task, baseline=Variant(model_id="base"))
            await loop.app.store.routing.set(served)
        loop.provider.raises["create_job"] = TrainingNotAvailableError("Closed.", mend="Wait.")
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.FAILED
        assert not await loop.app.engine.ended(run.id)
        del loop.provider.raises["create_job"]
        retrying = asyncio.create_task(loop.app.runs.retry(run.id))
        await stays(lambda: not retrying.done())
        target.may.set()
        await retrying
        assert (await loop.end(run.id)).status is RunStatus.SUCCESS


async def test_retry_trains_as_the_settings_say_then(tmp_path: Path, database_url: str) -> None:
    provider = MemoryProvider(base_models=("base", "successor"))
    closed = TrainingNotAvailableError("Closed.", mend="Set training.base_model.")
    async with open_loop(tmp_path, database_url, provider=provider) as loop:
        provider.raises["create_job"] = closed
        run = await loop.turn()
        assert run.status is RunStatus.FAILED
    del provider.raises["create_job"]
    changes = {"base_model": "successor"}
    async with open_loop(tmp_path, database_url, provider=provider, changes=changes) as loop:
        await loop.app.runs.retry(run.id)
        again = await loop.end(run.id)
        assert again.status is RunStatus.SUCCESS
        assert again.result["model_version"]["base_model"] == "successor"


async def test_retry_from_a_stage_that_was_never_reached_says_so(
    tmp_path: Path, database_url: str
) -> None:
    async with open_loop(tmp_path, database_url, changes={"training_data_threshold": 5000}) as loop:
        run = await loop.turn()
        with pytest.raises(StateError, match="never came to its stage 'gate'"):
            await loop.app.runs.retry(run.id, stage="gate")


async def test_failed_job_is_retried_as_a_new_job_of_the_same_run(
    tmp_path: Path, database_url: str
) -> None:
    async with open_loop(tmp_path, database_url) as loop:
        loop.provider.fail_job = ("invalid_training_file", "Example 3 has no assistant message.")
        run = await loop.turn()
        assert run.status is RunStatus.FAILED
        assert run.error is not None
        assert run.error["details"]["code"] == "invalid_training_file"
        assert "Example 3" in run.error["message"]
        loop.provider.fail_job = None
        await loop.app.runs.retry(run.id)
        again = await loop.end(run.id)
        assert again.status is RunStatus.SUCCESS
        assert loop.provider.calls["create_job"] == 2


async def test_provider_outage_is_waited_for_and_noted(tmp_path: Path, database_url: str) -> None:
    async with open_loop(tmp_path, database_url) as loop:
        loop.provider.raises["find_file"] = ProviderUnavailableError("No answer.", mend="Wait.")
        run = await loop.app.runs.start()
        while loop.app.clock.now() < T0 + timedelta(minutes=10):
            await loop.app.runs.wait(run.id, seconds=0.05)
        noted = (await loop.app.store.runs.get(run.id)).stages["train"]["detail"]["note"]
        assert noted.startswith("No answer. The next try is at")
        del loop.provider.raises["find_file"]
        assert (await loop.end(run.id)).status is RunStatus.SUCCESS


async def test_outage_of_the_posts_is_waited_for_and_noted(
    tmp_path: Path, database_url: str
) -> None:
    class Away(MemorySource):
        """Posts that can be read from the third time on."""

        async def check(self, query: PostQuery) -> SourceCheck:
            if len(self.queries) < 2:
                self.queries.append(query)
                raise StoreUnavailableError("The table is away.")
            return await super().check(query)

    async with open_loop(tmp_path, database_url, source=Away(posts())) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.SUCCESS, run.reason
        assert "The table is away. The next try is at" in run.stages["collect"]["detail"]["note"]


async def test_abort_cancels_the_job_and_ends_the_run(tmp_path: Path, database_url: str) -> None:
    async with open_loop(tmp_path, database_url, changes={"timeout_seconds": 30_000_000}) as loop:
        loop.provider._polls = 10**9
        run = await loop.app.runs.start()
        while "job_id" not in (await loop.app.store.runs.get(run.id)).stages.get("train", {}).get(
            "detail", {}
        ):
            await loop.app.runs.wait(run.id, seconds=0.05)
        aborted = await loop.app.runs.abort(run.id, reason="changed my mind", actor="cli")
        assert aborted.run.status is RunStatus.ABORTED
        assert aborted.cleanup_status == "completed"
        assert "openai_job_cancelled" in aborted.resources_cleaned
        assert loop.provider.calls["cancel_job"] == 1


async def test_job_that_outlasts_its_timeout_is_cancelled(
    tmp_path: Path, database_url: str
) -> None:
    async with open_loop(tmp_path, database_url, changes={"timeout_seconds": 60}) as loop:
        loop.provider._polls = 10**9
        run = await loop.turn()
        assert run.status is RunStatus.FAILED
        assert "was still" in (run.reason or "")
        assert loop.provider.calls["cancel_job"] == 1


async def test_deployment_refuses_what_fails_a_safety_check(
    tmp_path: Path, database_url: str
) -> None:
    async with open_loop(tmp_path, database_url, lift=0.0) as loop:
        run = await loop.turn()
        test = await loop.app.store.experiments.get(run.result["ab_test_id"])
        with pytest.raises(SafetyCheckError, match="performance: reject") as refused:
            await loop.app.rollouts.deploy(model=test.candidate, ab_test_id=test.id)
        checks = {c["name"]: c["passed"] for c in refused.value.details["checks"]}
        assert checks == {
            "performance": False,
            "significance": False,
            "candidate answers": True,
            "baseline answers": True,
        }
        assert all(not r.lanes for r in await loop.app.routing.all())


async def test_test_of_its_own_is_looked_at_and_deployed_by_hand(
    tmp_path: Path, database_url: str
) -> None:
    provider = MemoryProvider(base_models=("base", "better"))
    async with open_loop(tmp_path, database_url, provider=provider) as loop:
        old, new = Variant(model_id="base"), Variant(model_id="better")
        [test] = await loop.app.experiments.create(baseline=old, candidates=[new])
        with pytest.raises(ConflictError, match="one candidate at a time"):
            await loop.app.experiments.create(baseline=old, candidates=[new])
        await loop.app.engine.result(test.id)
        evaluation = await loop.app.experiments.evaluation(test.id)
        assert evaluation is not None
        assert evaluation.recommendation == "promote"
        begun = await loop.app.rollouts.deploy(model=new, ab_test_id=test.id, strategy="immediate")
        await loop.app.engine.result(begun.id)
        assert (await loop.app.store.deployments.get(begun.id)).state == "complete"
        assert {r.baseline.model_id for r in await loop.app.routing.all()} == {"better"}


async def test_rollout_of_a_model_that_is_no_version_of_ours_can_be_taken_back(
    tmp_path: Path, database_url: str
) -> None:
    provider = MemoryProvider(base_models=("base", "better"))
    async with open_loop(tmp_path, database_url, provider=provider) as loop:
        manager = loop.app.managers.of(QUICK)
        stranger = Variant(model_id="better", version="their-own-7")
        declared = await manager.declare(stranger, Variant(model_id="base", version="their-6"))
        await manager.begin(declared.id)
        taken = await loop.app.rollouts.rollback(declared.id, reason="no good", actor="cli")
        assert taken.restored_model == "base"


async def test_run_that_the_engine_gave_up_is_failed_and_can_be_retried(
    tmp_path: Path, database_url: str
) -> None:
    async with open_loop(tmp_path, database_url, changes={"timeout_seconds": 30_000_000}) as loop:
        loop.provider._polls = 10**9
        run = await loop.app.runs.start()
        while "job_id" not in (await loop.app.store.runs.get(run.id)).stages.get("train", {}).get(
            "detail", {}
        ):
            await loop.app.runs.wait(run.id, seconds=0.05)
        await DBOS.cancel_workflow_async(run.id)
        assert await loop.app.runs.fail_given_up() == [run.id]
        failed = await loop.app.store.runs.get(run.id)
        assert failed.status is RunStatus.FAILED
        assert failed.error is not None
        assert failed.error["stage"] == "train"


# --- the schedule -----------------------------------------------------------------------------


def test_missed_ticks_coalesce_into_the_newest() -> None:
    config = PipelineConfig(weekly_schedule="0 2 * * 0")
    sunday = T0 - timedelta(days=1)
    assert newest_tick(config, sunday - timedelta(days=22), T0) == sunday
    assert newest_tick(config, sunday, T0) is None
    assert next_tick(config, T0) == sunday + timedelta(days=7)


def test_schedule_keeps_local_time_over_a_clock_change() -> None:
    config = PipelineConfig(weekly_schedule="0 2 * * 1", time_zone="Europe/Berlin")
    winter = next_tick(config, T0)
    summer = next_tick(config, T0 + timedelta(days=120))
    assert (winter.hour, summer.hour) == (1, 0)


async def test_due_tick_starts_one_run_and_a_second_is_skipped(
    tmp_path: Path, database_url: str
) -> None:
    changes = {"schedule_driver": "internal"}
    async with open_loop(tmp_path, database_url, changes=changes) as loop:
        assert await loop.app.schedule.tick(T0) == []
        later = T0 + timedelta(days=15)
        [started] = await loop.app.schedule.tick(later)
        assert await loop.app.schedule.tick(later) == []
        assert await loop.app.schedule.tick(later + timedelta(days=7)) == []
        skipped = [
            a for a in (await loop.app.store.activity.page()).items if a.action == "run skipped"
        ]
        assert [a.object_id for a in skipped] == ["default"]
        assert (await loop.end(started)).status is RunStatus.SUCCESS
