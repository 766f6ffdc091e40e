"""Adaptive shares in a run: phases follow, the routing follows, the split is still checked."""

from __future__ import annotations

from pathlib import Path

from tests.integration.loop import open_loop

from tuneproof.store import RunStatus


async def test_share_moves_to_the_better_arm_phase_by_phase(
    tmp_path: Path, database_url: str
) -> None:
    changes = {"allocation": "thompson", "allocation_hours": 12, "traffic_split": 0.2}
    async with open_loop(tmp_path, database_url, changes=changes, lift=0.5) as loop:
        run = await loop.turn()
        assert run.status is RunStatus.SUCCESS
        test_id = run.result["ab_test_id"]
        phases = await loop.app.store.experiments.phases(test_id)
        assert [p.number for p in phases] == list(range(1, len(phases) + 1))
        assert phases[0].share == 0.2
        assert phases[-1].share == 0.5
        looks = await loop.app.experiments.looks(test_id)
        moved = [look for look in looks if "next_share" in look.inputs]
        assert [look.inputs["next_share"] for look in moved] == [p.share for p in phases[1:]]
        assert looks[-1].reweighted is not None
        cells = {(c["phase"], c["arm"]) for c in looks[-1].inputs["cells"]}
        assert {(p.number, "candidate") for p in phases} <= cells


async def test_share_stays_by_default(tmp_path: Path, database_url: str) -> None:
    async with open_loop(tmp_path, database_url) as loop:
        run = await loop.turn()
        phases = await loop.app.store.experiments.phases(run.result["ab_test_id"])
        assert len(phases) == 1
