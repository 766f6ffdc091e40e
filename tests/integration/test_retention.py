"""Raw events are forgotten by policy; what was summed up from them stays."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from tests.integration.loop import open_loop

from tuneproof.errors import StateError
from tuneproof.experiments import Arm, Exposure
from tuneproof.store import RunStatus


async def test_ended_experiments_and_rollouts_lose_their_raw_events_after_the_time(
    tmp_path: Path, database_url: str
) -> None:
    async with open_loop(tmp_path, database_url, changes={"retention_days": 30}) as loop:
        app = loop.app
        run = await loop.turn()
        assert run.status is RunStatus.SUCCESS
        subjects = sorted([run.result["ab_test_id"], run.result["deployment_id"]])
        assert await app.outcomes.forget() == [], "nothing is that old yet"
        kept = {s: await app.store.events.stored(s) for s in subjects}
        app.clock.restore(app.clock.now() + timedelta(days=31))
        assert sorted(await app.outcomes.forget()) == subjects
        assert await app.outcomes.forget() == []
        for subject in subjects:
            assert await app.store.events.stored(subject) == kept[subject]
            assert await app.store.events.newest(subject) == []
            with pytest.raises(StateError, match="are gone"):
                await app.store.events.recount(subject)
        deeds = [a.action for a in (await app.store.activity.page()).items]
        assert deeds.count("events forget") == 2


async def test_events_of_a_forgotten_experiment_are_refused(
    tmp_path: Path, database_url: str
) -> None:
    async with open_loop(tmp_path, database_url, changes={"retention_days": 1}) as loop:
        run = await loop.turn()
        subject = run.result["ab_test_id"]
        loop.app.clock.restore(loop.app.clock.now() + timedelta(days=3))
        await loop.app.outcomes.forget()
        late = Exposure(
            id="e", subject=subject, phase=1, arm=Arm.BASELINE, unit="u", at=loop.app.clock.now()
        )
        taken = await loop.app.events.record(exposures=[late])
        assert (taken.accepted, list(taken.unknown)) == (0, ["e"])


async def test_everything_is_kept_by_default(tmp_path: Path, database_url: str) -> None:
    async with open_loop(tmp_path, database_url) as loop:
        run = await loop.turn()
        loop.app.clock.restore(loop.app.clock.now() + timedelta(days=3650))
        assert await loop.app.outcomes.forget() == []
        subject = run.result["ab_test_id"]
        kept = await loop.app.store.events.stored(subject)
        assert await loop.app.store.events.recount(subject) == kept
