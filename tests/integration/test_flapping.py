"""A verdict that was refuted moves no traffic, and a task does not go to and fro all day."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.integration.loop import QUICK
from tests.integration.test_watches import BASE, BETTER, later, standing

from tuneproof.app import App
from tuneproof.errors import ConflictError
from tuneproof.experiments import Variant
from tuneproof.rollout import (
    Deployment,
    DeploymentManager,
    DeploymentState,
    RollbackResult,
    Routing,
)

STEPS = replace(QUICK, holdback_days=0)


async def test_a_candidate_that_was_rolled_back_needs_a_new_test(
    tmp_path: Path, database_url: str
) -> None:
    """Before: it could be deployed again 20 s after its rollback, on its old verdict."""
    async with standing(tmp_path, database_url) as app:
        [old] = await app.experiments.create(baseline=BASE, candidates=[BETTER])
        await app.experiments.end(old.id, reason="enough")
        manager = app.managers.of(STEPS)
        first = await manager.declare(BETTER, BASE, ab_test_id=old.id)
        await manager.begin(first.id)
        await manager.rollback_model(first.id, "complaints")
        later(app, timedelta(seconds=20))
        with pytest.raises(ConflictError, match=f"rolled back by {first.id} .complaints") as no:
            await manager.declare(BETTER, BASE, ab_test_id=old.id)
        assert "Test it again" in no.value.mend
        [new] = await app.experiments.create(baseline=BASE, candidates=[BETTER])
        assert (await manager.declare(BETTER, BASE, ab_test_id=new.id)).candidate == BETTER


async def to_and_fro(manager: DeploymentManager) -> DeploymentState:
    declared = await manager.declare(BETTER, BASE)
    begun = await manager.begin(declared.id)
    if begun.state is DeploymentState.STEPPING:
        await manager.rollback_model(begun.id, "again")
    return begun.state


async def test_the_third_change_within_a_day_waits_for_a_person(
    tmp_path: Path, database_url: str
) -> None:
    async with standing(tmp_path, database_url) as app:
        manager = app.managers.of(STEPS)
        assert await to_and_fro(manager) is DeploymentState.STEPPING
        later(app, timedelta(hours=25))
        assert await to_and_fro(manager) is DeploymentState.STEPPING
        later(app, timedelta(hours=1))
        assert await to_and_fro(manager) is DeploymentState.PAUSED
        [paused] = await app.store.deployments.active()
        assert paused.cause == "hook, body changed 3 times within a day."
        resumed = await manager.act(paused.id, "resume", actor="ann", reason="all is well")
        assert resumed.state is DeploymentState.STEPPING


async def begin_after(app: App, reads: int) -> Deployment:
    """A rollout that begins after so many reads of the database."""
    for _ in range(reads):
        await app.store.routing.get("hook")
    manager = app.managers.of(STEPS)
    async with app.store.database.begin() as tx:
        declared = await manager.declare(BETTER, BASE, tx=tx)
        return await manager.begin(declared.id, tx=tx)


async def test_a_tasks_way_back_takes_no_rollout_with_it_that_began_meanwhile(
    tmp_path: Path, database_url: str
) -> None:
    """Before: the rollout was "stepping" and served nobody, its task was on the older baseline.

    Whoever comes first: a rollout under way is what its tasks serve, one that is over is not.
    """
    before = Variant(model_id="before")
    async with standing(tmp_path, database_url) as app:
        refused = 0
        for turn in range(24):
            later(app, timedelta(days=2))
            for baseline in (before, BASE):
                await app.store.routing.set(Routing(task="hook", baseline=baseline))
                await app.store.routing.set(Routing(task="body", baseline=baseline))
            back, begun = await asyncio.gather(
                app.rollouts.rollback("hook", reason="a mistake"),
                begin_after(app, turn % 12),
                return_exceptions=True,
            )
            refused += isinstance(back, ConflictError)
            assert isinstance(back, ConflictError | RollbackResult), back
            serving = await app.store.routing.get("hook")
            assert serving is not None
            if not isinstance(begun, Deployment):  # its baseline was no longer in use
                assert isinstance(begun, ConflictError), begun
                assert isinstance(back, RollbackResult), back
                assert (serving.baseline, serving.subjects) == (before, ()), turn
                continue
            rollout = await app.store.deployments.get(begun.id)
            assert serving.subjects == (() if rollout.state.final else (begun.id,)), turn
            if not rollout.state.final:
                await app.rollouts.rollback(begun.id, reason="the next turn")
        assert refused < 24
