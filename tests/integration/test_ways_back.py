"""What serves a task changes by a test's verdict or a person's word, and there is a way back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.loop import QUICK
from tests.integration.test_watches import BASE, BETTER, standing, until_ended

from tuneproof.app import App
from tuneproof.errors import ConflictError, NotFoundError
from tuneproof.experiments import ABTest, ExperimentStatus, Variant
from tuneproof.rollout import Deployment, DeploymentManager, DeploymentState, Routing

STEPS = replace(QUICK, steps=(1.0,), holdback=0.0)


def manager_of(app: App, *tasks: str) -> DeploymentManager:
    return app.managers.of(replace(STEPS, tasks=tasks or QUICK.tasks))


async def ended_test(app: App, baseline: Variant, candidate: Variant) -> ABTest:
    [test] = await app.experiments.create(baseline=baseline, candidates=[candidate])
    await app.experiments.end(test.id, reason="enough")
    return test


async def completed(app: App, model: Variant, previous: Variant, *tasks: str) -> Deployment:
    manager = manager_of(app, *tasks)
    declared = await manager.declare(model, previous)
    begun = await manager.begin(declared.id)
    if begun.state is DeploymentState.PAUSED:  # it changed too often today
        begun = await manager.act(begun.id, "resume", actor="ann", reason="go on")
    done = await manager.act(begun.id, "advance", actor="ann", reason="go on")
    assert done.state is DeploymentState.COMPLETE
    return done


async def served(app: App, task: str = "hook") -> tuple[str, list[str]]:
    """The model in use of a task, and who is tested or rolled out there."""
    routing = await app.store.routing.get(task)
    assert routing is not None
    return routing.baseline.model_id, [*routing.subjects]


async def test_rollout_on_an_old_verdict_does_not_replace_the_model_in_use(
    tmp_path: Path, database_url: str
) -> None:
    """Seen: a verdict was deployed again after its rollout was complete, and the model that had
    been tested against came back into production, unchecked."""
    async with standing(tmp_path, database_url) as app:
        old = await ended_test(app, BASE, BETTER)
        await completed(app, BETTER, BASE)
        manager = manager_of(app)
        declared = await manager.declare(BETTER, BASE, ab_test_id=old.id)
        with pytest.raises(ConflictError, match=r"base is not the model in use of body, better"):
            await manager.begin(declared.id)
        assert await served(app) == ("better", [])


async def test_rollout_does_not_take_a_task_from_another_s_test(
    tmp_path: Path, database_url: str
) -> None:
    """Seen: the test stayed `running`, and got no unit any more."""
    async with standing(tmp_path, database_url) as app:
        old = await ended_test(app, BASE, BETTER)
        other = Variant(model_id="ft:other")
        manager = manager_of(app)
        [new] = await app.experiments.create(baseline=BASE, candidates=[BETTER], tasks=["hook"])
        declared = await manager.declare(other, BASE, ab_test_id=old.id)
        with pytest.raises(ConflictError, match=f"hook is busy with {new.id}"):
            await manager.begin(declared.id)
        assert await served(app) == ("base", [new.id])


async def test_complete_rollout_is_taken_back_also_while_a_test_runs_on_it(
    tmp_path: Path, database_url: str
) -> None:
    """Seen: the rollback said that base was restored, and better stayed in production."""
    async with standing(tmp_path, database_url) as app:
        done = await completed(app, BETTER, BASE)
        [test] = await app.experiments.create(baseline=BETTER, candidates=[BASE])
        back = await app.rollouts.rollback("hook", reason="complaints")
        assert (back.deployment_id, back.restored_model) == (done.id, "base")
        for task in done.tasks:
            assert await served(app, task) == ("base", [])
        ended = await app.store.experiments.get(test.id)
        assert (ended.status, ended.reason) == (ExperimentStatus.ABORTED, "complaints")
        await until_ended(app, test.id)


async def test_older_rollout_is_taken_back_after_the_newer_one(
    tmp_path: Path, database_url: str
) -> None:
    """Seen: taking back the older one by its id put the model before it into production, past the
    newer one, which stayed `complete`."""
    async with standing(tmp_path, database_url) as app:
        best = Variant(model_id="best")
        first = await completed(app, BETTER, BASE)
        second = await completed(app, best, BETTER)
        with pytest.raises(ConflictError, match=r"not the model in use any more, which is best"):
            await app.rollouts.rollback(first.id, reason="complaints")
        assert await served(app) == ("best", [])
        ids = [(await app.rollouts.rollback("hook", reason="no")).deployment_id for _ in range(2)]
        assert ids == [second.id, first.id]
        assert await served(app) == ("base", [])
        with pytest.raises(NotFoundError, match="nothing to take back"):
            await app.rollouts.rollback("hook", reason="no")


async def test_each_task_returns_to_the_model_that_it_had(
    tmp_path: Path, database_url: str
) -> None:
    """Seen: all tasks of the test got the model that one of them had had."""
    async with standing(tmp_path, database_url) as app:
        for task, model in (("hook", "one"), ("body", "two")):
            baseline = Variant(model_id=model)
            await app.store.routing.set(Routing(task=task, baseline=baseline))
        await app.experiments.create(baseline=BASE, candidates=[BETTER], replace_baseline=True)
        await app.rollouts.rollback("hook", reason="it was a mistake")
        assert [await served(app, task) for task in QUICK.tasks] == [("one", []), ("two", [])]
