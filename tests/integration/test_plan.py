"""The plan before training: in a run, over the App, and what it stops."""

from __future__ import annotations

from pathlib import Path

from tests.integration.loop import T0, open_loop, posts

from tuneproof.store import RunStatus
from tuneproof.testing import MemorySource


async def test_run_keeps_its_plan_and_goes_on_by_default(tmp_path: Path, database_url: str) -> None:
    async with open_loop(tmp_path, database_url) as loop:
        run = await loop.turn()
        assert run.status is RunStatus.SUCCESS
        plan = run.result["plan"]
        assert plan["units_per_hour"] > 1
        assert "This traffic" in plan["sentence"]
        assert 0.04 < plan["alpha"] < 0.05


async def test_plan_that_cannot_succeed_stops_the_run_before_money_is_spent(
    tmp_path: Path, database_url: str
) -> None:
    changes = {"plan_gate": "stop", "plan_probability": 0.9}
    async with open_loop(tmp_path, database_url, changes=changes) as loop:
        run = await loop.turn()
        assert run.status is RunStatus.SKIPPED
        assert "nothing was spent" in (run.reason or "")
        assert "create_job" not in loop.provider.calls
        forced = await loop.turn(force=True)
        assert forced.status is RunStatus.SUCCESS


async def test_history_that_cannot_be_read_stops_nothing(tmp_path: Path, database_url: str) -> None:
    flat = [post._replace(engagement_rate=0.1) for post in posts()]
    changes = {"plan_gate": "stop"}
    async with open_loop(
        tmp_path, database_url, source=MemorySource(flat), changes=changes
    ) as loop:
        run = await loop.turn()
        assert run.status is RunStatus.SUCCESS
        assert run.result["plan"]["probability"] is None
        assert "all posts had the same rate" in run.result["plan"]["sentence"]


async def test_app_plans_without_a_run_and_knows_the_ledger(
    tmp_path: Path, database_url: str
) -> None:
    async with open_loop(tmp_path, database_url) as loop:
        assert loop.app.clock.now() == T0
        first = await loop.app.experiments.plan(share=0.5, hours=336)
        assert (first.share, first.hours) == (0.5, 336)
        await loop.turn()
        later = await loop.app.experiments.plan(share=0.5, hours=336, days_back=60)
        assert later.alpha < first.alpha
