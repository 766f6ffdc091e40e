"""A verdict that was refuted moves no traffic, and a task does not go to and fro all day."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.integration.loop import QUICK
from tests.integration.test_watches import BASE, BETTER, later, standing

from tuneproof.errors import ConflictError
from tuneproof.rollout import DeploymentManager, DeploymentState

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
